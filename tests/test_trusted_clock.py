"""One wrong clock makes nothing old: a jump ahead is trusted after a day, and everything else immediately."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.trusted_clock import MAX_JUMP, TRUST_AFTER, Reading, TrustedClock, reading_of, shifted

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
YEARS = timedelta(days=3_650)


def known() -> TrustedClock:
    return TrustedClock(Reading(NOW, NOW))


def again(calendar: TrustedClock) -> TrustedClock:
    """The calendar of the next run."""
    assert calendar.last is not None
    return TrustedClock(reading_of(msgspec.json.decode(msgspec.json.encode(calendar.last.to_builtins()))))


def test_time_that_goes_by() -> None:
    """A clock that goes as time does is believed, over changes that are not a jump."""
    calendar = TrustedClock(reading_of(None))

    assert calendar.read(NOW, 0.0) == NOW
    assert calendar.read(NOW + HOUR, 3600.0) == NOW + HOUR
    assert calendar.read(NOW + HOUR + MAX_JUMP, 3600.0) == NOW + HOUR + MAX_JUMP
    assert not calendar.is_doubting


def test_a_jump_is_believed_after_a_day() -> None:
    """Until then the time that has gone by counts, and no more."""
    calendar = known()
    day = TRUST_AFTER.total_seconds()

    assert calendar.read(NOW + YEARS, 0.0) == NOW
    assert calendar.is_doubting
    assert calendar.read(NOW + YEARS + HOUR, 3600.0) == NOW + HOUR
    assert calendar.read(NOW + YEARS + TRUST_AFTER - HOUR, day - 3600.0) == NOW + TRUST_AFTER - HOUR

    assert calendar.read(NOW + YEARS + TRUST_AFTER, day) == NOW + YEARS + TRUST_AFTER
    assert not calendar.is_doubting


def test_a_jump_that_is_taken_back() -> None:
    """Another jump has a day of its own."""
    calendar = known()
    calendar.read(NOW + YEARS, 0.0)
    assert calendar.read(NOW + HOUR, 3600.0) == NOW + HOUR
    assert not calendar.is_doubting

    day = TRUST_AFTER.total_seconds()
    assert calendar.read(NOW + YEARS + 2 * HOUR, 7200.0) == NOW + 2 * HOUR
    assert calendar.read(NOW + YEARS + TRUST_AFTER + HOUR, day + 3600.0) == NOW + TRUST_AFTER + HOUR


def test_another_year_begins_the_doubt_anew() -> None:
    """A clock that jumps about is never right for long enough."""
    calendar = known()
    for hour in range(0, 80, 20):
        year = timedelta(days=365 * (40 - hour))
        assert calendar.read(NOW + YEARS * 4 + year + hour * HOUR, hour * 3600.0) == NOW + hour * HOUR
    assert calendar.is_doubting


def test_a_clock_that_goes_back() -> None:
    """It is trusted immediately, and its way back is a jump."""
    calendar = known()

    assert calendar.read(NOW - YEARS, 0.0) == NOW - YEARS
    assert calendar.read(NOW, 10.0) == NOW - YEARS + timedelta(seconds=10)


def test_a_machine_that_is_off_at_night_and_on_holiday() -> None:
    """Nights and weekends are not jumps; after a month off, three days of work are a day that the clock has gone on."""
    calendar, clock, behind = known(), NOW, []
    for day in [*range(12), *range(40, 46)]:
        if day % 7 not in {5, 6}:
            calendar = again(calendar)
            for hour in range(9):
                clock = NOW + day * DAY + hour * HOUR
                read = calendar.read(clock, 30.0 + hour * 3600.0)
            behind.append((clock - read).days)
    assert behind == [0] * 10 + [30, 31, 0, 0]


def test_a_reboot_takes_no_wrong_clock_at_its_word() -> None:
    """However often it boots into the wrong year within a day, nothing gets older than it is."""
    calendar = known()
    for boot in range(20):
        calendar = again(calendar)
        assert calendar.read(NOW + YEARS + boot * HOUR, 10.0) <= NOW + boot * HOUR
        assert calendar.read(NOW + YEARS + (boot + 1) * HOUR, 3610.0) <= NOW + (boot + 1) * HOUR


@given(st.lists(st.tuples(st.floats(0, 40_000), st.integers(-5_000, 5_000)), max_size=20))
def test_it_is_never_later_than_the_clock(steps: list[tuple[float, int]]) -> None:
    """Whatever the clock does, nothing is older than it says, nor than a jump more than the time that has gone by."""
    calendar, uptime, before = known(), 0.0, NOW
    for seconds, days in steps:
        uptime += seconds
        clock = NOW + timedelta(seconds=uptime, days=days)
        was_doubting = calendar.is_doubting
        read = calendar.read(clock, uptime)
        assert read <= clock
        assert was_doubting or read <= before + timedelta(seconds=seconds) + MAX_JUMP
        before = read


@pytest.mark.parametrize("kept", [None, [], "junk", ["a", "b", None], [str(NOW), 7, None], [str(NOW), str(NOW), "x"]])
def test_a_reading_that_is_none(kept: object) -> None:
    """A value that cannot be read is not a reading: the clock begins anew."""
    assert reading_of(kept) is None


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
    st.floats(0, 1e13),
)
def test_it_is_total(believed: datetime, clock: datetime, now: datetime, gone: float) -> None:
    """No two times that a clock can say are too far from each other, or too near to the end of the calendar."""
    calendar = TrustedClock(Reading(believed, clock, 1.0))
    calendar.read(now, 0.0)
    calendar.read(now, gone)


@given(st.datetimes(timezones=st.just(UTC)), st.floats(0, 36_500))
def test_days_before_any_time(at: datetime, days: float) -> None:
    """A time before the first year counts as its first moment."""
    assert shifted(at, -timedelta(days=days)) <= at
