"""Weeks in a minute, on the virtual clock: rollovers, outages and restarts, and nothing that grows."""

import gc
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from conftest import Report
from roomtone.capture.records import loss_records
from roomtone.capture.sample_accounting import Lost
from roomtone.config.active import ActiveConfig
from roomtone.config.model import Config, ServiceConfig, Storage
from roomtone.delivery.runner import SinkRunner
from roomtone.events import Audio, Durable, SessionEnded, SessionStarted, Turn, Word
from roomtone.journal.coverage import summarize
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.retention.cleanup import Instruments, run_cleanup
from roomtone.sinks import Context, Sink, hookimpl
from roomtone.speech.transcriber import transcribe
from roomtone.spool.segment import Segment
from roomtone.testing.encoded_speech import numbers_in, quiet, speak
from roomtone.testing.fake_service import FakeService, open_service
from roomtone.testing.faults import Drop, Expire, Fault, Refuse
from support.virtual_room import RATE, Room, open_room, reach

HOURS = int(os.environ.get("SOAK_HOURS", "2"))
"""Simulated hours in frames of audio; `make soak` asks for a day."""
STORAGE = Storage(spool_days=1 / 48, journal_days=1 / 24)
TURNS = 20
"""In an hour of the month of events."""
SECOND = timedelta(seconds=1)
BEGAN = datetime.now(UTC)
"""Ids carry the real time of a commit, and age is told by them: the simulated time must not lie in their past."""


class Counting(Sink, frozen=True, tag="counting"):
    """Keeps the numbers of each turn by its seq; its hook runs in the loop, for the virtual clock knows no threads."""

    said: dict[int, list[int]] = {}  # noqa: RUF012 - a Struct copies its defaults
    down: set[str] = set()  # noqa: RUF012 - as above
    """Why nobody takes anything just now."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        yield self

    @hookimpl
    async def turn(self, event: Turn) -> None:
        if self.down:
            raise ConnectionError(*self.down)
        self.said[event.seq] = [number for word in event.words for number in numbers_in(word.text)]


class Size(NamedTuple):
    """What must not grow: objects in memory, files, KiB on disk."""

    objects: int
    files: int
    disk: int


def measure(folder: Path) -> Size:
    """What there is now."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    gc.collect()
    return Size(len(gc.get_objects()), len(files), sum(path.stat().st_size for path in files) >> 10)


def weather(connection: int) -> Sequence[Fault]:
    """Sessions last half an hour, every fifth one breaks, and ten minutes of each ninety nobody answers."""
    if trio.current_time() % 5400 < 600:
        return [Refuse(503)]
    return [Expire(1800.0), *([Drop("reset", seconds=700)] if connection % 5 == 4 else [])]


def minute(number: int) -> bytes:
    """A minute of a room: sixteen words, and silence."""
    said = speak(range(16 * number, 16 * number + 16), RATE)
    return said + quiet(60 - len(said) / 2 / RATE, RATE)


async def record(room: Room, minutes: range) -> None:
    """Record a minute after the other in frames of a second, with the facts that the recorder journals."""
    for number in minutes:
        audio = minute(number)
        for start in range(0, len(audio), 2 * RATE):
            await trio.sleep(1)
            at = BEGAN + room.spool.end / RATE * SECOND
            if segment := await room.spool.append(audio[start : start + 2 * RATE], at):
                await room.journal.commit(*facts_of(segment))


def facts_of(segment: Segment) -> tuple[Audio | CoverageSpan | Mark, ...]:
    until = segment.at + segment.samples / RATE * SECOND
    return (
        Audio(
            room="desk",
            position=segment.position,
            at=segment.at,
            samples=segment.samples,
            rate=RATE,
            file=str(segment.path),
        ),
        CoverageSpan(
            room="desk",
            start=segment.position,
            end=segment.end,
            state="captured",
            cause=None,
            from_=segment.at,
            until=until,
        ),
        Mark("room/desk/audio", segment.end),
    )


async def live_on(folder: Path, service: FakeService, sink: Counting, minutes: range) -> Size:
    """One run of the daemon's parts, from start to stop, for so many minutes; what there is at its end."""
    context = Context(name="counting", folder=folder, state=folder, rates={"desk": RATE})
    async with (
        open_room(folder, reach(service), spool_folder="spool/desk") as room,
        trio.open_nursery() as supporting,
        trio.open_nursery() as rooms,
    ):
        desk = room.context._replace(frame=RATE)
        delivery = SinkRunner(sink, context, journal=room.journal, live=desk.live)
        config = Config(
            path=folder / "roomtone.toml", service=ServiceConfig(), rooms={}, sinks={"counting": sink}, storage=STORAGE
        )
        instruments = Instruments(utc=now, uptime=trio.current_time)
        active, spools = ActiveConfig(config, None), {"desk": room.spool}
        supporting.start_soon(delivery.run)
        supporting.start_soon(run_cleanup, folder, active, spools, room.journal, instruments)
        rooms.start_soon(partial(transcribe, desk, realtime=True, utc=now))
        await record(room, minutes)
        size = measure(folder)
        rooms.cancel_scope.cancel()
        supporting.cancel_scope.cancel()
    return size


def now() -> float:
    return BEGAN.timestamp() + trio.current_time()


