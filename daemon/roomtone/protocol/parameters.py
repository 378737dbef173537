"""The `[rooms.<name>.streaming]` table: each parameter of Universal-Streaming v3 by its own name, typed and ranged.

A parameter that is not set is not sent, so that the service's own default holds; two are always sent: `speech_model`,
whose default at the service has changed twice in a year, and `inactivity_timeout`, which ends a session that nobody
uses any more. `sample_rate`, `encoding` and `token` are no parameters here: the daemon knows the first two, and a key
is no matter for this table.

Three steps, each pure: `explain` reads the raw table and speaks of names, msgspec converts it and speaks of types and
ranges, `check` reads the result and speaks of what does not fit together.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Meta

LOCAL: Final = "local"
"""The endpoint that is the recognizer on this machine; its address is known only while it runs."""

ENDPOINTS: Final[Mapping[str, str]] = {
    "assemblyai": "wss://streaming.assemblyai.com/v3/ws",
    "assemblyai-us": "wss://streaming.us.assemblyai.com/v3/ws",
    "assemblyai-eu": "wss://streaming.eu.assemblyai.com/v3/ws",
}

DEFAULT_MODEL: Final = "universal-3-5-pro"
U3_MODELS: Final = frozenset(
    {
        DEFAULT_MODEL,
        "assemblyai-stt-3-7-realtime",
        "u3-rt-pro",
        "u3-rt-pro-beta-1",
        "universal-3-6",
        "universal-3-6-pro",
    }
)
US_MODELS: Final = frozenset({"universal-streaming-english", "universal-streaming-multilingual"})
MODELS: Final = U3_MODELS | US_MODELS | {"whisper-rt"}
"""What the service was seen to accept, or documents (`assemblyai-stt-3-7-realtime`, recommended for the labels of
speakers). It adds some every few months, so others only get a warning.
"""

Milliseconds = Annotated[int, Meta(ge=0, le=600_000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Context = Annotated[str, Meta(max_length=1750)]


class ParameterProblem(msgspec.Struct, frozen=True):
    """What is wrong with one key, for the person who wrote it. `key` is relative to the table, dots between the parts.

    A warning leaves the configuration valid.
    """

    key: str
    text: str
    severity: Literal["error", "warning"] = "error"


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message to the language model. `{{turn}}` in `content` becomes the text of the turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class Fallback(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A model to ask when the one before it fails, with the settings that differ for it."""

    model: Name
    messages: tuple[Prompt, ...] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None


class FallbackPolicy(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How far the chain of fallbacks goes. A chain of two needs `depth = 2`."""

    depth: Annotated[int, Meta(ge=1, le=10)] | None = None
    retry: bool | None = None


class LLMGatewayConfig(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The `llm_gateway` table: what a language model is asked about every turn.

    The service documents `model`, `messages` and `max_tokens`; the others are those of its chat completions, which the
    parameter is said to share.
    """

    model: Name
    messages: Annotated[tuple[Prompt, ...], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    fallbacks: tuple[Fallback, ...] | None = None
    fallback_config: FallbackPolicy | None = None
    response_format: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: str | dict[str, Any] | None = None


class Streaming(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a room is transcribed. None means that the parameter is not sent and the service's default holds."""

    endpoint: Name | None = None
    """`assemblyai`, `assemblyai-us`, `assemblyai-eu`, `local`, or a ws:// or wss:// address. Absent: `assemblyai` with
    a key, `local` without one. Never sent."""

    speech_model: Name = DEFAULT_MODEL
    mode: Literal["min_latency", "balanced", "max_accuracy"] | None = None
    domain: Literal["medical-v1"] | None = None

    format_turns: bool | None = None
    end_of_turn_confidence_threshold: Fraction | None = None
    min_turn_silence: Annotated[int, Meta(ge=50, le=10_000)] | None = None
    max_turn_silence: Milliseconds | None = None
    vad_threshold: Fraction | None = None
    interruption_delay: Annotated[int, Meta(ge=0, le=1000)] | None = None
    turn_left_pad_ms: Milliseconds | None = None
    continuous_partials: bool | None = None
    include_partial_turns: bool | None = None

    keyterms_prompt: (
        Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=50)], ...], Meta(max_length=100)] | None
    ) = None
    prompt: Context | None = None
    agent_context: Context | None = None
    previous_context_n_turns: Annotated[int, Meta(ge=0, le=100)] | None = None

    language_codes: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=10)] | None = None
    language_detection: bool | None = None

    speaker_labels: bool | None = None
    max_speakers: Annotated[int, Meta(ge=1, le=10)] | None = None
    """A hard limit, by the service's documentation: the words of further speakers get the label of one of these."""
    speaker_labels_revision_interval_ms: Annotated[int, Meta(ge=0, le=86_400_000)] | None = None
    voice_focus: Literal["near-field", "far-field"] | None = None
    voice_focus_threshold: Fraction | None = None

    filter_profanity: bool | None = None
    redact_pii: bool | None = None
    redact_pii_policies: Annotated[tuple[Name, ...], Meta(min_length=1)] | None = None
    redact_pii_sub: Literal["hash", "entity_name"] | None = None

    inactivity_timeout: Annotated[int, Meta(ge=5, le=3600)] = 60
    """Seconds without audio after which the service ends the session. A session whose network path broke stays open at
    the service and is billed, up to three hours, unless this ends it."""
    session_heartbeat: bool | None = None
    acknowledge_silence: bool | None = None

    webhook_url: Name | None = None
    webhook_auth_header_name: Name | None = None
    webhook_auth_header_value: Name | None = None
    customer_support_audio_capture: bool | None = None

    llm_gateway: LLMGatewayConfig | None = None

    def __repr__(self) -> str:
        """Without the webhook's secret: this ends up in logs."""
        shown = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        if self.webhook_auth_header_value is not None:
            shown["webhook_auth_header_value"] = "(secret)"
        return f"Streaming({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_REFUSED: Final[Mapping[str, str]] = {
    "sample_rate": "is the room's `rate`, which the daemon sends itself: set `rate` in the room's table",
    "encoding": "is always pcm_s16le, the form in which the daemon records: remove this key",
    "token": "would stand in the address of the session and lasts minutes only: remove it, and put the account's key"
    " where `api_key_file` in [service] says",
    "api_key": "does not belong here: put the key into the file that `api_key_file` in [service] names",
}
_RENAMED: Final[Mapping[str, str]] = {
    "min_end_of_turn_silence_when_confident": "min_turn_silence",
    "language_code": "language_codes",
    "language": "speech_model",
    "noise_suppression_model": "voice_focus",
    "noise_suppression_threshold": "voice_focus_threshold",
    "keyterms": "keyterms_prompt",
    "word_boost": "keyterms_prompt",
    "_customer_support_audio_capture": "customer_support_audio_capture",
    "model": "speech_model",
}
_EXAMPLES: Final[Mapping[str, str]] = {
    "language_code": 'for example language_codes = ["en"]',
    "language": 'speech_model = "universal-streaming-english" or "universal-streaming-multilingual"',
}


