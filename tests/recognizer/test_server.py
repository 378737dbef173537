"""roomtone.recognizer: the v3 protocol as its clients see it, over real sockets, with the official SDK among them."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
import trio.testing
from assemblyai.streaming.v3 import (
    SpeechModel,
    StreamingClient,
    StreamingClientOptions,
    StreamingEvents,
    StreamingParameters,
)
from assemblyai.streaming.v3.models import LLMGatewayConfig, LLMGatewayMessage
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from roomtone.admission import MAX_PENDING
from roomtone.recognizer.engine import EngineInfo, EngineSettings, Hypothesis, Spoken, StreamEngine, TurnSettings
from roomtone.recognizer.server import HANDSHAKE_TIMEOUT_S, Options, Server, open_server
from roomtone.recognizer.sphinx import open_engine
from roomtone.speech.recognizer_process import open_recognizer
from roomtone.testing.inline import run_inline
from support.word_error import RATE, THREE_LINES, client, demo_audio, demo_lines, frames, noise, word_error_rate

FRAME = bytes(2 * RATE // 10)  # 100 ms
TERMINATE = '{"type":"Terminate"}'


class Parrot:
    """An engine that says one word a frame at once, its number in this session: fast, and easy to predict."""

    info = EngineInfo("parrot", "tropical")
    rate = RATE

    def open(self, settings: TurnSettings) -> AbstractContextManager["ParrotStream"]:
        return self._open()

    @contextmanager
    def _open(self) -> Iterator["ParrotStream"]:
        yield ParrotStream()


class ParrotStream:
    speaking = False

    def __init__(self) -> None:
        self.count = 0

    def configure(self, settings: TurnSettings) -> None:
        pass

    def feed(self, audio: bytes) -> list[Hypothesis]:
        if not audio:
            return []
        self.count += 1
        return [Hypothesis((Spoken(f"w{self.count}", 0, RATE, 0.9),), final=True)]

    def endpoint(self) -> list[Hypothesis]:
        return [Hypothesis((Spoken("last", 0, RATE, 0.9),), final=True)]


class Faulty(Parrot):
    """A parrot whose streams do what a function does when they are fed."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault

    @contextmanager
    def _open(self) -> Iterator[ParrotStream]:
        stream = ParrotStream()
        feed = stream.feed

        def fail(audio: bytes) -> list[Hypothesis]:
            self.fault()
            return feed(audio)

        stream.feed = fail  # type: ignore[method-assign]
        yield stream


@asynccontextmanager
async def serving(engine: StreamEngine | None = None, **options: Any) -> AsyncIterator[Server]:
    async with open_server(engine or Parrot(), Options(**options)) as server:
        yield server


def session(
    server: Server, *, headers: dict[str, str] | None = None, path: str = "/v3/ws", **parameters: object
) -> AbstractAsyncContextManager[WebSocketConnection]:
    query = urlencode({"sample_rate": RATE, **parameters})
    return client(f"{server.url.removesuffix('/v3/ws')}{path}?{query}", headers)


async def receive(socket: WebSocketConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await socket.get_message())
    return message


async def rest(socket: WebSocketConnection) -> tuple[list[dict[str, Any]], CloseReason]:
    """Everything that still comes, and how it ends."""
    messages: list[dict[str, Any]] = []

    async def collect() -> None:
        while True:
            messages.append(await receive(socket))

    with pytest.raises(ConnectionClosed) as closed:
        await collect()
    assert closed.value.reason is not None
    return messages, closed.value.reason


async def expect_error(socket: WebSocketConnection, code: int, text: str) -> None:
    """The next message is this Error, the close has its code, and nothing comes between them."""
    messages, reason = await rest(socket)
    assert [message["type"] for message in messages] == ["Error"]
    assert messages[0]["error_code"] == code
    assert text in messages[0]["error"]
    assert (reason.code, reason.reason) == (code, "See Error message for details")


# --- a whole session -------------------------------------------------------------------------------------------------


