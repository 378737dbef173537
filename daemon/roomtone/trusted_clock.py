"""Which day it is, for deciding what is old enough to be removed. Pure.

A small computer whose clock has no battery wakes up in any year. Where its clock suddenly says that a year has gone
by, a year of recordings would be too old: so a clock that jumps ahead is believed only when it has gone on like that
for a day, in one run of the daemon or in several. A machine that was really off for a month keeps for a day of its work
more what has grown old meanwhile.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

MAX_JUMP = timedelta(days=7)
"""More than this, ahead of the time that has gone by, is a jump. A weekend is none, nor is a holiday of a week: what a
clock that is wrong by less removes too soon was nearly old enough.
"""
TRUST_AFTER = timedelta(days=1)
"""A clock that has jumped is trusted after it has gone on for this long."""


def uptime() -> float:
    """Seconds of a clock that cannot be set, and that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Reading(NamedTuple):
    """The state for the next run: the time that was `believed`, what the `clock` said, and for how many
    seconds it has gone on since it jumped; None where it is believed.
    """

    believed: datetime
    clock: datetime
    confirmed: float | None = None

    def to_builtins(self) -> list[Any]:
        """As JSON has it: see `reading_of`."""
        return [self.believed.isoformat(), self.clock.isoformat(), self.confirmed]


def reading_of(kept: Any) -> Reading | None:
    """The reading that was kept so; None where none was, or one that cannot be read."""
    try:
        believed, clock, confirmed = kept
        first, second = (datetime.fromisoformat(text).astimezone(UTC) for text in (believed, clock))
        return Reading(first, second, None if confirmed is None else float(confirmed))
    except (TypeError, ValueError, OverflowError):
        return None


def shifted(at: datetime, by: timedelta) -> datetime:
    """The time later by that much, or the first or last that a datetime can be. `at` is aware."""
    try:
        return at + by
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if by < timedelta() else datetime.max.replace(tzinfo=UTC)


class TrustedClock:
    """The time to judge ages by. `last` is the last reading, of this run or of the one before."""

    def __init__(self, last: Reading | None) -> None:
        self.last = last
        self._read_at: float | None = None

    @property
    def is_doubting(self) -> bool:
        """True if the clock has jumped ahead and is not trusted yet."""
        return self.last is not None and self.last.confirmed is not None

    def read(self, now: datetime, uptime: float) -> datetime:
        """The time to judge by where the clock says `now`, at `uptime` seconds of one that cannot be set.

        It is never later than the clock. A clock that goes back is trusted immediately: it only makes things younger.
        """
        gone = 0.0 if self._read_at is None else uptime - self._read_at
        self._read_at = uptime
        self.last = Reading(now, now) if self.last is None else _next(self.last, now, timedelta(seconds=gone))
        return self.last.believed


def _next(last: Reading, now: datetime, gone: timedelta) -> Reading:
    expected = shifted(last.believed, gone)
    if now <= shifted(expected, MAX_JUMP):
        return Reading(now, now)
    # Between two runs the machine may have been off: a clock that has only gone on is the same one.
    goes_on = last.confirmed is not None and now >= shifted(last.clock, gone - MAX_JUMP)
    confirmed = (last.confirmed or 0.0) + gone.total_seconds() if goes_on else 0.0
    if confirmed >= TRUST_AFTER.total_seconds():
        return Reading(now, now)
    return Reading(expected, now, confirmed)
