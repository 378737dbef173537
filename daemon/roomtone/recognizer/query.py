"""The parameters of a session, from its address and later from UpdateConfiguration. Pure.

The rules are the service's: an unknown name is ignored, a known one with a bad value is refused before `Begin` with
3006; lists and objects are one JSON string each, and a repeated parameter is one that is not; booleans are written
`true` by most clients and `True` by the Python SDK.

Parameters of features that this recognizer has not are checked and then ignored, `llm_gateway` for instance as the
service does for accounts without access to the gateway. The exceptions are `redact_pii`, because a client must not
believe that names were removed, and encodings other than `pcm_s16le`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from roomtone.protocol.messages import UPDATABLE
from roomtone.recognizer.engine import TurnSettings

Milliseconds = Annotated[int, Meta(ge=0, le=3_600_000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Prompt = Annotated[str, Meta(max_length=1750)]

_JSON: Final = {
    "keyterms_prompt": "array",
    "language_codes": "array",
    "redact_pii_policies": "array",
    "llm_gateway": "object",
}
_RENAMED: Final = {"min_end_of_turn_silence_when_confident": "min_turn_silence"}

# The pauses that end a turn where the client names none, in ms: min_turn_silence and max_turn_silence.
_US_SILENCES: Final = (400, 1280)
_MODE_SILENCES: Final = {"min_latency": (128, 640), "balanced": (128, 1280), "max_accuracy": (512, 2560)}


class SessionRefused(Exception):  # noqa: N818 - the session is
    """The session ends with this close code; the text is for the Error message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class GatewayQuery(msgspec.Struct, frozen=True):
    """The parts of `llm_gateway` that the service asks for."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of one session that have rules. None is the service's default for the model."""

    sample_rate: Annotated[int, Meta(ge=8000, le=96_000)] = 16_000
    encoding: Literal["pcm_s16le", "pcm_mulaw", "opus", "ogg_opus", "aac"] = "pcm_s16le"
    speech_model: str = "universal-3-5-pro"
    mode: Literal["min_latency", "balanced", "max_accuracy"] | None = None
    format_turns: bool = False
    end_of_turn_confidence_threshold: Fraction = 0.4
    min_turn_silence: Milliseconds | None = None
    max_turn_silence: Milliseconds | None = None
    vad_threshold: Fraction = 0.4
    include_partial_turns: bool = True
    inactivity_timeout: Annotated[int, Meta(ge=5, le=3600)] | None = None
    session_heartbeat: bool = False
    acknowledge_silence: bool = False

    keyterms_prompt: Annotated[list[str], Meta(max_length=100)] = []
    """Reaches engines that take terms."""

    # Checked, and without effect here.
    prompt: Prompt | None = None
    agent_context: Prompt | None = None
    language_codes: Annotated[list[str], Meta(max_length=10)] = []
    language_detection: bool = False
    speaker_labels: bool = False
    filter_profanity: bool = False
    redact_pii: bool = False
    llm_gateway: GatewayQuery | None = None

    @property
    def formatted(self) -> bool:
        """True if turns have capitals and full stops: on request in the models of the first generation, else always."""
        return self.format_turns or not self._is_us

    @property
    def announces(self) -> bool:
        """True if SpeechStarted comes before the first partial of a turn, as in the later models."""
        return not self._is_us

    @property
    def settings(self) -> TurnSettings:
        """These parameters as the engine needs them.

        The engine does not know how sure the end of a sentence is, so that `end_of_turn_confidence_threshold` only
        chooses between the two silences: the shorter at 0, the longer at 1, as documented, and between in proportion.
        """
        shortest, longest = _US_SILENCES if self._is_us else _MODE_SILENCES[self.mode or "balanced"]
        shortest = shortest if self.min_turn_silence is None else min(max(self.min_turn_silence, 50), 10_000)
        longest = longest if self.max_turn_silence is None else min(self.max_turn_silence, 10_000)
        longest = max(shortest, longest)
        silence = shortest + (longest - shortest) * self.end_of_turn_confidence_threshold
        return TurnSettings(silence=round(silence), threshold=self.vad_threshold, terms=tuple(self.keyterms_prompt))

    @property
    def _is_us(self) -> bool:
        return self.speech_model.startswith("universal-streaming-")


_NAMES: Final = frozenset(Parameters.__struct_fields__)


def parse_query(query: str) -> Parameters:
    """The parameters of a session from the address's query. Raises Refused, with 3006."""
    values: dict[str, Any] = {}
    for written, text in parse_qsl(query, keep_blank_values=True):
        name = _RENAMED.get(written, written)
        if name in _JSON:
            # A list that is written as a repeated parameter is refused, as at the service: no part of it is JSON.
            values[name] = _decode(written, text)
        elif name in _NAMES and (written == name or name not in values):  # the new name wins over the old one
            values[name] = text
    parameters = _convert(values)
    if parameters.encoding != "pcm_s16le":
        raise _invalid("encoding", "this recognizer takes pcm_s16le only")
    return parameters


def update(parameters: Parameters, changes: Mapping[str, Any]) -> Parameters:
    """The parameters after UpdateConfiguration; what may not change in a session is ignored. Raises Refused, 3006."""
    renamed = {_RENAMED.get(name, name): value for name, value in changes.items()}
    known = {name: value for name, value in renamed.items() if name in UPDATABLE & _NAMES and value is not None}
    return _convert({**msgspec.structs.asdict(parameters), **known})


def _convert(values: dict[str, Any]) -> Parameters:
    for name, value in values.items():
        try:
            msgspec.convert({name: value}, Parameters, strict=False)
        except msgspec.ValidationError as error:
            raise _invalid(name, str(error).partition(" - at ")[0]) from None
    parameters = msgspec.convert(values, Parameters, strict=False)
    if parameters.redact_pii:
        raise _invalid("redact_pii", "this recognizer cannot redact; set it to false or use another endpoint")
    return parameters


def _decode(name: str, text: str) -> Any:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = None
    if not isinstance(value, list if _JSON[name] == "array" else dict):
        raise _invalid(name, f"Value error, Invalid JSON {_JSON[name]}")
    return value


def _invalid(name: str, reason: str) -> SessionRefused:
    return SessionRefused(3006, f"User Input Validation Error: Invalid '{name}': {reason}")
