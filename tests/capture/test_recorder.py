"""The recorder: one loop that keeps a room recorded, through failing devices, full disks, stops and crashes."""

import errno
import os
import shutil
import sqlite3
import wave
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roomtone.capture.clock import Instant
from roomtone.capture.outbox import Outbox
from roomtone.capture.recorder import CaptureContext, RateChanged, record, recover
from roomtone.capture.records import MuteState
from roomtone.capture.recovery import Resume
from roomtone.capture.run_control import RunControl
from roomtone.capture.sample_accounting import Reason
from roomtone.capture.source_process import Block, SourceEnded, SourceFailed
from roomtone.capture.sources import Command, File, Microphone, Source
from roomtone.events import KINDS, Audio, Durable, Gap, Level, Muted, RecordingStarted, RecordingStopped, Turn, Word
from roomtone.journal.coverage import summarize
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.records import CoverageSpan, Mark, Record
from roomtone.live import Live
from roomtone.spool.spool import Disk, Spool, open_spool
from roomtone.testing.inline import run_inline

RATE = 1000
FRAME = 200
EPOCH = 1_764_000_000.0
MICROPHONE = Microphone()
LAST = 2**63 - 1


def tone(start: int, samples: int) -> bytes:
    """Audio that says of each sample where it belongs, and is never zero."""
    numbers = (position % 60_000 - 30_000 for position in range(start, start + samples))
    return b"".join((number or 1).to_bytes(2, "little", signed=True) for number in numbers)


class Machine:
    """The fear: time. CLOCK_BOOTTIME is trio's clock and the sleep of the machine; UTC is set, and may be set again."""

    def __init__(self, down: float = 0.0) -> None:
        self.slept = 0.0
        self.stepped = 0.0
        self.down = down

    def now(self) -> Instant:
        monotonic = trio.current_time() + self.down
        return Instant(monotonic + self.slept, monotonic, EPOCH + monotonic + self.slept + self.stepped)


class Talk(NamedTuple):
    """A source that delivers for some seconds."""

    seconds: float


class Drop(NamedTuple):
    """A source that has lost samples and counted them."""

    samples: int


class Dropped(NamedTuple):
    """The next block says so."""

    samples: int


class Wait(NamedTuple):
    """A source that is open and delivers nothing for some seconds."""

    seconds: float


class Fail(NamedTuple):
    """A source that is lost."""

    code: str = "device.lost"


class Absent(NamedTuple):
    """A source that cannot be opened several times."""

    times: int


class Unstartable(NamedTuple):
    """The machine refuses to start a process several times."""

    times: int


class End(NamedTuple):
    """The end of the data."""


class Sleep(NamedTuple):
    """The machine sleeps."""

    seconds: float


class Full(NamedTuple):
    """The disk has no room, or has room again."""

    on: bool


class Step(NamedTuple):
    """The clock is set by some seconds."""

    seconds: float


Act: TypeAlias = Talk | Drop | Dropped | Wait | Fail | Absent | Unstartable | End | Sleep | Full | Step


class Script:
    """The fear: a source. It performs its acts; after the last one it is open and silent."""

    def __init__(self, machine: Machine, acts: Iterable[Act], disk: "FullDisk") -> None:
        self.machine = machine
        self.disk = disk
        self.acts = list(acts)
        self.opened = 0
        self.skips: list[int] = []
        self.heard = 0
        self.zeros = False
        self.time = trio.current_time()

    @asynccontextmanager
    async def open(
        self, source: Source, *, rate: int, frame: int, folder: Path, skip: int = 0
    ) -> AsyncIterator["ScriptedProcess"]:
        self.opened += 1
        self.skips.append(skip)
        if self.acts and isinstance(act := self.acts[0], Absent | Unstartable):
            self.acts[:1] = [type(act)(act.times - 1)] if act.times > 1 else []
            if isinstance(act, Unstartable):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            raise SourceFailed("device.absent", "there is no such device: plug it in")
        async with trio.open_nursery():  # so that failures come in groups, as they may
            yield ScriptedProcess(self, skip)

    def befall(self, act: Sleep | Full | Step) -> None:
        """An act of the machine, not of the device."""
        match act:
            case Sleep(seconds=seconds):
                self.machine.slept += seconds
            case Full(on=on):
                self.disk.full = on
            case Step(seconds=seconds):
                self.machine.stepped += seconds


