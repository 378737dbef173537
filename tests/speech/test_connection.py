"""A session on the wire: up at Begin, over in one place, left in bounded time."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import structlog
import trio
import trio.testing
from trio.testing import MockClock, memory_stream_pair
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, Request, TextMessage

from roomtone.protocol import messages as protocol
from roomtone.protocol.close_codes import RetryAdvice
from roomtone.protocol.messages import Begin, Error, Termination, TimedWord, TurnMessage, Unknown
from roomtone.speech.connection import (
    CLOSE_TIMEOUT_S,
    MAX_QUEUED_MESSAGES,
    TERMINATE_TIMEOUT_S,
    Connect,
    open_connection,
)
from roomtone.speech.session_errors import SessionClosed
from roomtone.testing.fake_service import open_service
from roomtone.testing.faults import Close, Stall, script

URL = "ws://service.test/v3/ws?speech_model=x"
Handler = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The far end of a connection, frame by frame, so that it can say what no well-behaved server says."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.wire = WSConnection(ConnectionType.SERVER)

    async def upgrade(self) -> Request:
        while True:
            self.wire.receive_data(bytes(await self.stream.receive_some()))
            for event in self.wire.events():
                if isinstance(event, Request):
                    return event

    def accepted(self) -> bytes:
        return self.wire.send(AcceptConnection())

    def said(self, *messages: protocol.Message) -> bytes:
        return b"".join(self.wire.send(Message(protocol.encode(message))) for message in messages)

    async def begin(self, *messages: protocol.Message) -> None:
        await self.upgrade()
        await self.stream.send_all(self.accepted() + self.said(Begin("s"), *messages))


@asynccontextmanager
async def peer(handler: Handler) -> AsyncIterator[Connect]:
    """A `connect` whose far end is this handler; what the handler leaves open ends with it."""
    async with trio.open_nursery() as nursery:

        async def run(stream: trio.abc.Stream) -> None:
            async with stream:
                await handler(Peer(stream))

        async def connect(url: str) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            near, far = memory_stream_pair()
            nursery.start_soon(run, far)
            return near

        yield connect
        nursery.cancel_scope.cancel()


async def ending(
    connect: Connect, url: str = URL, headers: Sequence[tuple[str, str]] = ()
) -> tuple[list[protocol.Message], SessionClosed]:
    """Everything that a session says until it is over."""
    messages: list[protocol.Message] = []
    try:
        async with open_connection(url, connect=connect, headers=headers) as session:
            while True:
                messages.append(await session.receive())
    except SessionClosed as over:
        return messages, over


async def silent_network(url: str) -> trio.abc.Stream:
    await trio.sleep_forever()
    raise AssertionError


async def test_a_silent_network_is_given_up(autojump_clock: MockClock) -> None:
    """Connecting is a part of the 10 s."""
    _, over = await ending(silent_network)
    assert trio.current_time() == 10
    assert (over.code, over.advice, over.refused) == (None, RetryAdvice.BACK_OFF, True)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 10", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"])
async def test_a_silent_server_is_given_up(autojump_clock: MockClock, answer: bytes) -> None:
    """So is waiting for the answer to the upgrade, and for the rest of it."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        await far.stream.send_all(answer)
        await trio.sleep_forever()

    async with peer(handler) as connect:
        _, over = await ending(connect)
    assert trio.current_time() == 10
    assert over.refused


async def test_a_refusal_without_an_end_is_told_as_a_refusal(autojump_clock: MockClock) -> None:
    """A 403 whose body never ends is a 403 all the same."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        await far.stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\nno")
        await trio.sleep_forever()

    async with peer(handler) as connect:
        _, over = await ending(connect)
    assert (over.code, over.advice) == (403, RetryAdvice.FATAL)


async def test_begin_lifts_the_deadline(autojump_clock: MockClock) -> None:
    """After Begin a session may be silent for hours."""

    async def handler(far: Peer) -> None:
        await far.begin()
        await trio.sleep(10_000)
        await far.stream.send_all(far.said(Termination(1, 2)))
        await trio.sleep_forever()

    async with peer(handler) as connect, open_connection(URL, connect=connect) as session:
        assert session.begin == Begin("s")
        assert await session.receive() == Termination(1, 2)
        assert trio.current_time() == 10_000


async def test_the_request_has_the_key_the_version_and_the_query(autojump_clock: MockClock) -> None:
    """The upgrade carries the headers given, the pinned version of the API and the whole query."""
    requests: list[Request] = []

    async def handler(far: Peer) -> None:
        requests.append(await far.upgrade())

    async with peer(handler) as connect:
        await ending(connect, "ws://service.test:81/v3/ws?a=%7B%7D&b=2", headers=[("Authorization", "sk-1")])
    [request] = requests
    headers = {name.decode().lower(): value.decode() for name, value in request.extra_headers}
    assert (request.host, request.target) == ("service.test:81", "/v3/ws?a=%7B%7D&b=2")
    assert headers["authorization"] == "sk-1"
    assert headers["assemblyai-version"] == "2025-05-12"


async def test_a_refusal_in_one_packet_is_heard(autojump_clock: MockClock) -> None:
    """Upgrade, Error, close and the end of the stream in one moment: the Error counts, not the end."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        error = Error("Unauthorized Connection: Invalid API key", 1008)
        data = far.accepted() + far.said(error) + far.wire.send(CloseConnection(1008, "See Error message"))
        await far.stream.send_all(data)

    async with peer(handler) as connect:
        _, over = await ending(connect)
    assert (over.code, over.text, over.refused) == (1008, "Unauthorized Connection: Invalid API key", True)


