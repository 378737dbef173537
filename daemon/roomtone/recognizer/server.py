"""The v3 protocol for clients on this machine: sessions, each a socket, a stream of the engine and a bounded thread.

A session reads its socket at the pace of decoding and holds no more than QUEUE frames: a client that sends faster waits
at the socket. So "Audio Transmission Rate Exceeded" is never an error here, and a recording may be sent as fast as it
goes. A ping is answered when all audio sent before it has been taken, for the same reason.
"""

import math
import secrets
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs

import h11
import msgspec
import structlog
import trio
from msgspec import Meta
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream
from wsproto.utilities import ProtocolError

from roomtone.admission import Door, is_local
from roomtone.concurrency import RunSync, leaves_of
from roomtone.protocol.messages import (
    Begin,
    ClientCommand,
    Error,
    Heartbeat,
    Malformed,
    Message,
    Termination,
    encode,
    parse_command,
)
from roomtone.recognizer.engine import StreamEngine
from roomtone.recognizer.query import Parameters, SessionRefused, parse_query
from roomtone.recognizer.session import RecognizerSession

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

T = TypeVar("T")

PATHS = ("/v3/ws", "/")
API_VERSION = "2025-05-12"
MAX_QUEUED_FRAMES = 2  # frames between the socket and the decoder
SOCKET_BUFFER_BYTES = (
    32_768  # bytes of a session in the kernel; measured: a client at 16 kHz waits after 2.8 s of audio, else 5.4 s
)
HANDSHAKE_TIMEOUT_S = 5.0  # seconds
SEND_TIMEOUT_S = 30.0  # seconds that a client may leave its messages unread
CLOSE_TIMEOUT_S = 5.0  # seconds
HEARTBEAT_INTERVAL_S = 5.0  # seconds

_FAULTS = (
    ConnectionClosed,
    ProtocolError,
    h11.ProtocolError,
    OSError,
    UnicodeError,  # a header that is not ASCII
    trio.BrokenResourceError,
    trio.TooSlowError,
)
"""Faults of a client or its network."""


class EngineStuck(Exception):  # noqa: N818 - it says what is true
    """A call of the engine does not return. Its thread cannot be ended, so the owner of this process replaces it."""


