"""Which day it is, for deciding what is old enough to be removed. Pure.

A small computer whose clock has no battery wakes up in any year. Where its clock says all at once that a year has
gone by, a year of recordings would be too old: so a clock that jumps ahead is believed only when it has gone on like
that for a day. A machine that was really off for months keeps for a day more what has grown old meanwhile.
"""

import time
from datetime import datetime, timedelta

JUMP = timedelta(days=1)
"""More than this, ahead of the time that has gone by, is a jump. Daylight saving and leap seconds are none."""
PATIENCE = timedelta(days=1)
"""How long a clock has to go on after a jump until it is believed."""


def uptime() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Calendar:
    """The time to judge ages by. `believed` is the last one that is known from before, or None where there is none."""

    def __init__(self, believed: datetime | None) -> None:
        self.believed = believed
        self._read_at: float | None = None
        self._jumped_at: float | None = None

    @property
    def is_doubting(self) -> bool:
        """Whether the clock has jumped ahead and is not believed yet."""
        return self._jumped_at is not None

    def read(self, now: datetime, uptime: float) -> datetime:
        """The time to judge by where the clock says `now`, at `uptime` seconds of one that nobody sets.

        It is never later than the clock. A clock that goes back is believed at once: it only makes things younger.
        """
        gone = timedelta(seconds=0 if self._read_at is None else uptime - self._read_at)
        self._read_at = uptime
        expected = now if self.believed is None else self.believed + gone
        if now <= expected + JUMP:
            self._jumped_at = None
        elif self._jumped_at is None:
            self._jumped_at = uptime
        elif uptime - self._jumped_at >= PATIENCE.total_seconds():
            self._jumped_at = None
            expected = now
        self.believed = expected if self.is_doubting else now
        return self.believed
