"""The messages of the v3 streaming protocol: JSON in, typed messages out, and the encoders for both directions. Pure.

Input from the network is hostile until it is typed: `parse` returns a message or raises Malformed, and nothing else.
The types are lenient, since the service changes without notice: unknown fields are dropped, unknown types become
Unknown, and an optional field whose value is unusable is None. Times in messages are milliseconds of the session's
audio.

The facts are AssemblyAI's: its two SDKs, its API specification, and observations on the wire. The recognizer on this
machine uses the encoders below.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, TypeAlias

import msgspec
from msgspec import Meta

MAX_MESSAGE_BYTES: Final = 1 << 20
"""Bytes of the longest message that is read. The longest honest ones, long turns with words, have some 50 KB."""

MIN_FRAME_S: Final = 0.050
MAX_FRAME_S: Final = 1.000
"""Seconds of audio in one binary frame; the service ends sessions with 3007 outside of these."""

UPDATABLE: Final = frozenset(
    {
        "acknowledge_silence",
        "agent_context",
        "continuous_partials",
        "end_of_turn_confidence_threshold",
        "filter_profanity",
        "format_turns",
        "interruption_delay",
        "keyterms_prompt",
        "language_codes",
        "max_turn_silence",
        "min_turn_silence",
        "mode",
        "prompt",
        "session_heartbeat",
        "turn_left_pad_ms",
        "vad_threshold",
    }
)
"""The parameters that UpdateConfiguration may carry."""

_MAX_DEPTH = 32

# The bounds keep out NaN, infinities, and numbers that no position, date or database column can hold.
Whole = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
Milliseconds = (
    Annotated[int, Meta(ge=-1_000_000_000, le=1_000_000_000)]
    | Annotated[float, Meta(ge=-1_000_000_000, le=1_000_000_000)]
)
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
"""The length of a session, which costs money: none lasts a day."""
UnixSeconds = Annotated[float, Meta(ge=0, le=253_402_300_799)]
Label = Annotated[str, Meta(max_length=100)]
"""Of a speaker or a language. A longer one is not a label, and would be kept with each word."""
WordText = Annotated[str, Meta(max_length=1000)]
"""A longer one is not a word, and would be compared with every word near it."""


class Malformed(Exception):  # noqa: N818 - it says what is true of the message
    """A message that cannot be used. Its text says why and never quotes the message: that may be speech.

    `kind` is the message's type if that could be read.
    """

    def __init__(self, text: str, kind: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind


class TimedWord(msgspec.Struct, frozen=True):
    """One word of a turn, `start` to `end` in ms of the session's audio. The service pads the edges of a turn."""

    start: Milliseconds
    end: Milliseconds
    text: WordText
    confidence: Number | None = None
    word_is_final: bool | None = None
    speaker: Label | None = None
    speaker_confidence: Number | None = None


class Begin(msgspec.Struct, frozen=True):
    """The first message: the session is accepted. `expires_at` is Unix seconds UTC, by the service's clock."""

    kind: ClassVar[str] = "Begin"
    id: str
    expires_at: UnixSeconds | None = None
    configuration: dict[str, Any] | None = None


class SpeechStarted(msgspec.Struct, frozen=True):
    """Speech began at `timestamp`. It comes with the turn's first partial, so it is not an early signal."""

    kind: ClassVar[str] = "SpeechStarted"
    timestamp: Milliseconds
    confidence: Number | None = None


class TurnMessage(msgspec.Struct, frozen=True):
    """A turn so far. `end_of_turn` alone says that it is final; `turn_is_formatted` may be set on partials.

    `turn_order` counts from 0 in each session. `transcript` is the whole turn so far, never an addition to the last.
    """

    kind: ClassVar[str] = "Turn"
    turn_order: Whole
    end_of_turn: bool
    transcript: str
    turn_is_formatted: bool = False
    end_of_turn_confidence: Number = 0
    words: tuple[TimedWord, ...] | None = ()
    utterance: str | None = None
    language_code: Label | None = None
    language_confidence: Number | None = None
    speaker_label: Label | None = None
    speaker_confidence: Number | None = None

    @property
    def text(self) -> str:
        """The text of the turn; from the words where the transcript is empty, as in partials of the US models."""
        return self.transcript.strip() or " ".join(word.text for word in self.words or ()).strip()


class Revision(msgspec.Struct, frozen=True):
    """A turn's corrected speakers: the label of the turn and of each word; text and times are unchanged."""

    turn_order: Whole
    speaker_label: Label | None = None
    words: tuple[TimedWord, ...] | None = ()


class SpeakerRevision(msgspec.Struct, frozen=True):
    """The turns whose speakers are different from what was said before. Only with `speaker_labels`."""

    kind: ClassVar[str] = "SpeakerRevision"
    revisions: tuple[Revision, ...]


