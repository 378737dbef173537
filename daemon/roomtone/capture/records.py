"""What the recorder writes into the journal about audio: always all the facts of one thing together. Pure."""

from datetime import datetime

import msgspec

from roomtone.capture.sample_accounting import Lost
from roomtone.events import Audio, Cause, Gap, Muted, Unmuted
from roomtone.journal.records import CoverageSpan, Mark, Record
from roomtone.spool.segment import Segment


class MuteState(msgspec.Struct, frozen=True):
    """The room's device is closed on somebody's wish, until that time (UTC) if one was given."""

    until: datetime | None = None


class Stop(msgspec.Struct, frozen=True):
    """Where and when (UTC) a run has come to its end, and what the time after it is to be called."""

    position: int
    at: datetime
    cause: Cause = "daemon down"


def key(room: str, name: str) -> str:
    """The key of a room's mark.

    `rate`: Hz, by its first sample. `audio`: the position up to which segments are in the journal. `stopped`: where
    and when the last run came to its end, and the cause of the time after it. `file`: the file that is being recorded
    and where it began. `muted`: that the device is closed, and until when. `forgetting`: the stretch that is being
    forgotten.
    """
    return f"room/{room}/{name}"


def audio_records(room: str, rate: int, segment: Segment) -> list[Record]:
    """A segment is closed."""
    return [
        Audio(
            room=room,
            position=segment.position,
            at=segment.at,
            samples=segment.samples,
            rate=rate,
            file=str(segment.path),
            fresh=segment.fresh,
        ),
        CoverageSpan(
            room=room,
            start=segment.position,
            end=segment.end,
            state="captured",
            cause=None,
            from_=segment.at,
            until=segment.when(segment.end, rate),
        ),
        Mark(key(room, "audio"), segment.end),
    ]


def step_records(room: str, position: int, from_: datetime, until: datetime) -> list[Record]:
    """Time that nobody has lived through, for somebody has set the clock: it belongs to what was captured around it."""
    return [
        CoverageSpan(room=room, start=position, end=position, state="captured", cause=None, from_=from_, until=until)
    ]


def loss_records(room: str, lost: Lost) -> list[Record]:
    """Positions, or only time, are missing."""
    start, end, from_, until, cause = lost.start, lost.end, lost.from_, lost.until, lost.cause
    return [
        Gap(room=room, position=start, at=from_, start=start, end=end, from_=from_, until=until, cause=cause),
        CoverageSpan(room=room, start=start, end=end, state="lost", cause=cause, from_=from_, until=until),
    ]


def stop_records(room: str, stop: Stop) -> list[Record]:
    """A run has come to its end, cleanly."""
    return [Mark(key(room, "stopped"), msgspec.to_builtins(stop))]


def mute_records(room: str, mute: MuteState, position: int, at: datetime) -> list[Record]:
    """The room's device is closed from here on."""
    return [
        Muted(room=room, position=position, at=at, until=mute.until),
        Mark(key(room, "muted"), msgspec.to_builtins(mute)),
    ]


def unmute_records(room: str, stop: Stop | None, position: int, at: datetime, cause: Cause) -> list[Record]:
    """The room listens again: the muted time ends, and what follows until the first samples has another `cause`.

    `stop` is how the last run came to its end; only one that came to it by muting leaves muted time behind.
    """
    facts: list[Record] = [Unmuted(room=room, position=position, at=at), Mark(key(room, "muted"), None)]
    if stop is None or stop.cause != "muted":
        return facts
    at = max(at, stop.at)
    gap = loss_records(room, Lost(stop.position, stop.position, stop.at, at, "muted"))
    return [*gap, *facts, *stop_records(room, Stop(stop.position, at, cause))]
