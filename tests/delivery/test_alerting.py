"""Laws of telling people about failures."""

from hypothesis import given
from hypothesis import strategies as st

from roomtone.delivery.alerting import ALERT_AFTER_S, DAY_S, FailureAlert


def test_a_hiccup_is_no_news() -> None:
    """A streak that ends within the patience is told neither at its beginning nor at its end."""
    streak = FailureAlert()

    assert not any(streak.record_failure(float(now)) for now in range(100))
    assert not streak.record_recovery(100)


def test_what_lasts_is_told_once() -> None:
    """A streak that outlasts the patience is told once, however long it is, and its end is told."""
    streak = FailureAlert()

    told = [now for now in range(0, 100_000, 40) if streak.record_failure(float(now))]

    assert told == [ALERT_AFTER_S]
    assert streak.failures == 2500
    assert streak.record_recovery(100_000)
    assert streak.failures == 0
    assert not streak.record_recovery(100_001)


def test_what_needs_a_person_is_told_at_once() -> None:
    """A failure that no waiting mends is told at its first coming, unless there was one lately."""
    streak = FailureAlert()

    assert streak.record_failure(0, is_urgent=True)
    assert not streak.record_failure(1, is_urgent=True)
    assert streak.record_recovery(2)
    assert not streak.record_failure(3, is_urgent=True)


def test_a_quiet_day_begins_anew() -> None:
    """After a day without a told streak the next one is told as soon as the first was."""
    streak = FailureAlert()
    streak.record_failure(0)
    assert streak.record_failure(ALERT_AFTER_S)
    assert streak.record_recovery(200)

    streak.record_failure(300)
    assert not streak.record_failure(300 + ALERT_AFTER_S)
    assert not streak.record_recovery(500)
    streak.record_failure(200 + DAY_S)
    assert streak.record_failure(200 + DAY_S + ALERT_AFTER_S)


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans(), st.booleans()), max_size=400))
def test_a_day_has_a_handful_of_notices(happenings: list[tuple[float, bool, bool]]) -> None:
    """Whatever fails and heals in a day, at most a dozen streaks are told."""
    streak, now, told = FailureAlert(), 0.0, 0
    for pause, is_failing, at_once in happenings:
        now += pause
        if now > DAY_S:
            break
        if is_failing:
            told += streak.record_failure(now, is_urgent=at_once)
        else:
            told += streak.record_recovery(now)

    assert told <= 24
