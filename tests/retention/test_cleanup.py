"""Room on the disk is kept: what goes, what waits for whom, and what is reported."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import trio

from retention.test_policy import BEGAN, LONG_AGO, MINUTE, RATE, SEGMENT, SIZE, segments
from roomtone import Sink, trusted_clock
from roomtone.capture.records import audio_records
from roomtone.config.active import ActiveConfig
from roomtone.config.model import Config, ServiceConfig, Storage
from roomtone.delivery.controls import pins_mark
from roomtone.events import Notice
from roomtone.journal.coverage import summarize
from roomtone.journal.journal import Journal, JournalError, open_journal
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.retention.cleanup import (
    CHECK_INTERVAL_S,
    PRUNE_INTERVAL_S,
    Instruments,
    run_cleanup,
)
from roomtone.retention.disk_space import Space
from roomtone.retention.policy import SETTLED_MARGIN_S
from roomtone.spool.segment import list_segments, name_segment
from roomtone.spool.spool import Spool, open_spool
from roomtone.testing.inline import run_inline


class Archive(Sink, frozen=True, kw_only=True, tag="archive"):
    audio: ClassVar[bool] = True


class Desk(NamedTuple):
    """A state folder with one open room, and what looks after it."""

    state: Path
    spool: Spool
    journal: Journal
    spools: dict[str, Spool]
    sinks: dict[str, Sink]
    unloaded: dict[str, str]
    space: list[Space]

    async def record(self, count: int, *, at: datetime | None = None) -> None:
        """So many segments, journalled; the first one at that time."""
        for _ in range(count):
            when = (at or datetime.now(UTC)) + timedelta(seconds=self.spool.end / RATE)
            segment = await self.spool.append(bytes(SIZE), when)
            assert segment is not None
            await self.journal.commit(
                *audio_records("desk", RATE, segment),
                Mark("room/desk/rate", RATE),
                Mark("room/desk/audio", segment.end),
            )

    async def transcribe(self, until: int) -> None:
        await self.journal.commit(Mark("room/desk/acknowledged", until))

    async def notices(self) -> list[Notice]:
        return [event for event in await self.journal.read(0, 10_000) if isinstance(event, Notice)]

    def files(self) -> int:
        return len(list_segments(self.state / "spool" / "desk"))


@asynccontextmanager
async def open_desk(state: Path, storage: Storage, *, utc: Callable[[], float] = time.time) -> AsyncIterator[Desk]:
    """A room of 1000 Hz whose disk has room; every look takes place as time passes."""
    spools: dict[str, Spool] = {}
    sinks: dict[str, Sink] = {}
    unloaded: dict[str, str] = {}
    space = [Space(10**12, 10**12)]
    instruments = Instruments(lambda _: space[0], utc, trio.current_time)
    tables: dict[str, Any] = {"storage": storage, "sinks": sinks, "unloaded": unloaded}
    active = ActiveConfig(Config(path=state / "roomtone.toml", service=ServiceConfig(), rooms={}, **tables), None)
    async with (
        open_journal(state / "journal.sqlite", run_sync=run_inline) as journal,
        open_spool(state / "spool" / "desk", rate=RATE, run_sync=run_inline) as spool,
        trio.open_nursery() as nursery,
    ):
        spools["desk"] = spool
        nursery.start_soon(lambda: run_cleanup(state, active, spools, journal, instruments))
        yield Desk(state, spool, journal, spools, sinks, unloaded, space)
        nursery.cancel_scope.cancel()


async def test_settled_audio_goes_at_its_age(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Audio that is transcribed goes when it is old; what is not transcribed stays, and so does the newest segment."""
    async with open_desk(tmp_path, Storage(spool_days=1)) as desk:
        await desk.record(10, at=LONG_AGO)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 10
        await desk.transcribe(5 * SEGMENT * RATE)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.spool.first == (5 * SEGMENT - SETTLED_MARGIN_S) * RATE
        await desk.transcribe(100 * SEGMENT * RATE)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 1
        assert desk.spool.first == desk.spool.end - SEGMENT * RATE
        assert not await desk.notices()