async def test_a_refusal_before_the_end_is_heard(autojump_clock: MockClock) -> None:
    """Upgrade, Error and the end of the stream in one moment, without a close, in any order of our tasks."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        await far.stream.send_all(far.accepted() + far.said(Error("Invalid API key", 1008)))

    for _ in range(50):
        async with peer(handler) as connect:
            _, over = await ending(connect)
        assert over.code == 1008


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 No\r\n\r\nlater", b"HTTP/1.1 101 Swi"])
async def test_a_server_that_closes_first_is_given_up_at_once(autojump_clock: MockClock, answer: bytes) -> None:
    """The end of the stream before the upgrade, or in a refusal of untold length, needs no waiting."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        await far.stream.send_all(answer)

    async with peer(handler) as connect:
        _, over = await ending(connect)
    assert trio.current_time() == 0
    assert over.code == (503 if b"503" in answer else None)


@pytest.mark.parametrize("code", [1002, 1006, 1008, 1011])
async def test_the_error_message_counts_for_more_than_the_code(autojump_clock: MockClock, code: int) -> None:
    """Whatever code the close has, or none, the Error message's holds; turns before it arrive first."""
    turn = TurnMessage(0, True, "hello", words=())

    async def handler(far: Peer) -> None:
        await far.begin(turn, Error("Session Cancelled: An error occurred", 3005))
        if code != 1006:
            await far.stream.send_all(far.wire.send(CloseConnection(code, "")))

    async with peer(handler) as connect:
        messages, over = await ending(connect)
    assert messages == [turn]
    assert (over.code, over.advice, over.refused) == (3005, RetryAdvice.BACK_OFF, False)


@pytest.mark.parametrize("last", [Termination(1, 2), Error("x", 3005)])
async def test_a_close_that_does_not_come_is_not_waited_for(
    autojump_clock: MockClock, last: Termination | Error
) -> None:
    """After Termination and after Error the close has two seconds."""

    async def handler(far: Peer) -> None:
        await far.begin(last)
        await trio.sleep_forever()

    async with peer(handler) as connect:
        _, over = await ending(connect)
        assert over.code == (1000 if isinstance(last, Termination) else 3005)
        assert trio.current_time() <= 2 * CLOSE_TIMEOUT_S


