"""A client of chat completions: one request, and what became of it.

The caller decides how often. No error contains anything of a request, which is speech, or of a key.
"""

import contextlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NamedTuple

import httpx2
import msgspec
import trio

from roomtone.backoff import wait_of
from roomtone.llm import completion
from roomtone.llm.completion import Completion, InvalidCompletion, Usage
from roomtone.network import open_client, read_content
from roomtone.proxy import NetworkError
from roomtone.secret import Secret

MAX_ANSWER_BYTES = 8 << 20
"""Bytes of an answer that are read; a longer one is not an answer."""


class Retryability(Enum):
    """The meaning of a failure for the same question."""

    PASSING = "ask again later"
    UNUSABLE = "the answer could not be used; another may be"
    HELD = "ask when there is a budget again"
    REFUSED = "this question will be refused again"
    FATAL = "ask the operator"


class RequestFailed(Exception):  # noqa: N818 - it says what is true of the request
    """No answer has come. Its text quotes nothing of the answer; `wait` is how many seconds the endpoint wants to be
    left alone, and `usage` what it bills all the same. `said` is what the endpoint says of it: that may quote the
    prompt, so it is for the caller's terminal, not for a log or a notice.
    """

    def __init__(
        self, text: str, verdict: Retryability, wait: float = 0.0, usage: Usage | None = None, said: str = ""
    ) -> None:
        super().__init__(text)
        self.said = said
        self.verdict = verdict
        self.wait = wait
        self.usage = usage or Usage()


class Route(NamedTuple):
    """Where requests go, and the secret headers that they carry."""

    url: str
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Route({self.url!r})"


def route(url: str, *, account: Secret | None, own: Secret | None) -> Route:
    """The way to this address: with the account's key, raw, to AssemblyAI, and with the endpoint's own to any other.

    The account's key goes to its own service only, and no key goes where others could read it.
    """
    if completion.is_assemblyai(url):
        return Route(url, {} if account is None else {"authorization": account.reveal()})
    if own is None or not completion.may_see_key(url):
        return Route(url, {})
    return Route(url, {"authorization": f"Bearer {own.reveal()}"})


class LLMClient:
    """Asks language models. One request may take `timeout` seconds; `transport` stands in for the network.

    Each request has a client of its own: they are minutes apart, and an environment that no client can be made in is
    the matter of this request alone.
    """

    def __init__(self, timeout: float, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._timeout = timeout
        self._transport = transport

    async def ask(self, way: Route, request: Mapping[str, Any]) -> Completion:
        """The answer to one request. Raises Failed, and only that."""
        try:
            with trio.fail_after(self._timeout):
                status, wait, body = await self._post(way, request)
        except trio.TooSlowError:
            raise RequestFailed(f"{way.url}: no answer within {self._timeout:g} s", Retryability.PASSING) from None
        except NetworkError as error:
            raise RequestFailed(f"{way.url}: {error}", Retryability.FATAL) from None
        except httpx2.HTTPError as error:
            raise RequestFailed(f"{way.url}: {_explain(error)}", Retryability.PASSING) from None
        if status == 200:
            return _read(body)
        text, said = _describe(status, body)
        raise RequestFailed(f"{way.url} {text}", _classify(status), wait, said=_without_secrets(said, way))

    async def _post(self, way: Route, request: Mapping[str, Any]) -> tuple[int, float, bytes]:
        """Status, the seconds that its Retry-After asks for, and the body."""
        async with self._open_client(way.url) as client:
            asked = client.build_request(
                "POST",
                way.url,
                content=msgspec.json.encode(request),
                headers={"content-type": "application/json", **way.headers},
            )
            response = await client.send(asked, stream=True)
            try:
                wait = wait_of(response.headers.get("retry-after"), datetime.now(UTC))
                return response.status_code, wait, await read_content(response, MAX_ANSWER_BYTES)
            finally:
                with contextlib.suppress(httpx2.HTTPError):
                    await response.aclose()

    def _open_client(self, url: str) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
        if self._transport is not None:
            return httpx2.AsyncClient(transport=self._transport, timeout=None)
        # No time-out of the client's: that of `ask` covers all of the request, the name's resolution included.
        return open_client(url, headers={}, timeout=None)


def _read(body: bytes) -> Completion:
    if len(body) > MAX_ANSWER_BYTES:
        raise RequestFailed(f"the answer has more than {MAX_ANSWER_BYTES} bytes", Retryability.UNUSABLE)
    if not body.strip():
        raise RequestFailed("the answer is empty", Retryability.UNUSABLE)
    try:
        return completion.read(msgspec.json.decode(body))
    except InvalidCompletion as error:
        text = f"the answer has no words: {error}"
        raise RequestFailed(text, Retryability.UNUSABLE, usage=error.usage, said=error.said) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise RequestFailed("the answer is no JSON", Retryability.UNUSABLE) from None


_REMEDIES = {
    401: "check the key",
    402: "check the account's balance",
    403: "check the key, and whether the account has the LLM Gateway",
    404: "check `endpoint` and `model`",
    405: "check `endpoint`",
}


def _describe(status: int, body: bytes) -> tuple[str, str]:
    """The answer for users: its status, the failure that it names, and what to do; and its own text."""
    text = said = ""
    try:
        completion.read(msgspec.json.decode(body[:MAX_ANSWER_BYTES]))
    except InvalidCompletion as error:
        text, said = f": {error}", error.said
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # some proxy's prose
    remedy = f" ({_REMEDIES[status]})" if status in _REMEDIES else ""
    return f"answered {status}{text}{remedy}", said


def _without_secrets(text: str, way: Route) -> str:
    for secret in way.headers.values():
        for part in (secret, *secret.split()):
            text = text.replace(part, "…")
    return text


def _classify(status: int) -> Retryability:
    match status:
        case 400 | 413 | 414 | 422:
            return Retryability.REFUSED
        case 408 | 409 | 425 | 429:
            return Retryability.PASSING
        case _ if status >= 500:
            return Retryability.PASSING
        case _:
            return Retryability.FATAL


def _explain(error: httpx2.HTTPError) -> str:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    # What the system and OpenSSL say, the innermost first: that of the HTTP library may quote the other side.
    said = next((str(each) for each in reversed(causes) if isinstance(each, OSError) and str(each)), None)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