class CannotServe(Exception):  # noqa: N818 - it says what is true of the options
    """The recognizer cannot start with these options. The text is one line for the operator."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the recognizer's process. `port` 0 is any free one; `token` None admits every client.

    `engine` to `options` are those of the table [recognizer]; see `engine.EngineSettings`.

    `sessions` bounds the memory, some 100 MB for each that hears speech at the same time; `longest` is in
    seconds. A call of the engine that takes more than `patience` seconds will never return.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    token: str | None = None
    engine: str | None = None
    model: str | None = None
    threads: Annotated[int, Meta(ge=1)] | None = None
    sha256: str | None = None
    options: dict[str, Any] = {}
    sessions: Annotated[int, Meta(ge=1)] = 16
    longest: Annotated[int, Meta(ge=1)] = 10_800
    patience: Annotated[float, Meta(gt=0)] = 60.0

    def __repr__(self) -> str:
        return f"Options({self.host}:{self.port}, engine={self.engine}, token={'(secret)' if self.token else None})"


@asynccontextmanager
async def open_server(engine: StreamEngine, options: Options) -> AsyncIterator["Server"]:
    """Serve until the context is left, which ends all sessions. Raises Unusable where the port cannot be had."""
    listener = await _listen(options.host, options.port)
    async with trio.open_nursery() as nursery:
        server = Server(engine, options, listener.socket.getsockname()[1])
        nursery.start_soon(partial(trio.serve_listeners, server.serve, [listener]))
        yield server
        nursery.cancel_scope.cancel()


class Server:
    """Its address, and the sessions that it has now. `run_sync` calls the engine."""

    def __init__(
        self, engine: StreamEngine, options: Options, port: int, *, run_sync: RunSync = trio.to_thread.run_sync
    ) -> None:
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.url = f"ws://{host}:{port}/v3/ws"
        self.sessions = 0
        self._connections = 0
        self._left = trio.lowlevel.ParkingLot()
        self._door = Door()
        self._engine = engine
        self._options = options
        self._run_sync = run_sync
        self._limiter = trio.CapacityLimiter(options.sessions)

    async def drained(self) -> None:
        """Return when all connections are closed: every session has ended, its close included."""
        while self._connections:
            await self._left.park()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, from its first byte to its end. What a client can do wrong ends here."""
        self._connections += 1
        try:
            with self._door.enter() as let_in:
                async with trio.open_nursery() as nursery:
                    request: WebSocketRequest | None = None
                    with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
                        request = await wrap_server_stream(nursery, stream, message_queue_size=MAX_QUEUED_FRAMES)
                    if request is not None:
                        await self._answer(request, let_in)
                    nursery.cancel_scope.cancel()
        except* _FAULTS as group:
            log.info("client.gone", errors=[type(error).__name__ for error in leaves_of(group)])
        finally:
            self._connections -= 1
            self._left.unpark_all()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _answer(self, request: WebSocketRequest, let_in: Callable[[], object]) -> None:
        path, _, query = request.path.partition("?")
        headers = {name.lower(): value.decode("latin-1") for name, value in request.headers}
        host = request._event.host  # noqa: SLF001 - wsproto takes it out of the headers, and trio-websocket hides it
        if not is_local(host, headers.get(b"origin")):
            await request.reject(403, body=b"for programs of this machine, by its address or a name without a dot\n")
            return
        if path not in PATHS:
            await request.reject(404, body=b"the streaming API is at /v3/ws\n")
            return
        connection = await request.accept()
        code, reason = 1000, "Session Ended"
        try:
            self._admit(headers.get(b"authorization"), query)
            parameters = parse_query(query)
            let_in()
            await self._run(connection, parameters, headers.get(b"assemblyai-version", API_VERSION))
        except SessionRefused as refused:
            code, reason = refused.code, "See Error message for details"
            await _send(connection, [Error(str(refused), refused.code)])
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            await connection.aclose(code, reason)

    def _admit(self, header: str | None, query: str) -> None:
        """Refuse who may not come in. The texts are the service's."""
        wanted = self._options.token
        if wanted is not None:
            given = header or next(iter(parse_qs(query).get("token", [])), "")
            if not given:
                raise SessionRefused(1008, "Unauthorized Connection: Missing Authorization header")
            if not secrets.compare_digest(given.encode(), wanted.encode()):
                raise SessionRefused(1008, "Unauthorized Connection: Invalid API key")
        if self.sessions >= self._options.sessions:
            raise SessionRefused(3009, "Too many concurrent sessions")

    async def _run(self, connection: WebSocketConnection, parameters: Parameters, version: str) -> None:
        self.sessions += 1
        try:
            with ExitStack() as stack:
                opening = self._engine.open(parameters.settings)
                stream = await self._call(partial(stack.enter_context, opening))
                session = RecognizerSession(parameters, stream, self._engine.rate, self._engine.info.capabilities)
                await _Conversation(connection, session, self._call, self._options.longest).run(
                    _configuration(self._engine, version)
                )
        finally:
            self.sessions -= 1

    async def _call(self, function: Callable[[], T]) -> T:
        """Call the engine in a thread. The engine is a plugin, so whatever it raises is contained here: 3005.

        A call is never left behind: its stream would be used, or given away, while it works.
        """
        with trio.CancelScope(shield=True), trio.move_on_after(self._options.patience):
            try:
                return await self._run_sync(function, abandon_on_cancel=True, limiter=self._limiter)
            except SessionRefused:
                raise
            except Exception as error:
                log.exception("engine.failed")
                raise SessionRefused(3005, "Session Cancelled: An error occurred") from error
        raise EngineStuck(f"a call of the engine {self._engine.info.name} does not return")