async def test_secrets_are_in_no_text(autojump_clock: MockClock) -> None:
    """A service that repeats the key, or what was said, does not put it into our logs: only phrases that are known."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        await far.stream.send_all(
            far.accepted() + far.said(Error("Invalid API key: sk-secret for hook-secret, words that were said", 1008))
        )

    async with peer(handler) as connect:
        _, over = await ending(
            connect, URL + "&webhook_auth_header_value=hook-secret", headers=[("Authorization", "Bearer sk-secret")]
        )
    assert over.text == "Invalid API key"
    assert over.advice is RetryAdvice.FATAL
    assert "secret" not in repr(over) + str(over)


async def test_the_sender_ends_quietly_and_the_reader_loses_nothing(autojump_clock: MockClock) -> None:
    """Sending into a session that is over is False, while turns are still in the queue; those are read all the same."""
    turns = [TurnMessage(order, True, "x", words=()) for order in range(10)]

    async def handler(far: Peer) -> None:
        await far.begin(*turns)
        await far.stream.send_all(far.wire.send(CloseConnection(1011, "")))

    async with peer(handler) as connect:
        with pytest.raises(SessionClosed) as over:  # noqa: PT012 - the end comes at the end, and nowhere before
            async with open_connection(URL, connect=connect) as session:
                await trio.sleep(1)
                assert not await session.send_audio(bytes(3200))
                assert not await session.send(protocol.terminate())
                assert not await session.ping()
                for turn in turns:
                    assert await session.receive() == turn
                await session.receive()
    assert over.value.code == 1011


async def test_a_ping_ends_with_the_connection(autojump_clock: MockClock) -> None:
    """A ping that will never be answered returns False when the connection breaks."""

    async def handler(far: Peer) -> None:
        await far.begin()
        await trio.sleep(3)

    async with peer(handler) as connect, open_connection(URL, connect=connect) as session:
        assert not await session.ping()
        assert trio.current_time() == 3


async def test_a_ping_is_answered(autojump_clock: MockClock) -> None:
    """Against a service that lives a ping is True."""
    async with open_service(port=None) as service, open_connection(service.url, connect=service.connect) as session:
        assert await session.ping()


class Custom(Exception):  # noqa: N818
    pass


async def test_the_bodys_exception_comes_out_as_it_went_in(autojump_clock: MockClock) -> None:
    """The session's own nursery shows in no exception of the body's, single or group."""
    async with open_service(port=None) as service:
        with pytest.raises(Custom):
            async with open_connection(service.url, connect=service.connect):
                raise Custom
        group = ExceptionGroup("ours", [Custom(), SessionClosed(None, "", RetryAdvice.RETRY, refused=False)])
        with pytest.raises(ExceptionGroup) as raised:
            async with open_connection(service.url, connect=service.connect):
                raise group
        assert raised.value is group


class Defective(trio.abc.Stream):
    """A stream with a defect that shows after the first `good` reads."""

    def __init__(self, stream: trio.abc.Stream, good: int) -> None:
        self.stream = stream
        self.good = good

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self.good:
            raise Custom
        self.good -= 1
        return await self.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize("good", [0, 1, 2])
async def test_a_defect_is_not_contained(autojump_clock: MockClock, good: int) -> None:
    """Only named failures become SessionClosed, before Begin and after; any other exception propagates."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        await far.stream.send_all(far.accepted())
        await trio.sleep(1)
        await far.stream.send_all(far.said(Begin("s")))
        await trio.sleep_forever()

    async with peer(handler) as reach:

        async def connect(url: str) -> trio.abc.Stream:
            return Defective(await reach(url), good)

        with pytest.RaisesGroup(Custom, allow_unwrapped=True, flatten_subgroups=True):
            async with open_connection(URL, connect=connect) as session:
                await session.receive()


async def test_leaving_a_dead_network_takes_two_seconds(autojump_clock: MockClock) -> None:
    """A peer that stops answering delays the close by seconds at most."""
    async with open_service(port=None, faults=script({0: [Stall()]})) as service:
        async with open_connection(service.url, connect=service.connect) as session:
            await trio.sleep(5)
            await session.send_audio(bytes(3200))
        assert trio.current_time() == 5 + CLOSE_TIMEOUT_S


async def test_a_cancelled_session_is_terminated(autojump_clock: MockClock) -> None:
    """A session that is only dropped may be billed for hours: it gets Terminate even if its words are dropped."""
    async with open_service(port=None) as service:
        with trio.move_on_after(5):
            async with open_connection(service.url, connect=service.connect) as session:
                await session.send_audio(bytes(3200))
                await session.receive()
        assert trio.current_time() < 5 + TERMINATE_TIMEOUT_S
        assert [record.ended for record in service.sessions] == ["terminated"]


async def test_a_session_that_is_left_is_terminated(autojump_clock: MockClock) -> None:
    """So is one that was left for a failure of ours; and one that was asked to end is not asked again."""
    async with open_service(port=None) as service:
        with pytest.raises(ValueError, match="ours"):
            async with open_connection(service.url, connect=service.connect):
                raise ValueError("ours")
        async with open_connection(service.url, connect=service.connect) as session:
            await session.send(protocol.terminate())
            await session.receive()
        assert [record.ended for record in service.sessions] == ["terminated", "terminated"]


async def test_a_cancelled_session_is_left_soon(autojump_clock: MockClock) -> None:
    """At the hard deadline a dead network has a second, and no more."""
    async with open_service(port=None, faults=script({0: [Stall()]})) as service:
        with trio.move_on_after(5):
            async with open_connection(service.url, connect=service.connect) as session:
                await session.receive()
        assert trio.current_time() == 5 + TERMINATE_TIMEOUT_S


async def test_a_blocked_sender_can_be_left() -> None:
    """Over a real socket whose peer reads nothing, sending blocks, and leaving is still bounded."""
    async with open_service(faults=script({0: [Stall()]})) as service:
        sent = 0
        with trio.fail_after(60):
            async with open_connection(service.url) as session, trio.open_nursery() as nursery:
                await trio.sleep(0.1)

                async def send() -> None:
                    nonlocal sent
                    while await session.send_audio(bytes(32_000)):
                        sent += 1

                nursery.start_soon(send)
                before = -1
                while before < sent:
                    before = sent
                    await trio.sleep(0.5)
                nursery.cancel_scope.cancel()
        assert 0 < sent < 2000


