"""The recognizer as the official SDK's asynchronous client sees it, and as clients that mean it no good do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from assemblyai.streaming.v3 import (
    AsyncStreamingClient,
    SpeechModel,
    StreamingClientOptions,
    StreamingEvents,
    StreamingParameters,
    StreamingSessionParameters,
)
from trio.testing import MockClock, lockstep_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection

from roomtone.recognizer.engine import EngineInfo, Hypothesis, Spoken, TurnSettings
from roomtone.recognizer.server import HANDSHAKE_TIMEOUT_S, SEND_TIMEOUT_S, CannotServe, Options, Server, open_server
from roomtone.testing.inline import run_inline
from support.word_error import RATE, client

# The SDK reads how a connection closed in a way that the newest websockets advises against.
pytestmark = pytest.mark.filterwarnings(r"ignore:ConnectionClosed\.:DeprecationWarning")

FRAME = bytes(2 * RATE // 10)  # 100 ms


class Counter:
    """An engine whose streams show, as one word a frame, the pause and the threshold that end a turn now."""

    info = EngineInfo("counter", "abacus")
    rate = RATE

    @contextmanager
    def open(self, settings: TurnSettings) -> Iterator["CounterStream"]:
        yield CounterStream(settings)


class CounterStream:
    def __init__(self, settings: TurnSettings) -> None:
        self._settings = settings
        self._words: tuple[Spoken, ...] = ()
        self._position = 0

    @property
    def speaking(self) -> bool:
        return bool(self._words)

    def configure(self, settings: TurnSettings) -> None:
        self._settings = settings

    def feed(self, audio: bytes) -> list[Hypothesis]:
        start, self._position = self._position, self._position + len(audio) // 2
        if not any(audio):
            return []
        text = f"{self._settings.silence}/{self._settings.threshold}"
        self._words += (Spoken(text, start, self._position, 0.5),)
        return [Hypothesis(self._words, final=False)]

    def endpoint(self) -> list[Hypothesis]:
        words, self._words = self._words, ()
        return [Hypothesis(words, final=True)] if words else []


class Heard:
    """What came to one client, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def of(self, name: str) -> list[Any]:
        return [message for kind, message in self.events if kind == name]

    async def wait(self, name: str, count: int = 1) -> None:
        async with asyncio.timeout(60):
            while len(self.of(name)) < count:  # noqa: ASYNC110 - the SDK's handlers may run in any order
                await asyncio.sleep(0.01)


def speak_to(url: str, talk: Callable[[AsyncStreamingClient, Heard], Awaitable[None]], **parameters: Any) -> Heard:
    """One session of the official client, from Begin to Termination unless the server ends it."""

    async def session() -> Heard:
        heard = Heard()
        official = AsyncStreamingClient(
            StreamingClientOptions(
                api_host=url.removesuffix("/v3/ws"), api_key="key", connect_timeout=30, terminate_timeout=60
            )
        )
        for event in StreamingEvents:
            official.on(event, lambda _client, message, name=event.name: heard.events.append((name, message)))
        await official.connect(StreamingParameters(**{"sample_rate": RATE, **parameters}))
        await talk(official, heard)
        await official.disconnect(terminate=True)
        return heard

    return asyncio.run(session())


