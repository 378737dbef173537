"""Whether every room is accounted for: the condition under which the daemon tells the service manager that it lives.

A process that breathes is not a recorder that records. So the sign of life is given only while each room either has
its samples on disk, or an open gap with a cause and a source that is tried again. A source that stays silent is the
daemon's own to replace; what is left for the service manager is a daemon that no longer does so.

Pure: it is told what happens, in seconds of a clock that does not go back.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from roomtone.events import Cause

SAMPLE_TIMEOUT_S = 10.0
"""Seconds in which an open source must have brought samples to the disk. The recorder replaces a silent one after 6."""
RETRY_TIMEOUT_S = 35.0
"""Seconds in which the source of an open gap must have been tried: the longest back-off, or the longest opening, is 30;
the rest is for a slow machine.
"""


class RoomHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one room stands. `cause`: why there are no samples, None while there are. `lasting`: seconds of this state;
    `tried`: seconds since its source was last tried, or since its last samples. `settled`: it is known whether there
    is a source. `ended`: there will be no more samples, and that is right. `drift`: parts per million by which the
    source runs faster than this machine's clock, None while nothing is known of it. `reason`: what a person should
    know of the cause.
    """

    name: str
    accounted: bool
    settled: bool
    ended: bool
    cause: Cause | None
    lasting: float
    tried: float
    drift: float | None = None
    reason: str = ""

    @property
    def quiet(self) -> float:
        """Seconds since the last sample."""
        return self.lasting if self.cause else self.tried


class Liveness:
    """The rooms that are to be, from `now` on; until its first samples, each has the gap with which every start begins.

    Told by the recorder: `tried` before each opening of the source; `samples` when they are written; `gap` whenever
    the source is left, or refused by the disk, with the cause; `ended` when the source has no more.
    """

    def __init__(self, rooms: Iterable[str], now: float) -> None:
        self._rooms = {name: _Room(cause="daemon down", since=now, tried=now) for name in rooms}

    @contextmanager
    def watch(self, room: str, now: float) -> Iterator[None]:
        """The room is at work as long as this lasts; a room from the beginning goes on as it stands."""
        self._rooms.setdefault(room, _Room(cause="daemon down", since=now, tried=now))
        try:
            yield
        finally:
            del self._rooms[room]

    def tried(self, room: str, now: float) -> None:
        """The source is being opened now."""
        self._change(room, tried=now)

    def samples(self, room: str, now: float) -> None:
        """Samples are written: whatever was missing is over."""
        before = self._rooms[room]
        since = now if before.cause else before.since
        self._rooms[room] = _Room(cause=None, since=since, tried=now, settled=True, drift=before.drift)

    def gap(self, room: str, cause: Cause, now: float, reason: str = "") -> None:
        """There are no samples, and this is why. Said again of the same gap, it only counts as another try."""
        before = self._rooms[room]
        since = before.since if before.cause == cause else now
        self._rooms[room] = _Room(cause=cause, since=since, tried=now, settled=True, drift=before.drift, reason=reason)

    def ended(self, room: str, now: float) -> None:
        """The source has given all that it had: a file, a command that is done."""
        self._change(room, since=now, settled=True, ended=True)

    def drifts(self, room: str, ppm: float) -> None:
        """The source runs so much faster than this machine's clock, in parts per million."""
        self._change(room, drift=ppm)

    def rooms(self, now: float) -> tuple[RoomHealth, ...]:
        """How each room stands now."""
        return tuple(
            RoomHealth(
                name=name,
                accounted=room.is_accounted(now),
                settled=room.settled,
                ended=room.ended,
                cause=room.cause,
                lasting=now - room.since,
                tried=now - room.tried,
                drift=room.drift,
                reason=room.reason,
            )
            for name, room in self._rooms.items()
        )

    def unaccounted(self, now: float) -> tuple[str, ...]:
        """The rooms for which nobody can say where their samples are. Empty is what a sign of life asks for."""
        return tuple(name for name, room in self._rooms.items() if not room.is_accounted(now))

    def settled(self) -> bool:
        """Whether it is known of every room if it has a source: the start is over."""
        return all(room.settled for room in self._rooms.values())

    def _change(self, room: str, **changes: object) -> None:
        self._rooms[room] = msgspec.structs.replace(self._rooms[room], **changes)


class _Room(msgspec.Struct, frozen=True, kw_only=True):
    cause: Cause | None
    since: float
    tried: float
    settled: bool = False
    ended: bool = False
    drift: float | None = None
    reason: str = ""

    def is_accounted(self, now: float) -> bool:
        # A muted room has no source on purpose: there is nothing to try.
        if self.ended or self.cause == "muted":
            return True
        return now - self.tried <= (RETRY_TIMEOUT_S if self.cause else SAMPLE_TIMEOUT_S)
