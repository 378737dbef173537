"""The account: every position and every second is recorded or lost for a reason, whatever a source does."""

import errno
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone.capture.clock import Instant, NominalClock, RoomClock
from roomtone.capture.sample_accounting import (
    DISK_RETRY_S,
    Away,
    BlockReceived,
    CutSegment,
    Instruction,
    Keep,
    Leave,
    Lost,
    Note,
    SampleAccounting,
    Started,
    Stepped,
    Stopped,
)

RATE = 1000
FRAME = 200
EPOCH = 1_764_000_000.0


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH + seconds, UTC)


@dataclass
class World:
    """The machine's time, and a spool and a journal that are lists. `now` is CLOCK_BOOTTIME."""

    now: float = 100.0
    slept: float = 0.0
    full: bool = False
    captured: list[tuple[int, int, datetime]] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stopped: Stopped | None = None
    starts: int = 0
    end: int = 0

    def __post_init__(self) -> None:
        self.account = self.run(Away(0, "daemon down", None))

    def run(self, away: Away, jump: int = 0) -> SampleAccounting:
        self.account = SampleAccounting(RATE, FRAME, away.start + jump, away, self.instant(), clock=RoomClock(RATE))
        return self.account

    def instant(self) -> Instant:
        return Instant(self.now, self.now - self.slept, EPOCH + self.now)

    def do(self, instructions: list[Instruction], samples: int = 0) -> list[Instruction]:
        for instruction in instructions:
            match instruction:
                case CutSegment(skip=skip):
                    self.end += skip
                case Keep(position=position, at=at):
                    assert position == self.end
                    self.keep(samples, at)
                case Lost():
                    self.lost.append(instruction)
                case Note(code=code):
                    self.notes.append(code)
                case Started():
                    self.starts += 1
                case Stopped():
                    self.stopped = instruction
                case Leave():
                    pass
        return instructions

    def keep(self, samples: int, at: datetime) -> None:
        if self.full:
            self.do(self.account.refused(samples, OSError(errno.ENOSPC, "No space left on device"), self.instant()))
        else:
            self.captured.append((self.end, self.end + samples, at))
            self.end += samples
            self.do(self.account.kept(samples))

    # What can happen. Each takes the time that it takes.

    def block(self, dropped: int = 0, *, still: bool = False, late: float = 0.0) -> list[Instruction]:
        """A block is read `late`, after `dropped` samples that were lost on the way."""
        self.now += (dropped + FRAME) / RATE + late
        heard = BlockReceived(FRAME, dropped, self.now, still)
        return self.do(self.account.block(heard, self.instant()), FRAME)

    def talk(self, seconds: float) -> None:
        for _ in range(round(seconds * RATE / FRAME)):
            self.block()

    def stall(self, seconds: float) -> None:
        """Time in which the source delivers nothing, and keeps nothing."""
        waited = 0.0
        while waited < seconds:
            self.now += 0.25
            waited += 0.25
            if Leave() in self.do(self.account.waited(0.25, self.instant())):
                return

    def fail(self, seconds: float = 0.5) -> None:
        self.do(self.account.failed("device.lost", "the device is gone", self.instant()))
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    def stop(self) -> None:
        self.do(self.account.finish("stopping", self.instant()))

    def restart(self, seconds: float) -> None:
        """A clean stop, and another run after a while."""
        self.stop()
        self.now += seconds
        last = self.stopped
        self.run(Away(self.end, "daemon down", last.at) if last else Away(self.end, "daemon down", None))

    def crash(self, seconds: float, jump: int = 2000) -> None:
        """No word at the end; what was written is recovered, and positions that may be in use are jumped over."""
        ends = [(end, at.timestamp() + (end - start) / RATE) for start, end, at in self.captured]
        ends += [(lost.end, lost.until.timestamp()) for lost in self.lost]
        self.now += seconds
        if ends:
            self.end, heard = max(ends)
            self.run(Away(self.end, "daemon down", datetime.fromtimestamp(heard, UTC)), jump)

    def causes(self) -> list[str]:
        return [lost.cause for lost in self.lost]