class LLMGatewayResponse(msgspec.Struct, frozen=True):
    """The language model's answer to a final turn. `data` is the body of a chat completion, or of its failure."""

    kind: ClassVar[str] = "LLMGatewayResponse"
    turn_order: Whole
    transcript: str = ""
    data: Any = None

    @property
    def text(self) -> str | None:
        """The model's words, or None where the body has none: a failure, a tool call, a shape that we do not know."""
        match self.data:
            case {"choices": [{"message": {"content": str(content)}}, *_]}:
                return content
        return None


class Heartbeat(msgspec.Struct, frozen=True):
    """Every 5 s with `session_heartbeat`. `realtime_factor` below 0.9 means that the service falls behind."""

    kind: ClassVar[str] = "Heartbeat"
    total_audio_received_ms: Number | None = None
    total_duration_ms: Number | None = None
    realtime_factor: Number | None = None
    max_speech_probability: Number | None = None


class Silence(msgspec.Struct, frozen=True):
    """Nothing is said from `start_ms` to `end_ms`. Ranges may overlap each other and speech by some 500 ms."""

    kind: ClassVar[str] = "Silence"
    start_ms: Milliseconds
    end_ms: Milliseconds


class Warning(msgspec.Struct, frozen=True):  # noqa: A001 - the protocol's own word
    """Something that does not end the session."""

    kind: ClassVar[str] = "Warning"
    warning: str = ""
    warning_code: Whole | None = None


class Error(msgspec.Struct, frozen=True):
    """The reason why the session ends: the close follows, with the same code and a text that refers to this one."""

    kind: ClassVar[str] = "Error"
    error: str = ""
    error_code: Whole | None = None


class Termination(msgspec.Struct, frozen=True):
    """The last message of a session that ended well. Whole seconds, by the service's count; the second is billed."""

    kind: ClassVar[str] = "Termination"
    audio_duration_seconds: Seconds | None = None
    session_duration_seconds: Seconds | None = None


class Unknown(msgspec.Struct, frozen=True):
    """A message of a type that this version does not know; `type` is cut at 100 characters."""

    kind: ClassVar[str] = "Unknown"
    type: str


Message: TypeAlias = (
    Begin
    | SpeechStarted
    | TurnMessage
    | SpeakerRevision
    | LLMGatewayResponse
    | Heartbeat
    | Silence
    | Warning
    | Error
    | Termination
    | Unknown
)

_KINDS: Final[Mapping[str, type[Message]]] = {
    **{
        kind.kind: kind
        for kind in (
            Begin,
            SpeechStarted,
            TurnMessage,
            SpeakerRevision,
            LLMGatewayResponse,
            Heartbeat,
            Silence,
            Warning,
            Error,
            Termination,
        )
    },
    # Two pages of the documentation disagree about the casing.
    "LlmGatewayResponse": LLMGatewayResponse,
}


_PARTS: Final[Mapping[str, type[msgspec.Struct]]] = {"words": TimedWord, "revisions": Revision}
"""The lists in messages, by the names of their fields."""


def _ignore(field: str) -> None:
    """The default of `on_unusable`."""


def parse(text: str | bytes, on_unusable: Callable[[str], None] = _ignore) -> Message:
    """The message that one frame holds.

    An optional field counts as absent where its value is unusable, and `on_unusable` receives its name: a speaker that
    became a number must not cost the words. Raises Malformed, and nothing else, for all that cannot be used: invalid
    JSON, a value that is not an object, half a message, deep nesting, a required number out of range, more than
    MAX_MESSAGE_BYTES.
    """
    fields = _object(text)
    kind = fields.pop("type", None)
    if kind is None and "error" in fields:
        kind = Error.kind  # older servers
    if not isinstance(kind, str):
        raise Malformed("the message names no type")
    if kind not in _KINDS:
        return Unknown(kind[:100])
    if kind == Error.kind and not isinstance(fields.get("error", ""), str):
        fields["error"] = msgspec.json.encode(fields["error"]).decode()
    try:
        message: Message = _convert(fields, _KINDS[kind])
    except msgspec.ValidationError:
        message = _convert_essence(fields, _KINDS[kind], on_unusable)
    return message


def encode(message: Message) -> str:
    """The server's side: one text frame. What is None is left out; `type` stands last, as the service has it."""
    fields = _present(message)
    match message:
        case TurnMessage(words=words):
            fields["words"] = [_present(word) for word in words or ()]
        case SpeakerRevision(revisions=revisions):
            fields["revisions"] = [
                {**_present(revision), "words": [_present(word) for word in revision.words or ()]}
                for revision in revisions
            ]
    return msgspec.json.encode({**fields, "type": message.kind}).decode()


def weigh(message: Message) -> int:
    """The bytes of the message as one text frame, about: what it costs to keep it."""
    return len(msgspec.json.encode(message))