async def test_a_session_from_begin_to_termination() -> None:
    """Begin first with whole seconds and eight keys; the last turn, Termination with whole numbers, close 1000."""
    async with serving() as server, session(server, headers={"AssemblyAI-Version": "2026-01-01"}) as socket:
        begin = await receive(socket)
        assert begin["type"] == "Begin"
        assert uuid.UUID(begin["id"])
        assert type(begin["expires_at"]) is int
        assert begin["configuration"] == {
            "model": "parrot-tropical",
            "engine": "parrot",
            "mode": None,
            "api_version": "2026-01-01",
            "speaker_labels": False,
            "redact_pii": False,
            "filter_profanity": False,
            "domain": None,
            "voice_focus": None,
        }
        for _ in range(20):
            await socket.send_message(FRAME)
        await socket.send_message(TERMINATE)
        messages, reason = await rest(socket)
        turns = [message for message in messages if message["type"] == "Turn"]
        assert [turn["turn_order"] for turn in turns] == list(range(21))
        assert turns[-1]["transcript"] == "Last."
        assert messages[-1]["type"] == "Termination"
        assert messages[-1]["audio_duration_seconds"] == 2
        assert type(messages[-1]["session_duration_seconds"]) is int
        assert (reason.code, reason.reason) == (1000, "Session Ended")
        assert server.sessions == 0


async def test_a_turn_has_every_field_of_the_protocol() -> None:
    """Clients that check messages strictly find what they look for, of the type that they look for."""
    async with serving() as server, session(server) as socket:
        await socket.send_message(FRAME)
        await receive(socket)
        started, turn = await receive(socket), await receive(socket)
        assert started == {"type": "SpeechStarted", "timestamp": 0, "confidence": 0.9}
        assert turn == {
            "type": "Turn",
            "turn_order": 0,
            "turn_is_formatted": True,
            "end_of_turn": True,
            "transcript": "W1.",
            "end_of_turn_confidence": 1,
            "utterance": "W1.",
            "words": [{"start": 0, "end": 1000, "text": "W1.", "confidence": 0.9, "word_is_final": True}],
        }
        assert type(turn["words"][0]["start"]) is int


async def test_the_demo_by_our_own_client() -> None:
    """Some of the recording as fast as it goes: partials, one final a sentence, words in order, few of them wrong."""
    audio, lines = demo_audio(THREE_LINES), demo_lines()[:3]
    async with (
        serving(await trio.to_thread.run_sync(open_engine, EngineSettings())) as server,
        session(server) as socket,
    ):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for frame in frames(audio):
                    await socket.send_message(frame)
                await socket.send_message(TERMINATE)

            nursery.start_soon(send)
            messages, reason = await rest(socket)
        finals = [m for m in messages if m["type"] == "Turn" and m["end_of_turn"]]
        assert reason.code == 1000
        assert len(finals) == len(lines)
        assert sum(m["type"] == "Turn" and not m["end_of_turn"] for m in messages) > len(finals)
        assert word_error_rate(" ".join(lines), " ".join(turn["transcript"] for turn in finals)) < 0.25
        times = [(word["start"], word["end"]) for turn in finals for word in turn["words"]]
        assert times == sorted(times)
        assert messages[-1]["audio_duration_seconds"] == round(len(audio) / 2 / RATE)


# The SDK calls websockets in a way that its newest version advises against.
@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")
async def test_the_demo_by_the_official_client() -> None:
    """AssemblyAI's own SDK, which checks every message, is served like by AssemblyAI, by a process of its own."""
    # The SDK gives up when a ping is not answered within 20 s, and its ping stands behind all that it has sent.
    audio, lines = demo_audio(THREE_LINES), demo_lines()[:3]
    seen: dict[str, list[Any]] = {event.name: [] for event in StreamingEvents}

    def transcribe(host: str, token: str) -> None:
        client = StreamingClient(
            StreamingClientOptions(api_host=host, api_key=token, connect_timeout=30, terminate_timeout=90)
        )
        for event in StreamingEvents:
            client.on(event, lambda _client, message, name=event.name: seen[name].append(message))
        client.connect(
            StreamingParameters(
                sample_rate=RATE,
                speech_model=SpeechModel.universal_streaming_english,
                format_turns=True,
                keyterms_prompt=["numbers"],
                llm_gateway=LLMGatewayConfig(
                    model="m", messages=[LLMGatewayMessage(role="user", content="{{turn}}")], max_tokens=10
                ),
                speaker_labels_revision_interval_ms=None,
            )
        )
        client.stream(frames(audio, 50))
        client.disconnect(terminate=True)

    async with open_recognizer() as recognizer:
        url, [(_, token)] = await recognizer.address()
        await trio.to_thread.run_sync(transcribe, url.removesuffix("/v3/ws"), token)
    assert seen["Error"] == []
    assert len(seen["Begin"]) == len(seen["Termination"]) == 1
    finals = [turn for turn in seen["Turn"] if turn.end_of_turn]
    assert len(finals) == len(lines) < len(seen["Turn"])
    assert word_error_rate(" ".join(lines), " ".join(turn.transcript for turn in finals)) < 0.25
    assert all(word.end > word.start for turn in finals for word in turn.words)
    assert seen["Termination"][0].audio_duration_seconds == round(len(audio) / 2 / RATE)