def assert_positions(world: World) -> None:
    """Every position from 0 to the end is in exactly one stretch."""
    stretches = [(start, end) for start, end, _ in world.captured]
    stretches += [(lost.start, lost.end) for lost in world.lost if lost.start < lost.end]
    at = 0
    for start, end in sorted(stretches):
        assert start == at, f"{start - at} positions are in no stretch, or in two"
        at = end
    assert at == world.end


def assert_time(world: World, tolerance: float) -> None:
    """Every second from the first sample to the end is in a stretch."""
    times = [(at.timestamp(), at.timestamp() + (end - start) / RATE) for start, end, at in world.captured]
    times += [(lost.from_.timestamp(), lost.until.timestamp()) for lost in world.lost]
    times.sort()
    until = times[0][0] if times else 0
    for start, end in times:
        assert start - until <= tolerance, f"{start - until} seconds are in no stretch"
        until = max(until, end)
    if world.stopped and times:
        assert world.stopped.at.timestamp() - until <= tolerance


Happening = st.one_of(
    st.tuples(st.just("talk"), st.floats(0.2, 20)),
    st.tuples(st.just("drop"), st.integers(1, 5000)),
    st.tuples(st.just("stall"), st.floats(0.25, 40)),
    st.tuples(st.just("fail"), st.floats(0, 60)),
    st.tuples(st.just("sleep"), st.floats(1, 30_000)),
    st.tuples(st.just("nap"), st.floats(0.0, 0.4)),
    st.tuples(st.just("restart"), st.floats(0, 1000)),
    st.tuples(st.just("crash"), st.floats(0, 1000)),
    st.tuples(st.just("full"), st.booleans()),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(Happening, max_size=25))
def test_every_position_and_every_second_is_accounted_for(happenings: list[tuple[str, float]]) -> None:
    """Through blocks, drops, stalls, failures, sleep, restarts and full disks: each position is recorded or in exactly
    one loss, and so is each second, within what a stall must last to count (200 ms) and one block.
    """
    world = World()
    for happening, number in happenings:
        match happening:
            case "talk":
                world.talk(number)
            case "drop":
                world.block(dropped=int(number))
            case "full":
                world.full = bool(number)
            case "nap":
                world.sleep(number)
            case _:
                getattr(world, happening)(number)
    world.talk(3)
    world.stop()
    assert_positions(world)
    assert_time(world, tolerance=0.2 + FRAME / RATE + 0.25)


def test_the_first_samples_begin_a_recording() -> None:
    """A room has no past before its first sample: no gap, one beginning."""
    world = World()
    world.talk(1)
    assert (world.lost, world.starts) == ([], 1)


def test_dropped_samples_move_the_position_on() -> None:
    """Samples that the source counted as lost are a loss of that length in that place."""
    world = World()
    world.talk(2)
    world.block(dropped=300)
    (lost,) = world.lost
    assert (lost.start, lost.end, lost.cause) == (2000, 2300, "overrun")
    assert (lost.until - lost.from_).total_seconds() == pytest.approx(0.3, abs=0.001)
    assert world.captured[-1][0] == 2300


def test_late_is_not_lost() -> None:
    """A stall whose samples come in a burst within two seconds is a fault that is reported, not a loss."""
    world = World()
    world.talk(10)
    world.stall(3)
    for _ in range(15):
        world.now -= FRAME / RATE  # a burst: the blocks come at one moment
        world.block()
    world.talk(10)
    assert world.lost == []
    assert world.notes == ["source.silent", "source.back"]


def test_what_a_stall_does_not_catch_up_with_is_lost() -> None:
    """Two seconds after samples flow again, what is missing by the clock moves the position on."""
    world = World()
    world.talk(10)
    world.stall(3)
    world.talk(1.8)
    assert world.lost == []
    world.talk(1)
    (lost,) = world.lost
    assert lost.cause == "overrun"
    assert lost.end - lost.start == pytest.approx(3000, abs=5)
    world.talk(60)
    assert len(world.lost) == 1


def test_a_slow_loss_is_measured_too() -> None:
    """Samples that vanish a few at a time without being counted are found by the clock."""
    world = World()
    for _ in range(1000):
        world.block(late=0.002)
    missing = sum(lost.end - lost.start for lost in world.lost)
    assert 1600 <= missing <= 2000