def explain(raw: Mapping[str, Any]) -> list[ParameterProblem]:
    """What msgspec would only call an unknown field: the names in the raw table that the service or we do not take.

    A key that is unknown and not named here is left to msgspec, so that each is reported once.
    """
    problems = [ParameterProblem(key, reason) for key, reason in _REFUSED.items() if key in raw]
    for old, new in _RENAMED.items():
        if old in raw:
            example = f" ({_EXAMPLES[old]})" if old in _EXAMPLES else ""
            problems.append(ParameterProblem(old, f"has another name in v3: use `{new}`{example}"))
    return problems


def check(streaming: Streaming) -> list[ParameterProblem]:
    """What does not fit together in a table whose every value is in range by itself."""
    return [*_endpoint(streaming), *_model(streaming), *_pairs(streaming), *_gateway(streaming), *_size(streaming)]


def resolve(endpoint: str | None, *, has_key: bool) -> str:
    """The address of the endpoint without a query, or LOCAL. An address without a path gets `/v3/ws`.

    Raises ValueError, with what to do, for what is no endpoint.
    """
    if endpoint is None:
        endpoint = "assemblyai" if has_key else LOCAL
    if endpoint == LOCAL or endpoint in ENDPOINTS:
        return ENDPOINTS.get(endpoint, LOCAL)
    return _address(endpoint)


def query(streaming: Streaming, rate: int) -> str:
    """The session's query: lists and objects as one JSON string each, booleans as `true` and `false`; rate in Hz.

    A repeated parameter is refused by the service (3006), and unknown names are ignored silently.
    """
    pairs: dict[str, str] = {"sample_rate": str(rate), "encoding": "pcm_s16le"}
    for name in streaming.__struct_fields__:
        value = getattr(streaming, name)
        if value is not None and name != "endpoint":
            pairs[name] = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return urlencode(pairs)


def _address(endpoint: str) -> str:
    names = ", ".join(f'"{name}"' for name in (*ENDPOINTS, LOCAL))
    choices = f"use one of {names}, or an address that begins with ws:// or wss://"
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError:
        # Not with the error's text, which quotes the address: a password may stand there, and not where one belongs.
        raise ValueError(f"is not an address: {choices}") from None
    if " " in endpoint:
        raise ValueError(f"is no address, for it has a space: {choices}")
    if parts.scheme in {"http", "https"}:
        scheme = parts.scheme.replace("http", "ws")
        raise ValueError(f"must be a WebSocket address: write {scheme}:// instead of {parts.scheme}://")
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise ValueError(f"is no endpoint: {choices}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user or password: the key belongs in `api_key_file` in [service]")
    if parts.query or parts.fragment:
        raise ValueError("must not contain parameters: each has a key of its own in this table")
    path = parts.path if parts.path not in {"", "/"} else "/v3/ws"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _endpoint(streaming: Streaming) -> Iterator[ParameterProblem]:
    try:
        resolve(streaming.endpoint, has_key=True)
    except ValueError as error:
        yield ParameterProblem("endpoint", str(error))


