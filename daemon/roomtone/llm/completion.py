"""Chat completions without any I/O: who is asked, what a body says, and what that cost.

The form is the one that AssemblyAI's LLM Gateway shares with most other providers and with the servers that users run
themselves. Bodies are not trusted: `read` finds the words in them or raises InvalidCompletion, and nothing else.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec
from msgspec import Meta

from roomtone import proxy
from roomtone.events import Turn
from roomtone.protocol.parameters import LLMGatewayConfig

MAX_TOKENS: Final = 10_000_000
"""Tokens of one request that are believed: as many as the largest contexts have. They are billed."""

ENDPOINTS: Final[Mapping[str, str]] = {
    "assemblyai": "https://llm-gateway.assemblyai.com/v1/chat/completions",
    "assemblyai-eu": "https://llm-gateway.eu.assemblyai.com/v1/chat/completions",
}
KNOWN_CODES: Final = frozenset(
    {
        "api_error",
        "authentication_error",
        "content_filter",
        "context_length_exceeded",
        "insufficient_quota",
        "invalid_api_key",
        "invalid_request_error",
        "model_not_found",
        "not_found_error",
        "overloaded_error",
        "permission_error",
        "rate_limit_error",
        "rate_limit_exceeded",
        "server_error",
    }
)
"""Codes and types of failures that are shown. Any other word could be a quotation."""

_FIELD = re.compile(r"\{\{\s*([a-z]+)\s*\}\}")
_ANY_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_SHOWN = 200


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The price of a million tokens of a model, in the currency of the budget."""

    input: Annotated[float, Meta(ge=0)]
    output: Annotated[float, Meta(ge=0)]


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[gateway]` table: how language models are reached, apart from a streaming session."""

    endpoint: Annotated[str, Meta(min_length=1, max_length=2000)] | None = None
    """`assemblyai`, `assemblyai-eu`, or the address of any chat completions endpoint. Absent: AssemblyAI's, in the
    region of the room's streaming endpoint."""
    key_file: str | None = None
    """A file with the key of an endpoint that is not AssemblyAI's, and nothing else, readable by its owner only."""
    timeout: Annotated[float, Meta(gt=0, le=3600)] = 120.0
    """Seconds that one request may take."""
    answer_within: Annotated[float, Meta(ge=1, le=3600)] = 20.0
    """Seconds within which a streaming session answers a turn; then the answer is missing."""
    ask_again: bool = False
    """True to ask for a missing answer here, once. Else a notice says that answers are missing."""
    prices: dict[str, Price] = msgspec.field(default_factory=dict)
    """By model: the price of answers, which they state and the budget counts. Without one only tokens are counted."""

    def price(self, asked: str, answered: str | None = None) -> Price | None:
        """That of the model that has answered, else of the one that was asked. None where neither has one."""
        return self.prices.get(answered or asked) or self.prices.get(asked)


class Usage(msgspec.Struct, frozen=True):
    """The tokens of one answer or several, as the service counts them, and how many requests it took."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def cost(self, price: Price | None) -> float | None:
        """Money; None where there is no price."""
        if price is None:
            return None
        return round((self.input_tokens * price.input + self.output_tokens * price.output) / 1e6, 6)


class InvalidCompletion(Exception):  # noqa: N818 - it says what is true of the body
    """A body without an answer. Its text says what it has instead, and quotes nothing of it.

    `usage` is what it is billed all the same; `said` is what it says of its failure, which may quote the prompt.
    """

    def __init__(self, text: str, usage: Usage | None = None, said: str = "") -> None:
        super().__init__(text)
        self.usage = usage or Usage()
        self.said = said


class Completion(msgspec.Struct, frozen=True):
    """An answer: its words, the model that gave it where the body says so, its tokens, and the body as it came."""

    text: str
    model: str | None
    usage: Usage
    body: dict[str, Any]


def resolve(endpoint: str | None, streaming_endpoint: str | None = None) -> str:
    """The address of the endpoint. Raises ValueError, with what to do, for what is none.

    Without one: AssemblyAI's, in Europe where the room's speech goes to Europe, for a transcript must not leave it.
    """
    if endpoint is None:
        endpoint = "assemblyai-eu" if streaming_endpoint == "assemblyai-eu" else "assemblyai"
    if endpoint in ENDPOINTS:
        return ENDPOINTS[endpoint]
    names = ", ".join(f'"{name}"' for name in ENDPOINTS)
    choices = f"use {names}, or an address such as http://127.0.0.1:8080/v1/chat/completions"
    try:
        parts = urlsplit(endpoint)
        _ = parts.port, httpx2.URL(endpoint)  # the library that will ask it is stricter
    except (ValueError, httpx2.InvalidURL):
        # Not with the error's text, which quotes the address: a password may stand there, and not where one belongs.
        raise ValueError(f"is not an address: {choices}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"is not an endpoint: {choices}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user or password: name a file with the key as `key_file`")
    path = parts.path if parts.path not in {"", "/"} else "/v1/chat/completions"
    return parts._replace(path=path, fragment="").geturl()


def is_assemblyai(url: str) -> bool:
    """True if the account's key is for this address."""
    return url in ENDPOINTS.values()


def may_see_key(url: str) -> bool:
    """A key goes over TLS, or to this machine, so that it cannot be read on the way."""
    return urlsplit(url).scheme == "https" or is_loopback(url)


def is_loopback(url: str) -> bool:
    """True if the address is on this machine."""
    return proxy.is_loopback(urlsplit(url).hostname or "")


def fields(text: str) -> set[str]:
    """The names that stand in the text as {{name}}."""
    return set(_FIELD.findall(text))


def unknown_placeholders(text: str, known: Collection[str]) -> list[str]:
    """The names that stand in the text as {{name}} and that nothing is put in for, however they are written."""
    return [name for name in _ANY_FIELD.findall(text) if name not in known]


def count(text: str, name: str) -> int:
    """The number of times that {{name}} stands in the text."""
    return _FIELD.findall(text).count(name)


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with each {{name}} replaced, in one pass: what is put in is never looked at for more."""
    return _FIELD.sub(lambda found: values.get(found[1], found[0]), text)


def question(gateway: LLMGatewayConfig, turn: Turn) -> dict[str, Any]:
    """The request that asks what the session was to ask about this turn."""
    values = {"turn": turn.text}
    body: dict[str, Any] = msgspec.to_builtins(gateway)
    for asked in (body, *body.get("fallbacks", ())):
        for message in asked.get("messages", ()):
            message["content"] = fill(message["content"], values)
    return body


def read(body: Any) -> Completion:
    """The answer in this body. One that only calls tools has no words, and is one. Raises Unusable."""
    if fault := _fault(body):
        raise fault
    match body:
        case {"choices": [{"message": {"content": str(text)}}, *_]} if text.strip():
            return Completion(text, _model(body), _usage(body), body)
        case {"choices": [{"message": {"tool_calls": [_, *_]}}, *_]}:
            return Completion("", _model(body), _usage(body), body)
        case {"choices": [{"finish_reason": "length"}, *_]}:
            raise InvalidCompletion("the model used up max_tokens before it said anything: give it more", _usage(body))
        case {"choices": [_, *_]}:
            raise InvalidCompletion("the model said nothing", _usage(body))
        case dict():
            raise InvalidCompletion("the body has no choices")
    raise InvalidCompletion("the body is not an object")


def _fault(body: Any) -> InvalidCompletion | None:
    """The failure that a body reports; the service is known to use three shapes for that."""
    match body:
        case {"error": {} as error}:
            return _reported(error.get("code") or error.get("type"), error.get("message"))
        case {"error": str(text)}:
            return _reported(None, text)
        case {"error": int(code)}:
            return _reported(code, None)
        case {"message": str(text), "code": code}:
            return _reported(code, text)
        case {"llm_status_code": int(status)} | {"http_status_code": int(status)} if status >= 400:
            return InvalidCompletion(f"the model's provider answered {status}")
    return None


def _reported(code: object, text: object) -> InvalidCompletion:
    is_known = isinstance(code, int) or (isinstance(code, str) and code in KNOWN_CODES)
    said = " ".join(text.split())[:_SHOWN] if isinstance(text, str) else ""
    return InvalidCompletion(f"an error is reported ({code})" if is_known else "an error is reported", said=said)


def _model(body: Mapping[str, Any]) -> str | None:
    for place in (body, body.get("request")):
        if isinstance(place, Mapping) and isinstance(place.get("model"), str):
            return str(place["model"])
    return None


def _usage(body: Mapping[str, Any]) -> Usage:
    usage = body.get("usage")
    counted = usage if isinstance(usage, Mapping) else {}
    return Usage(
        1, _count(counted, "input_tokens", "prompt_tokens"), _count(counted, "output_tokens", "completion_tokens")
    )


def _count(usage: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and 0 <= value <= MAX_TOKENS:
            return value
    return 0
