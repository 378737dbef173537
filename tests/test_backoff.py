"""Laws of waiting between attempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.backoff import Backoff, is_worth_saying


def test_doubles_up_to_the_longest() -> None:
    """The ceiling of the delays doubles from the first to the longest and stays there for ever."""
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
    """The first failure is logged at once, then the 2nd, 4th, 8th and so on."""
    assert [count for count in range(70) if is_worth_saying(count)] == [1, 2, 4, 8, 16, 32, 64]