_ONLY: Final[Mapping[str, tuple[frozenset[str], Literal["error", "warning"]]]] = {
    **dict.fromkeys(
        ("mode", "prompt", "agent_context", "previous_context_n_turns", "language_codes"), (U3_MODELS, "error")
    ),
    **dict.fromkeys(
        ("interruption_delay", "continuous_partials", "voice_focus", "voice_focus_threshold"), (U3_MODELS, "warning")
    ),
    **dict.fromkeys(("format_turns", "end_of_turn_confidence_threshold"), (US_MODELS, "warning")),
    "keyterms_prompt": (U3_MODELS | US_MODELS, "error"),
    "language_detection": (MODELS - {"universal-streaming-english"}, "warning"),
}
"""The models that know a parameter; for the others it is refused (error) or without effect (warning)."""


def _model(streaming: Streaming) -> Iterator[ParameterProblem]:
    model = streaming.speech_model
    if model == "u3-pro":
        yield ParameterProblem(
            "speech_model", 'the service refuses "u3-pro" (error 3006): use "u3-rt-pro" or a later model'
        )
        return
    if model not in MODELS:
        known = ", ".join(sorted(MODELS))
        yield ParameterProblem(
            "speech_model", f'"{model}" is not known here and may be refused; known: {known}', "warning"
        )
        return
    for key, (models, severity) in _ONLY.items():
        if getattr(streaming, key) is not None and model not in models:
            what = "is not for" if severity == "error" else "has no effect with"
            yield ParameterProblem(
                key, f'{what} speech_model "{model}": it is for {", ".join(sorted(models))}', severity
            )


_NEEDS: Final[Mapping[str, str]] = {
    "max_speakers": "speaker_labels",
    "speaker_labels_revision_interval_ms": "speaker_labels",
    "voice_focus_threshold": "voice_focus",
    "redact_pii_policies": "redact_pii",
    "redact_pii_sub": "redact_pii",
    "webhook_auth_header_name": "webhook_url",
    "webhook_auth_header_value": "webhook_auth_header_name",
}


def _pairs(streaming: Streaming) -> Iterator[ParameterProblem]:
    for key, needed in _NEEDS.items():
        if getattr(streaming, key) is not None and not getattr(streaming, needed):
            yield ParameterProblem(key, f"does nothing without `{needed}`: set that too, or remove this key")
    shortest, longest = streaming.min_turn_silence, streaming.max_turn_silence
    if shortest is not None and longest is not None and shortest > longest:
        yield ParameterProblem("min_turn_silence", f"is {shortest} ms, longer than max_turn_silence, {longest} ms")
    if (
        streaming.language_codes is not None
        and "multi" in streaming.language_codes
        and len(streaming.language_codes) > 1
    ):
        yield ParameterProblem("language_codes", '"multi" must stand alone')
    interval = streaming.speaker_labels_revision_interval_ms
    if interval and not 120_000 <= interval <= 300_000:
        yield ParameterProblem(
            "speaker_labels_revision_interval_ms",
            f"is {interval}; the service moves it into 120000 to 300000 (0: only when the session ends)",
            "warning",
        )
    if streaming.redact_pii and streaming.include_partial_turns:
        yield ParameterProblem(
            "include_partial_turns", "has no effect with redact_pii: partial turns are not redacted", "warning"
        )
    if streaming.webhook_url is not None and urlsplit(streaming.webhook_url).scheme not in {"http", "https"}:
        yield ParameterProblem("webhook_url", "must begin with https:// or http://")


def _gateway(streaming: Streaming) -> Iterator[ParameterProblem]:
    gateway = streaming.llm_gateway
    if gateway is not None and not any("{{turn}}" in message.content for message in gateway.messages):
        yield ParameterProblem(
            "llm_gateway.messages",
            "contain no {{turn}}, which becomes the text of the turn: the model will not see what was said",
            "warning",
        )


def _size(streaming: Streaming) -> Iterator[ParameterProblem]:
    size = len(query(streaming, 16_000))
    if size > 16_000:
        yield ParameterProblem(
            "llm_gateway.messages" if streaming.llm_gateway is not None else "prompt",
            f"make the session's address {size} characters long; many servers refuse more than 16,000: shorten them",
            "warning",
        )