async def test_sessions_do_not_hear_each_other() -> None:
    """Two clients at once each get their own words, numbered from 0."""
    async with serving() as server, session(server) as one, session(server) as other:
        for _ in range(3):
            await one.send_message(FRAME)
        await other.send_message(FRAME)
        for socket, count in ((one, 3), (other, 1)):
            await socket.send_message(TERMINATE)
            turns = [message for message in (await rest(socket))[0] if message["type"] == "Turn"]
            assert [turn["transcript"] for turn in turns] == [*(f"W{i + 1}." for i in range(count)), "Last."]


async def test_audio_may_come_before_begin_is_read() -> None:
    """Clients send right after the upgrade: nothing of it is lost."""
    async with serving() as server, session(server) as socket:
        await socket.send_message(FRAME)
        await socket.send_message(TERMINATE)
        messages, _ = await rest(socket)
        assert [message["type"] for message in messages][:3] == ["Begin", "SpeechStarted", "Turn"]


async def test_force_endpoint_ends_the_turn_and_an_update_is_silent() -> None:
    """Commands take effect in the order in which they come among the audio."""
    async with serving() as server, session(server) as socket:
        await receive(socket)
        await socket.send_message('{"type":"UpdateConfiguration","max_turn_silence":900,"keyterms_prompt":[]}')
        await socket.send_message('{"type":"KeepAlive"}')
        await socket.send_message('{"type":"ForceEndpoint"}')
        await receive(socket)  # SpeechStarted
        assert (await receive(socket))["transcript"] == "Last."


# --- who may come in, and what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "parameters", "text"),
    [
        ({}, {}, "Missing Authorization header"),
        ({"Authorization": "wrong"}, {}, "Invalid API key"),
        ({"Authorization": "Bearer secret"}, {}, "Invalid API key"),
        ({}, {"token": "wrong"}, "Invalid API key"),
    ],
)
async def test_without_the_token_there_is_no_session(
    headers: dict[str, str], parameters: dict[str, str], text: str
) -> None:
    """The upgrade succeeds, then Error and close 1008: as at the service, so that the client learns why."""
    async with serving(token="secret") as server, session(server, headers=headers, **parameters) as socket:
        await expect_error(socket, 1008, f"Unauthorized Connection: {text}")


async def test_the_token_comes_in_the_header_or_in_the_query() -> None:
    """Both ways that the service has."""
    async with serving(token="secret") as server:
        async with session(server, headers={"Authorization": "secret"}) as socket:
            assert (await receive(socket))["type"] == "Begin"
        async with session(server, token="secret") as socket:
            assert (await receive(socket))["type"] == "Begin"


async def test_a_bad_parameter_is_refused_before_begin() -> None:
    """Error 3006 is the first message."""
    async with serving() as server, session(server, sample_rate=7000) as socket:
        await expect_error(socket, 3006, "Invalid 'sample_rate'")


async def test_both_paths_are_served_and_no_other() -> None:
    """`/` too, for examples of the self-hosted service use it."""
    async with serving() as server:
        async with session(server, path="/") as socket:
            assert (await receive(socket))["type"] == "Begin"
        with pytest.RaisesGroup(ConnectionRejected) as rejected:
            async with session(server, path="/v2/realtime/ws"):
                pass
        assert [error.status_code for error in rejected.value.exceptions if isinstance(error, ConnectionRejected)] == [
            404
        ]