class _Conversation:
    """One session over its socket: who speaks when, and until when."""

    def __init__(
        self,
        connection: WebSocketConnection,
        session: RecognizerSession,
        call: Callable[[Callable[[], list[Message]]], Any],
        longest: int,
    ) -> None:
        self._connection = connection
        self._session = session
        self._call = call
        self._begun = trio.current_time()
        self._longest = longest
        self._beat = self._begun

    async def run(self, configuration: dict[str, Any]) -> None:
        """From Begin to Termination. Raises Refused where it ends otherwise."""
        expires = int(time.time()) + self._longest
        await _send(self._connection, [Begin(str(uuid.uuid4()), expires, configuration)])
        while True:
            match await self._receive():
                case ClientCommand("Terminate"):
                    break
                case ClientCommand("KeepAlive"):
                    continue
                case ClientCommand() as command:
                    answers = await self._call(partial(self._session.obey, command))
                case frame:
                    answers = await self._call(partial(self._session.hear, frame))
            await _send(self._connection, [*answers, *self._heartbeat()])
        await _send(self._connection, [*await self._call(self._session.finish), self._termination()])

    async def _receive(self) -> ClientCommand | bytes:
        """The client's next message. Raises Refused when the session's time is over or the client says nothing."""
        parameters = self._session.parameters
        waiting = trio.current_time()
        silent = waiting + (parameters.inactivity_timeout or math.inf)
        expiry = self._begun + self._longest
        while True:
            beat = self._beat + HEARTBEAT_INTERVAL_S if self._session.parameters.session_heartbeat else math.inf
            with trio.move_on_at(min(silent, expiry, beat)):
                message = await self._connection.get_message()
                return message if isinstance(message, bytes) else _parse(message)
            now = trio.current_time()
            if now >= expiry:
                raise SessionRefused(3008, "Session Expired: Maximum session duration exceeded")
            if now >= silent:
                seconds = parameters.inactivity_timeout
                raise SessionRefused(
                    3006, f"Session terminated due to inactivity: No messages received for {seconds} seconds"
                )
            await _send(self._connection, self._heartbeat())

    def _heartbeat(self) -> list[Message]:
        now = trio.current_time()
        if not self._session.parameters.session_heartbeat or now < self._beat + HEARTBEAT_INTERVAL_S:
            return []
        self._beat = now
        received, lasted = 1000 * self._audio_seconds(), 1000 * (now - self._begun)
        return [Heartbeat(round(received), round(lasted), round(received / lasted, 4))]

    def _termination(self) -> Message:
        return Termination(round(self._audio_seconds()), round(trio.current_time() - self._begun))

    def _audio_seconds(self) -> float:
        return self._session.samples / self._session.parameters.sample_rate


async def _listen(host: str, port: int) -> trio.SocketListener:
    """A listener whose connections hold little, so that a client feels it soon when it sends too fast."""
    try:
        [listener, *others] = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise CannotServe(f"cannot listen at {host}:{port}: {error}: choose another port, or 0 for any") from error
    for other in others:  # a name with several addresses: one is enough, and has one port
        await other.aclose()
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    return listener


async def _send(connection: WebSocketConnection, messages: Sequence[Message]) -> None:
    with trio.fail_after(SEND_TIMEOUT_S):
        for message in messages:
            await connection.send_message(encode(message))


def _parse(message: str) -> ClientCommand:
    try:
        return parse_command(message)
    except Malformed as error:
        raise SessionRefused(3006, f"User Input Validation Error: {error}") from None


def _configuration(engine: StreamEngine, version: str) -> dict[str, Any]:
    """The configuration in `Begin`: the real one, so that a client does not assume another model or feature."""
    return {
        "model": engine.info.name,
        "engine": engine.info.engine,
        "mode": None,
        "api_version": version,
        "speaker_labels": False,
        "redact_pii": False,
        "filter_profanity": False,
        "domain": None,
        "voice_focus": None,
    }
