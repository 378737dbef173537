"""Counters of each room since the daemon's start, folded from its events. They only grow. Pure."""

from datetime import datetime

import msgspec

from roomtone.events import Answer, Audio, Durable, Gap, SessionEnded, SessionStarted, Turn


class RoomCounters(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of one room.

    `captured` counts samples on disk, `lost` the samples that the source produced and that are not on disk, by cause.
    `missing` has the seconds without samples by cause, time without a source included.

    `broken` counts sessions that ended early and were followed by another one. `open_seconds` is how long sessions were
    open, which the service bills; `audio_seconds` how much audio they were sent. Both grow when a session ends:
    `open_now` is how long the sessions that are open now have been open.
    """

    captured: int = 0
    lost: dict[str, int] = {}
    missing: dict[str, float] = {}
    sessions: int = 0
    broken: int = 0
    open_seconds: float = 0.0
    open_now: float = 0.0
    audio_seconds: float = 0.0
    turns: int = 0
    answers: int = 0


class Counters:
    """The counters of all rooms."""

    def __init__(self) -> None:
        self._rooms: dict[str, RoomCounters] = {}
        self._open: dict[str, SessionStarted] = {}

    def of(self, room: str, now: datetime) -> RoomCounters:
        """The room's counters at this time."""
        counters = self._rooms.get(room) or RoomCounters()
        sessions = [one for one in self._open.values() if one.room == room]
        seconds = sum(max(0.0, (now - one.at).total_seconds()) for one in sessions)
        return msgspec.structs.replace(counters, open_now=round(seconds, 3))

    def see(self, event: Durable) -> None:
        """Count one more event."""
        before = self._rooms.get(event.room) or RoomCounters()
        match event:
            case Audio(samples=samples):
                after = msgspec.structs.replace(before, captured=before.captured + samples)
            case Gap(start=start, end=end, from_=from_, until=until, cause=cause):
                lost = before.lost | {cause: before.lost.get(cause, 0) + end - start}
                seconds = before.missing.get(cause, 0.0) + (until - from_).total_seconds()
                after = msgspec.structs.replace(before, lost=lost, missing=before.missing | {cause: round(seconds, 3)})
            case SessionStarted(session_id=name):
                self._open[name] = event
                after = msgspec.structs.replace(before, sessions=before.sessions + 1)
            case SessionEnded(session_id=name, audio_seconds=audio, session_seconds=seconds, reason=reason):
                self._open.pop(name, None)
                after = msgspec.structs.replace(
                    before,
                    broken=before.broken + (reason not in {"terminated", "left"}),
                    open_seconds=round(before.open_seconds + seconds, 3),
                    audio_seconds=round(before.audio_seconds + audio, 3),
                )
            case Turn(supersedes=None):
                after = msgspec.structs.replace(before, turns=before.turns + 1)
            case Answer():
                after = msgspec.structs.replace(before, answers=before.answers + 1)
            case _:
                return
        self._rooms[event.room] = after