@pytest.mark.parametrize(
    ("host", "origin", "is_served"),
    [
        ("127.0.0.1", None, True),
        ("localhost", None, True),
        ("127.0.0.1", "http://127.0.0.1:{port}", True),
        ("127.0.0.1", "https://evil.example", False),
        ("127.0.0.1", "null", False),
        ("evil.example", None, False),
        ("evil.example", "http://evil.example:{port}", False),
    ],
)
async def test_a_page_of_another_site_has_no_session(host: str, origin: str | None, is_served: bool) -> None:
    """A browser says where a page is from, and what name led it here; neither may be another site's."""
    async with serving() as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        path = f"/v3/ws?sample_rate={RATE}"
        headers = [(b"Origin", origin.format(port=port).encode())] if origin else []
        statuses: list[int] = []
        try:
            async with (
                await trio.open_tcp_stream("127.0.0.1", port) as stream,
                trio.open_nursery() as nursery,
                await wrap_client_stream(nursery, stream, f"{host}:{port}", path, extra_headers=headers) as socket,
            ):
                assert (await receive(socket))["type"] == "Begin"
                await socket.send_message(TERMINATE)
                await rest(socket)
        except* ConnectionRejected as group:
            statuses += [error.status_code for error in group.exceptions if isinstance(error, ConnectionRejected)]
    assert statuses == ([] if is_served else [403])


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_strangers_keep_no_session_out() -> None:
    """Hundreds of sockets without a word, and as many without the token, and the next session begins at once."""
    async with serving(token="secret") as server, AsyncExitStack() as idle:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        request = b"GET /v3/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        request += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        before = descriptors()
        async with session(server, headers={"Authorization": "secret"}) as early:
            assert (await receive(early))["type"] == "Begin"
            for count in range(300):
                stream = await idle.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
                if count % 2:
                    await stream.send_all(request)
            with trio.fail_after(HANDSHAKE_TIMEOUT_S / 2):
                async with session(server, headers={"Authorization": "secret"}) as late:
                    assert (await receive(late))["type"] == "Begin"
                    await late.send_message(TERMINATE)
                    await rest(late)
            assert descriptors() - before <= 300 + MAX_PENDING + 10
            await early.send_message(FRAME)
            assert (await receive(early))["type"] == "SpeechStarted"


async def test_a_long_request_is_served() -> None:
    """A prompt, an llm_gateway and a token make request lines of more than 8 KiB."""
    gateway = {"model": "m", "messages": [{"role": "user", "content": "x" * 12_000}], "max_tokens": 10}
    async with serving() as server, session(server, llm_gateway=json.dumps(gateway)) as socket:
        assert (await receive(socket))["type"] == "Begin"


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (bytes(2 * RATE * 12 // 10), 3007, "Input Duration Violation: 1200.0 ms. Expected between 50 and 1000 ms"),
        ("{", 3006, "Invalid JSON"),
        ("[]", 3006, "Invalid Message"),
        ('{"type":"Sing"}', 3006, "Invalid Message Type: Sing"),
        ('{"type":"UpdateConfiguration","vad_threshold":7}', 3006, "Invalid 'vad_threshold'"),
    ],
)
async def test_a_bad_message_ends_the_session(message: str | bytes, code: int, text: str) -> None:
    """An Error that says why, a close with its code, and no Termination."""
    async with serving() as server, session(server) as socket:
        await receive(socket)
        await socket.send_message(message)
        await expect_error(socket, code, text)


async def test_sessions_are_bounded() -> None:
    """One more than allowed is refused so that clients back off; when one leaves, the next may come."""
    async with serving(sessions=1) as server:
        async with session(server) as first:
            await receive(first)
            async with session(server) as second:
                await expect_error(second, 3009, "Too many concurrent sessions")
            await first.send_message(TERMINATE)
            await rest(first)
        async with session(server) as third:
            assert (await receive(third))["type"] == "Begin"


# --- time ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def in_memory(**parameters: object) -> AsyncIterator[WebSocketConnection]:
    """A session without sockets and without threads: for the virtual clock, which takes a busy thread for idle."""
    server = Server(Parrot(), Options(longest=600), port=0, run_sync=run_inline)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        path = f"/v3/ws?{urlencode(parameters)}"
        yield await wrap_client_stream(nursery, ours, "test", path, message_queue_size=64)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


