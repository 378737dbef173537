"""The records that the recorder commits: for each thing that happens to a room, all of them together. Pure."""

from datetime import datetime

import msgspec

from roomtone.capture.sample_accounting import Lost
from roomtone.events import Audio, Cause, Gap, Muted, Unmuted
from roomtone.journal.keys import room_key
from roomtone.journal.records import CoverageSpan, Mark, Record
from roomtone.spool.segment import Segment


class MuteState(msgspec.Struct, frozen=True):
    """The room's device is closed on request, until that time (UTC) if one was given."""

    until: datetime | None = None


class Stop(msgspec.Struct, frozen=True):
    """The position and time (UTC) of a run's end, and the cause of the time after it."""

    position: int
    at: datetime
    cause: Cause = "daemon down"


def audio_records(room: str, rate: int, segment: Segment) -> list[Record]:
    """For a closed segment."""
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
        Mark(room_key(room, "audio"), segment.end),
    ]


def step_records(room: str, position: int, from_: datetime, until: datetime) -> list[Record]:
    """For a clock that was set forward: the time that it skipped belongs to the audio around it."""
    return [
        CoverageSpan(room=room, start=position, end=position, state="captured", cause=None, from_=from_, until=until)
    ]


def loss_records(room: str, lost: Lost) -> list[Record]:
    """For positions, or time alone, that are missing."""
    start, end, from_, until, cause = lost.start, lost.end, lost.from_, lost.until, lost.cause
    return [
        Gap(room=room, position=start, at=from_, start=start, end=end, from_=from_, until=until, cause=cause),
        CoverageSpan(room=room, start=start, end=end, state="lost", cause=cause, from_=from_, until=until),
    ]


def stop_records(room: str, stop: Stop) -> list[Record]:
    """For the clean end of a run."""
    return [Mark(room_key(room, "stopped"), msgspec.to_builtins(stop))]


def mute_records(room: str, mute: MuteState, position: int, at: datetime) -> list[Record]:
    """For a device that is closed from here on."""
    return [
        Muted(room=room, position=position, at=at, until=mute.until),
        Mark(room_key(room, "muted"), msgspec.to_builtins(mute)),
    ]


def unmute_records(room: str, stop: Stop | None, position: int, at: datetime, cause: Cause) -> list[Record]:
    """For the end of muted time. The time from there to the first samples is journaled with `cause`.

    `stop` is that of the last run; only a run that was ended by muting leaves muted time.
    """
    records: list[Record] = [Unmuted(room=room, position=position, at=at), Mark(room_key(room, "muted"), None)]
    if stop is None or stop.cause != "muted":
        return records
    at = max(at, stop.at)
    gap = loss_records(room, Lost(stop.position, stop.position, stop.at, at, "muted"))
    return [*gap, *records, *stop_records(room, Stop(stop.position, at, cause))]
