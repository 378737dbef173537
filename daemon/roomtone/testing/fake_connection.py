"""One connection to the fake service, from its upgrade on: the session's record, its stream and its faults."""

import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

from roomtone.protocol import messages as protocol
from roomtone.testing import faults as fault
from roomtone.testing.fake_session import FakeSession, FakeSettings, Manner, SessionRejected, settings_of
from roomtone.testing.faults import CLOSE_TEXTS, GARBLED, Fault, Faults

_CLOSING = 2.0


class ServiceRules(msgspec.Struct, frozen=True):
    """The rules for every connection of one service: the arguments of `open_service`."""

    manner: Manner
    faults: Faults
    key: str | None
    rush: float | None
    sessions_a_minute: int | None
    utc: Callable[[], float]


class SessionRecord:
    """The service's record of one connection. Times are trio's, in seconds; `ended` is the reason of its end.

    `crowded`: it exceeds `sessions_a_minute`.
    """

    def __init__(self, number: int, request: WebSocketRequest) -> None:
        self.number = number
        self.id = f"{number:08d}-0000-4000-8000-000000000000"
        self.path = urlsplit(request.path).path
        self.query = dict(parse_qsl(urlsplit(request.path).query))
        self.headers = {name.decode().lower(): value.decode() for name, value in request.headers}
        self.asked_at = trio.current_time()
        self.crowded = False
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.ended = ""
        self.audio_seconds = 0.0
        self.numbers: list[int] = []
        """The words that it heard, in order."""
        self.commands: list[str] = []
        self.changes: dict[str, Any] = {}

    @property
    def open_seconds(self) -> float:
        """The seconds that are billed: from Begin to the end."""
        if self.began_at is None:
            return 0.0
        return (trio.current_time() if self.ended_at is None else self.ended_at) - self.began_at