class ScriptedProcess:
    def __init__(self, script: Script, skip: int) -> None:
        self.name = "microphone default"
        self.script = script
        self.skip = skip
        self.dropped = 0
        self.opened = trio.current_time()
        if not script.acts or not isinstance(script.acts[0], Wait):
            script.time = self.opened

    async def receive(self) -> Block:
        while True:
            if not self.script.acts:
                await trio.sleep_forever()
            match act := self.script.acts[0]:
                case Talk(seconds=seconds):
                    await self._pass(FRAME / RATE)
                    self._next(Talk(seconds - FRAME / RATE) if seconds > FRAME / RATE * 1.5 else None)
                    return self._block()
                case Drop(samples=samples):
                    self.script.acts[:1] = [Wait(samples / RATE), Dropped(samples)]
                case Dropped(samples=samples):
                    self._next(None)
                    self.dropped += samples
                case Wait(seconds=seconds):
                    await self._pass(seconds)
                    self.script.time = max(self.script.time, self.opened)
                    self._next(None)
                case Sleep() | Full() | Step():
                    self._next(None)
                    self.script.befall(act)
                case Fail(code=code):
                    self._next(None)
                    raise SourceFailed(code, "the device went away")
                case End():
                    self._next(None)
                    raise SourceEnded("that was all")
                case _:
                    raise SourceFailed("device.lost", f"{act} while open")

    async def _pass(self, seconds: float) -> None:
        """Time passes for the device, also when the recorder does not receive."""
        await trio.sleep_until(self.script.time + seconds)
        self.script.time += seconds

    def _next(self, act: Act | None) -> None:
        self.script.acts[:1] = [act] if act else []

    def _block(self) -> Block:
        start, self.script.heard = self.script.heard, self.script.heard + FRAME
        if self.skip:
            start, self.skip = self.skip, 0
            self.script.heard = start + FRAME
        dropped, self.dropped = self.dropped, 0
        audio = bytes(2 * FRAME) if self.script.zeros else tone(start, FRAME)
        late = trio.current_time() - self.script.time
        return Block(audio, dropped, self.script.machine.now().boottime - late)


class FullDisk(Disk):
    """The fear: a disk without room, and one during whose work something happens."""

    def __init__(self) -> None:
        self.full = False
        self.on_sync: Callable[[], Any] = lambda: None

    def sync(self, file: int) -> None:
        self.on_sync()
        super().sync(file)

    def write(self, file: int, audio: bytes, offset: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(file, audio, offset)


class Run(NamedTuple):
    spool: Spool
    journal: Journal
    live: Live
    script: Script
    disk: FullDisk


@asynccontextmanager
async def open_run(state: Path, acts: Iterable[Act], *, down: float = 0.0) -> AsyncIterator[Run]:
    """A room's spool and journal in a state folder, all in one thread, for virtual time."""
    disk = FullDisk()
    async with (
        open_journal(state / "journal.sqlite", run_sync=run_inline) as journal,
        open_spool(state / "spool" / "desk", rate=RATE, run_sync=run_inline, disk=disk) as spool,
    ):
        yield Run(spool, journal, Live(), Script(Machine(down), acts, disk), disk)


async def record_in(
    run: Run, source: Source = MICROPHONE, *, folder: Path = Path(), rate: int = RATE, control: RunControl | None = None
) -> Reason:
    context = CaptureContext(
        "desk",
        source,
        rate=rate,
        frame=FRAME,
        folder=folder,
        spool=run.spool,
        journal=run.journal,
        live=run.live,
        opener=run.script.open,  # type: ignore[arg-type] # a SourceProcess by its shape
        clocks=run.script.machine.now,
    )
    return await record(context, control or RunControl(Outbox("desk")))


async def play(
    state: Path,
    acts: Iterable[Act],
    seconds: float,
    source: Source = MICROPHONE,
    *,
    down: float = 0.0,
    folder: Path = Path(),
    then: Callable[[], Any] = lambda: None,
) -> list[Durable]:
    """Record for `seconds`, stop, and return all events. `then` happens before the stop, as a crash sees it."""
    async with open_run(state, acts, down=down) as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: record_in(run, source, folder=folder))
            await trio.sleep(seconds)
            await trio.testing.wait_all_tasks_blocked()
            then()
            nursery.cancel_scope.cancel()
        return await run.journal.read(0)


def of(kind: type[Any], events: Iterable[Record]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def audio_of(events: Iterable[Durable]) -> bytes:
    return b"".join(Path(audio.file).read_bytes() for audio in of(Audio, events))


def kinds(events: Iterable[Durable]) -> list[str]:
    return [type(event).__name__ for event in events]


def codes(events: Iterable[Durable]) -> list[str]:
    return [event.code for event in events if hasattr(event, "code")]


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH + seconds, UTC)


Clock = trio.testing.MockClock


async def test_a_room_is_recorded_from_beginning_to_end(tmp_path: Path, autojump_clock: Clock) -> None:
    """A beginning, a segment every 30 s, an end: all in the journal, and all samples in the files."""
    events = await play(tmp_path, [Talk(70)], 71)
    assert kinds(events) == ["RecordingStarted", "Audio", "Audio", "Audio", "RecordingStopped"]
    assert [(audio.position, audio.samples) for audio in of(Audio, events)] == [
        (0, 30_000),
        (30_000, 30_000),
        (60_000, 10_000),
    ]
    assert audio_of(events) == tone(0, 70_000)
    assert (events[-1].position, events[0].at) == (70_000, utc(0))


async def test_a_segment_is_journalled_with_its_coverage_at_once(tmp_path: Path, autojump_clock: Clock) -> None:
    """Audio, coverage and mark come in one transaction; coverage of segments that meet is one row."""
    async with open_run(tmp_path, [Talk(70)]) as run, trio.open_nursery() as nursery:
        nursery.start_soon(record_in, run)
        await trio.sleep(61)
        assert await run.journal.mark("room/desk/audio") == 60_000
        (cover,) = await run.journal.covered("desk")
        assert (cover.start, cover.end, cover.state) == (0, 60_000, "captured")
        nursery.cancel_scope.cancel()


