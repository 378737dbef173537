"""The sinks at work: one follows another at the same place, never two concurrently."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog
import trio

from roomtone import Context, Durable, Sink, hookimpl
from roomtone.delivery.controls import Pause, control_mark
from roomtone.delivery.manager import SinkManager
from roomtone.events import Notice
from roomtone.journal.journal import Journal, open_journal
from roomtone.live import Live
from roomtone.testing.inline import run_inline


class Diary(Sink, frozen=True, kw_only=True, tag="diary"):
    """Writes down what happens to it, and takes a while for each event."""

    pages: Any  # a list, which no table can hold
    name: str
    stuck: Any = None  # an event that is waited for in the hook

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        self.pages.append(f"{self.name} opens")
        try:
            yield Writing(self)
        finally:
            self.pages.append(f"{self.name} closes")


class Writing:
    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    @hookimpl
    async def event(self, event: Durable) -> None:
        if self._diary.stuck is not None:
            with trio.CancelScope(shield=True):
                await self._diary.stuck.wait()
        await trio.sleep(0.01)
        self._diary.pages.append(event.position)


class Work(NamedTuple):
    manager: SinkManager
    journal: Journal


@asynccontextmanager
async def open_manager(folder: Path) -> AsyncIterator[Work]:
    async with open_journal(folder / "journal.sqlite", run_sync=run_inline) as journal, trio.open_nursery() as nursery:
        manager = SinkManager(
            nursery,
            journal=journal,
            live=Live(),
            folder=folder,
            state=folder / "sinks",
            rates={"desk": 16_000},
        )
        yield Work(manager, journal)
        manager.finish()


async def commit(journal: Journal, *positions: int) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for position in positions:
        await journal.commit(
            Notice(room="desk", position=position, at=at, severity="info", code="test.notice", text="")
        )


async def test_a_successor_goes_on_where_the_sink_was(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """The first is left before the second is opened, in the middle of its work, and each event comes once, in order."""
    pages: list[Any] = []
    async with open_manager(tmp_path) as work:
        work.manager.begin("notes", Diary(pages=pages, name="first"))
        await trio.sleep(0.1)
        await commit(work.journal, *range(50))
        await trio.sleep(0.05)
        work.manager.begin("notes", Diary(pages=pages, name="second"))
        await commit(work.journal, *range(50, 60))
    assert [page for page in pages if isinstance(page, int)] == list(range(60))
    assert [page for page in pages if isinstance(page, str)] == [
        "first opens",
        "first closes",
        "second opens",
        "second closes",
    ]


async def test_a_sink_that_hangs_holds_up_its_successor_only(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The place is in use until the hook has returned; other sinks and the caller go on."""
    pages: list[Any] = []
    others: list[Any] = []
    release = trio.Event()
    async with open_manager(tmp_path) as work:
        work.manager.begin("notes", Diary(pages=pages, name="first", stuck=release))
        work.manager.begin("others", Diary(pages=others, name="other"))
        await trio.sleep(0.1)
        await commit(work.journal, 1)
        await trio.sleep(0.1)
        work.manager.begin("notes", Diary(pages=pages, name="second"))
        await commit(work.journal, 2)
        await trio.sleep(10)
        assert pages == ["first opens"]
        assert others == ["other opens", 1, 2]
        release.set()
    assert pages.index("first closes") < pages.index("second opens")
    assert [page for page in pages if isinstance(page, int)] == [1, 2]


async def test_a_sink_that_comes_back_goes_on_where_it_was(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A sink that was taken out of the file keeps its cursor."""
    pages: list[Any] = []
    async with open_manager(tmp_path) as work:
        work.manager.begin("notes", Diary(pages=pages, name="first"))
        await trio.sleep(0.1)
        await commit(work.journal, 1)
        await trio.sleep(0.1)
        work.manager.end("notes")
        await trio.sleep(0.1)
        assert not list(work.manager)
        await commit(work.journal, 2, 3)
        await trio.sleep(0.1)
        work.manager.begin("notes", Diary(pages=pages, name="second"))
    assert [page for page in pages if isinstance(page, int)] == [1, 2, 3]


async def test_a_sink_that_comes_back_waits_for_the_one_that_leaves(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Taken out and put in again while the first still has a hook at work, the second is opened after its end."""
    pages: list[Any] = []
    release = trio.Event()
    async with open_manager(tmp_path) as work:
        work.manager.begin("notes", Diary(pages=pages, name="first", stuck=release))
        await trio.sleep(0.1)
        await commit(work.journal, 1)
        await trio.sleep(0.1)
        work.manager.end("notes")
        work.manager.begin("notes", Diary(pages=pages, name="second"))
        await commit(work.journal, 2)
        await trio.sleep(10)
        assert pages == ["first opens"]
        release.set()
    assert pages == ["first opens", 1, "first closes", "second opens", 2, "second closes"]


async def test_a_sink_without_its_folder_fails_alone(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Where a sink's own folder cannot be made it waits, while others work, and goes on when it can."""
    pages: list[Any] = []
    others: list[Any] = []
    (tmp_path / "sinks").mkdir()
    (tmp_path / "sinks" / "notes").write_text("in the way")
    with structlog.testing.capture_logs():
        async with open_manager(tmp_path) as work:
            work.manager.begin("notes", Diary(pages=pages, name="first"))
            work.manager.begin("others", Diary(pages=others, name="other"))
            await trio.sleep(1)
            await commit(work.journal, 1)
            await trio.sleep(1)
            (status,) = [runner.status() for runner in work.manager if runner.name == "notes"]
            assert status.state == "failing"
            assert str(tmp_path / "sinks" / "notes") in (status.error or "")
            assert others == ["other opens", 1]
            (tmp_path / "sinks" / "notes").unlink()
    assert pages == ["first opens", 1, "first closes"]


ORDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("INSERT INTO marks VALUES (?, ?)", sys.argv[2:])
database.commit()
"""


async def test_an_order_of_another_process_is_seen(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A command writes the journal, and the sink that it means obeys within moments; the others go on."""
    pages: list[Any] = []
    async with open_manager(tmp_path) as work, trio.open_nursery() as nursery:
        nursery.start_soon(work.manager.watch_controls)
        work.manager.begin("notes", Diary(pages=pages, name="first"))
        work.manager.begin("others", Diary(pages=[], name="other"))
        await trio.sleep(3)
        pause = control_mark("notes", Pause(datetime(2026, 1, 1, tzinfo=UTC), "person", "for a test"))
        command = [sys.executable, "-c", ORDER, str(tmp_path / "journal.sqlite"), pause.key]
        subprocess.run([*command, msgspec.json.encode(pause.value)], check=True)  # noqa: ASYNC221 - no time passes
        await trio.sleep(3)
        assert {runner.name: runner.status().state for runner in work.manager} == {
            "notes": "paused",
            "others": "active",
        }
        nursery.cancel_scope.cancel()
    assert pages == ["first opens", "first closes"]