class ClientCommand(msgspec.Struct, frozen=True):
    """A client's command; `changes` only with UpdateConfiguration."""

    type: str
    changes: dict[str, Any] = {}


COMMANDS: Final = frozenset({"Terminate", "ForceEndpoint", "KeepAlive", "UpdateConfiguration"})


def terminate() -> str:
    """Ask for the last turns, Termination and the close."""
    return '{"type":"Terminate"}'


def force_endpoint() -> str:
    """End the current turn immediately. A word that is being spoken is cut."""
    return '{"type":"ForceEndpoint"}'


def keep_alive() -> str:
    """Reset the clock of `inactivity_timeout`, and nothing else."""
    return '{"type":"KeepAlive"}'


def update_configuration(changes: Mapping[str, Any]) -> str:
    """Change parameters of the running session: lists as lists. What is not named stays as it was.

    Raises ValueError for a parameter that only a new session can change.
    """
    if fixed := sorted(changes.keys() - UPDATABLE):
        raise ValueError(f"only a new session can change {', '.join(fixed)}")
    return msgspec.json.encode({"type": "UpdateConfiguration", **changes}).decode()


def parse_command(text: str | bytes) -> ClientCommand:
    """The server's side of `terminate` and its sisters. Raises Malformed with the text that the service answers."""
    try:
        decoded = _decode(text)
    except Malformed:
        raise Malformed("Invalid JSON") from None
    if not isinstance(decoded, dict):
        raise Malformed("Invalid Message")
    kind = decoded.pop("type", None)
    if not isinstance(kind, str) or kind not in COMMANDS:
        raise Malformed(f"Invalid Message Type: {str(kind)[:100]}")
    return ClientCommand(kind, decoded)


def _decode(text: str | bytes) -> Any:
    if len(text) > MAX_MESSAGE_BYTES:
        raise Malformed(f"the message has more than {MAX_MESSAGE_BYTES} bytes")
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        # Only the kind of the failure: its text may quote the message.
        raise Malformed(f"the message is not JSON ({type(error).__name__})") from None
    if _deeper(decoded, _MAX_DEPTH):
        raise Malformed(f"the message is nested more than {_MAX_DEPTH} deep")
    return decoded


def _object(text: str | bytes) -> dict[str, Any]:
    decoded = _decode(text)
    if not isinstance(decoded, dict):
        raise Malformed("the message is not an object")
    return decoded


def _convert(value: Any, kind: Any) -> Any:
    # Not strict: whole numbers may come as 3.0 and as "3". Strings cannot smuggle a NaN past the bounds.
    return msgspec.convert(value, kind, strict=False)


def _convert_essence(fields: Mapping[str, Any], kind: type[Message], on_unusable: Callable[[str], None]) -> Message:
    """The message without its unusable optional fields. Raises Malformed if more than those is wrong."""
    try:
        message: Message = _convert(_usable(fields, kind, on_unusable), kind)
    except msgspec.ValidationError as error:
        # Only the place: the rest of its text may quote the message.
        place = re.search(r" - at `([^`]*)`$", str(error))
        where = f" at {place[1]}" if place else ""
        raise Malformed(f"the {kind.kind} message is not usable{where}", kind.kind) from None
    return message


def _usable(
    fields: Mapping[str, Any], kind: type[msgspec.Struct], on_unusable: Callable[[str], None]
) -> dict[str, Any]:
    """The fields of a message without those that may be absent and do not fit, in its lists too.

    A list itself stays: a turn whose words cannot be read would stand at no position.
    """
    return _without(
        fields, kind, {kind: msgspec.structs.fields(kind) for kind in (kind, *_PARTS.values())}, on_unusable
    )


def _without(
    fields: Mapping[str, Any],
    kind: type[msgspec.Struct],
    known: Mapping[type[msgspec.Struct], tuple[msgspec.structs.FieldInfo, ...]],
    on_unusable: Callable[[str], None],
) -> dict[str, Any]:
    kept = dict(fields)
    for field in known[kind]:
        if field.name not in kept:
            continue
        value = kept[field.name]
        part = _PARTS.get(field.name)
        if part is not None and isinstance(value, list):
            kept[field.name] = [
                _without(item, part, known, on_unusable) if isinstance(item, dict) else item for item in value
            ]
        elif part is None and not field.required and not _fits(value, field.type):
            del kept[field.name]
            on_unusable(field.name)
    return kept


def _fits(value: Any, kind: Any) -> bool:
    try:
        _convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _deeper(value: Any, limit: int) -> bool:
    match value:
        case dict():
            return limit == 0 or any(_deeper(item, limit - 1) for item in value.values())
        case list():
            return limit == 0 or any(_deeper(item, limit - 1) for item in value)
    return False


def _present(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name in struct.__struct_fields__ if (value := getattr(struct, name)) is not None}