def test_a_dead_source_is_replaced() -> None:
    """After five seconds of nothing the process is given up, and the time is a gap without positions."""
    world = World()
    world.talk(10)
    world.stall(60)
    assert world.now == pytest.approx(100 + 10 + 5.25, abs=0.01)
    world.now += 4.55
    world.talk(1)
    (lost,) = world.lost
    assert (lost.start, lost.end, lost.cause) == (10_000, 10_000, "device")
    assert (lost.from_, lost.until) == (utc(110), utc(119.8))
    assert world.notes == ["source.silent", "source.back"]


def test_a_lost_device_is_told_once_however_often_it_fails() -> None:
    """One notice when it goes, one when it is back, one gap."""
    world = World()
    world.talk(10)
    for _ in range(20):
        world.fail(seconds=30)
    world.talk(1)
    assert world.notes == ["device.lost", "source.back"]
    (lost,) = world.lost
    assert (lost.until - lost.from_).total_seconds() == pytest.approx(600, abs=0.01)


def test_the_sleep_of_the_machine_is_a_gap_of_its_own() -> None:
    """Between the last sample before and the first after a sleep there is time, and no position."""
    world = World()
    world.talk(10)
    world.sleep(3600)
    world.talk(1)
    (lost,) = world.lost
    assert (lost.start, lost.end, lost.cause) == (10_000, 10_000, "suspended")
    assert (lost.until - lost.from_).total_seconds() == pytest.approx(3600, abs=0.01)
    assert world.notes == []


def test_blocks_from_before_a_sleep_are_not_moved_behind_it() -> None:
    """Blocks that were read before the machine slept and arrive after it keep their times."""
    world = World()
    world.talk(10)
    read = world.now + FRAME / RATE
    world.sleep(3600)
    world.do(world.account.block(BlockReceived(FRAME, 0, read, still=False), world.instant()), FRAME)
    assert world.captured[-1][2] == utc(110)
    world.talk(1)
    assert world.causes() == ["suspended"]


def test_sleep_while_the_device_is_away_is_told_apart() -> None:
    """Away, asleep, away: three gaps, each with its cause."""
    world = World()
    world.talk(10)
    world.fail(seconds=5)
    world.sleep(1000)
    world.fail(seconds=5)
    world.talk(1)
    assert world.causes() == ["device", "suspended", "device"]
    assert_time(world, tolerance=0.001)


def test_a_clean_restart_moves_no_position() -> None:
    """The time between two runs is a gap without positions."""
    world = World()
    world.talk(10)
    world.restart(60)
    world.talk(1)
    (lost,) = world.lost
    assert (lost.start, lost.end, lost.cause) == (10_000, 10_000, "daemon down")
    assert (lost.from_, lost.until) == (utc(110), utc(170))


def test_after_a_crash_positions_that_may_be_in_use_are_jumped_over() -> None:
    """The gap says both: the positions that are given up, and the time."""
    world = World()
    world.talk(10)
    world.crash(60, jump=2000)
    world.talk(1)
    (lost,) = world.lost
    assert (lost.start, lost.end, lost.cause) == (10_000, 12_000, "daemon down")
    assert (lost.from_, lost.until) == (utc(110), utc(170))
    assert_positions(world)


def test_a_device_that_is_absent_at_the_start_is_no_fault_of_the_daemon() -> None:
    """The daemon was down until it was up; from then on the device was away, also when the daemon stops first."""
    world = World()
    world.talk(10)
    world.restart(60)
    world.fail(seconds=100)
    world.stop()
    assert [(lost.cause, lost.from_, lost.until) for lost in world.lost] == [
        ("daemon down", utc(110), utc(170)),
        ("device", utc(170), utc(270)),
    ]
    assert world.stopped == Stopped(10_000, utc(270), "stopping", started=False)


def test_a_full_disk_is_a_loss_that_heals() -> None:
    """Audio that cannot be written is one loss; the disk is tried once a second; two notices."""
    world = World()
    world.talk(10)
    world.full = True
    world.talk(10)
    world.full = False
    world.talk(2)
    (lost,) = world.lost
    assert lost.cause == "disk full"
    assert lost.start == 10_000
    assert 20_000 <= lost.end <= 21_000
    assert world.notes == ["disk.full", "disk.resumed"]
    assert_positions(world)