async def test_every_block_has_its_level(tmp_path: Path, autojump_clock: Clock) -> None:
    """The live feed shows the loudness of the room."""
    async with open_run(tmp_path, [Talk(2)]) as run, trio.open_nursery() as nursery:
        with run.live.subscribe() as levels:
            nursery.start_soon(record_in, run)
            level = await anext(levels)
            assert isinstance(level, Level)
            assert (level.room, level.position) == ("desk", 0)
            assert -3 < level.rms < level.peak <= 0
            nursery.cancel_scope.cancel()


async def test_an_unplugged_device_heals(tmp_path: Path, autojump_clock: Clock) -> None:
    """Lost, absent, back: one notice each way, one gap without positions, and the same position goes on."""
    events = await play(tmp_path, [Talk(10), Fail(), Absent(6), Talk(10)], 90)
    assert codes(events)[:2] == ["device.lost", "source.back"]
    gap = of(Gap, events)[0]
    assert (gap.start, gap.end, gap.cause) == (10_000, 10_000, "device")
    assert gap.from_ == utc(10)
    first, second = of(Audio, events)[:2]
    assert (first.samples, second.position, second.samples, second.fresh) == (10_000, 10_000, 10_000, True)
    assert abs(second.at - gap.until) <= timedelta(microseconds=1)  # each is rounded once


async def test_a_device_may_take_its_time_to_open(tmp_path: Path, autojump_clock: Clock) -> None:
    """A small computer that is busy with its own start needs ten seconds for it: to replace what is about to answer
    would never let it.
    """
    async with open_run(tmp_path, [Wait(12), Talk(60)]) as run:
        with trio.move_on_after(30):
            await record_in(run)
        assert run.script.opened == 1
        assert codes(await run.journal.read(0)) == ["source.silent", "source.back"]
    async with open_run(tmp_path / "dead", [Wait(100)]) as run:
        with trio.move_on_after(30):
            await record_in(run)
        assert run.script.opened == 2


async def test_a_silent_device_is_replaced(tmp_path: Path, autojump_clock: Clock) -> None:
    """An open stream that delivers nothing is told after a second and replaced after five."""
    async with open_run(tmp_path, [Talk(10), Wait(1.3), Talk(10), Wait(5.5), Talk(10)]) as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(record_in, run)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert run.script.opened >= 2
        assert codes(await run.journal.read(0))[:3] == ["source.silent", "source.back", "source.silent"]


async def test_lost_samples_are_gaps_that_move_the_position(tmp_path: Path, autojump_clock: Clock) -> None:
    """Dropped samples are a gap with a cause; the audio after it is at its own position."""
    async with open_run(tmp_path, [Talk(10), Drop(2500), Talk(10)]) as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(record_in, run)
            await trio.sleep(23)
            nursery.cancel_scope.cancel()
        covers = [(cover.start, cover.end, cover.state, cover.cause) for cover in await run.journal.covered("desk")]
        assert covers == [
            (0, 10_000, "captured", None),
            (10_000, 12_500, "lost", "overrun"),
            (12_500, 22_500, "captured", None),
        ]


async def test_sleep_of_the_machine_is_a_gap(tmp_path: Path, autojump_clock: Clock) -> None:
    """A laptop that was closed for an hour says so."""
    events = await play(tmp_path, [Talk(10), Sleep(3600), Talk(10)], 25)
    assert [(gap.start, gap.end, gap.cause) for gap in of(Gap, events)] == [(10_000, 10_000, "suspended")]


async def test_a_full_disk_is_a_gap_and_heals(tmp_path: Path, autojump_clock: Clock) -> None:
    """No room: the daemon stays, counts, and goes on when there is room; the gap names the cause."""
    async with open_run(tmp_path, [Talk(60)]) as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(record_in, run)
            await trio.sleep(10.1)
            run.disk.full = True
            await trio.sleep(20)
            run.disk.full = False
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
        events = await run.journal.read(0)
        (gap,) = of(Gap, events)
        assert (gap.start, gap.cause) == (10_000, "disk full")
        assert 30_000 <= gap.end <= 31_200
        assert codes(events) == ["disk.full", "disk.resumed"]
        assert [audio.position for audio in of(Audio, events)] == [0, gap.end]


async def test_a_command_that_ends_is_over(tmp_path: Path, autojump_clock: Clock) -> None:
    """Exit status 0 is the end of the data: the segment is closed, and `record` returns."""
    async with open_run(tmp_path, [Talk(10), End()]) as run:
        await record_in(run, Command(("true",)))
        events = await run.journal.read(0)
        assert kinds(events) == ["RecordingStarted", "Audio", "RecordingStopped"]
        assert events[-1].reason == "ended"  # type: ignore[union-attr]


