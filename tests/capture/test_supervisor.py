"""A room's capture: muted and unmuted, rotated, and begun again, with every sample and second accounted for."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio
import trio.testing

from capture.test_recorder import (
    RATE,
    Absent,
    Act,
    Clock,
    Run,
    Talk,
    audio_of,
    fill_up,
    kinds,
    of,
    open_run,
    record_in,
    tone,
    utc,
)
from roomtone.capture.recorder import NULL_OBSERVER
from roomtone.capture.records import MuteState
from roomtone.capture.supervisor import CaptureSupervisor
from roomtone.events import Audio, Durable, Gap, Muted, RecordingStarted, RecordingStopped, Unmuted
from roomtone.journal.coverage import summarize

LONG = [Talk(100_000)]


class Room(NamedTuple):
    run: Run
    capture: CaptureSupervisor


@asynccontextmanager
async def open_room(state: Path, acts: Iterable[Act] = LONG, *, down: float = 0.0) -> AsyncIterator[Room]:
    """A room that listens, after the daemon was down for so long; leaving is the daemon's stop."""
    async with open_run(state, acts, down=down) as run:
        mark = await run.journal.mark("room/desk/muted")
        mute = None if mark is None else msgspec.convert(mark, MuteState)
        capture = CaptureSupervisor("desk", mute, utc=lambda: run.script.machine.now().utc)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    capture.run,
                    lambda control: record_in(run, control=control),
                    spool=run.spool,
                    journal=run.journal,
                    observer=NULL_OBSERVER,
                )
            )
            yield Room(run, capture)
            nursery.cancel_scope.cancel()


async def events_of(run: Run) -> list[Durable]:
    return await run.journal.read(0)


async def check_account(run: Run) -> None:
    """Between the first and the last, every position and every second is captured or lost."""
    summary = summarize("desk", RATE, await run.journal.covered("desk"))
    assert summary is not None
    assert summary.is_explained, summary.unexplained


async def test_muting_closes_the_device_and_unmuting_opens_it(tmp_path: Path, autojump_clock: Clock) -> None:
    """The segment is closed, the stop says why, the muted time is one gap without positions, and it goes on there."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10.1)
        await room.capture.close(MuteState())
        opened, end = room.run.script.opened, room.run.spool.end
        assert room.run.spool.resting
        await trio.sleep(1000)
        assert (room.run.script.opened, room.run.spool.end) == (opened, end)
        await room.capture.open()
        await trio.sleep(5)
    async with open_run(tmp_path, []) as run:
        events = await events_of(run)
        await check_account(run)
    assert kinds(events)[:7] == [
        "RecordingStarted",
        "Audio",
        "RecordingStopped",
        "Muted",
        "Gap",
        "Unmuted",
        "RecordingStarted",
    ]
    stopped, muted, gap = of(RecordingStopped, events)[0], of(Muted, events)[0], of(Gap, events)[0]
    assert (stopped.reason, stopped.position, muted.position, muted.until) == ("muted", 10_000, 10_000, None)
    assert (gap.start, gap.end, gap.cause, gap.from_) == (10_000, 10_000, "muted", utc(10))
    assert 1000 <= (gap.until - gap.from_).total_seconds() <= 1000.3
    assert of(Unmuted, events)[0].at == gap.until
    assert of(RecordingStarted, events)[1].position == 10_000
    recorded = audio_of(events)
    assert len(recorded) > 2 * 14_000
    assert recorded == tone(0, len(recorded) // 2)


async def test_muting_survives_a_restart(tmp_path: Path, autojump_clock: Clock) -> None:
    """A muted room stays muted when the daemon was down, and that time is muted too."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10.1)
        await room.capture.close(MuteState())
    async with open_room(tmp_path, down=500) as room:
        await trio.sleep(100)
        assert (room.run.script.opened, room.run.spool.end) == (0, 10_000)
        await room.capture.open()
        await trio.sleep(5)
        await check_account(room.run)
        gaps = of(Gap, await events_of(room.run))
    assert [(gap.cause, gap.start, gap.end) for gap in gaps] == [("muted", 10_000, 10_000)]
    assert (gaps[0].until - gaps[0].from_).total_seconds() > 600


