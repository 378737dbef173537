"""The facts that a room can state: frozen, typed, one tagged union on `kind`.

Durable events live in the journal and reach every sink at least once, in the order of `seq`. Live events (`Interim`,
`Level`) are best effort: they are never journalled, so they have neither `seq` nor `id` nor an acknowledgement.

Positions are samples at the room's rate since its first recording; times are UTC by the room's clock.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

import msgspec

Cause: TypeAlias = Literal["overrun", "device", "muted", "daemon down", "suspended", "disk full"]
"""Why samples are missing. The journal, coverage and the metrics use these words and no others."""

Severity: TypeAlias = Literal["info", "warning", "error"]

TEST = "sink.test"
"""The code of the notice, and the session of the turn, that `roomtone sinks test` sends."""


class Word(msgspec.Struct, frozen=True):
    """One recognized word. `start` and `end` are positions; `confidence` is 0 to 1, or None where unknown."""

    text: str
    start: int
    end: int
    confidence: float | None = None
    speaker: str | None = None


class Tagged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The base of every event, durable or live."""

    @property
    def kind(self) -> str:
        """Its name in JSON, which is also the name of its hook."""
        return str(self.__struct_config__.tag)


class Event(Tagged, frozen=True, kw_only=True):
    """The base of every durable event. `position` and `at` are where the fact begins (a turn: its first word).

    `seq` orders all rooms in one sequence; `id` is a UUIDv7. Both are given at commit, and zero and empty before.
    `room` is empty only in a notice that speaks of the whole daemon.
    """

    seq: int = 0
    id: str = ""
    room: str
    position: int
    at: datetime

    @property
    def kind(self) -> str:
        """Its name in JSON, which is also the name of its hook."""
        return str(self.__struct_config__.tag)

    @property
    def is_test(self) -> bool:
        """True if `roomtone sinks test` has sent it: it has not happened, and must not be mixed with real events."""
        return TEST in (getattr(self, "session_id", None), getattr(self, "code", None))


class RecordingStarted(Event, frozen=True, kw_only=True, tag="recording_started"):
    """The source's first samples are here. `rate` is in Hz; `source` names the source for users."""

    rate: int
    source: str


class RecordingStopped(Event, frozen=True, kw_only=True, tag="recording_stopped"):
    """No more samples will come: the daemon stops, the room is muted, or the source has ended.

    `rotated`: the operator wants a new recording to begin here; not one sample lies between it and this one.
    """

    reason: Literal["stopping", "ended", "muted", "rotated"]


class SessionStarted(Event, frozen=True, kw_only=True, tag="session_started"):
    """A streaming session is up: the service has sent `Begin`."""

    session_id: str
    endpoint: str
    speech_model: str | None = None
    expires_at: datetime | None = None


class Turn(Event, frozen=True, kw_only=True, tag="turn"):
    """A final turn: one utterance as the service cuts it. `supersedes` is the id of the event that this corrects."""

    session_id: str
    turn_order: int
    text: str
    words: tuple[Word, ...] = ()
    language: str | None = None
    speaker: str | None = None
    supersedes: str | None = None


class Answer(Event, frozen=True, kw_only=True, tag="answer"):
    """The LLM Gateway's answer to one turn. `turn` is that event's id; `response` is the body as it came."""

    session_id: str
    turn_order: int
    turn: str | None = None
    text: str
    response: dict[str, Any]


class Analysis(Event, frozen=True, kw_only=True, tag="analysis"):
    """The answer of a named prompt to a conversation between two positions. `response` is the last body as it came.

    A long conversation takes several requests, whose tokens are summed. `cost` is in the currency of
    the budget, None where no price is known.
    """

    name: str
    start: int
    end: int
    text: str
    response: dict[str, Any]
    model: str | None = None
    requests: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None


class SessionEnded(Event, frozen=True, kw_only=True, tag="session_ended"):
    """A streaming session is over. The seconds are the service's own, from Termination, else what we counted."""

    session_id: str
    audio_seconds: float
    session_seconds: float
    reason: str


class Audio(Event, frozen=True, kw_only=True, tag="audio"):
    """A segment of the spool is closed: `samples` from `position`, 16-bit little-endian mono at `rate` Hz in `file`.

    `file` is None when the quota took the segment before this sink had acknowledged it. `fresh` says that time without
    a source lies directly before this segment, so that it does not continue the one before.
    """

    samples: int
    rate: int
    file: str | None
    fresh: bool = False