async def test_a_command_that_must_always_run_is_started_again(tmp_path: Path, autojump_clock: Clock) -> None:
    """With `restart = "always"` the end is a failure like any other."""
    events = await play(tmp_path, [Talk(10), End(), Talk(10)], 40, Command(("true",), restart="always"))
    assert codes(events)[:2] == ["source.ended", "source.back"]
    assert of(Gap, events)[0].cause == "device"


async def test_after_a_clean_stop_the_position_goes_on(tmp_path: Path, autojump_clock: Clock) -> None:
    """The time between two runs is a gap without positions; nothing is jumped over."""
    await play(tmp_path, [Talk(10)], 10.1)
    events = await play(tmp_path, [Talk(10)], 10.1, down=100)
    (gap,) = of(Gap, events)
    assert (gap.start, gap.end, gap.cause) == (10_000, 10_000, "daemon down")
    assert gap.from_ == utc(10)
    assert gap.until.timestamp() == pytest.approx(EPOCH + 110.1, abs=0.3)
    assert [audio.position for audio in of(Audio, events)] == [0, 10_000]


async def test_a_stop_in_the_middle_of_a_write_is_clean(tmp_path: Path, autojump_clock: Clock) -> None:
    """Told to stop while a full segment is being closed, the room stops after it: journal and spool agree."""
    async with open_run(tmp_path, [Talk(60)]) as run:
        with trio.CancelScope() as scope:
            run.disk.on_sync = lambda: scope.cancel() if run.spool.end >= 30_000 else None
            await record_in(run)
        events = await run.journal.read(0)
        assert kinds(events) == ["RecordingStarted", "Audio", "RecordingStopped"]
        assert [event.position for event in events] == [0, 0, 30_000]
        assert run.spool.end == 30_000


async def test_a_run_of_which_nothing_is_left_was_no_clean_stop(tmp_path: Path, autojump_clock: Clock) -> None:
    """A clean stop, a beginning, a power cut that took all audio of it: its positions are jumped over."""
    state, crashed = tmp_path / "state", tmp_path / "crashed"
    state.mkdir()
    await play(state, [Talk(10)], 10.1)
    await play(state, [Talk(0.8)], 0.9, down=100, then=lambda: shutil.copytree(state, crashed))
    max((crashed / "spool" / "desk").iterdir()).unlink()
    events = await play(crashed, [Talk(10)], 10.1, down=200)
    assert of(Audio, events)[-1].position == 12_000


async def test_a_short_run_that_the_power_took_leaves_no_hole_in_time(tmp_path: Path, autojump_clock: Clock) -> None:
    """A crash, a restart within the two seconds that are jumped over, a power cut that took all of it: the next gap
    begins where the last one ended, though its positions say that it is later.
    """
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    first.mkdir()
    await play(first, [Talk(10)], 10.1, then=lambda: shutil.copytree(first, second))
    await play(second, [Talk(0.8)], 0.9, down=0.5, then=lambda: shutil.copytree(second, third))
    max((third / "spool" / "desk").iterdir()).unlink()
    events = await play(third, [Talk(10)], 10.1, down=1.0)
    before, after = of(Gap, events)
    assert (before.start, before.end, after.start, after.end) == (10_000, 12_000, 12_000, 14_000)
    assert after.from_ == before.until


async def test_after_a_crash_no_position_is_given_twice(tmp_path: Path, autojump_clock: Clock) -> None:
    """Audio that a crash left is recovered with its events; positions that may be in use are skipped, in one gap."""
    state, crashed = tmp_path / "state", tmp_path / "crashed"
    state.mkdir()
    await play(state, [Talk(39)], 39.1, then=lambda: shutil.copytree(state, crashed))
    events = await play(crashed, [Talk(10)], 10.1, down=100)
    (gap,) = of(Gap, events)
    assert (gap.start, gap.end, gap.cause) == (39_000, 41_000, "daemon down")
    assert gap.from_ == utc(39)
    assert [audio.position for audio in of(Audio, events)] == [0, 30_000, 41_000]


async def test_a_crash_before_the_first_sync_is_no_new_room(tmp_path: Path, autojump_clock: Clock) -> None:
    """The journal may know of a beginning of which the disk has nothing."""
    async with open_run(tmp_path, []) as run:
        started = RecordingStarted(room="desk", position=0, at=utc(0), rate=RATE, source="microphone")
        await run.journal.commit(started, Mark("room/desk/rate", RATE))
    events = await play(tmp_path, [Talk(10)], 10.1, down=100)
    assert [(gap.start, gap.end, gap.from_) for gap in of(Gap, events)] == [(0, 2000, utc(0))]


async def test_the_journal_may_be_ahead_of_the_spool(tmp_path: Path, autojump_clock: Clock) -> None:
    """Words that were journalled before a power cut took their audio keep their positions for themselves."""
    await play(tmp_path, [Talk(10)], 10.1)
    async with open_run(tmp_path, []) as run:
        word = Word(text="late", start=10_400, end=11_700)
        turn = Turn(room="desk", position=10_400, at=utc(10), session_id="s", turn_order=0, text="late", words=(word,))
        await run.journal.commit(turn, Mark("room/desk/acknowledged", 11_000), Mark("room/desk/stopped", None))
    events = await play(tmp_path, [Talk(10)], 10.1, down=100)
    gaps = [(gap.start, gap.end, gap.cause) for gap in of(Gap, events)]
    assert gaps == [(10_000, 11_700, "daemon down"), (11_700, 13_700, "daemon down")]
    assert of(Audio, events)[-1].position == 13_700