async def test_a_timed_muting_ends_by_itself(tmp_path: Path, autojump_clock: Clock) -> None:
    """To the second, and the last wish counts: longer, then shorter."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10.1)
        await room.capture.close(MuteState(until=utc(100)))
        await room.capture.close(MuteState(until=utc(5000)))
        await trio.sleep(200)
        assert room.capture.mute == MuteState(until=utc(5000))
        await room.capture.close(MuteState(until=utc(300)))
        await trio.sleep(110)
        assert room.capture.mute is None
        events = await events_of(room.run)
        await check_account(room.run)
    assert [event.until for event in of(Muted, events)] == [utc(100), utc(5000), utc(300)]
    assert of(Unmuted, events)[0].at == of(Gap, events)[0].until == utc(300)
    assert room.run.spool.end > 10_000


async def test_a_timed_muting_ends_while_the_daemon_is_down(tmp_path: Path, autojump_clock: Clock) -> None:
    """It records immediately, and the time between is accounted for as it was: muted, then down."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10.1)
        await room.capture.close(MuteState(until=utc(60)))
    async with open_room(tmp_path, down=500) as room:
        await trio.sleep(5)
        assert room.run.spool.end > 10_000
        events = await events_of(room.run)
        await check_account(room.run)
    gaps = of(Gap, events)
    assert [gap.cause for gap in gaps] == ["muted", "daemon down"]
    assert (gaps[0].until, gaps[1].from_) == (utc(60), utc(60))
    assert of(Unmuted, events)[0].at == utc(60)
    assert all(event.position == 10_000 for event in of(Unmuted, events))


async def test_a_room_is_muted_before_it_was_ever_heard(tmp_path: Path, autojump_clock: Clock) -> None:
    """There is nothing to account for, and nothing is opened."""
    async with open_room(tmp_path, [Absent(1_000_000)]) as room:
        await trio.sleep(10)
        await room.capture.close(MuteState())
        opened = room.run.script.opened
        await trio.sleep(1000)
        assert room.run.script.opened == opened
        room.run.script.acts[:] = LONG
        await room.capture.open()
        await trio.sleep(5)
        events = await events_of(room.run)
    assert not of(Gap, events)
    assert [type(event) for event in events if isinstance(event, Muted | Unmuted | RecordingStarted)] == [
        Muted,
        Unmuted,
        RecordingStarted,
    ]


async def test_muted_while_the_device_is_away(tmp_path: Path, autojump_clock: Clock) -> None:
    """The time before is the device's, the time after the mute's."""
    async with open_room(tmp_path, [Talk(10), Absent(1_000_000)]) as room:
        await trio.sleep(60)
        await room.capture.close(MuteState())
        await trio.sleep(60)
        room.run.script.acts[:] = LONG
        await room.capture.open()
        await trio.sleep(5)
        await check_account(room.run)
        gaps = of(Gap, await events_of(room.run))
    assert [gap.cause for gap in gaps[:2]] == ["device", "muted"]
    assert gaps[0].until == gaps[1].from_