async def test_a_silent_client_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """inactivity_timeout seconds without any message end the session; KeepAlive is a message."""
    async with in_memory(inactivity_timeout=30) as socket:
        await receive(socket)
        begun = trio.current_time()
        await trio.sleep(20)
        await socket.send_message('{"type":"KeepAlive"}')
        await expect_error(socket, 3006, "Session terminated due to inactivity: No messages received for 30 seconds")
        assert trio.current_time() - begun == pytest.approx(50, abs=1)


async def test_a_session_expires(autojump_clock: trio.testing.MockClock) -> None:
    """At expires_at it ends with 3008, whatever the client does; without a timeout, silence alone does not end it."""
    async with in_memory() as socket:
        await receive(socket)
        begun = trio.current_time()
        await expect_error(socket, 3008, "Session Expired: Maximum session duration exceeded")
        assert trio.current_time() - begun == pytest.approx(600, abs=1)


async def test_heartbeats_come_every_five_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """On wish, and also while no audio comes: that is when a client needs them."""
    async with in_memory(session_heartbeat=True) as socket:
        await receive(socket)
        begun = trio.current_time()
        beats = [await receive(socket) for _ in range(3)]
        assert trio.current_time() - begun == pytest.approx(15, abs=0.5)
        assert beats[0]["type"] == "Heartbeat"
        assert (beats[0]["total_audio_received_ms"], beats[0]["realtime_factor"]) == (0, 0)


# --- faults ----------------------------------------------------------------------------------------------------------