async def test_recovering_twice_changes_nothing(tmp_path: Path, autojump_clock: Clock) -> None:
    """A start that crashes is as good as none."""
    state, crashed = tmp_path / "state", tmp_path / "crashed"
    state.mkdir()
    await play(state, [Talk(45)], 45.1, then=lambda: shutil.copytree(state, crashed))
    async with open_run(crashed, []) as run:
        options = {"rate": RATE, "folder": tmp_path, "spool": run.spool, "journal": run.journal}
        first = await recover("desk", MICROPHONE, **options)  # type: ignore[arg-type]
        tip = run.journal.tip
        assert await recover("desk", MICROPHONE, **options) == first  # type: ignore[arg-type]
        assert run.journal.tip == tip


async def test_a_hole_that_the_journal_never_heard_of_is_explained(tmp_path: Path, autojump_clock: Clock) -> None:
    """Segments past the journal, with a hole and a break between them: each loss is said, with times."""
    async with open_run(tmp_path, []) as run:
        await run.spool.append(tone(0, 1000), utc(0))
        await run.spool.cut(skip=500)
        await run.spool.append(tone(1500, 1000), utc(1.5))
        await run.spool.cut(fresh=True)
        await run.spool.append(tone(2500, 1000), utc(60))
    events = await play(tmp_path, [Talk(1)], 1.1, down=100)
    gaps = [(gap.start, gap.end, gap.from_, gap.until) for gap in of(Gap, events)]
    assert gaps[:2] == [(1000, 1500, utc(1), utc(1.5)), (2500, 2500, utc(2.5), utc(60))]


async def test_a_room_keeps_its_rate(tmp_path: Path, autojump_clock: Clock) -> None:
    """Another rate would give positions another meaning: refused, with what to do, before anything is recorded."""
    await play(tmp_path, [Talk(1)], 1.1)
    async with open_run(tmp_path, [Talk(1)]) as run:
        with pytest.raises(RateChanged, match=r"\[rooms\.desk\] rate = 8000: .* 1000 Hz before.*another name"):
            await record_in(run, rate=8000)
        assert run.script.opened == 0


async def test_a_device_that_never_comes_is_accounted_for(tmp_path: Path, autojump_clock: Clock) -> None:
    """A run without a sample leaves its gaps, no beginning, no end, and a clean stop."""
    await play(tmp_path, [Talk(10)], 10.1)
    await play(tmp_path, [Absent(10_000)], 600, down=100)
    events = await play(tmp_path, [Talk(10)], 10.1, down=1000)
    gaps = of(Gap, events)
    assert [gap.cause for gap in gaps] == ["daemon down", "device", "daemon down"]
    assert {(gap.start, gap.end) for gap in gaps} == {(10_000, 10_000)}
    assert (gaps[0].until, gaps[1].until) == (gaps[1].from_, gaps[2].from_)
    assert kinds(events).count("RecordingStarted") == 2


async def test_a_file_goes_on_where_it_was(tmp_path: Path, autojump_clock: Clock) -> None:
    """Stopped or crashed in the middle, a file is recorded without a gap: each sample once, at its old time."""
    (tmp_path / "talk.wav").write_bytes(b"any")
    source, state, crashed = File("talk.wav", pace="fast"), tmp_path / "state", tmp_path / "crashed"
    state.mkdir()
    await play(state, [Talk(35)], 35.1, source, folder=tmp_path)
    await play(state, [Talk(35)], 35.1, source, folder=tmp_path, down=500, then=lambda: shutil.copytree(state, crashed))
    events = await play(crashed, [Talk(10), End()], 11, source, folder=tmp_path, down=1000)
    assert of(Gap, events) == []
    audio = of(Audio, events)
    assert audio_of(events) == tone(0, 80_000)
    assert [(one.at - audio[0].at).total_seconds() * RATE for one in audio] == [one.position for one in audio]
    assert events[-1].reason == "ended"  # type: ignore[union-attr]


async def test_a_file_that_has_ended_begins_anew(tmp_path: Path, autojump_clock: Clock) -> None:
    """At the next start it is a new recording from its beginning, at new positions; so is a file that has changed."""
    (tmp_path / "talk.wav").write_bytes(b"any")
    await play(tmp_path, [Talk(10), End()], 11, File("talk.wav"), folder=tmp_path)
    await play(tmp_path, [Talk(10)], 11, File("talk.wav"), folder=tmp_path, down=100)
    (tmp_path / "talk.wav").write_bytes(b"another")
    async with open_run(tmp_path, [Talk(10)], down=200) as run:
        with trio.move_on_after(11):
            await record_in(run, File("talk.wav"), folder=tmp_path)
        assert run.script.skips == [0]
        audio = of(Audio, await run.journal.read(0))
        assert [(one.position, one.fresh) for one in audio] == [(0, False), (10_000, True), (20_000, True)]