async def test_a_mute_that_is_taken_back_at_once(tmp_path: Path, autojump_clock: Clock) -> None:
    """Wishes may come faster than a device closes; the last one holds."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(room.capture.close, MuteState())
                nursery.start_soon(room.capture.open)
        with trio.fail_after(5):
            await room.capture.open()
        await trio.sleep(5)
        assert room.capture.mute is None
        assert room.run.spool.end > 14_000
        await check_account(room.run)


async def test_rotating_loses_nothing(tmp_path: Path, autojump_clock: Clock) -> None:
    """A stop and a start at one position, at one time, and the same process goes on."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10)
        for _ in range(3):
            assert await room.capture.rotate()
            await trio.sleep(3.3)
        assert room.run.script.opened == 1
    async with open_run(tmp_path, []) as run:
        events = await events_of(run)
        await check_account(run)
    stops, starts = of(RecordingStopped, events), of(RecordingStarted, events)
    assert [stop.reason for stop in stops] == ["rotated", "rotated", "rotated", "stopping"]
    assert [(stop.position, stop.at) for stop in stops[:3]] == [(start.position, start.at) for start in starts[1:]]
    assert {start.position for start in starts} <= {audio.position for audio in of(Audio, events)}
    assert not of(Gap, events)
    recorded = audio_of(events)
    assert recorded == tone(0, len(recorded) // 2)


async def test_there_is_nothing_to_rotate_without_samples(tmp_path: Path, autojump_clock: Clock) -> None:
    """Muted, or without a device: it says so, and makes no empty recording."""
    async with open_room(tmp_path, [Talk(10), Absent(1_000_000)]) as room:
        await trio.sleep(30)
        assert not await room.capture.rotate()
        await room.capture.close(MuteState())
        assert not await room.capture.rotate()
        events = await events_of(room.run)
    assert [stop.reason for stop in of(RecordingStopped, events)] == ["muted"]


async def test_beginning_again_is_a_gap_of_the_device(tmp_path: Path, autojump_clock: Clock) -> None:
    """Another source follows immediately; the time between has no positions and is not "daemon down"."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10.1)
        room.capture.restart()
        await trio.sleep(5)
        assert room.run.script.opened == 2
        await check_account(room.run)
        events = await events_of(room.run)
    assert [gap.cause for gap in of(Gap, events)] == ["device"]
    assert of(RecordingStarted, events)[1].position == 10_000


async def test_what_is_muted_on_a_full_disk_is_told_when_there_is_room(tmp_path: Path, autojump_clock: Clock) -> None:
    """The end of the recording, the mute and the end of both wait in their order, and nothing is unexplained."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10.1)
        writer = room.run.journal._database._writer
        fill_up(writer)
        room.run.disk.full = True
        await trio.sleep(20)
        await room.capture.close(MuteState())
        assert not of(Muted, await events_of(room.run))
        await trio.sleep(100)
        room.run.disk.full = False
        writer.execute("PRAGMA max_page_count = 100000")
        await trio.sleep(60)
        assert kinds(await events_of(room.run))[-2:] == ["RecordingStopped", "Muted"]
        await room.capture.open()
        await trio.sleep(5)
    async with open_run(tmp_path, []) as run:
        events = await events_of(run)
        await check_account(run)
    assert [gap.cause for gap in of(Gap, events)] == ["disk full", "muted"]


async def test_who_unmutes_on_a_full_disk_waits_for_the_end_of_the_recording(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    """Where the room goes on stands in facts that wait: it begins again when they are told, and says what it missed."""
    async with open_room(tmp_path) as room, trio.open_nursery() as nursery:
        await trio.sleep(10.1)
        writer = room.run.journal._database._writer
        fill_up(writer)
        await room.capture.close(MuteState())
        nursery.start_soon(room.capture.open)
        await trio.sleep(100)
        writer.execute("PRAGMA max_page_count = 100000")
        await trio.sleep(60)
        assert room.capture.mute is None
    async with open_run(tmp_path, []) as run:
        events = await events_of(run)
        await check_account(run)
    assert of(Gap, events)[0].cause == "muted"
    assert of(Muted, events)
    assert of(Unmuted, events)


async def test_a_room_that_is_taken_out_is_not_the_daemon_that_was_down(tmp_path: Path, autojump_clock: Clock) -> None:
    """Put back, it has a gap of a source that was away."""
    async with open_room(tmp_path) as room:
        await trio.sleep(10)
        room.capture.take_out()
    async with open_room(tmp_path, down=60.0) as room:
        await trio.sleep(5)
    async with open_run(tmp_path, []) as run:
        assert [gap.cause for gap in of(Gap, await events_of(run))] == ["device"]
        await check_account(run)


async def test_a_mute_between_two_runs_is_kept(tmp_path: Path, autojump_clock: Clock) -> None:
    """A room that has failed and waits for its restart can be muted: its device is not opened again."""
    async with open_run(tmp_path, LONG) as run:
        capture = CaptureSupervisor("desk", None, utc=lambda: run.script.machine.now().utc)
        record = partial(
            capture.run,
            lambda control: record_in(run, control=control),
            spool=run.spool,
            journal=run.journal,
            observer=NULL_OBSERVER,
        )
        with trio.move_on_after(10.1):
            await record()
        end = run.spool.end
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture.close, MuteState())
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(record)
            await trio.sleep(20)
            assert capture.mute == MuteState()
            assert run.spool.end == end
            nursery.cancel_scope.cancel()
