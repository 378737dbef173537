"""Laws of waiting between attempts."""

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.backoff import LONGEST_WAIT, Backoff, is_worth_saying, wait_of

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def test_doubles_up_to_the_longest() -> None:
    """The ceiling of the delays doubles from the first to the longest and stays there."""
    backoff = Backoff(first=0.5, longest=4.0, random=lambda: 1.0)

    assert [backoff.next() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


@given(st.integers(0, 5000), st.floats(0, 1, exclude_max=True))
def test_any_delay_is_between_zero_and_the_longest(failures: int, luck: float) -> None:
    """After any number of failures the delay is full jitter below the longest, and a number."""
    backoff = Backoff(random=lambda: luck)
    for _ in range(failures):
        backoff.next()

    assert 0 <= backoff.next() <= 60.0
    assert backoff.failures == failures + 1


def test_jitter_is_full() -> None:
    """Delays of recorders that failed together spread over the whole interval from zero."""
    delays = [Backoff(first=1.0).next() for _ in range(2000)]

    assert min(delays) < 0.05
    assert max(delays) > 0.95


def test_healthy_time_begins_anew() -> None:
    """Only an attempt that went well for the healthy time begins anew from the first delay."""
    backoff = Backoff(first=1.0, healthy=60.0, random=lambda: 1.0)
    backoff.next()
    backoff.next()

    backoff.healthy_for(59.9)
    assert backoff.next() == 4.0

    backoff.healthy_for(60.0)
    assert backoff.next() == 1.0


def test_refuses_what_cannot_grow() -> None:
    """A back-off of nothing, or from long to short, is refused where it is made."""
    with pytest.raises(ValueError, match="does not grow"):
        Backoff(first=0)
    with pytest.raises(ValueError, match="does not grow"):
        Backoff(first=5, longest=1)


def test_failures_are_told_ever_rarer() -> None:
    """The first failure is logged immediately, then the 2nd, 4th, 8th and so on."""
    assert [count for count in range(70) if is_worth_saying(count)] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        (" 120 ", 120.0),
        ("9" * 5000, LONGEST_WAIT),
        ("-5", 0.0),
        ("7, 9", 0.0),
        ("\u0663", 0.0),
        ("soon", 0.0),
        ("Sat, 01 Mar 2025 12:01:30 GMT", 90.0),
        ("Saturday, 01-Mar-25 12:01:30 GMT", 90.0),
        ("Sat Mar  1 12:01:30 2025", 90.0),
        ("Mon, 20 Nov 1995 19:12:08 +99999999999999999999", 0.0),
        ("1 Jan 9999999999999 00:00:00 +0000", 0.0),
        ("Mon, 20 Nov 99999 19:12:08 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", LONGEST_WAIT),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    """Seconds or a date in each form of HTTP, an hour at most; nonsense is as if nothing had been said."""
    assert wait_of(value, NOON) == seconds


_PART = st.integers().map(str) | st.sampled_from(["Mon,", "Nov", "GMT", "+", "-", ":", " ", ",", "2025", "12:00:00"])


@given(st.text() | st.lists(_PART, max_size=12).map(" ".join) | st.lists(_PART, max_size=12).map("".join))
def test_no_retry_after_is_more_than_a_wait(value: str) -> None:
    """Any text that a host on the way may write is a number of seconds from 0 to an hour."""
    assert 0.0 <= wait_of(value, NOON) <= LONGEST_WAIT


@given(st.integers(0, 3600), st.integers(-23 * 60, 23 * 60))
def test_a_date_is_waited_for_in_any_zone(seconds: int, offset: int) -> None:
    """A date is that many seconds away, whatever zone it is written in."""
    date = (NOON + timedelta(seconds=seconds)).astimezone(timezone(timedelta(minutes=offset)))
    assert wait_of(format_datetime(date), NOON) == seconds
