"""The client of chat completions: one request, and a verdict about whatever comes of it."""

import msgspec
import pytest
import trio
from trio.testing import MockClock

from roomtone.llm import completion
from roomtone.llm.client import LLMClient, RequestFailed, Retryability, Route, route
from roomtone.llm.completion import InvalidCompletion, Usage
from roomtone.secret import Secret
from roomtone.testing import fake_gateway as fake
from roomtone.testing.fake_gateway import BODIES, CutOff, Garbled, Limited, Mishap, Silent, StatusReply

REQUEST = {"model": "one", "messages": [{"role": "user", "content": "Say this."}], "max_tokens": 10}


async def ask(*mishaps: Mishap, timeout: float = 20.0) -> RequestFailed | completion.Completion:
    """The result of a real request over loopback when this happens to it."""
    async with fake.open_gateway(mishaps=mishaps) as server:
        try:
            return await LLMClient(timeout).ask(Route(server.url, {"authorization": "topsecret"}), REQUEST)
        except RequestFailed as failed:
            return failed


async def test_an_answer() -> None:
    """The words, the model and the tokens of an answer are found in its body, over a real connection."""
    answer = await ask()

    assert isinstance(answer, completion.Completion)
    assert (answer.text, answer.model, answer.usage) == ("Say this.", "one", Usage(1, 2, 2))


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_no_answer(name: str) -> None:
    """A body without words, of whatever shape, is unusable: it is not an answer with an empty text."""
    failed = await ask(Garbled(name))

    assert isinstance(failed, RequestFailed)
    assert failed.verdict is Retryability.UNUSABLE
    assert ("the answer has more than" in str(failed)) == (name == "long")


@pytest.mark.parametrize(
    ("mishap", "verdict"),
    [
        (StatusReply(500), Retryability.PASSING),
        (StatusReply(503), Retryability.PASSING),
        (StatusReply(408), Retryability.PASSING),
        (Limited(None), Retryability.PASSING),
        (StatusReply(400), Retryability.REFUSED),
        (StatusReply(413), Retryability.REFUSED),
        (StatusReply(422), Retryability.REFUSED),
        (StatusReply(401), Retryability.FATAL),
        (StatusReply(403), Retryability.FATAL),
        (StatusReply(404), Retryability.FATAL),
        (StatusReply(302), Retryability.FATAL),
        (CutOff(), Retryability.PASSING),
    ],
)
async def test_a_status(mishap: Mishap, verdict: Retryability) -> None:
    """Each status says whether to ask again, to ask something else, or to ask the operator."""
    failed = await ask(mishap)

    assert isinstance(failed, RequestFailed)
    assert failed.verdict is verdict


async def test_retry_after() -> None:
    """The endpoint's wish to be left alone is handed on, and granted for an hour at most."""
    for said, wait in (("7", 7.0), ("999999", 3600.0), ("soon", 0.0), (None, 0.0)):
        failed = await ask(Limited(said))
        assert isinstance(failed, RequestFailed)
        assert failed.wait == wait


async def test_an_error_is_shown_without_the_key() -> None:
    """The provider's words stand beside the text, and nothing of the key, even where the provider repeats it."""
    body = msgspec.json.encode({"error": {"message": "bad key topsecret", "code": 401}})
    failed = await ask(StatusReply(401, body))

    assert str(failed).endswith("answered 401: an error is reported (401) (check the key)")
    assert isinstance(failed, RequestFailed)
    assert failed.said == "bad key …"


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the secret words", "code": "the secret words", "type": "the secret words"}},
        {"error": "the secret words"},
        {"message": "the secret words", "code": "the"},
        {"error": {"code": ["the secret words"]}},
        {"choices": [], "error": {"the secret words": "the"}},
        "the secret words",
    ],
)
async def test_an_error_quotes_nothing(status: int, body: object) -> None:
    """An endpoint that quotes the prompt in what it says of a failure gets none of it into a text for the log."""
    failed = await ask(StatusReply(status, msgspec.json.encode(body)))

    assert not {"secret", "words"} & set(str(failed).split())


async def test_a_status_line_quotes_nothing() -> None:
    """Nor does one that answers with garbage: the HTTP library would show it."""

    async def garbage(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65_536)
            await stream.send_all(b"the secret words\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, garbage, [listener])
        with pytest.raises(RequestFailed, match="RemoteProtocolError") as caught:
            await LLMClient(5.0).ask(Route(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1", {}), REQUEST)
        nursery.cancel_scope.cancel()
    assert "secret" not in str(caught.value)


async def test_nobody_there() -> None:
    """A refused connection passes, and says so in one line."""
    with pytest.raises(RequestFailed, match="ConnectError") as caught:
        await LLMClient(5.0).ask(Route("http://127.0.0.1:9/v1", {}), REQUEST)
    assert caught.value.verdict is Retryability.PASSING


async def test_a_silent_endpoint(autojump_clock: MockClock) -> None:
    """An endpoint that never answers is given up when the time of the request is over."""
    async with fake.open_gateway(mishaps=[Silent()], port=None) as server:
        client = LLMClient(120.0, server.transport)
        begun = trio.current_time()
        with pytest.raises(RequestFailed, match="no answer within 120 s"):
            await client.ask(Route(server.url, {}), REQUEST)
        assert trio.current_time() == begun + 120


def test_keys_go_home() -> None:
    """The account's key goes raw to AssemblyAI and nowhere else; an endpoint's own goes there, never in the open."""
    account, own = Secret("account"), Secret("own")
    for name in completion.ENDPOINTS:
        assert route(completion.resolve(name), account=account, own=own).headers == {"authorization": "account"}
    for url, headers in {
        "https://example.org/v1": {"authorization": "Bearer own"},
        "http://127.0.0.1:8080": {"authorization": "Bearer own"},
        "http://example.org/v1": {},
    }.items():
        assert route(completion.resolve(url), account=account, own=own).headers == headers
        assert route(completion.resolve(url), account=account, own=None).headers == {}
    assert "account" not in repr(route(completion.resolve(None), account=account, own=own))


def test_a_transcript_stays_in_europe() -> None:
    """Without an endpoint the region is that of the room's speech."""
    assert completion.resolve(None, "assemblyai-eu") == completion.ENDPOINTS["assemblyai-eu"]
    assert completion.resolve(None, "assemblyai") == completion.ENDPOINTS["assemblyai"]
    assert completion.resolve(None, None) == completion.ENDPOINTS["assemblyai"]


def test_tool_calls_are_an_answer() -> None:
    """A model that only calls tools has no words, and has answered."""
    answer = completion.read({"choices": [{"message": {"content": None, "tool_calls": [{"id": "x"}]}}]})
    assert answer.text == ""
    with pytest.raises(InvalidCompletion, match="max_tokens"):
        completion.read(msgspec.json.decode(BODIES["no room"]))


def test_filling_in_is_one_pass() -> None:
    """Speech is not a template: a transcript that says {{turn}} stays as it is."""
    assert completion.fill("a {{ turn }} {{what}}", {"turn": "{{turn}} {{x}}"}) == "a {{turn}} {{x}} {{what}}"
