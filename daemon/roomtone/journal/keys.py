"""The keys of marks: the one place that spells them. They are stored, so they do not change. Pure.

A room's name and a sink's name have no slash.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from roomtone.journal.records import Mark
from roomtone.spans import Span, Spans

RoomMark: TypeAlias = Literal[
    "rate",
    "audio",
    "stopped",
    "file",
    "muted",
    "forgetting",
    "acknowledged",
    "holes",
    "gate",
    "refused",
    "script",
    "session_labels",
]
"""The state of a room.

`rate`: Hz, by its first sample. `audio`: the position up to which segments are in the journal. `stopped`: where and
when the last run ended, and the cause of the time after it. `file`: the file that is being recorded, and where it
began. `muted`: the device is closed, and until when. `forgetting`: the stretch that is being forgotten.
`acknowledged`: the position before which all audio is settled, but for the `holes`. `gate`: how the gate goes on.
`refused`: the speech service refuses sessions. `script`: where the fake room of `roomtone.testing` goes on.
"""
SinkMark: TypeAlias = Literal["audio", "paused", "rewind", "retry", "proof", "trial", "failing"]
"""The state of a sink: the rooms whose audio it pins, what the operator has ordered, and its crash guard's records."""

ROOM_PREFIX: Final = "room/"
SPENT_PREFIX: Final = "spent/"
"""A day's costs; the day and the room follow."""
PAID_PREFIX: Final = "paid/"
"""Costs that arose beside the daemon and are in no sum yet; a random id follows."""
OPEN_SESSION_PREFIX: Final = "session/"
"""Streaming sessions that cost money now; the session's id follows."""
BUDGET_KEY: Final = "budget/told"
"""The budget's state that was last reported."""
ANALYSIS_PREFIX: Final = "analysis/"
"""The position up to which a prompt was asked about a room; the names of both follow."""
REFUSED_ANALYSIS_PREFIX: Final = "refused/"
"""A notice has said that the model refuses this prompt; as above."""
ANSWER_PREFIX: Final = "answer/"
"""Answers that are expected; the room, the session's id and the turn order follow."""
CLOCK_KEY: Final = "calendar"
"""The last reading of the trusted clock, noted once an hour."""
CLEAN_KEY: Final = "journal/clean"
"""The file was closed in order. Without it the file is checked before it is used again."""


def room_prefix(room: str) -> str:
    return f"{ROOM_PREFIX}{room}/"


def room_key(room: str, name: RoomMark) -> str:
    return room_prefix(room) + name


def backfill_prefix(room: str) -> str:
    """The operator's requests to transcribe a stretch, whatever the gate heard there."""
    return room_prefix(room) + "wish/"


def backfill_mark(room: str, span: Span) -> Mark:
    return Mark(f"{backfill_prefix(room)}{span.start}-{span.end}", list(span))


def sink_prefix(sink: str) -> str:
    return f"sink/{sink}/"


def sink_key(sink: str, name: SinkMark) -> str:
    return sink_prefix(sink) + name


def holes_mark(room: str, holes: Iterable[Span]) -> Mark:
    return Mark(room_key(room, "holes"), [list(hole) for hole in holes] or None)


def holes_of(value: Any) -> Spans:
    """The spans in the value of a room's `holes`; an absent mark has none."""
    return Spans((start, end) for start, end in value or [])


class RoomMarks(NamedTuple):
    """The positions up to which a room is recorded and transcribed; see `RoomMark`."""

    rate: int
    audio: int
    acknowledged: int
    holes: Spans


def progress_of(room: str, marks: Mapping[str, Any]) -> RoomMarks:
    """The room's progress among these marks; a room that was never recorded has the rate 1."""

    def value_of(name: RoomMark) -> Any:
        return marks.get(room_key(room, name))

    return RoomMarks(
        value_of("rate") or 1, value_of("audio") or 0, value_of("acknowledged") or 0, holes_of(value_of("holes"))
    )


def rates_of(marks: Mapping[str, Any]) -> dict[str, int]:
    """The rate in Hz of each room that was ever recorded, configured or not."""
    return {key.split("/")[1]: rate for key, rate in marks.items() if key == room_key(key.split("/")[1], "rate")}
