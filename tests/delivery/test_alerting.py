"""Laws of telling people about failures."""

from hypothesis import given
from hypothesis import strategies as st

from roomtone.delivery.alerting import DAY, PATIENCE, Streak


def test_a_hiccup_is_no_news() -> None:
    """A streak that ends within the patience is told neither at its beginning nor at its end."""
    streak = Streak()

    assert not any(streak.is_failed(float(now)) for now in range(100))
    assert not streak.is_healed(100)


def test_what_lasts_is_told_once() -> None:
    """A streak that outlasts the patience is told once, however long it is, and its end is told."""
    streak = Streak()

    told = [now for now in range(0, 100_000, 40) if streak.is_failed(float(now))]

    assert told == [PATIENCE]
    assert streak.failures == 2500
    assert streak.is_healed(100_000)
    assert streak.failures == 0
    assert not streak.is_healed(100_001)


def test_what_needs_a_person_is_told_at_once() -> None:
    """A failure that no waiting mends is told at its first coming, unless there was one lately."""
    streak = Streak()

    assert streak.is_failed(0, at_once=True)
    assert not streak.is_failed(1, at_once=True)
    assert streak.is_healed(2)
    assert not streak.is_failed(3, at_once=True)


def test_a_quiet_day_begins_anew() -> None:
    """After a day without a told streak the next one is told as soon as the first was."""
    streak = Streak()
    streak.is_failed(0)
    assert streak.is_failed(PATIENCE)
    assert streak.is_healed(200)

    streak.is_failed(300)
    assert not streak.is_failed(300 + PATIENCE)
    assert not streak.is_healed(500)
    streak.is_failed(200 + DAY)
    assert streak.is_failed(200 + DAY + PATIENCE)


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans(), st.booleans()), max_size=400))
def test_a_day_has_a_handful_of_notices(happenings: list[tuple[float, bool, bool]]) -> None:
    """Whatever fails and heals in a day, at most a dozen streaks are told."""
    streak, now, told = Streak(), 0.0, 0
    for pause, is_failing, at_once in happenings:
        now += pause
        if now > DAY:
            break
        if is_failing:
            told += streak.is_failed(now, at_once=at_once)
        else:
            told += streak.is_healed(now)

    assert told <= 24