async def test_leaving_closes_the_stream(autojump_clock: MockClock) -> None:
    """However a session is left, the peer sees the end of the stream."""
    ends: list[bytes] = []

    async def handler(far: Peer) -> None:
        await far.begin()
        while data := await far.stream.receive_some():
            pass
        ends.append(bytes(data))

    async with peer(handler) as connect:
        async with open_connection(URL, connect=connect):
            pass
        await trio.sleep(1)
        assert ends == [b""]


async def test_what_comes_before_begin_is_bounded(autojump_clock: MockClock) -> None:
    """A server that talks and never begins is given up after as many messages as the queue holds."""

    async def handler(far: Peer) -> None:
        await far.upgrade()
        await far.stream.send_all(far.accepted())
        for _ in range(MAX_QUEUED_MESSAGES + 1):
            await far.stream.send_all(far.wire.send(TextMessage('{"type":"Weather"}')))
        await trio.sleep_forever()

    with structlog.testing.capture_logs():
        async with peer(handler) as connect:
            _, over = await ending(connect)
    assert "no Begin" in over.text
    assert trio.current_time() <= CLOSE_TIMEOUT_S


async def test_an_unexpected_message_is_reported_and_passed_on(autojump_clock: MockClock) -> None:
    """A type that this version does not know is in the log by its name and phase, and the session goes on."""

    async def handler(far: Peer) -> None:
        await far.begin()
        await far.stream.send_all(far.wire.send(TextMessage('{"type":"Weather"}')))
        await trio.sleep_forever()

    with structlog.testing.capture_logs() as logs:
        async with peer(handler) as connect, open_connection(URL, connect=connect) as session:
            assert await session.receive() == Unknown("Weather")
    assert [(entry["event"], entry["phase"]) for entry in logs] == [("message.unexpected", "begun")]


async def test_a_field_of_no_use_is_reported_once(autojump_clock: MockClock) -> None:
    """A service that labels speakers in another way than it did costs the labels and not the sessions."""

    async def handler(far: Peer) -> None:
        await far.begin()
        for order in range(3):
            word = '{"start":0,"end":400,"text":"yes","speaker":0}'
            turn = f'{{"turn_order":{order},"end_of_turn":true,"transcript":"yes","words":[{word}],"type":"Turn"}}'
            await far.stream.send_all(far.wire.send(TextMessage(turn)))
        await trio.sleep_forever()

    with structlog.testing.capture_logs() as logs:
        async with peer(handler) as connect, open_connection(URL, connect=connect) as session:
            turns = [await session.receive() for _ in range(3)]
    assert turns == [TurnMessage(order, True, "yes", words=(TimedWord(0, 400, "yes"),)) for order in range(3)]
    assert [(entry["event"], entry["field"]) for entry in logs] == [("message.unusable_field", "speaker")]


async def test_nobody_listening_is_no_connection() -> None:
    """A refused connection says so, and which address refused."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(SessionClosed, match="refused") as over:
        async with open_connection(f"ws://127.0.0.1:{port}/v3/ws"):
            pass
    assert (over.value.code, over.value.refused) == (None, True)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid"])
async def test_a_host_that_does_not_exist_is_no_connection(host: str) -> None:
    """Names that do not resolve, or cannot be names, end as SessionOver."""
    with pytest.raises(SessionClosed) as over:
        async with open_connection(f"ws://{host}/v3/ws"):
            pass
    assert over.value.advice is RetryAdvice.BACK_OFF


async def test_a_server_without_tls_is_no_connection() -> None:
    """A failed TLS handshake names the TLS failure."""
    async with trio.open_nursery() as nursery:

        async def greet(stream: trio.abc.Stream) -> None:
            await stream.send_all(b"220 mail.example ESMTP\r\n" * 10)

        listeners = await nursery.start(partial(trio.serve_tcp, greet, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(SessionClosed) as over:
            async with open_connection(f"wss://127.0.0.1:{port}/v3/ws"):
                pass
        nursery.cancel_scope.cancel()
    assert over.value.refused
    assert "SSL" in over.value.text


async def test_an_unmasked_lie_is_a_broken_protocol(autojump_clock: MockClock) -> None:
    """Garbage after Begin ends the session by name."""

    async def handler(far: Peer) -> None:
        await far.begin()
        await far.stream.send_all(b"\xff" * 100)
        await trio.sleep_forever()

    async with peer(handler) as connect:
        _, over = await ending(connect)
    assert (over.advice, over.refused) == (RetryAdvice.BACK_OFF, False)


async def test_the_close_code_is_told(autojump_clock: MockClock) -> None:
    """Without an Error message the close's own code and text count."""
    async with open_service(port=None, faults=script({0: [Close(1011, "")]})) as service:
        _, over = await ending(service.connect, service.url)
    assert over.code == 1011
    assert str(over).startswith("1011: ")