async def test_a_file_that_has_ended_is_not_recorded_again_after_a_crash(tmp_path: Path, autojump_clock: Clock) -> None:
    """A run that begins because the last one crashed makes up for it, and records what has ended no second time."""
    state, crashed = tmp_path / "state", tmp_path / "crashed"
    state.mkdir()
    (tmp_path / "talk.wav").write_bytes(b"any")
    source, copy = File("talk.wav"), lambda: shutil.copytree(state, crashed)
    await play(state, [Talk(10), End()], 11, source, folder=tmp_path, then=copy)
    async with open_run(crashed, [], down=100) as run:
        with trio.move_on_after(11):
            await record_in(run, source, folder=tmp_path)
        assert run.script.skips == [10_000]
        assert [one.position for one in of(Audio, await run.journal.read(0))] == [0]


async def test_a_file_waits_for_room_on_the_disk(tmp_path: Path, autojump_clock: Clock) -> None:
    """Nothing of a file is lost to a full disk: it is there tomorrow too."""
    (tmp_path / "talk.wav").write_bytes(b"any")
    async with open_run(tmp_path, [Talk(10), End()]) as run, trio.open_nursery() as nursery:
        run.disk.full = True
        nursery.start_soon(lambda: record_in(run, File("talk.wav"), folder=tmp_path))
        await trio.sleep(100)
        assert run.spool.end == 0
        run.disk.full = False
        await trio.sleep(20)
        assert run.spool.end == 10_000
        assert of(Gap, await run.journal.read(0)) == []


def fill_up(journal: sqlite3.Connection) -> None:
    """Let the database grow no more, and leave no room in what it has."""
    (pages,) = journal.execute("PRAGMA page_count").fetchone()
    journal.execute(f"PRAGMA max_page_count = {pages}")
    for size in (3000, 300, 30, 3):
        with suppress(sqlite3.OperationalError):
            for count in range(10_000):
                journal.execute("INSERT INTO marks VALUES (?, ?)", (f"filler/{size}/{count}", "1" * size))


async def test_a_journal_without_room_does_not_stop_recording(tmp_path: Path, autojump_clock: Clock) -> None:
    """While the journal waits for its disk, audio is recorded, and what is to be said waits and is said."""
    async with open_run(tmp_path, [Talk(10), Drop(500), Talk(60), Drop(500), Talk(20)]) as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(record_in, run)
            await trio.sleep(5)
            writer = run.journal._database._writer
            fill_up(writer)
            await trio.sleep(200)
            assert run.spool.end == 91_000
            assert run.journal.tip == 1
            writer.execute("PRAGMA max_page_count = 100000")
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        events = await run.journal.read(0)
        assert [(gap.start, gap.end) for gap in of(Gap, events) if gap.cause == "overrun"] == [
            (10_000, 10_500),
            (70_500, 71_000),
        ]
        assert sum(audio.samples for audio in of(Audio, events)) == 90_000


