"""Whatever bytes the far end of a connection sends, each client ends with its own error, and no other."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from roomtone import Turn, Unprocessable
from roomtone.llm.client import LLMClient, RequestFailed, Route
from roomtone.llm.completion import MAX_TOKENS, read
from roomtone.speech.connection import open_connection
from roomtone.speech.session_errors import SessionClosed
from roomtone_webhook import Webhook
from roomtone_webhook.address import Address
from roomtone_webhook.poster import Undelivered
from support.journal import Numbering, context

_VALUES = st.sampled_from(
    [
        b"Mon, 20 Nov 1995 19:12:08 +99999999999999999999",
        b"9" * 5000,
        b"-1",
        b"1e999",
        b"text/html; charset=\xff\xfe",
        b"chunked",
        b"gzip, br",
        b"a=b; Max-Age=" + b"9" * 400 + b"; Expires=Mon, 99 Foo 99999 99:99:99 X; Domain=[",
        b"\x00",
        b"http://[::1",
    ]
) | st.binary(max_size=40)
_NAMES = st.sampled_from(
    b"Retry-After Content-Length Content-Type Transfer-Encoding Content-Encoding Set-Cookie Date Location Connection "
    b"Upgrade Sec-WebSocket-Accept Sec-WebSocket-Extensions WWW-Authenticate".split()
)
_STATUS = st.sampled_from(
    [b"200", b"101", b"100", b"204", b"301", b"407", b"422", b"429", b"503", b"999", b"000", b"20"]
)
_BODIES = st.sampled_from(
    [
        b"",
        b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":1e300,"completion_tokens":-1}}',
        b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":' + b"9" * 400 + b'},"model":{}}',
        b'{"error":{"code":1e308}}',
        b'{"error":{"message":"\\ud800"}}',
        b'{"choices":NaN}',
        b"[" * 100_000,
        b"fffffffffffffffffffffff\r\n",
        b"\xff\xfe",
    ]
) | st.binary(max_size=60)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer of HTTP, more or less."""
    headers = draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=4))
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.%d %s No\r\n%s\r\n%s" % (draw(st.integers(0, 1)), draw(_STATUS), lines, draw(_BODIES))


async def meet(answer: bytes) -> None:
    """Have each client meet a server that sends this and closes."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await stream.receive_some()
                await stream.send_all(answer)
        except trio.BrokenResourceError:
            pass

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, handle, listeners))
        await ask(port)
        await post(port)
        await begin(port)
        nursery.cancel_scope.cancel()


async def ask(port: int) -> None:
    wait = 0.0
    try:
        await LLMClient(5).ask(Route(f"http://127.0.0.1:{port}/", {}), {"model": "one"})
    except RequestFailed as failed:
        wait = failed.wait
    assert 0 <= wait <= 3600


async def post(port: int) -> None:
    wait = 0.0
    with TemporaryDirectory() as folder:
        turn = Turn(room="a", position=0, at=datetime(2025, 3, 1, tzinfo=UTC), session_id="s", turn_order=0, text="b")
        async with Webhook(url=f"http://127.0.0.1:{port}/").open(context(Path(folder))) as plugin:
            try:
                await plugin.event(Numbering().commit(turn))  # type: ignore[attr-defined] # a Poster
            except Undelivered as undelivered:
                wait = undelivered.retry_after
            except Unprocessable:
                pass
    assert 0 <= wait <= 3600


async def begin(port: int) -> None:
    with pytest.raises(SessionClosed) as over:
        async with open_connection(f"ws://127.0.0.1:{port}/"):
            pass
    assert 0 <= over.value.wait <= 3600


HEADER = b"HTTP/1.1 503 No\r\n%s\r\n\r\n"


@example(HEADER % (b"Set-Cookie: a=b; Max-Age=" + b"9" * 400))
@example(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: \x80\r\nConnection: Upgrade\r\n\r\n")
@example(HEADER % b"Retry-After: Mon, 20 Nov 1995 19:12:08 +99999999999999999999")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answers() | st.binary(max_size=100))
def test_any_answer_is_an_answer_or_a_known_failure(answer: bytes) -> None:
    """A language model's endpoint, a webhook's receiver and a speech service raise nothing else."""
    trio.run(meet, answer)


@given(
    st.text()
    | st.lists(st.sampled_from(["http", "://", "joe", ":", "@", "[", "]", "::1", "/", "?", "%", "é", "8"])).map("".join)
)
def test_any_text_is_an_address_or_a_mistake(text: str) -> None:
    """A webhook's address is refused with a ValueError that shows nothing of it, or can be posted to."""
    host, mistake = "", ""
    try:
        host = Address(text).url.host
    except ValueError as error:
        mistake = str(error)
    assert host or mistake in MISTAKES


MISTAKES = {"is not an address; write https://host/path", "must begin with https:// (or http://) and a host"}


@pytest.mark.parametrize(("tokens", "counted"), [(MAX_TOKENS, MAX_TOKENS), (MAX_TOKENS + 1, 0), (-1, 0), (1e300, 0)])
def test_no_model_bills_more_tokens_than_a_request_can_have(tokens: float, counted: int) -> None:
    """Token counts become money: nonsense counts as none."""
    body = {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": tokens, "completion_tokens": tokens}}
    usage = read(body).usage
    assert (usage.input_tokens, usage.output_tokens) == (counted, counted)
