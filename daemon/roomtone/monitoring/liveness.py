"""Liveness: the daemon sends the service manager its sign of life only while every room is accounted for.

A process that runs is not yet a recorder that records. A room is accounted for while its samples are on disk, or while
it has an open gap with a cause and a source that is tried again. The daemon replaces a silent source itself; the
service manager restarts a daemon that no longer does so.

Pure: the caller reports each change, in seconds of a clock that does not go back.
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
    """The health of one room at the time `now`.

    `cause`: why there are no samples, None while there are. `since`: when this state began. `tried`: when its source
    was last tried, or the last samples came. `settled`: it is known if there is a source. `ended`: there will be no
    more samples, and that is right. `drift`: parts per million by which the source runs faster than this machine's
    clock, None while unknown. `reason`: more about the cause, for the operator.
    """

    name: str
    cause: Cause | None
    since: float
    tried: float
    now: float
    settled: bool = False
    ended: bool = False
    drift: float | None = None
    reason: str = ""

    @property
    def accounted(self) -> bool:
        """True if the samples are on disk, or it is known why there are none."""
        # A muted room has no source on purpose: there is nothing to try.
        if self.ended or self.cause == "muted":
            return True
        return self.silence <= (RETRY_TIMEOUT_S if self.cause else SAMPLE_TIMEOUT_S)

    @property
    def lasting(self) -> float:
        """Seconds of this state."""
        return self.now - self.since

    @property
    def silence(self) -> float:
        """Seconds without a sign of the source."""
        return self.now - self.tried

    @property
    def quiet(self) -> float:
        """Seconds since the last sample."""
        return self.lasting if self.cause else self.silence


class Liveness:
    """The configured rooms, from `now` on; until its first samples, each has the gap with which every start begins.

    The recorder calls `tried` before each opening of the source; `samples` when they are written; `gap` whenever
    the source is left, or refused by the disk, with the cause; `ended` when the source has no more.
    """

    def __init__(self, rooms: Iterable[str], now: float) -> None:
        self._rooms = {name: _begin(name, now) for name in rooms}

    @contextmanager
    def watch(self, room: str, now: float) -> Iterator[None]:
        """The room is watched until the context is left. A room that was watched from the start keeps its health."""
        self._rooms.setdefault(room, _begin(room, now))
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
        self._change(room, cause=None, since=since, tried=now, settled=True, ended=False, reason="")

    def gap(self, room: str, cause: Cause, now: float, reason: str = "") -> None:
        """There are no samples, and this is why. Repeated for the same gap, it only counts as another try."""
        before = self._rooms[room]
        since = before.since if before.cause == cause else now
        self._change(room, cause=cause, since=since, tried=now, settled=True, ended=False, reason=reason)

    def ended(self, room: str, now: float) -> None:
        """The source has given all that it had: a file, a command that is done."""
        self._change(room, since=now, settled=True, ended=True)

    def drifts(self, room: str, ppm: float) -> None:
        """The source runs faster than this machine's clock, by this many parts per million."""
        self._change(room, drift=ppm)

    def rooms(self, now: float) -> tuple[RoomHealth, ...]:
        """The health of each room now."""
        return tuple(msgspec.structs.replace(room, now=now) for room in self._rooms.values())

    def unaccounted(self, now: float) -> tuple[str, ...]:
        """The rooms whose missing samples have no explanation. A sign of life is given only while there are none."""
        return tuple(room.name for room in self.rooms(now) if not room.accounted)

    def settled(self) -> bool:
        """True if it is known of every room whether it has a source: the start is over."""
        return all(room.settled for room in self._rooms.values())

    def _change(self, room: str, **changes: object) -> None:
        self._rooms[room] = msgspec.structs.replace(self._rooms[room], **changes)


def _begin(room: str, now: float) -> RoomHealth:
    return RoomHealth(name=room, cause="daemon down", since=now, tried=now, now=now)
