"""One streaming session on the wire: bytes, frames and deadlines, and the one place where a session's failures end.

A session is up at `Begin`, not at the upgrade: bad keys and bad parameters are refused after a perfect handshake.
Every failure, before `Begin` or after, becomes one SessionClosed with advice for the next session. Any other exception
is a defect of ours and propagates.
"""

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import structlog
import trio
from trio_websocket import (
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)
from wsproto.utilities import ProtocolError

from roomtone.network import open_stream
from roomtone.protocol import messages
from roomtone.protocol.messages import Begin, Error, Malformed, Message, Termination, TurnMessage, Unknown
from roomtone.protocol.phases import Phase, step
from roomtone.speech.allowance import WIRE_BURST_BYTES, WIRE_RATIO, Allowance
from roomtone.speech.session_errors import (
    FAILURES,
    MAX_ERROR_BODY_BYTES,
    CloseEvidence,
    ExcessiveTraffic,
    Redaction,
    first_of,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

Connect: TypeAlias = Callable[[str], Awaitable[trio.abc.Stream]]
"""Opens the byte stream to the server of an address: TCP, with TLS for wss://. Tests give one that stays in memory."""

MAX_QUEUED_MESSAGES: Final = 64
"""Messages that wait for `receive`. When the queue is full, the connection is read no further, pongs included: the
back-pressure reaches the service."""

CLOSE_TIMEOUT_S: Final = 2.0
"""Seconds for the closing handshake. trio-websocket's own 60 s would hold a room on a dead network for a minute."""
TERMINATE_TIMEOUT_S: Final = 1.0
"""Seconds for Terminate when a session is left by cancellation: one that is only dropped may be billed until it would
have expired."""

_HEADERS: Final = (("User-Agent", "roomtone"), ("AssemblyAI-Version", "2025-05-12"))


class Connection:
    """A session that has begun. Any task may send; one task receives, and it alone learns how the session ended.

    Sending to a session that is over returns False: an exception there would cancel the receiver with the last turns
    and the Error message still in its queue. A task that is cancelled while it sends leaves half a frame behind, so the
    session must be left then.
    """

    def __init__(
        self, socket: WebSocketConnection, evidence: CloseEvidence, begin: Begin, early: Sequence[Message]
    ) -> None:
        self.begin = begin
        self._socket = socket
        self._evidence = evidence
        self._early = deque(early)
        self._phase = Phase.BEGUN
        self._sending = 0

    async def send_audio(self, frame: bytes) -> bool:
        """Send one frame, s16le mono, 50 to 1000 ms. Waits while the service does not read. False: it is over."""
        self._evidence.audio_bytes += len(frame)
        return await self._send(frame)

    async def send(self, text: str) -> bool:
        """Send one of the protocol's commands. Returns False if the session is over."""
        if text == messages.terminate():
            self._phase, _ = step(self._phase, "Terminate")
        return await self._send(text)

    async def ping(self) -> bool:
        """Returns True when the service has answered, and so has read all that was sent before; False if it is over.

        The wait has no limit of its own: the caller sets one.
        """
        answered = False
        # The library would wait without end for the pong of a connection that has ended.
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                nonlocal answered
                with suppress(ConnectionClosed, ProtocolError):
                    await self._socket.ping()
                    answered = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(ask)
            await self._evidence.ended.wait()
            nursery.cancel_scope.cancel()
        return answered

    async def receive(self) -> Message:
        """The next message. Raises SessionClosed after the last one, with what the Error message said if there was one.

        After an Error or a Termination the close must come within CLOSE_TIMEOUT_S.
        """
        message = self._early.popleft() if self._early else await _receive(self._socket, self._evidence)
        self._phase, expected = step(self._phase, message.kind)
        if not expected:
            self._evidence.note_odd("message.unexpected", kind=_kind(message), phase=self._phase.value)
        return message

    async def aclose(self) -> None:
        """Terminate, unless that was done, and close: within CLOSE_TIMEOUT_S, or TERMINATE_TIMEOUT_S when cancelled.
        Leaving `open_connection` does this.
        """
        is_cancelled = trio.current_effective_deadline() == -math.inf
        timeout = TERMINATE_TIMEOUT_S if is_cancelled else CLOSE_TIMEOUT_S
        with trio.CancelScope(deadline=trio.current_time() + timeout, shield=True):
            # After half a frame, which a cancelled sender leaves behind, nothing can be sent.
            if self._phase is Phase.BEGUN and not self._sending:
                await self.send(messages.terminate())
            with suppress(ConnectionClosed, ProtocolError):
                await self._socket.aclose()

    async def _send(self, message: str | bytes) -> bool:
        self._sending += 1
        # ProtocolError: the close went out between the library's look at its state and the send.
        with suppress(ConnectionClosed, ProtocolError):
            await self._socket.send_message(message)
            self._sending -= 1
            return True
        self._sending -= 1
        return False


@asynccontextmanager
async def open_connection(
    url: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    timeout: float = 10.0,
    connect: Connect | None = None,
) -> AsyncIterator[Connection]:
    """Open a session at the URL, which includes the query, and yield it when it has begun.

    `headers` hold the key and are never shown. TCP, TLS, the upgrade and `Begin` have `timeout` seconds together:
    trio-websocket's own timeout does not run while a server is silent. Leaving takes at most CLOSE_TIMEOUT_S,
    whatever the peer does, and TERMINATE_TIMEOUT_S when cancelled. A caller that wants the last turns sends Terminate
    and receives; any other session is terminated when it is left, and its last turns are dropped.

    Raises SessionClosed on entry; exceptions of the body pass unchanged.
    """
    evidence = CloseEvidence(Redaction(url, headers))
    inside: Exception | None = None
    reading = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        try:
            read = partial(_read, url, headers, connect or open_stream, evidence, reading)
            session = await _begin(nursery, read, evidence, timeout)
            reading.shield = True  # the connection outlives a cancellation by the goodbye
            try:
                yield session
            finally:
                await session.aclose()
        except Exception as error:  # noqa: BLE001 - raised below: in here the nursery would wrap it in a group
            inside = error
        finally:
            reading.cancel()
    if inside is not None:
        raise inside


class _Observed(trio.abc.Stream):
    """The byte stream, which notes what trio-websocket does not expose: the beginning of the answer, and the end.

    All that a server sends is bounded here, before every queue, the body of a refusal included.
    """

    def __init__(self, stream: trio.abc.Stream, evidence: CloseEvidence) -> None:
        self._stream = stream
        self._evidence = evidence
        self._allowance = Allowance(burst=WIRE_BURST_BYTES, rate=WIRE_RATIO)
        self.ended = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self.ended.set()
        if len(self._evidence.head) < MAX_ERROR_BODY_BYTES:
            self._evidence.head += data[:MAX_ERROR_BODY_BYTES]
        if not self._allowance.take(len(data), self._evidence.audio_bytes):
            raise ExcessiveTraffic
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.ended.set()
        await self._stream.aclose()


async def _read(
    url: str,
    headers: Sequence[tuple[str, str]],
    connect: Connect,
    evidence: CloseEvidence,
    reading: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[WebSocketConnection | None],
) -> None:
    """Own the connection: open it, read it until it has ended or `reading` is cancelled, close it. Its failures end in
    `evidence`.
    """
    upgraded = False
    try:
        with reading:
            stream = _Observed(await connect(url), evidence)
            try:
                async with trio.open_nursery() as nursery:
                    socket = await _upgrade(nursery, stream, url, headers)
                    upgraded = True
                    task_status.started(socket)
            finally:
                await trio.aclose_forcefully(stream)
    except* FAILURES as group:
        evidence.failure = first_of(group)
    finally:
        evidence.ended.set()
    if not upgraded:
        task_status.started(None)


async def _upgrade(
    nursery: trio.Nursery, stream: _Observed, url: str, headers: Sequence[tuple[str, str]]
) -> WebSocketConnection:
    parts = urlsplit(url)

    async def watch() -> None:
        # The library waits without end where a server closes before its answer, or after one without a length. An
        # answered upgrade has ended this watch before the end of the stream can be read: the library passes on first
        # what it has read.
        await stream.ended.wait()
        raise HandshakeError("the connection was closed before the upgrade")

    async with trio.open_nursery() as watching:
        watching.start_soon(watch)
        socket = await wrap_client_stream(
            nursery,
            stream,  # type: ignore[arg-type] # any trio.abc.Stream will do
            parts.netloc,
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            extra_headers=[(name.encode(), value.encode()) for name, value in (*_HEADERS, *headers)],
            message_queue_size=MAX_QUEUED_MESSAGES,
            max_message_size=messages.MAX_MESSAGE_BYTES,
        )
        watching.cancel_scope.cancel()
    return socket


async def _begin(
    nursery: trio.Nursery,
    read: Callable[..., Awaitable[None]],
    evidence: CloseEvidence,
    timeout: float,
) -> Connection:
    with trio.move_on_after(timeout):
        socket: WebSocketConnection | None = await nursery.start(read)
        if socket is None:
            raise evidence.judge(evidence.failure or HandshakeError("the connection was closed"))
        early: list[Message] = []
        while len(early) < MAX_QUEUED_MESSAGES:
            message = await _receive(socket, evidence)
            if isinstance(message, Begin):
                evidence.begun = True
                return Connection(socket, evidence, message, early)
            # A message that comes too early is used as if it had come in time.
            evidence.note_odd("message.unexpected", kind=_kind(message), phase=Phase.CONNECTING.value)
            early.append(message)
        raise evidence.closed(None, f"{MAX_QUEUED_MESSAGES} messages and no Begin among them")
    raise evidence.closed(evidence.status, f"no session within {timeout:g} s")


async def _receive(socket: WebSocketConnection, evidence: CloseEvidence) -> Message:
    """The next usable message. Raises SessionClosed after the last."""
    while True:
        with trio.move_on_at(evidence.deadline) as limit:
            message = await _next(socket, evidence)
        if limit.cancelled_caught:
            raise evidence.closed(1000 if evidence.error is None else None, "the service did not close the connection")
        if isinstance(message, Error | Termination):
            evidence.deadline = trio.current_time() + CLOSE_TIMEOUT_S
        if isinstance(message, Error):
            evidence.error = message
        elif message is not None:
            return message


def _kind(message: Message) -> str:
    """The message's name, if the protocol has it."""
    return "unknown" if isinstance(message, Unknown) else message.kind


async def _next(socket: WebSocketConnection, evidence: CloseEvidence) -> Message | None:
    """One message, or None for one that is unusable and harmless."""
    try:
        frame = await socket.get_message()
    except ConnectionClosed as closed:
        if closed.reason is None or closed.reason.code == 1006:
            # The reading task has seen what broke; it ends within the next moments, having closed the queue first.
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                await evidence.ended.wait()
        raise evidence.judge(evidence.failure or closed) from None
    try:
        return messages.parse(frame, evidence.leave_out)
    except Malformed as malformed:
        reason = evidence.redact(str(malformed))
        if malformed.kind in {None, TurnMessage.kind, Begin.kind}:
            # It contained words, or may have: the next session hears them again.
            raise evidence.closed(None, reason) from None
        evidence.note_odd("message.malformed", kind=malformed.kind, reason=reason)
        return None