async def test_a_stop_that_is_older_than_the_audio_is_not_believed(tmp_path: Path, autojump_clock: Clock) -> None:
    """The journal was locked from the beginning of the run that has crashed: what it says last is of the run before."""
    state, crashed = tmp_path / "state", tmp_path / "crashed"
    state.mkdir()
    await play(state, [Talk(10)], 11)
    async with open_run(state, [Talk(100)], down=100) as run, trio.open_nursery() as nursery:
        run.journal._database._writer.execute("PRAGMA busy_timeout = 0")
        with closing(sqlite3.connect(state / "journal.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            nursery.start_soon(record_in, run)
            await trio.sleep(5)
            shutil.copytree(state, crashed)
        nursery.cancel_scope.cancel()
    events = await play(crashed, [Talk(1)], 2, down=300)
    first, second = (audio for audio in of(Audio, events) if audio.position >= 10_000)
    assert second.position == first.position + first.samples + 2000
    gap = of(Gap, events)[-1]
    assert (gap.start, gap.cause) == (first.position + first.samples, "daemon down")
    assert abs(gap.from_ - (first.at + timedelta(seconds=5))) < timedelta(seconds=0.3)


@pytest.mark.parametrize(
    "fact",
    [
        Mark("room/desk/acknowledged", 20_000),
        Mark("room/desk/audio", 20_000),
        Mark("room/desk/stopped", {"position": 20_000, "at": utc(50).isoformat(), "cause": "daemon down"}),
        CoverageSpan("desk", 9_000, 20_000, "transcribed", None, utc(9), utc(20)),
    ],
    ids=["acknowledged", "audio", "stopped", "cover"],
)
async def test_a_position_that_the_journal_knows_is_not_given_again(
    tmp_path: Path, autojump_clock: Clock, fact: Record
) -> None:
    """Audio that the disk has lost: new audio in its place would be taken for it, and never be transcribed."""
    await play(tmp_path, [Talk(10)], 11)
    async with open_run(tmp_path, []) as run:
        await run.journal.commit(fact)
        assert (await recover_in(run)).position == 22_000
        (gap,) = of(Gap, await run.journal.read(0))
        assert (gap.start, gap.end) == (10_000, 20_000)


async def recover_in(run: Run, source: Source = MICROPHONE, *, folder: Path = Path()) -> Resume:
    return await recover("desk", source, rate=RATE, folder=folder, spool=run.spool, journal=run.journal)


async def test_a_step_of_the_clock_that_nobody_journalled_is_no_hole(tmp_path: Path, autojump_clock: Clock) -> None:
    """The daemon died behind a step: the account of what was captured is one stretch, in positions and in time."""
    await play(tmp_path, [Talk(10)], 11)
    async with open_run(tmp_path, []) as run:
        (last,) = run.spool.segments()
        await run.spool.append(tone(10_000, 200), last.when(last.end, RATE) + timedelta(seconds=10))
        await run.spool.cut()
        await recover_in(run)
        (captured,) = (cover for cover in await run.journal.covered("desk") if cover.state == "captured")
        assert (captured.start, captured.end, captured.until - captured.from_) == (
            0,
            10_200,
            timedelta(seconds=20.2),
        )


async def test_a_file_that_is_not_there_now_is_taken_for_the_same(tmp_path: Path, autojump_clock: Clock) -> None:
    """Its share may not be mounted yet: what was recorded of it counts. Another file is another one."""
    (tmp_path / "talk.wav").write_bytes(b"any")
    await play(tmp_path, [Talk(100)], 10.5, File("talk.wav"), folder=tmp_path)
    (tmp_path / "talk.wav").unlink()
    async with open_run(tmp_path, []) as run:
        resume = await recover_in(run, File("talk.wav"), folder=tmp_path)
        assert resume.file is not None
        assert (resume.file.start, resume.position) == (0, 10_400)
        assert (await recover_in(run, File("other.wav"), folder=tmp_path)).file is None


async def test_many_segments_are_recovered_once_each(tmp_path: Path, autojump_clock: Clock) -> None:
    """A journal that was away for an hour learns of everything, a part at a time."""
    async with (
        open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal,
        open_spool(tmp_path / "spool", rate=RATE, segment_seconds=0.1, run_sync=run_inline) as spool,
    ):
        for number in range(250):
            await spool.append(tone(100 * number, 100), utc(number / 10))
        await recover("desk", MICROPHONE, rate=RATE, folder=tmp_path, spool=spool, journal=journal)
        assert [audio.position for audio in of(Audio, await journal.read(0))] == list(range(0, 25_000, 100))


async def test_a_machine_without_room_for_a_process_is_waited_for(tmp_path: Path, autojump_clock: Clock) -> None:
    """That the source's process cannot be started is a fault of the source like any other, and passes."""
    events = await play(tmp_path, [Unstartable(3), Talk(100)], 60)
    assert codes(events) == ["source.unstartable", "source.back"]
    assert len(audio_of(events)) > 2 * 50_000


async def test_a_source_that_was_well_is_opened_again_at_once(tmp_path: Path, autojump_clock: Clock) -> None:
    """Ten failures in the morning do not make the one in the evening longer."""
    events = await play(tmp_path, [Talk(1), Fail(), Absent(10), Talk(120), Fail(), Talk(1)], 600)
    long, short, _ = (gap.until - gap.from_ for gap in of(Gap, events) if gap.cause == "device")
    assert short < timedelta(seconds=1) < long


async def test_what_waits_at_the_stop_is_said_when_there_is_room_soon(tmp_path: Path, autojump_clock: Clock) -> None:
    """The last facts of a run have some seconds, for a disk that is full at this moment."""
    async with open_run(tmp_path, [Talk(100)]) as run:
        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()

            async def record_until_stop() -> None:
                with stop:
                    await record_in(run)

            nursery.start_soon(record_until_stop)
            await trio.sleep(10)
            writer = run.journal._database._writer
            fill_up(writer)
            stop.cancel()
            await trio.sleep(1.01)
            writer.execute("PRAGMA max_page_count = 100000")
        assert kinds(await run.journal.read(0))[-2:] == ["Audio", "RecordingStopped"]
        assert await run.journal.mark("room/desk/stopped") is not None


async def test_that_it_is_muted_is_said_with_the_end_of_the_recording(tmp_path: Path, autojump_clock: Clock) -> None:
    """In one transaction: a crash between them would leave a room that is neither."""
    commits: list[Sequence[Record]] = []
    async with open_run(tmp_path, [Talk(100)]) as run, trio.open_nursery() as nursery:
        commit = run.journal.commit

        async def note(*facts: Record) -> Sequence[Durable]:
            commits.append(facts)
            return await commit(*facts)

        run.journal.commit = note  # type: ignore[assignment, method-assign]
        control = RunControl(Outbox("desk"))
        nursery.start_soon(lambda: record_in(run, control=control))
        await trio.sleep(5)
        control.close(MuteState())
    (together,) = (facts for facts in commits if of(Muted, facts))
    assert of(RecordingStopped, together)
    assert {mark.key for mark in of(Mark, together)} >= {"room/desk/stopped", "room/desk/muted"}


@pytest.mark.parametrize("full", [True, False])
async def test_a_stop_waits_for_nothing(tmp_path: Path, autojump_clock: Clock, *, full: bool) -> None:
    """A full disk does not hold up the end of the daemon."""
    (tmp_path / "talk.wav").write_bytes(b"any")
    for source in (MICROPHONE, File("talk.wav")):
        state = tmp_path / type(source).__name__
        state.mkdir()
        async with open_run(state, [Talk(100)]) as run:
            run.disk.full = full
            before = trio.current_time()
            with trio.move_on_after(5):
                await record_in(run, source, folder=tmp_path)
            assert trio.current_time() - before < 6


async def test_a_real_file_is_recorded_whole(tmp_path: Path) -> None:
    """The real source, spool and journal with their process and threads: every sample of a file is in the segments."""
    audio = tone(0, 40_000)
    with wave.open(str(tmp_path / "talk.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(audio)
    async with (
        open_journal(tmp_path / "journal.sqlite") as journal,
        open_spool(tmp_path / "spool", rate=8000, segment_seconds=2) as spool,
    ):
        source = File("talk.wav", pace="fast")
        context = CaptureContext("desk", source, 8000, 1600, tmp_path, spool, journal, Live())
        assert await record(context, RunControl(Outbox("desk"))) == "ended"
        events = await journal.read(0)
    assert kinds(events) == ["RecordingStarted", "Audio", "Audio", "Audio", "RecordingStopped"]
    assert audio_of(events) == audio


async def test_zeros_are_told(tmp_path: Path, autojump_clock: Clock) -> None:
    """Samples that never change are a fault with a diagnosis."""
    async with open_run(tmp_path, [Talk(70)]) as run:
        run.script.zeros = True
        with trio.move_on_after(71):
            await record_in(run)
        events = await run.journal.read(0)
    assert codes(events) == ["source.zeros"]


Scene: st.SearchStrategy[Act] = st.one_of(
    st.builds(Talk, st.floats(0.2, 45)),
    st.builds(Drop, st.integers(1, 3000)),
    st.builds(Wait, st.floats(0.1, 20)),
    st.just(Fail()),
    st.builds(Absent, st.integers(1, 4)),
    st.builds(Sleep, st.floats(1, 3000)),
    st.builds(Full, st.booleans()),
    st.builds(Step, st.floats(-300, 300)),
)


@settings(max_examples=40, deadline=None)
@example(runs=[([Talk(5), Step(100), Talk(5)], False)])
@example(runs=[([Talk(5), Full(on=True), Talk(5), Fail()], False)])
@example(runs=[([Step(-91.0), Talk(1.0)], False)])
@given(runs=st.lists(st.tuples(st.lists(Scene, max_size=6), st.booleans()), min_size=1, max_size=3))
def test_every_position_and_second_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[list[Act], bool]]
) -> None:
    """Over runs of random scenes that end in clean stops and in crashes: every position is in a segment or in exactly
    one gap, every second in captured or lost coverage, and every segment is in the journal.
    """
    folder = tmp_path_factory.mktemp("runs")
    check = partial(_check, folder, [*runs, ([Talk(3)], False)])
    trio.run(check, clock=trio.testing.MockClock(autojump_threshold=0))


async def _check(folder: Path, runs: list[tuple[list[Act], bool]]) -> None:
    state = folder / "0"
    state.mkdir()
    down = 0.0
    for count, (acts, crash) in enumerate(runs, start=1):
        crashed = folder / str(count)
        copy = (lambda state=state, crashed=crashed: shutil.copytree(state, crashed)) if crash else (lambda: None)
        slept = sum(act.seconds for act in acts if isinstance(act, Sleep))
        await play(state, [Talk(1), *acts], 90, down=down, then=copy)
        state = crashed if crash else state
        down += slept + 100
        if not crash:  # here: the next run would explain what this one left out as its own absence
            async with open_run(state, []) as run:
                events = await run.journal.select("desk", KINDS, 0, LAST)
                covers = await run.journal.covered("desk")
                _assert_accounted(events, covers, run.spool)


def _assert_accounted(events: list[Durable], covers: list[CoverageSpan], spool: Spool) -> None:
    audio = [(one.position, one.position + one.samples) for one in of(Audio, events)]
    gaps = [(gap.start, gap.end) for gap in of(Gap, events) if gap.start < gap.end]
    assert audio == [(segment.position, segment.end) for segment in spool.segments()]
    end = 0
    for start, stop in sorted(audio + gaps):
        assert start == end
        end = stop
    covers = sorted(covers, key=lambda cover: (cover.start, cover.end, cover.from_))
    until = covers[0].from_
    for cover in covers:
        assert (cover.from_ - until).total_seconds() <= 0.2 + FRAME / RATE + 0.25
        # Samples tell the time anew after the clock was set back: those seconds come a second time.
        until = cover.until if cover.start < cover.end else max(until, cover.until)
    summary = summarize("desk", RATE, covers)
    assert summary is not None
    assert summary.is_explained, summary