async def test_a_clock_that_jumps_ahead_makes_nothing_old(
    tmp_path: Path, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year of audio and of events outlives a clock that is wrong for hours, also where the daemon begins anew; a
    notice says so. When it has gone on like that for long enough it is believed.
    """
    monkeypatch.setattr(trusted_clock, "TRUST_AFTER", timedelta(minutes=10))  # a day of looks would take half a minute
    began, ahead = time.time(), 0.0

    def utc() -> float:
        return began + trio.current_time() + ahead

    storage = Storage(spool_days=1, journal_days=30)
    async with open_desk(tmp_path, storage, utc=utc) as desk:
        await desk.record(10, at=datetime.fromtimestamp(utc(), UTC))
        await desk.transcribe(100 * SEGMENT * RATE)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 10
        ahead = 10 * 365 * 86_400.0
        await trio.sleep(300)
        assert desk.files() == 10
        assert [notice.code for notice in await desk.notices()] == ["clock.jumped"]
    ahead *= 2
    async with open_desk(tmp_path, storage, utc=utc) as desk:
        await trio.sleep(300)
        assert desk.files() == 10
        # That it was off for years, and not its clock, may be true this time.
        assert len(await desk.notices()) == 1
        await trio.sleep(400)
        assert desk.files() == 1


async def test_a_sink_pins_what_it_has_not_acknowledged(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Audio waits for a configured sink that takes audio, up to its cursor; not for one that leaves this room out, and
    not for one that is configured no more.
    """
    async with open_desk(tmp_path, Storage(spool_days=1)) as desk:
        desk.sinks["archive"] = Archive()
        desk.sinks["elsewhere"] = Archive(rooms=("kitchen",))
        desk.sinks["text"] = Archive(kinds=("turn",))
        await desk.journal.advance("gone", 0)
        await desk.record(10, at=LONG_AGO)
        await desk.transcribe(100 * SEGMENT * RATE)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 10
        await desk.journal.advance("archive", 4)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 6
        del desk.sinks["archive"]
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 1


async def test_audio_waits_for_a_sink_whose_plugin_does_not_load(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """As for one that is paused; and not for one that never took audio, nor for one that has never run."""
    async with open_desk(tmp_path, Storage(spool_days=1)) as desk:
        desk.unloaded.update(dict.fromkeys(("archive", "elsewhere", "text", "new"), "broken"))
        for name, sink in {"archive": Archive(), "elsewhere": Archive(rooms=("kitchen",)), "text": Sink()}.items():
            await desk.journal.advance(name, 0, pins_mark(name, sink))
        await desk.record(10, at=LONG_AGO)
        await desk.transcribe(100 * SEGMENT * RATE)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 10
        await desk.journal.advance("archive", 4)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 6
        desk.unloaded.clear()
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.files() == 1


async def test_the_quota_outranks_what_waits(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Over the quota the oldest goes, though a sink and the transcriber wait for it: one notice each says who missed
    how much, and the coverage says what was never transcribed.
    """
    async with open_desk(tmp_path, Storage(spool_gb=4 * SIZE / 1e9)) as desk:
        desk.sinks["archive"] = Archive()
        await desk.record(10)
        await trio.sleep(1.5 * CHECK_INTERVAL_S)
        assert desk.spool.size == 4 * SIZE
        notices = {notice.code: notice.text for notice in await desk.notices()}
        assert set(notices) == {"audio.removed", "transcript.missing"}
        assert "sink archive" in notices["audio.removed"]
        assert "180 s" in notices["audio.removed"]
        summary = summarize("desk", RATE, await desk.journal.covered("desk"))
        assert summary is not None
        assert summary.removed == 6 * SEGMENT * RATE
        await desk.record(3)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.spool.size == 4 * SIZE
        assert len(await desk.notices()) == 2


async def test_files_that_were_removed_by_others_are_reported(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Audio that was captured and is gone is not transcribed in silence: coverage says so, and each who lacks it."""
    async with open_desk(tmp_path, Storage()) as desk:
        desk.sinks["archive"] = Archive()
        await desk.journal.advance("archive", 0)
        await desk.record(10, at=BEGAN)
        await desk.transcribe(4 * SEGMENT * RATE)
        for segment in desk.spool.segments()[3:6]:
            segment.path.unlink()
        await trio.sleep(2 * CHECK_INTERVAL_S)
        removed = [cover for cover in await desk.journal.covered("desk") if cover.state == "removed"]
        notices = await desk.notices()
        await trio.sleep(10 * CHECK_INTERVAL_S)
        assert await desk.notices() == notices
    assert [(cover.start, cover.end) for cover in removed] == [(4 * SEGMENT * RATE, 6 * SEGMENT * RATE)]
    gone = "Files are missing from the spool or unreadable, with"
    assert [(notice.code, notice.text) for notice in notices] == [
        ("audio.removed", f"{gone} {3 * SEGMENT} s of audio of desk that sink archive never had."),
        ("transcript.missing", f"{gone} {2 * SEGMENT} s of audio of desk before it was transcribed."),
    ]


async def test_settled_audio_goes_before_older_audio_that_waits(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A hole in the transcript waits for its repair while younger audio, which is settled, goes."""
    async with open_desk(tmp_path, Storage(spool_gb=8 * SIZE / 1e9)) as desk:
        await desk.journal.commit(Mark("room/desk/holes", [[0, SEGMENT * RATE]]))
        await desk.transcribe(100 * SEGMENT * RATE)
        await desk.record(10)
        await trio.sleep(2 * CHECK_INTERVAL_S)
        assert desk.spool.size == 8 * SIZE
        assert desk.spool.first == 0
        assert not await desk.notices()


async def test_a_low_disk_takes_settled_audio_only(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """With little room on the disk settled audio goes, nothing else does, and it is told once that it is low and once
    that there is room.
    """
    async with open_desk(tmp_path, Storage(free_gb=1)) as desk:
        await desk.record(10)
        await desk.transcribe(6 * SEGMENT * RATE)
        desk.space[0] = Space(10**8, 10**12)
        await trio.sleep(5 * CHECK_INTERVAL_S)
        assert desk.files() == 6
        assert [notice.code for notice in await desk.notices()] == ["disk.low"]
        desk.space[0] = Space(10**10, 10**12)
        await trio.sleep(5 * CHECK_INTERVAL_S)
        assert [notice.code for notice in await desk.notices()] == ["disk.low", "disk.recovered"]
        desk.space[0] = Space(10**8, 5 * 10**8)
        await trio.sleep(5 * CHECK_INTERVAL_S)
        assert len(await desk.notices()) == 2, "of a small disk a tenth is enough"


async def test_rooms_that_are_closed_are_looked_after(tmp_path: Path) -> None:
    """Audio of a room that has ended, or is not configured any more, counts for the quota and goes like the rest."""
    folder = tmp_path / "spool" / "old"
    folder.mkdir(parents=True)
    for one in segments(5):
        (folder / name_segment(one.position, one.at, fresh=False)).write_bytes(bytes(SIZE))
    async with open_desk(tmp_path, Storage(spool_gb=4 * SIZE / 1e9)) as desk:
        await desk.record(2)
        with trio.fail_after(30):
            while len(list_segments(folder)) > 2:  # noqa: ASYNC110 - a file that goes has no event
                await trio.sleep(0.05)
    assert [one.position for one in list_segments(folder)] == [3 * SEGMENT * RATE, 4 * SEGMENT * RATE]


async def test_a_journal_that_was_taken_away_ends_the_daemon(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Facts that go into a file without a name would be lost with the process; a new start has a new journal."""

    async def take_away() -> None:
        async with open_desk(tmp_path, Storage()):
            await trio.sleep(2 * CHECK_INTERVAL_S)
            (tmp_path / "journal.sqlite").unlink()
            await trio.sleep(2 * CHECK_INTERVAL_S)

    with pytest.raises(ExceptionGroup) as caught:
        await take_away()
    assert caught.group_contains(JournalError, match="is gone")


async def test_events_go_when_they_are_old_and_acknowledged(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The journal forgets what every configured sink has acknowledged, beyond its quota; a sink that is gone holds
    nothing back, one that is behind does.
    """
    async with open_desk(tmp_path, Storage(journal_gb=0.0001)) as desk:
        desk.sinks["log"] = Sink()
        await desk.journal.advance("gone", 0)
        text = "x" * 1000
        for _ in range(500):
            notice = Notice(room="", position=0, at=BEGAN, severity="info", code="test.filler", text=text)
            await desk.journal.commit(notice)
        await desk.journal.advance("log", 300)
        await trio.sleep(PRUNE_INTERVAL_S + CHECK_INTERVAL_S)
        assert (await desk.journal.read(0, 1))[0].seq == 301
        await desk.journal.advance("log", 500)
        for _ in range(3):
            await trio.sleep(PRUNE_INTERVAL_S + CHECK_INTERVAL_S)
        oldest, size = await desk.journal.extent()
        assert size < 200_000
        assert oldest > 400


@pytest.mark.parametrize("days", [36_500.0, 0.01])
@pytest.mark.parametrize("clock", [0.0, 86_400.0, 7.9e9])
async def test_whatever_the_clock_says(
    tmp_path: Path, autojump_clock: trio.abc.Clock, days: float, clock: float
) -> None:
    """A board without a battery wakes up in 1970, and what is to be kept for a century is kept, in any year."""
    storage = Storage(journal_days=days, spool_days=days)
    async with open_desk(tmp_path, storage, utc=lambda: clock) as desk:
        await desk.record(3, at=datetime.fromtimestamp(clock, UTC))
        await desk.transcribe(100 * SEGMENT * RATE)
        await desk.journal.commit(Mark("calendar", ["9999-12-31T23:00:00+00:00", "0001-01-01T00:00:00+00:00", 5]))
        await trio.sleep(2 * PRUNE_INTERVAL_S)
        assert desk.files() == 3
        assert await desk.journal.read(0)
    async with open_desk(tmp_path, storage, utc=lambda: clock) as desk:
        await trio.sleep(2 * PRUNE_INTERVAL_S)
        assert desk.files() == 3


async def test_damaged_databases_go_at_the_age_of_events(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A database that was moved aside contains speech: it is kept as long as events are; no other file goes with it."""
    began, zero = time.time(), trio.current_time()
    pages = tmp_path / "sinks" / "pages"
    asides = [tmp_path / "journal.sqlite.corrupt-20260101T000000Z-wal", pages / "entries.spoiled"]
    other = pages / "entries.sqlite"
    for path in (*asides, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("said")
    utc = lambda: began + trio.current_time() - zero  # noqa: E731 - a clock that goes with the virtual one
    async with open_desk(tmp_path, Storage(journal_days=0.25), utc=utc):
        await trio.sleep(0.2 * 86_400)
        assert all(path.exists() for path in asides)
        await trio.sleep(0.05 * 86_400 + PRUNE_INTERVAL_S + CHECK_INTERVAL_S)
        assert not any(path.exists() for path in asides)
        assert other.exists()


async def test_events_wait_for_a_sink_whose_plugin_does_not_load(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """It has its place when it is repaired. One that has never run has none, and holds nothing back."""
    async with open_desk(tmp_path, Storage(journal_gb=0.0001)) as desk:
        desk.unloaded.update(dict.fromkeys(("broken", "new"), "broken"))
        await desk.journal.advance("broken", 300)
        for _ in range(500):
            notice = Notice(room="", position=0, at=BEGAN, severity="info", code="test.filler", text="x" * 1000)
            await desk.journal.commit(notice)
        await trio.sleep(PRUNE_INTERVAL_S + CHECK_INTERVAL_S)
        assert (await desk.journal.read(0, 1))[0].seq == 301


async def test_old_coverage_goes_whole(tmp_path: Path) -> None:
    """Pruned coverage leaves an account that is whole from where it begins: nothing pending, nothing unexplained."""
    async with open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal:
        for minute in range(100):
            start, at = minute * MINUTE, BEGAN + timedelta(minutes=minute)
            end, until = start + MINUTE, at + timedelta(minutes=1)
            await journal.commit(
                CoverageSpan("desk", start, end, "captured", None, at, until),
                CoverageSpan("desk", start, end, "transcribed" if minute % 2 else "silent", None, at, until),
            )
        assert await journal.prune_coverage(BEGAN + timedelta(minutes=60, seconds=30)) == 60
        summary = summarize("desk", RATE, await journal.covered("desk"))
        assert summary is not None
        assert (summary.start, summary.end) == (60 * MINUTE, 100 * MINUTE)
        assert summary.from_ == BEGAN + timedelta(minutes=60)
        assert summary.captured == 40 * MINUTE
        assert summary.pending == 0
        assert summary.is_explained
        await journal.prune_coverage(BEGAN + timedelta(days=1))
        assert await journal.covered("desk"), "the last stretch tells where the room goes on"


@pytest.mark.parametrize("name", ["notes.txt", "0000000000000000_20260101T000000.000000Z.tmp"])
def test_files_of_others_are_left_alone(tmp_path: Path, name: str) -> None:
    """Files in a spool's folder that are not segments are not removed."""
    (tmp_path / name).write_bytes(bytes(100))
    (tmp_path / name_segment(0, BEGAN, fresh=False)).mkdir()
    assert list_segments(tmp_path) == []