async def repeat(frame: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield frame


async def test_every_command_of_the_sdk() -> None:
    """What it can ask for is done in the order in which it was asked, and what comes back is what it was promised."""

    async def talk(official: AsyncStreamingClient, heard: Heard) -> None:
        await official.stream(repeat(FRAME, 12))
        await heard.wait("Silence")
        await official.stream(repeat(b"\1" * len(FRAME), 2))
        await official.force_endpoint()
        await official.keep_alive()
        await official.set_params(
            StreamingSessionParameters(max_turn_silence=2000, min_turn_silence=900, vad_threshold=0.7)
        )
        await official.stream(repeat(b"\1" * len(FRAME), 1))
        await heard.wait("Heartbeat")

    async with open_server(Counter(), Options()) as server:
        heard = await trio.to_thread.run_sync(
            lambda: speak_to(
                server.url,
                talk,
                speech_model=SpeechModel.universal_streaming_english,
                end_of_turn_confidence_threshold=0.0,
                min_turn_silence=300,
                max_turn_silence=1000,
                vad_threshold=0.25,
                session_heartbeat=True,
                acknowledge_silence=True,
            )
        )

    assert heard.of("Error") == []
    assert [kind for kind, _ in heard.events if kind != "Heartbeat"] == [
        *("Begin", "Silence", "Turn", "Turn", "Turn", "Turn", "Turn", "Termination")
    ]
    turns = heard.of("Turn")
    assert [(turn.turn_order, turn.end_of_turn) for turn in turns] == [
        *((0, False), (0, False), (0, True), (1, False), (1, True))
    ]
    assert [turn.transcript for turn in turns if turn.end_of_turn] == ["300/0.25 300/0.25", "900/0.7"]
    assert [(word.start, word.end) for word in turns[2].words] == [(1200, 1300), (1300, 1400)]
    assert heard.of("Termination")[0].audio_duration_seconds == 2  # 1.5


@pytest.mark.parametrize(
    ("parameters", "frame", "code"),
    [
        ({"vad_threshold": 7}, FRAME, 3006),
        ({"sample_rate": 7000}, FRAME, 3006),
        ({}, bytes(2 * RATE + 2), 3007),
        ({}, b"\1", 3006),
    ],
    ids=["threshold", "rate", "frame too long", "half a sample"],
)
async def test_an_error_reaches_the_client_once(parameters: dict[str, Any], frame: bytes, code: int) -> None:
    """With the code by which the SDK's users tell what to do, and no second one for the close."""

    async def talk(official: AsyncStreamingClient, heard: Heard) -> None:
        await official.stream(repeat(frame, 1))
        await heard.wait("Error")

    async with open_server(Counter(), Options()) as server:
        heard = await trio.to_thread.run_sync(lambda: speak_to(server.url, talk, **parameters))
        with trio.fail_after(30):
            await server.drained()

    assert [error.code for error in heard.of("Error")] == [code]


async def test_a_port_in_use_is_said() -> None:
    """In one line that names it, for a person."""
    async with open_server(Counter(), Options()) as server:
        port = int(server.url.removesuffix("/v3/ws").rpartition(":")[2])
        with pytest.raises(CannotServe, match=f"127.0.0.1:{port}.*choose another port"):
            await open_server(Counter(), Options(port=port)).__aenter__()


UPGRADE = (
    b"GET /v3/ws?sample_rate=16000 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize("request_", [b"", UPGRADE[:40], UPGRADE], ids=["nothing", "half a request", "no reading"])
async def test_a_client_that_does_nothing_is_left(request_: bytes, autojump_clock: MockClock) -> None:
    """Who connects and says nothing, or asks for a session and does not read, has seconds for it and holds no place."""
    server = Server(Counter(), Options(), port=0, run_sync=run_inline)
    ours, theirs = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        if request_:
            await ours.send_all(request_)
        answer = b""
        while request_ == UPGRADE and b"\r\n\r\n" not in answer:
            answer += await ours.receive_some(1)
        with trio.fail_after(SEND_TIMEOUT_S + HANDSHAKE_TIMEOUT_S):
            await trio.sleep(1)
            await server.drained()
    assert server.sessions == 0


async def test_ten_megabytes_at_once_are_not_read() -> None:
    """A frame beyond every bound ends its connection before it is in memory, and the next client is served."""

    async def overwhelm(socket: WebSocketConnection) -> None:
        await socket.send_message(bytes(10 << 20))
        while True:
            await socket.get_message()

    async with open_server(Counter(), Options(sessions=1)) as server:
        async with client(f"{server.url}?sample_rate={RATE}") as socket:
            assert "Begin" in await socket.get_message()
            with trio.fail_after(30):
                with pytest.raises(ConnectionClosed):
                    await overwhelm(socket)
                await server.drained()
        async with client(f"{server.url}?sample_rate={RATE}") as socket:
            assert "Begin" in await socket.get_message()
