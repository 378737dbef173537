"""The wait before the next attempt: without end, ever longer, never in step with others.

Pure: the caller owns the clock, and reports how long things went well.
"""

import random as _random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_WAIT: Final = 3600.0
"""Seconds that a `Retry-After` is granted, at most."""

_DOUBLINGS = 32
"""Enough for any `longest`; without a bound the power would grow into a number of thousands of digits."""


class Backoff:
    """Delays with full jitter: uniform between zero and a ceiling that doubles from `first` to `longest` seconds.

    Full jitter, because a thousand recorders that lost the same receiver must not come back in the same second.
    """

    def __init__(
        self,
        first: float = 0.5,
        longest: float = 60.0,
        healthy: float = 60.0,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if not 0 < first <= longest:
            raise ValueError(f"a back-off from {first} to {longest} seconds does not grow")
        self._first = first
        self._longest = longest
        self._healthy = healthy
        self._random = random
        self._failures = 0

    @property
    def failures(self) -> int:
        """Delays given since the beginning or the last reset."""
        return self._failures

    def next(self) -> float:
        """The seconds to wait before the next attempt."""
        ceiling = min(self._longest, self._first * 2.0 ** min(self._failures, _DOUBLINGS))
        self._failures += 1
        return ceiling * self._random()

    def healthy_for(self, seconds: float) -> None:
        """Say how long the last attempt went well: `healthy` seconds or more begin anew from `first`."""
        if seconds >= self._healthy:
            self.reset()

    def reset(self) -> None:
        """Begin anew: the last attempt has achieved something."""
        self._failures = 0


def is_worth_saying(count: int) -> bool:
    """True if the `count`th failure of a streak goes to the log: the 1st, then ever rarer (2nd, 4th, 8th, ...)."""
    return count > 0 and count & (count - 1) == 0


def wait_of(retry_after: str | None, now: datetime) -> float:
    """Seconds to wait by this `Retry-After` (RFC 9110, 10.2.3: seconds, or a date), at most LONGEST_WAIT.

    Total: 0 without a header and for any text that is neither. Every host on the way may have written it.
    """
    text = "" if retry_after is None else retry_after.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), LONGEST_WAIT)
    try:
        date = parsedate_to_datetime(text)
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    except Exception:  # noqa: BLE001 - the library raises ValueError, OverflowError, and others in other versions
        return 0.0
    return max(0.0, min(seconds, LONGEST_WAIT))