class Gap(Event, frozen=True, kw_only=True, tag="gap", rename={"from_": "from"}):
    """Missing audio: positions `start` to `end`, equal when the source was away; times `from`, `until` in UTC."""

    start: int
    end: int
    from_: datetime
    until: datetime
    cause: Cause


class Muted(Event, frozen=True, kw_only=True, tag="muted"):
    """The room's device was closed by a user, until that time if one was given."""

    until: datetime | None = None


class Unmuted(Event, frozen=True, kw_only=True, tag="unmuted"):
    """The room listens again."""


class Forgotten(Event, frozen=True, kw_only=True, tag="forgotten", rename={"from_": "from"}):
    """Everything between these positions and times was removed by a user: remove what you have of it."""

    start: int
    end: int
    from_: datetime
    until: datetime

    def covers(self, event: "Durable") -> bool:
        """True if the event is about speech there: a turn that went on then, an answer or analysis of it, and a notice
        of that time, which may quote it.

        An answer belongs to its turn and goes with it, and so does a correction: `spoken_in` says which turns go.
        """
        match event:
            case Notice(room=room, at=at):
                return room in {"", self.room} and self.from_ <= at < self.until
            case Turn(position=position, words=words):
                start = min([position, *(word.start for word in words)])
                end = max([position, *(word.end for word in words)])
            case Answer(position=position):
                start = end = position
            case Analysis(start=start, end=end):
                pass
            case _:
                return False
        return event.room == self.room and start < self.end and max(end, start + 1) > self.start


class Notice(Event, frozen=True, kw_only=True, tag="notice"):
    """The daemon needs the operator, or did. `code` is a stable `noun.verb` for programs, `text` is for users."""

    severity: Severity
    code: str
    text: str


class Interim(Tagged, frozen=True, kw_only=True, tag="interim"):
    """Text that may still change: replaced by the next of the same session and turn, ended by its turn."""

    room: str
    position: int
    at: datetime
    session_id: str
    turn_order: int
    text: str


class Level(Tagged, frozen=True, kw_only=True, tag="level"):
    """The loudness of the last block, in dB below full scale: `rms` and `peak`, 0 at most, -96.3 for silence."""

    room: str
    position: int
    at: datetime
    rms: float
    peak: float


Durable: TypeAlias = (
    RecordingStarted
    | RecordingStopped
    | SessionStarted
    | Turn
    | Answer
    | Analysis
    | SessionEnded
    | Audio
    | Gap
    | Muted
    | Unmuted
    | Forgotten
    | Notice
)
Live: TypeAlias = Interim | Level


def turn_of(event: Durable) -> tuple[str, int] | None:
    """The turn that the event is, or is an answer to: session and order. A correction is the turn that it corrects."""
    return (event.session_id, event.turn_order) if isinstance(event, Turn | Answer) else None


def spoken_in(forgotten: Forgotten, events: Iterable[Durable]) -> set[tuple[str, int]]:
    """The turns that go, with all that corrects or answers them, where this is forgotten."""
    return {
        (event.session_id, event.turn_order) for event in events if isinstance(event, Turn) and forgotten.covers(event)
    }


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Durable] = msgspec.json.Decoder(Durable)


def kind_of(event: Durable | Live) -> str:
    """The event's `kind`, which is also the name of its hook."""
    return event.kind


KINDS: tuple[str, ...] = tuple(str(kind.__struct_config__.tag) for kind in get_args(Durable))
"""The kinds of durable events, which are also the names of their hooks."""


def encode(event: Durable | Live) -> bytes:
    """One line of JSON without the newline: the form in the journal, in JSON lines and in a webhook's body."""
    return _encoder.encode(event)


def decode(line: bytes | str) -> Durable:
    """The reverse of `encode` for durable events. Raises msgspec.ValidationError for a kind it does not know."""
    return _decoder.decode(line)


def notice(
    code: str, text: str, *, at: datetime, room: str = "", position: int = 0, severity: Severity = "warning"
) -> Notice:
    """A notice for the operator; without a room it speaks of the whole daemon."""
    return Notice(room=room, position=position, at=at, severity=severity, code=code, text=text)
