"""The room's clock: positions to UTC, through drift, lateness, steps of NTP, and sleep."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.capture import clock as module
from roomtone.capture.clock import RoomClock

RATE = 16_000
EPOCH = 1_764_000_000.0
WEEK = 7 * 86_400


def seconds(moment: datetime) -> float:
    return moment.timestamp()


class World:
    """The truth: a crystal that is off, a reader that is late, a machine that sleeps, a UTC that is set."""

    def __init__(self, ppm: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.rate = RATE * (1 + ppm * 1e-6)
        self.began = 1000.0  # CLOCK_BOOTTIME of position `origin`
        self.origin = 0
        self.offset = EPOCH
        self.stalled_until = 0.0

    def taken(self, position: int) -> float:
        """The CLOCK_BOOTTIME when the sample at this position was truly taken."""
        return self.began + (position - self.origin) / self.rate

    def read(self, position: int) -> float:
        """The CLOCK_BOOTTIME when the block that ends here is read: late by 0 to 300 ms, or by a stall."""
        at = self.taken(position)
        if self.random.random() < 0.0005:
            self.stalled_until = at + self.random.uniform(0.3, 20)
        return max(at + self.random.uniform(0, 0.3), self.stalled_until)

    def sleep(self, position: int, duration: float) -> float:
        """The machine sleeps; the next sample is taken after that."""
        self.began = self.taken(position) + duration
        self.origin = position
        return self.began


def blocks(total: int) -> Iterator[int]:
    """Block lengths in seconds of a simulated time: fine for the first minute after each hour, coarse after."""
    elapsed = 0.0
    while elapsed < total:
        block = 0.2 if elapsed % 3600 < 60 else 1.6
        elapsed += block
        yield round(block * RATE)


@pytest.mark.parametrize("ppm", [50, -50])
def test_words_stay_within_50_ms_through_a_week(ppm: int) -> None:
    """A crystal off by 50 ppm, reads up to 300 ms late with stalls of 20 s, steps of UTC and nights of sleep move no
    word by 50 ms, when it is asked for 15 s after it was spoken.
    """
    world, clock = World(ppm, seed=7), RoomClock(RATE)
    position, hours, worst, stepped = 0, 0, 0.0, False
    waiting: list[tuple[int, float]] = []
    clock.restart(0, 1000.3)
    for block in blocks(WEEK):
        position += block
        read = world.read(position)
        clock.observe(position, read, read + world.offset)
        if not stepped:  # the block in which UTC was set may count as old or as new
            waiting.append((position - block, world.taken(position - block) + world.offset))
        stepped = False
        while waiting and position - waiting[0][0] > 15 * RATE:
            word, truth = waiting.pop(0)
            worst = max(worst, abs(seconds(clock.at(word)) - truth))
        if position > (hours + 1) * 3600 * RATE:
            hours += 1
            if hours % 24 == 0:
                waiting.clear()
                clock.restart(position, world.sleep(position, 8 * 3600) + world.random.uniform(0, 0.3))
            elif hours % 5 == 0:
                stepped = True
                world.offset += world.random.uniform(-3600, 3600)
    assert worst < 0.05
    assert abs(clock.ppm - ppm) < 5
    assert clock.steps == sum(1 for hour in range(1, hours + 1) if hour % 5 == 0 and hour % 24)


@given(st.lists(st.floats(0, 5), min_size=2, max_size=60), st.floats(-100, 100))
def test_no_sample_is_newer_than_its_read(late: list[float], ppm: float) -> None:
    """Whatever the lateness, the last sample of a block was taken no later than the block was read."""
    clock, position = RoomClock(RATE), 0
    for lateness in late:
        position += 3200
        read = 50 + position / (RATE * (1 + ppm * 1e-6)) + lateness
        clock.observe(position, read, read + EPOCH)
        assert seconds(clock.at(position)) <= read + EPOCH + 1e-5
        assert clock.behind(position, read) >= -1e-6


@given(st.lists(st.floats(0, 0.3), min_size=20, max_size=60))
def test_time_never_runs_backwards_inside_a_stretch(late: list[float]) -> None:
    """At any moment, a later position has a later time."""
    clock = RoomClock(RATE)
    for count, lateness in enumerate(late, start=1):
        clock.observe(count * 3200, count * 0.2 + lateness, EPOCH + count * 0.2 + lateness)
    times = [clock.at(position) for position in range(0, len(late) * 3200, 1600)]
    assert times == sorted(set(times))


def test_a_step_changes_what_comes_after_it_and_nothing_before() -> None:
    """When the clock is set, the times of older positions do not change."""
    clock = RoomClock(RATE)
    for second in range(1, 101):
        clock.observe(second * RATE, second, second + EPOCH + (7200 if second > 50 else 0))
    assert clock.steps == 1
    assert [round(seconds(clock.at(second * RATE)) - EPOCH) for second in (10, 49, 53, 100)] == [10, 49, 7253, 7300]


def test_a_reading_of_two_clocks_with_a_pause_between_is_no_step() -> None:
    """A process that was put aside between reading the two clocks has not seen UTC being set."""
    clock = RoomClock(RATE)
    for second in range(1, 101):
        clock.observe(second * RATE, second, second + EPOCH + (0.4 if second == 50 else 0))
    assert clock.steps == 0


def test_many_small_steps_add_up() -> None:
    """An offset that creeps is followed, though each step of it is small."""
    clock = RoomClock(RATE)
    for second in range(1, 1001):
        clock.observe(second * RATE, second, EPOCH + second * 1.0005)
    assert abs(seconds(clock.at(1000 * RATE)) - (EPOCH + 1000.5)) < 0.05


def test_the_drift_is_known_again_at_once_after_a_sleep() -> None:
    """A crystal does not change while the machine sleeps: its drift is used from the first sample on."""
    world, clock = World(50, seed=1), RoomClock(RATE)
    for position in range(0, 3600 * RATE, RATE):
        read = world.read(position)
        clock.observe(position, read, read + EPOCH)
    clock.restart(position, world.sleep(position, 10_000))
    assert clock.ppm == pytest.approx(50, abs=5)


def test_behind_is_what_was_lost() -> None:
    """Samples that were lost without being counted show as the distance to the line."""
    clock = RoomClock(RATE)
    for second in range(1, 1000):
        clock.observe(second * RATE, second, second + EPOCH)
    assert clock.behind(1000 * RATE, 1003.0) == pytest.approx(3.0, abs=0.01)


def test_before_the_first_sample_there_is_no_time() -> None:
    """A clock that has seen nothing says so."""
    with pytest.raises(LookupError, match="not seen a sample"):
        RoomClock(RATE).at(0)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of lines and steps keep a bounded past, and positions before it still have a time."""
    monkeypatch.setattr(module, "STEP_TOLERANCE_S", 0.0001)
    clock = RoomClock(100)
    for minute in range(60_000):
        step = minute // 10
        clock.observe(minute * 6000, minute * 60, EPOCH + minute * 60 + step)
    assert len(clock._lines) <= module.MAX_LINES
    assert len(clock._offsets) <= module.MAX_OFFSETS
    assert len(clock._reads) <= module.MAX_BUCKETS
    assert clock.at(0) < datetime(2030, 1, 1, tzinfo=UTC)