async def test_a_client_that_sends_too_fast_waits() -> None:
    """While the engine works, the recognizer and the kernel hold some seconds of audio and no more."""
    release = threading.Event()
    async with serving(Faulty(release.wait)) as server, session(server) as socket:
        sent = 0
        with trio.move_on_after(2):
            while True:
                await socket.send_message(bytes(2 * RATE // 5))
                sent += 1
        release.set()
        assert 1 <= sent / 5 <= 15


async def test_an_engine_that_fails_ends_its_session_only() -> None:
    """Error 3005, after which clients try again; the recognizer serves the next one."""

    def fail() -> None:
        raise RuntimeError("broken")

    async with serving(Faulty(fail)) as server:
        for _ in range(2):
            async with session(server) as socket:
                await receive(socket)
                await socket.send_message(FRAME)
                await expect_error(socket, 3005, "Session Cancelled: An error occurred")
        assert server.sessions == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 70_000,
        b"GET /v3/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: \x80\r\n\r\n",
        (
            b"GET /v3/ws HTTP/1.1\r\nHost: \xff\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ),
        (
            b"GET /v3/ws?\xff HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Authorization: \xff\r\nSec-WebSocket-Extensions: \xff\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ),
        b"POST /v3/ws HTTP/1.0\r\n\r\n",
    ],
)
async def test_garbage_ends_its_connection_only(garbage: bytes) -> None:
    """Whoever knocks with something else is sent away, and the recognizer lives on."""
    async with serving() as server:
        port = int(server.url.removesuffix("/v3/ws").rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            try:
                await stream.send_all(garbage)
                await stream.send_eof()
                with trio.fail_after(30):
                    while await stream.receive_some():
                        pass
            except trio.BrokenResourceError:
                pass
        async with session(server) as socket:
            assert (await receive(socket))["type"] == "Begin"


async def test_a_client_that_vanishes_frees_its_session() -> None:
    """Without Terminate and without a close, the place is free for the next."""
    async with serving(sessions=1) as server:
        async with session(server) as socket:
            await receive(socket)
            await socket.send_message(FRAME)
            await trio.aclose_forcefully(socket._stream)
        with trio.fail_after(30):
            await server.drained()
        async with session(server) as socket:
            assert (await receive(socket))["type"] == "Begin"


# --- the program -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def program(*arguments: str, path: str = "") -> AsyncIterator[trio.Process]:
    """The program as a process; `path` is where it finds modules besides."""
    command = [sys.executable, "-m", "roomtone.recognizer", *arguments]
    places = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": places}
    )
    try:
        with trio.fail_after(250):
            yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def first_line(process: trio.Process) -> dict[str, str]:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n") and (piece := await process.stdout.receive_some()):
        line += piece
    said: dict[str, str] = json.loads(line)
    return said


async def begin_as_child(process: trio.Process, **options: object) -> dict[str, str]:
    assert process.stdin is not None
    await process.stdin.send_all(json.dumps(options).encode() + b"\n")
    return await first_line(process)


async def test_the_program_ends_with_its_input() -> None:
    """Standard input is the life line of a child: when it closes, so does the program."""
    async with program() as process:
        assert (await begin_as_child(process, token="secret"))["url"].startswith("ws://127.0.0.1:")
        assert process.stdin is not None
        await process.stdin.aclose()
        assert await process.wait() == 0


async def test_the_program_lets_sessions_end_on_sigterm() -> None:
    """Systemd stops all processes of a service at once; a session that is open still gets its last turn."""
    async with program() as process:
        url = (await begin_as_child(process))["url"]
        async with client(f"{url}?sample_rate={RATE}") as socket:
            await receive(socket)
            process.send_signal(signal.SIGTERM)
            for frame in frames(demo_audio()[: 2 * RATE * 4]):
                await socket.send_message(frame)
            await socket.send_message(TERMINATE)
            messages, reason = await rest(socket)
            assert messages[-1]["type"] == "Termination"
            assert reason.code == 1000
        assert await process.wait() == 0


async def test_a_second_signal_does_not_wait() -> None:
    """Somebody who means it is obeyed."""
    async with program("--port", "0") as process:
        url = (await first_line(process))["url"]
        async with client(f"{url}?sample_rate={RATE}") as socket:
            await receive(socket)
            process.send_signal(signal.SIGINT)
            await socket.send_message(frames(noise(1, 30))[0])
            await socket.ping()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0


STUCK = """
import ctypes, time
from roomtone.recognizer.engine import EngineInfo
from contextlib import contextmanager

class Engine:
    info, rate = EngineInfo("stuck", "mud"), 16000
    def __init__(self, settings): pass
    @contextmanager
    def open(self, settings):
        yield self
    def feed(self, audio):
        {call}
"""


@pytest.mark.parametrize(
    ("call", "status"),
    [
        pytest.param("time.sleep(1000)", 70, id="in a thread of its own"),
        pytest.param("ctypes.PyDLL(None).sleep(1000)", 1, id="keeping the interpreter"),
    ],
)
async def test_an_engine_that_does_not_return_ends_the_program(tmp_path: Path, call: str, status: int) -> None:
    """It cannot be interrupted, so the process ends for its owner to replace, even where no Python can run any more."""
    (tmp_path / "stuck_engine.py").write_text(STUCK.format(call=call))
    async with program(path=str(tmp_path)) as process:
        url = (await begin_as_child(process, engine="stuck_engine:Engine", patience=1.0))["url"]
        async with client(f"{url}?sample_rate={RATE}") as socket:
            await receive(socket)
            await socket.send_message(FRAME)
            assert await process.wait() == status


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("magic", "'magic' is not known: use one of moonshine"),
        ("roomtone.recognizer.sphinx:nothing", "cannot be loaded"),
    ],
)
async def test_an_engine_that_cannot_be_gives_way_to_the_floor(engine: str, text: str) -> None:
    """The first line names the engine that serves, and the reason why it is not the one that was asked for."""
    async with program() as process:
        line = await begin_as_child(process, engine=engine)
        assert text in line["fallback"]
        assert (line["engine"], line["model"]) == ("pocketsphinx", "pocketsphinx-en-us")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"port": "many"}, "$.port"),
        ({"colour": 1}, "colour"),
        ({"host": "192.0.2.1"}, "cannot listen at 192.0.2.1"),
        ({"port": 99_999}, "$.port"),
    ],
)
async def test_options_that_cannot_be_are_answered_with_one_line(options: dict[str, object], text: str) -> None:
    """The reason is a line of JSON for the program that asked; the exit status says that a person is needed."""
    async with program() as process:
        assert text in (await begin_as_child(process, **options))["error"]
        assert await process.wait() == 69