class FaultyStream(trio.abc.Stream):
    """The byte stream of one connection, which can stall and break."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._free = trio.Event()
        self._free.set()

    async def stall(self, duration: float | None) -> None:
        self._free = trio.Event()
        await trio.sleep(float("inf") if duration is None else duration)
        self._free.set()

    async def reset(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            # Closing with a linger of 0 s sends an RST; a stream in memory can only end.
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self._stream)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await self._free.wait()
        data = await self._stream.receive_some(max_bytes)
        await self._free.wait()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._free.wait()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._free.wait()
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class FakeConnection:
    """One accepted connection: the service's part from the upgrade to the close."""

    def __init__(
        self,
        record: SessionRecord,
        websocket: WebSocketConnection,
        line: FaultyStream,
        faults: Sequence[Fault],
        rules: ServiceRules,
    ) -> None:
        self._record = record
        self._websocket = websocket
        self._line = line
        self._faults = faults
        self._rules = rules
        self._sent = trio.Event()
        self._waiting: list[tuple[int, trio.Event]] = []
        self._thoughts: deque[tuple[float, str]] = deque()
        self._thinking = trio.Event()
        self._is_numb = False
        self._lag = 0.0
        # Bounded, and a full one loses nothing: the reader waits, like a service that cannot keep up.
        self._send, self._outbox = trio.open_memory_channel[tuple[float, str | bytes | None]](1000)

    async def run(self) -> None:
        """Serve the session until it has ended. Raises what trio-websocket raises when the line breaks."""
        try:
            settings = self._admit()
        except SessionRejected as refused:
            await self._fail(refused)
            return
        conversation = FakeSession(self._rules.manner, settings, self._record.number)
        if any(isinstance(one, fault.NoBegin) for one in self._faults):
            self._record.ended = "no Begin"
            while True:
                await self._websocket.get_message()
        lifetime = next((one.lifetime for one in self._faults if isinstance(one, fault.Expire)), 10_800.0)
        for one in self._faults:
            if isinstance(one, fault.TooEarly):
                await self._websocket.send_message(protocol.encode(protocol.TurnMessage(0, False, "w0")))
        name = next((one.id for one in self._faults if isinstance(one, fault.Name)), self._record.id)
        begin = conversation.begin(name, int(self._rules.utc() + lifetime))
        await self._websocket.send_message(protocol.encode(begin))
        self._record.began_at = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._think)
                nursery.start_soon(self._expire, lifetime)
                if conversation.settings.heartbeat:
                    nursery.start_soon(self._beat)
                for one in self._faults:
                    nursery.start_soon(self._commit, one)
                await self._read(conversation)
                nursery.cancel_scope.cancel()
        except* SessionRejected as group:
            await self._fail(_only(group))

    def _admit(self) -> FakeSettings:
        """The session's settings. Raises SessionRejected for a client that is not admitted, and for bad parameters."""
        given = self._record.headers.get("authorization") or self._record.query.get("token")
        if self._rules.key is not None and given is None:
            raise SessionRejected(1008, "Unauthorized Connection: Missing Authorization header")
        if self._rules.key is not None and given != self._rules.key:
            raise SessionRejected(1008, "Unauthorized Connection: Invalid API key")
        if self._record.crowded:
            raise SessionRejected(3009, "Unauthorized Connection: Too many concurrent sessions")
        return settings_of(self._record.query)

    def _check_rate(self) -> None:
        """Raises SessionRejected for audio that comes faster than anyone can speak."""
        audio, lasted = self._record.audio_seconds, self._record.open_seconds
        if self._rules.rush is not None and audio > 10 + self._rules.rush * lasted:
            raise SessionRejected(
                3007,
                "Input Duration Error: Audio Transmission Rate Exceeded: "
                f"Received {audio:.1f} sec. audio in {lasted:.1f} sec",
            )

    async def _read(self, conversation: FakeSession) -> None:
        settings = conversation.settings
        while True:
            with trio.move_on_after(settings.inactivity_timeout) as timeout:
                message = await self._websocket.get_message()
            if timeout.cancelled_caught:
                seconds = f"{settings.inactivity_timeout:g}"
                raise SessionRejected(
                    3006, f"Session terminated due to inactivity: No messages received for {seconds} seconds"
                )
            if isinstance(message, bytes):
                await self._hear(conversation, message)
            elif await self._execute(conversation, message):
                return

    async def _hear(self, conversation: FakeSession, audio: bytes) -> None:
        seconds = len(audio) / 2 / conversation.settings.rate
        if not protocol.MIN_FRAME_S <= seconds <= protocol.MAX_FRAME_S:
            raise SessionRejected(
                3007,
                f"Input Duration Error: Input Duration Violation: {seconds * 1000:.1f} ms. "
                "Expected between 50 and 1000 ms",
            )
        self._record.audio_seconds += seconds
        self._check_rate()
        await self._say(*conversation.hear(audio))
        self._record.numbers = conversation.numbers
        for words, event in self._waiting:
            if len(conversation.numbers) >= words:
                event.set()

    async def _execute(self, conversation: FakeSession, text: str) -> bool:
        """Execute the client's command. Returns True if it was the last one."""
        try:
            command = protocol.parse_command(text)
        except protocol.Malformed as malformed:
            raise SessionRejected(3006, f"User Input Validation Error: {malformed}") from None
        self._record.commands.append(command.type)
        match command.type:
            case "ForceEndpoint":
                await self._say(*conversation.end_turn())
            case "UpdateConfiguration":
                self._record.changes |= command.changes
                conversation.change(command.changes)
            case "Terminate":
                await self._terminate(conversation)
                return True
        return False

    async def _terminate(self, conversation: FakeSession) -> None:
        fault_ = next((one for one in self._faults if isinstance(one, fault.NoTermination)), None)
        if fault_ is not None and not fault_.close:
            await trio.sleep_forever()
        await self._say(*conversation.finish())
        if fault_ is None:
            audio, session = round(self._record.audio_seconds), round(self._record.open_seconds)
            await self._say(protocol.Termination(audio, session))
        self._record.ended = "terminated"
        await self._send.send((trio.current_time() + self._rules.manner.latency, None))
        await self._sent.wait()
        await self._close(1000, "Session Ended")

    async def _say(self, *messages: protocol.Message) -> None:
        due = trio.current_time() + self._rules.manner.latency + self._lag
        for message in fault.distort(self._faults, messages):
            if self._is_numb and not isinstance(message, protocol.Termination):
                continue
            if isinstance(message, protocol.LLMGatewayResponse) and self._rules.manner.thinking:
                self._thoughts.append((due + self._rules.manner.thinking, protocol.encode(message)))
                self._thinking.set()
            else:
                await self._send.send((due, protocol.encode(message)))

    async def _think(self) -> None:
        """Send answers of the language model, late and never after Termination."""
        while True:
            await self._thinking.wait()
            self._thinking = trio.Event()
            while self._thoughts:
                due, text = self._thoughts.popleft()
                await trio.sleep_until(due)
                await self._send.send((due, text))

    async def _write(self) -> None:
        async for due, text in self._outbox:
            await trio.sleep_until(due)
            if text is None:
                self._sent.set()
            else:
                await self._websocket.send_message(text)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(5)
            audio, lasted = self._record.audio_seconds * 1000, self._record.open_seconds * 1000
            await self._say(protocol.Heartbeat(round(audio), round(lasted), round(audio / lasted, 4), 0.0))

    async def _expire(self, lifetime: float) -> None:
        await trio.sleep(lifetime)
        raise SessionRejected(3008, CLOSE_TEXTS[3008])

    async def _commit(self, one: Fault) -> None:
        match one:
            case fault.Close(code=code, text=text):
                await self._reach(one.seconds, one.words)
                raise SessionRejected(code, CLOSE_TEXTS.get(code, "") if text is None else text)
            case fault.Drop(how=how):
                await self._reach(one.seconds, one.words)
                self._record.ended = how
                if how == "reset":
                    await self._line.reset()
                else:
                    await self._line.aclose()
                raise ConnectionClosed(None)
            case fault.Stall(duration=duration):
                await self._reach(one.seconds, one.words)
                await self._line.stall(duration)
            case fault.Numb():
                await self._reach(one.seconds, one.words)
                self._is_numb = True
            case fault.Lag(delay=delay):
                await self._reach(one.seconds, one.words)
                self._lag = delay
            case fault.Say(text=text, times=times):
                await self._reach(one.seconds, one.words)
                for number in range(times):
                    await self._send.send((trio.current_time(), text.replace("{n}", str(number))))
            case fault.Garble(message=name):
                await self._reach(one.seconds, one.words)
                await self._send.send((trio.current_time(), GARBLED[name]))

    async def _reach(self, seconds: float, words: int) -> None:
        await trio.sleep(seconds)
        if words > len(self._record.numbers):
            event = trio.Event()
            self._waiting.append((words, event))
            await event.wait()

    async def _fail(self, refused: SessionRejected) -> None:
        self._record.ended = str(refused)
        if refused.text:
            await self._websocket.send_message(protocol.encode(protocol.Error(refused.text, refused.code)))
        await self._close(refused.code, "See Error message for details" if refused.text else None)

    async def _close(self, code: int, reason: str | None) -> None:
        with trio.move_on_after(_CLOSING), suppress(ConnectionClosed):
            await self._websocket.aclose(code, reason)


def _only(group: BaseExceptionGroup[SessionRejected]) -> SessionRejected:
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first