@pytest.mark.timeout(3000)
async def test_hours_of_audio(tmp_path: Path, autojump_clock: MockClock, report: Report) -> None:
    """Through rollovers, outages and restarts each word is delivered once; memory, files and disk stay as they were."""
    sink = Counting(start="oldest")
    sizes = []
    async with open_service(faults=weather, port=None, utc=now) as service:
        for hour in range(HOURS):
            sizes.append(await live_on(tmp_path, service, sink, range(60 * hour, 60 * (hour + 1))))
            service.sessions.clear()
        async with open_room(tmp_path, reach(service), spool_folder="spool/desk") as room:
            room.spool.end_of_data()
            await transcribe(room.context, realtime=True, utc=now)
            last = [number for turn in await room.turns() for word in turn.words for number in numbers_in(word.text)]
    for hour, (objects, files, disk) in enumerate(sizes, 1):
        report(f"after hour {hour}: {objects} objects, {files} files, {disk} KiB on disk")

    said = {number for numbers in sink.said.values() for number in numbers} | set(last)
    assert said == set(range(16 * 60 * HOURS))
    assert sum(map(len, sink.said.values())) == len({number for numbers in sink.said.values() for number in numbers})
    first, final = sizes[-2], sizes[-1]
    assert final.objects < 1.1 * first.objects + 2000
    assert final.files <= first.files + 5
    assert final.disk < 1.3 * first.disk + 1024


async def test_a_healthy_hour_is_quiet_in_the_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    """While all goes well, and somebody speaks in each minute, nothing is told more often than once a minute."""
    with capture_logs() as logs:
        async with open_service(port=None, utc=now) as service:
            await live_on(tmp_path, service, Counting(start="oldest"), range(20))

    told = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert "session.started" in told
    assert len(told) <= 20


async def test_a_month_of_events(
    tmp_path: Path,
    autojump_clock: MockClock,
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over thirty days of sessions, turns and segments the journal, the spool and memory stay as large as after two;
    nothing is unexplained, and each turn is delivered once, though the receiver is away for two hours of each week.
    """
    monkeypatch.setattr(
        "roomtone.retention.cleanup.CHECK_INTERVAL_S", 1800.0
    )  # else most of the month is spent on looking
    sink = Counting(start="oldest")
    sizes, delivered = [], 0
    async with open_service(port=None) as service:
        for day in range(30):
            sizes.append(await live_a_day(tmp_path, service, sink, day))
            delivered += len(sink.said)
            sink.said.clear()
    for day in (1, 2, 15, 30):
        objects, files, disk = sizes[day - 1]
        report(f"after day {day}: {objects} objects, {files} files, {disk} KiB on disk")

    assert delivered == 30 * 24 * TURNS
    assert sizes[-1].objects < 1.1 * sizes[1].objects + 2000
    assert sizes[-1].files <= sizes[1].files + 2
    assert sizes[-1].disk < 1.3 * sizes[1].disk + 256


async def live_a_day(folder: Path, service: FakeService, sink: Counting, day: int) -> Size:
    """A day's facts, an hour at a time, through the journal, the sink and retention; the daemon starts once a day, and
    most of each hour the device is away.
    """
    context = Context(name="counting", folder=folder, state=folder, rates={"desk": RATE})
    async with (
        open_room(folder, reach(service), spool_folder="spool/desk", sync_interval=1800) as room,
        trio.open_nursery() as nursery,
    ):
        live = room.context.live
        delivery = SinkRunner(sink, context, journal=room.journal, live=live)
        config = Config(
            path=folder / "roomtone.toml", service=ServiceConfig(), rooms={}, sinks={"counting": sink}, storage=STORAGE
        )
        instruments = Instruments(utc=now, uptime=trio.current_time)
        active, spools = ActiveConfig(config, None), {"desk": room.spool}
        nursery.start_soon(delivery.run)
        nursery.start_soon(run_cleanup, folder, active, spools, room.journal, instruments)
        for hour in range(24):
            sink.down.clear()
            sink.down.update({"away"} if day % 7 == 3 and hour in {8, 9} else {})
            at = BEGAN + trio.current_time() * SECOND
            if end := room.spool.end:
                await room.spool.cut(fresh=True)
                await room.journal.commit(*loss_records("desk", Lost(end, end, room.spool.at(end), at, "device")))
            await room.spool.append(bytes(2 * RATE), at)
            segment = await room.spool.cut()
            assert segment is not None
            silent = CoverageSpan("desk", segment.position, segment.end, "silent", None, at, at + SECOND)
            heard = Mark("room/desk/acknowledged", segment.end)
            await room.journal.commit(*facts_of(segment), silent, heard, *talk(24 * day + hour, segment))
            await trio.sleep(3600)
        summary = summarize("desk", RATE, await room.journal.covered("desk"))
        assert summary is not None
        assert summary.is_explained
        size = measure(folder)
        nursery.cancel_scope.cancel()
    return size


def talk(hour: int, segment: Segment) -> list[Durable]:
    """A session and its turns, as an hour of a quiet room has them."""
    session, at, position = f"session {hour}", segment.at, segment.position
    begun = SessionStarted(room="desk", position=position, at=at, session_id=session, endpoint="service")
    turns = [
        Turn(
            room="desk",
            position=position,
            at=at,
            session_id=session,
            turn_order=order,
            text="w1 w2",
            words=(Word("w1", position, position + 9), Word("w2", position + 9, position + 18)),
        )
        for order in range(TURNS)
    ]
    ended = SessionEnded(
        room="desk",
        position=position,
        at=at,
        session_id=session,
        audio_seconds=3600,
        session_seconds=3600,
        reason="terminated",
    )
    return [begun, *turns, ended]
