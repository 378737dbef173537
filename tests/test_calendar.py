"""One wrong clock makes nothing old: a jump ahead is believed after a day, and everything else at once."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from roomtone.calendar import JUMP, PATIENCE, Calendar

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
YEARS = timedelta(days=3_650)


def test_time_that_goes_by() -> None:
    """A clock that goes as time does is believed, over changes of up to a day."""
    calendar = Calendar(None)

    assert calendar.read(NOW, 0.0) == NOW
    assert calendar.read(NOW + HOUR, 3600.0) == NOW + HOUR
    assert calendar.read(NOW + HOUR + JUMP, 3600.0) == NOW + HOUR + JUMP
    assert not calendar.is_doubting


def test_a_jump_is_believed_after_a_day() -> None:
    """Until then the time that has gone by counts, and no more."""
    calendar = Calendar(NOW)
    day = PATIENCE.total_seconds()

    assert calendar.read(NOW + YEARS, 0.0) == NOW
    assert calendar.is_doubting
    assert calendar.read(NOW + YEARS + HOUR, 3600.0) == NOW + HOUR
    assert calendar.read(NOW + YEARS + PATIENCE - HOUR, day - 3600.0) == NOW + PATIENCE - HOUR

    assert calendar.read(NOW + YEARS + PATIENCE, day) == NOW + YEARS + PATIENCE
    assert not calendar.is_doubting


def test_a_jump_that_is_taken_back() -> None:
    """Another jump has a day of its own."""
    calendar = Calendar(NOW)
    calendar.read(NOW + YEARS, 0.0)
    assert calendar.read(NOW + HOUR, 3600.0) == NOW + HOUR
    assert not calendar.is_doubting

    day = PATIENCE.total_seconds()
    assert calendar.read(NOW + YEARS + 2 * HOUR, 7200.0) == NOW + 2 * HOUR
    assert calendar.read(NOW + YEARS + PATIENCE + HOUR, day + 3600.0) == NOW + PATIENCE + HOUR


def test_a_clock_that_goes_back() -> None:
    """It is believed at once, and its way back is a jump."""
    calendar = Calendar(NOW)

    assert calendar.read(NOW - YEARS, 0.0) == NOW - YEARS
    assert calendar.read(NOW, 10.0) == NOW - YEARS + timedelta(seconds=10)


@given(st.lists(st.tuples(st.floats(0, 40_000), st.integers(-5_000, 5_000)), max_size=20))
def test_it_is_never_later_than_the_clock(steps: list[tuple[float, int]]) -> None:
    """Whatever the clock does, nothing is older than it says, nor than a day more than the time that has gone by."""
    calendar, uptime, before = Calendar(NOW), 0.0, NOW
    for seconds, days in steps:
        uptime += seconds
        clock = NOW + timedelta(seconds=uptime, days=days)
        was_doubting = calendar.is_doubting
        read = calendar.read(clock, uptime)
        assert read <= clock
        assert was_doubting or read <= before + timedelta(seconds=seconds) + JUMP
        before = read