def test_a_disk_that_is_full_until_the_end_leaves_its_loss() -> None:
    """A stop settles what is open."""
    world = World()
    world.talk(10)
    world.full = True
    world.talk(10)
    world.stop()
    assert [(lost.start, lost.end, lost.cause) for lost in world.lost] == [(10_000, 20_000, "disk full")]


def test_another_failure_of_the_disk_has_its_own_name() -> None:
    """An I/O error is not called a full disk to the person who has to mend it."""
    world = World()
    world.talk(1)
    notes = world.do(world.account.refused(FRAME, OSError(errno.EIO, "Input/output error"), world.instant()))
    assert isinstance(notes[0], Note)
    assert (notes[0].code, notes[0].severity) == ("disk.failed", "error")


def test_samples_that_never_change_are_a_fault() -> None:
    """A minute of exact zeros is told once, and once that it is over; it is recorded all the same."""
    world = World()
    for _ in range(600):
        world.block(still=True)
    assert world.notes == ["source.zeros"]
    world.block()
    assert world.notes == ["source.zeros", "source.sound"]
    assert world.end == 601 * FRAME


def test_a_step_of_utc_closes_the_segment() -> None:
    """Each segment has one time, so the new time begins a new one; the hours that were jumped over are explained."""
    world = World()
    world.talk(2)
    account, now = world.account, world.now
    cuts, steps = [], []
    for count in range(1, 5):
        read = now + count * FRAME / RATE
        instructions = account.block(
            BlockReceived(FRAME, 0, read, still=False), Instant(read, read, EPOCH + read + 7200)
        )
        cuts += [count for one in instructions if isinstance(one, CutSegment)]
        steps += [one for one in instructions if isinstance(one, Stepped)]
        account.kept(FRAME)
    assert cuts == [2]
    assert steps == [Stepped(11 * FRAME, steps[0].from_, steps[0].from_ + timedelta(hours=2))]


def test_a_file_waits_and_loses_nothing() -> None:
    """A file has no losses of time: its samples follow each other, however long reading stops or fails."""
    clock = NominalClock(RATE, 0)
    account = SampleAccounting(RATE, FRAME, 0, Away(0, "daemon down", None), Instant(50, 50, EPOCH), clock=clock)
    done: list[Instruction] = []
    for count in range(10):
        now = Instant(50 + count * 100, 50, EPOCH + count * 100)
        done += account.block(BlockReceived(FRAME, 0, now.boottime, still=False), now)
        done += account.kept(FRAME)
        done += account.waited(60, now)
        done += account.failed("file.unreadable", "the share is gone", now)
    assert not any(isinstance(one, Lost | CutSegment) for one in done)
    times = [one.at.timestamp() - EPOCH for one in done if isinstance(one, Keep)]
    assert times == pytest.approx([count * FRAME / RATE for count in range(10)])
    refusal = account.refused(FRAME, OSError(errno.ENOSPC, "full"), Instant(60, 60, EPOCH))
    assert [type(one) for one in refusal] == [Note]
    assert account.position == 10 * FRAME


def test_a_late_moment_is_not_taken_for_a_loss() -> None:
    """A stall loses what was missing at the best moment since, whatever the last one was."""
    world = World()
    world.talk(30)
    world.block(late=1.0)
    world.now -= 0.5  # half of it is caught up with
    for _ in range(12):
        world.block()
    assert world.lost == []
    world.block(late=0.4)
    world.now -= 0.4
    for _ in range(4):
        world.block()
    (lost,) = world.lost
    assert lost.cause == "overrun"
    assert lost.end - lost.start == pytest.approx(500, abs=10)


def test_a_disk_that_refuses_is_asked_once_in_a_second() -> None:
    """A failing disk may take its time for each refusal: blocks between are counted without asking."""
    world = World(full=True)
    asked = [any(isinstance(one, Keep) for one in world.block()) for _ in range(20)]
    assert asked == ([True] + [False] * (round(DISK_RETRY_S * RATE / FRAME) - 1)) * 4
    world.full = False
    world.talk(3)
    world.stop()
    assert world.causes() == ["disk full"]
    assert_positions(world)
