"""Laws of the journal: committed records stay, in order, whatever happens."""

import shutil
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone.events import Durable, Gap, Muted, Notice
from roomtone.journal.journal import Journal, JournalError, open_journal
from roomtone.journal.records import CoverageSpan, Mark, Record, Unwritable, next_id
from roomtone.journal.schema import SCHEMA
from roomtone.testing.inline import run_inline
from support.journal import fill_disk

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def notice(text: str = "hello", *, room: str = "desk", position: int = 0) -> Notice:
    return Notice(room=room, position=position, at=NOW, severity="info", code="test.ran", text=text)


def cover(start: int, end: int, state: Any = "transcribed", *, at: float = 0.0, cause: Any = None) -> CoverageSpan:
    """A stretch that begins `at` seconds and lasts a second for each position."""
    from_ = NOW + timedelta(seconds=at)
    return CoverageSpan("desk", start, end, state, cause, from_, from_ + timedelta(seconds=end - start))


def seqs(events: list[Durable]) -> list[int]:
    return [event.seq for event in events]


def crash(path: Path, folder: Path) -> Path:
    """The files as a power cut leaves them, in a folder of their own: no connection was closed."""
    folder.mkdir(parents=True)
    for suffix in ("", "-wal"):
        if (source := path.with_name(path.name + suffix)).exists():
            shutil.copy(source, folder / source.name)
    return folder / path.name


def damage(path: Path, start: int, end: int) -> None:
    content = bytearray(path.read_bytes())
    assert end <= len(content)
    content[start:end] = b"\xff" * (end - start)
    path.write_bytes(content)


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


async def test_gives_back_what_it_was_given(path: Path) -> None:
    """Committed events come back as they were, with the seq and id that commit returned."""
    gap = Gap(room="desk", position=5, at=NOW, start=5, end=9, from_=NOW, until=NOW, cause="overrun")
    async with open_journal(path) as journal:
        first = await journal.commit(notice("a"), gap)
        second = await journal.commit(Muted(room="lab", position=7, at=NOW))

        assert seqs([*first, *second]) == [1, 2, 3]
        assert await journal.read(0) == [*first, *second]
        assert await journal.read(1, limit=1) == [first[1]]
        assert journal.tip == 3


async def test_survives_a_restart(path: Path) -> None:
    """Events, cursors, refusals, marks and coverage are there after a restart, and seq and id go on."""
    async with open_journal(path) as journal:
        (event,) = await journal.commit(notice(), Mark("room/desk/rate", 16_000), cover(0, 10))
        await journal.refuse("web", 1, "no")
    async with open_journal(path) as journal:
        assert journal.tip == 1
        assert await journal.read(0) == [event]
        assert await journal.cursors() == {"web": 1}
        assert [(refusal.seq, refusal.reason, refusal.event) for refusal in await journal.refused("web")] == [
            (1, "no", event)
        ]
        assert await journal.mark("room/desk/rate") == 16_000
        assert await journal.covered("desk") == [cover(0, 10)]

        (later,) = await journal.commit(notice())
        assert later.seq == 2
        assert later.id > event.id


async def test_all_facts_of_a_commit_or_none(path: Path) -> None:
    """A commit that fails half way leaves nothing behind, and the next one gets its numbers."""
    async with open_journal(path) as journal:
        with pytest.raises(Unwritable):
            await journal.commit(notice(), cover(0, 9), Mark("key", object()))

        assert (journal.tip, await journal.read(0), await journal.covered("desk")) == (0, [], [])
        (event,) = await journal.commit(notice())
        assert event.seq == 1


async def test_commits_at_once_get_their_own_events(path: Path) -> None:
    """Tasks that commit at the same time each get their own events back, and all are there, each once."""
    got: dict[int, tuple[Durable, ...]] = {}

    async def commit(number: int) -> None:
        got[number] = await journal.commit(notice(str(number)), notice(f"{number}+"))

    async with open_journal(path) as journal:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(commit, number)

        for number, events in got.items():
            assert [event.text for event in events if isinstance(event, Notice)] == [str(number), f"{number}+"]
        assert sorted(event.seq for events in got.values() for event in events) == seqs(await journal.read(0))
        assert journal.tip == 100


async def test_is_private(path: Path) -> None:
    """Nobody but the daemon's user can read what was said in the room."""
    async with open_journal(path) as journal:
        await journal.commit(notice())

        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


async def test_what_is_committed_is_on_the_disk(path: Path) -> None:
    """Each commit waits for the disk: only a power cut would show otherwise, so SQLite is asked what it was told.

    And what reads can only read.
    """
    async with open_journal(path) as journal:
        writer = journal._database._writer
        settings = {name: writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            journal._database._reader.execute("DELETE FROM events")
    assert settings == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


@pytest.mark.parametrize(
    "poison",
    [
        notice("bad \ud800"),
        Mark("key", "bad \ud800"),
        Mark("bad \ud800", 1),
        Mark("key", object()),
        msgspec.structs.replace(notice(), position=2**63),
        CoverageSpan("desk", 0, 2**70, "captured", None, NOW, NOW),
        notice("x" * 5000),
    ],
)
async def test_what_cannot_be_written_fails_for_its_owner_alone(path: Path, poison: Record) -> None:
    """Those who share a transaction with it are done, and nothing of it is; the numbers have no hole."""
    failed: list[str] = []

    async def commit_poison() -> None:
        try:
            await journal.commit(Mark("beside", True), notice("before"), poison)
        except Unwritable as error:
            failed.append(str(error))

    async with open_journal(path) as journal:
        journal._database._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4000)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(journal.commit, notice("innocent"))
                nursery.start_soon(commit_poison)
        events = await journal.read(0)
        beside = await journal.mark("beside")

    assert [(event.seq, event.text) for event in events if isinstance(event, Notice)] == [
        (1, "innocent"),
        (2, "innocent"),
        (3, "innocent"),
    ]
    assert beside is None
    assert len(failed) == 3
    assert "bad" not in failed[0]


async def test_a_refusal_whose_event_cannot_be_read_is_shown(path: Path) -> None:
    """An event of a newer version among the refused ones is told without its body."""
    async with open_journal(path) as journal:
        await journal.commit(notice())
        await journal.refuse("sink", 1, "never")
        journal._database._writer.execute('UPDATE refused SET body = \'{"kind":"newer"}\'')
        (refusal,) = await journal.refused("sink")

    assert (refusal.seq, refusal.reason, refusal.event) == (1, "never", None)


async def test_commit_once_begun_ends(path: Path) -> None:
    """Cancelling a commit that has begun neither tears it nor hides it: it is there."""
    async with open_journal(path) as journal:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.commit, notice())
                await trio.testing.wait_all_tasks_blocked()  # it is in the thread now
                scope.cancel()

        assert len(await journal.read(0)) == journal.tip == 1


@pytest.mark.parametrize("checkpoints", range(1, 10))
async def test_cancelled_commit_has_committed_nothing(path: Path, checkpoints: int) -> None:
    """Among tasks that share transactions and are cancelled at any moment, who returns has committed, who does not has
    not: no caller is left in doubt.
    """
    returned: set[str] = set()

    async def commit(name: str) -> None:
        await journal.commit(notice(name))
        returned.add(name)

    async with open_journal(path, run_sync=run_inline) as journal:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(commit, str(number))
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        assert {event.text for event in await journal.read(0) if isinstance(event, Notice)} == returned


async def test_cancelled_before_it_begins_commits_nothing(path: Path) -> None:
    """A commit in a task that is already cancelled does nothing."""
    async with open_journal(path) as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.commit(notice())

        assert scope.cancelled_caught
        assert journal.tip == 0


async def test_wakes_those_who_wait_for_more(path: Path) -> None:
    """`wait_after` returns when, and not before, there is an event after that seq."""
    async with open_journal(path, run_sync=run_inline) as journal:
        await journal.commit(notice())
        await journal.wait_after(0)
        woken = False

        async def wait() -> None:
            nonlocal woken
            await journal.wait_after(1)
            woken = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await journal.advance("sink", 1)
            await trio.testing.wait_all_tasks_blocked()
            assert not woken
            await journal.commit(notice())


async def test_selects_by_position(path: Path) -> None:
    """`select` gives a room's events of some kinds in a range of positions, in the order of position."""
    async with open_journal(path) as journal:
        for position in (30, 10, 20, 40):
            await journal.commit(notice(position=position), Muted(room="desk", position=position, at=NOW))
        await journal.commit(notice(room="lab", position=20))

        found = await journal.select("desk", ["notice"], 10, 40)
        assert [(event.room, event.position) for event in found] == [("desk", 10), ("desk", 20), ("desk", 30)]
        assert len(await journal.select("desk", ["notice", "muted"], 0, 100)) == 8


async def test_marks_are_replaced_and_deleted(path: Path) -> None:
    """A mark is the last value under its key; None deletes it; a prefix finds keys and not patterns."""
    async with open_journal(path) as journal:
        await journal.commit(Mark("room/a/rate", 1), Mark("room/a/rate", {"hz": [2]}), Mark("room/b/rate", 3))
        await journal.commit(Mark("room%", 0))

        assert await journal.mark("room/a/rate") == {"hz": [2]}
        assert await journal.marks("room/") == {"room/a/rate": {"hz": [2]}, "room/b/rate": 3}
        await journal.commit(Mark("room/b/rate", None))
        assert await journal.mark("room/b/rate") is None
        assert await journal.marks("room%") == {"room%": 0}


async def test_one_read_is_bounded_in_bytes(path: Path) -> None:
    """A read of large events ends early, so that a thousand of a megabyte each are never in memory together."""
    async with open_journal(path) as journal:
        for _ in range(8):
            await journal.commit(notice("x" * 1_000_000))

        assert len(await journal.read(0)) == 5
        assert seqs(await journal.read(5)) == [6, 7, 8]


async def test_unreadable_row_holds_up_nobody(path: Path) -> None:
    """An event of a kind that this version does not know is left out and logged; those behind it come."""
    async with open_journal(path) as journal:
        await journal.commit(notice(), notice(), notice())
        journal._database._writer.execute("""UPDATE events SET body = '{"kind":"unheard"}' WHERE seq = 2""")

        with structlog.testing.capture_logs() as logs:
            assert seqs(await journal.read(0)) == [1, 3]
        assert [(entry["event"], entry["seq"]) for entry in logs] == [("journal.unreadable", 2)]


# Coverage


async def test_adjacent_stretches_become_one(path: Path) -> None:
    """Stretches of one state that touch are one row, in whatever order they came; others stay apart."""
    async with open_journal(path, run_sync=run_inline) as journal:
        await journal.commit(cover(0, 10), cover(20, 30), cover(10, 15, "silent"))
        assert len(await journal.covered("desk")) == 3

        await journal.commit(cover(10, 20))
        assert [(row.start, row.end, row.state) for row in await journal.covered("desk")] == [
            (0, 30, "transcribed"),
            (10, 15, "silent"),
        ]


async def test_captured_stretches_meet_in_time_too(path: Path) -> None:
    """Captured audio goes on only where its time does: a position stands still without a source."""
    async with open_journal(path, run_sync=run_inline) as journal:
        await journal.commit(cover(0, 10, "captured", at=0))
        await journal.commit(cover(10, 20, "captured", at=10.04))
        await journal.commit(cover(20, 20, "lost", at=20.04, cause="device"))
        await journal.commit(cover(20, 30, "captured", at=80))
        await journal.commit(cover(30, 30, "lost", at=90, cause="device"), cover(30, 30, "lost", at=95, cause="device"))

        assert [(row.start, row.end, row.state) for row in await journal.covered("desk")] == [
            (0, 20, "captured"),
            (20, 20, "lost"),
            (20, 30, "captured"),
            (30, 30, "lost"),
            (30, 30, "lost"),
        ]
        assert [row.start for row in await journal.covered("desk", 20)] == [20, 20, 30, 30]
        assert [row.start for row in await journal.covered("desk", 19)] == [0, 20, 20, 30, 30]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12))))
@settings(max_examples=40, deadline=None)
def test_coverage_is_the_union_of_what_was_said(stretches: list[tuple[int, int]]) -> None:
    """Said in any order, twice, or overlapping: the rows are the union, and no two of them touch."""

    async def check() -> None:
        with TemporaryDirectory() as folder:
            async with open_journal(Path(folder, "journal.db"), run_sync=run_inline) as journal:
                for start, length in stretches:
                    await journal.commit(cover(start, start + length))
                rows = await journal.covered("desk")

        assert {position for row in rows for position in range(row.start, row.end)} == {
            position for start, length in stretches for position in range(start, start + length)
        }
        assert all(one.end < other.start for one, other in pairwise(rows))

    trio.run(check)


# Cursors and pruning


async def test_cursor_never_goes_back(path: Path) -> None:
    """A late acknowledgement of something old changes nothing."""
    async with open_journal(path) as journal:
        assert await journal.cursor("web") is None
        await journal.advance("web", 7)
        await journal.advance("web", 3)
        assert await journal.cursor("web") == 7


async def test_pruning_waits_for_every_sink(path: Path) -> None:
    """Nothing is removed that a sink has not acknowledged, and a number never comes again."""
    async with open_journal(path) as journal:
        await journal.commit(*[notice()] * 10)
        await journal.advance("quick", 10)
        await journal.advance("slow", 4)

        assert await journal.prune(8) == 4
        assert seqs(await journal.read(0)) == [5, 6, 7, 8, 9, 10]
        await journal.drop_sink("slow")
        assert await journal.prune(8) == 3
        assert await journal.prune(1000) == 2
        assert seqs(await journal.read(0)) == [10]
    async with open_journal(path) as journal:
        assert seqs(list(await journal.commit(notice()))) == [11]


async def test_pruning_waits_for_a_sink_that_has_not_begun(path: Path) -> None:
    """A sink that is configured and has no cursor yet may want everything that there is."""
    async with open_journal(path) as journal:
        await journal.commit(*(notice(str(number)) for number in range(10)))
        await journal.advance("old", 9)
        assert await journal.prune(9, ["old", "new"]) == 0
        assert await journal.prune(9, ["old"]) == 8


async def test_refused_event_outlives_pruning(path: Path) -> None:
    """Refused events can be looked at, and replayed, after the journal has let go of it."""
    async with open_journal(path) as journal:
        (event, _) = await journal.commit(notice("poison"), notice())
        await journal.refuse("web", 1, "too big")
        await journal.advance("web", 2)
        await journal.prune(2)

        (refusal,) = await journal.refused("web")
        assert (refusal.event, refusal.reason) == (event, "too big")


# Ids


@given(st.lists(st.integers(0, 2**48 - 2), min_size=1))
def test_ids_only_grow(clock: list[int]) -> None:
    """Whatever the clock does, the next id is a valid UUIDv7 above the last; with a forward clock it says the time."""
    last = uuid.UUID(int=0)
    highest = 0
    for milliseconds in clock:
        identifier = next_id(last, milliseconds)
        assert identifier > last
        assert (identifier.version, identifier.variant) == (7, uuid.RFC_4122)
        assert identifier.int >> 80 in {max(milliseconds, highest), highest, highest + 1}
        if milliseconds > highest:
            assert identifier.int >> 80 == milliseconds
        last, highest = identifier, identifier.int >> 80


async def test_ids_grow_over_a_clock_that_was_wrong(path: Path) -> None:
    """After a restart with the clock set back by years, the next id is above the last all the same."""
    future = str(next_id(uuid.UUID(int=0), 2**47))
    async with open_journal(path) as journal:
        await journal.commit(notice())
        journal._database._writer.execute("UPDATE events SET id = ?", (future,))
    async with open_journal(path) as journal:
        (event,) = await journal.commit(notice())
        assert event.id > future


# Faults


@pytest.mark.parametrize("year", [1, 1926, 1970, 9999])
async def test_events_since_any_time(path: Path, year: int) -> None:
    """Since a time before all clocks come all events, and since one after them none."""
    async with open_journal(path) as journal:
        await journal.commit(notice())
        assert await journal.first_since(datetime(year, 1, 1, tzinfo=UTC)) == (2 if year == 9999 else 1)


async def test_refuses_the_journal_of_a_newer_version(path: Path) -> None:
    """A journal of a newer version is left alone, and the error names the file and what to do."""
    async with open_journal(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()

    with pytest.raises(JournalError, match=r"journal\.db has version 2 and this Roomtone knows 1: install the newer"):
        async with open_journal(path):
            pass
    assert names_in(path.parent) == ["journal.db"]


async def test_refuses_a_database_of_something_else(path: Path) -> None:
    """A file that is SQLite and no journal is not touched."""
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (name)")
    connection.close()

    with pytest.raises(JournalError, match=r"journal\.db is a database of something else"):
        async with open_journal(path):
            pass


async def test_says_what_to_do_where_it_cannot_be_opened(tmp_path: Path) -> None:
    """A state folder that cannot be made is an error that names the file."""
    (tmp_path / "state").write_text("a file")

    with pytest.raises(JournalError, match=r"cannot open the journal .*/state/journal\.db: .*must own its folder"):
        async with open_journal(tmp_path / "state" / "journal.db"):
            pass


@pytest.mark.parametrize("where", [(0, 100), (0, 10_000), (60_000, 90_000)])
async def test_damaged_file_is_moved_aside(tmp_path: Path, path: Path, where: tuple[int, int]) -> None:
    """A damaged journal is kept under another name and a new one begins with a notice: no crash loop, no silence."""
    async with open_journal(path) as journal:
        for _ in range(300):
            await journal.commit(notice("x" * 200))
        path = crash(path, tmp_path / "crashed")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    damage(path, *where)

    with structlog.testing.capture_logs() as logs:
        async with open_journal(path) as journal:
            assert journal.renewed
            (event,) = await journal.read(0)

    assert isinstance(event, Notice)
    assert (event.seq, event.code, event.severity) == (1, "journal.corrupt", "error")
    (aside,) = [name for name in names_in(path.parent) if name.startswith("journal.db.corrupt-")]
    assert aside in event.text
    assert [entry["event"] for entry in logs] == ["journal.corrupt"]
    async with open_journal(path) as journal:
        assert not journal.renewed


async def test_the_log_goes_aside_with_the_file(tmp_path: Path, path: Path) -> None:
    """A damaged file that another program has open keeps its log, and SQLite would take that for the new file's."""
    async with open_journal(path) as journal:
        for _ in range(300):
            await journal.commit(notice("x" * 200))
        path = crash(path, tmp_path / "crashed")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.execute("INSERT INTO marks VALUES ('theirs', '1')")
        damage(path, 60_000, 90_000)
        with structlog.testing.capture_logs():
            async with open_journal(path) as journal:
                assert journal.renewed
                assert await journal.mark("theirs") is None
                moved = [name.partition(".corrupt-")[2][-4:] for name in names_in(path.parent) if ".corrupt-" in name]
    assert {"-wal", "-shm"} < set(moved)


async def test_damage_found_while_running_is_seen_at_the_next_start(path: Path) -> None:
    """Damage met by a read ends the daemon with an error, and the next start moves the file aside, however it ended."""
    async with open_journal(path) as journal:
        for _ in range(300):
            await journal.commit(notice("x" * 200))
    damage(path, 60_000, 90_000)

    async with open_journal(path) as journal:
        assert not journal.renewed  # it was closed in order, and is believed
        with pytest.raises(JournalError, match="is damaged"):
            await journal.read(0)
    with structlog.testing.capture_logs():
        async with open_journal(path) as journal:
            assert journal.renewed


async def test_a_crash_after_a_clean_stop_is_known_as_one(tmp_path: Path, path: Path) -> None:
    """The first commit of a run says that the run has not ended in order, until it has: the next start checks."""
    async with open_journal(path) as journal:
        assert journal.interrupted  # there was no run before
    async with open_journal(path) as journal:
        assert not journal.interrupted
        await journal.commit(notice())
        crashed = crash(path, tmp_path / "crashed")
    async with open_journal(crashed) as journal:
        assert journal.interrupted
    async with open_journal(path) as journal:
        assert not journal.interrupted


async def test_full_disk_is_waited_out(path: Path, autojump_clock: trio.abc.Clock) -> None:
    """While the disk is full a commit waits, is logged first and then ever rarer, and is done when there is room."""
    async with open_journal(path, run_sync=run_inline) as journal:
        await journal.commit(notice())
        make_room = fill_disk(journal)
        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.commit, notice("x" * 100_000))
                nursery.start_soon(journal.commit, notice("y"))
                await trio.sleep(3600)
                assert journal.tip == 1
                make_room()

        assert journal.tip == 3
        assert len(await journal.read(0)) == 3
        full = [entry["attempts"] for entry in logs if entry["event"] == "journal.full"]
        assert full[:4] == [1, 2, 4, 8]
        assert len(full) < 12
        assert logs[-1]["event"] == "journal.resumed"


async def test_full_disk_does_not_hold_a_daemon_that_stops(path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A commit that waits for room can be cancelled, and then nothing of it was committed; others go on waiting."""
    async with open_journal(path, run_sync=run_inline) as journal:
        await journal.commit(notice())
        make_room = fill_disk(journal)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.commit, notice("x" * 100_000))
            await trio.sleep(10)
            with trio.move_on_after(100) as scope:
                await journal.commit(notice("y" * 100_000))
            assert scope.cancelled_caught
            make_room()

        assert [event.text[:1] for event in await journal.read(1) if isinstance(event, Notice)] == ["x"]


async def test_locked_by_a_person_is_waited_out(path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Somebody who writes to the file with a tool of their own delays a commit and costs nothing."""
    async with open_journal(path, run_sync=run_inline) as journal:
        journal._database._writer.execute("PRAGMA busy_timeout = 0")
        person = sqlite3.connect(path, isolation_level=None)
        person.execute("BEGIN IMMEDIATE")
        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.commit, notice())
                await trio.sleep(60)
                assert journal.tip == 0
                person.execute("ROLLBACK")
                person.close()

        assert journal.tip == 1
        assert logs[0]["event"] == "journal.busy"


# Crashes: any sequence of operations, with power cuts anywhere, against a model made of lists

OPERATION = st.one_of(
    st.tuples(st.just("commit"), st.integers(1, 4)),
    st.tuples(st.just("advance"), st.sampled_from("ab"), st.integers(0, 30)),
    st.tuples(st.just("refuse"), st.sampled_from("ab"), st.integers(1, 30)),
    st.tuples(st.just("mark"), st.sampled_from("xy"), st.none() | st.integers()),
    st.tuples(st.just("prune"), st.integers(0, 30)),
    st.tuples(st.just("crash")),
    st.tuples(st.just("restart")),
)


class Model:
    """The model of the journal."""

    def __init__(self) -> None:
        self.events: list[Durable] = []
        self.tip = 0
        self.cursors: dict[str, int] = {}
        self.refused: dict[str, set[int]] = {"a": set(), "b": set()}
        self.marks: dict[str, int] = {}

    async def apply(self, journal: Journal, operation: Any) -> None:
        match operation:
            case ("commit", count):
                events = await journal.commit(*[notice(str(self.tip + number)) for number in range(count)])
                assert seqs(list(events)) == list(range(self.tip + 1, self.tip + count + 1))
                assert all(event.id > self.events[-1].id for event in events if self.events)
                self.tip += count
                self.events += events
            case ("advance", sink, seq):
                await journal.advance(sink, min(seq, self.tip))
                self.cursors[sink] = max(self.cursors.get(sink, 0), min(seq, self.tip))
            case ("refuse", sink, seq) if seq <= self.tip:
                await journal.refuse(sink, seq, "no")
                self.cursors[sink] = max(self.cursors.get(sink, 0), seq)
                self.refused[sink].add(seq)
            case ("mark", key, value):
                await journal.commit(Mark(key, value))
                self.marks[key] = value
            case ("prune", before):
                await journal.prune(before)
                end = min([before, self.tip, *(cursor + 1 for cursor in self.cursors.values())])
                self.events = [event for event in self.events if event.seq >= end]

    async def check(self, journal: Journal) -> None:
        assert journal.tip == self.tip
        assert await journal.read(0) == self.events
        assert await journal.cursors() == self.cursors
        for sink, numbers in self.refused.items():
            assert {refusal.seq for refusal in await journal.refused(sink)} == numbers
        for key in "xy":
            assert await journal.mark(key) == self.marks.get(key)


@given(st.lists(OPERATION, max_size=40))
@settings(max_examples=80, deadline=None)
def test_is_a_list_that_nothing_can_shorten(operations: list[Any]) -> None:
    """After any operations, restarts and power cuts the journal has exactly what it has said it has."""

    async def check(folder: Path) -> None:
        model, path, remaining = Model(), folder / "0" / "journal.db", list(operations)
        while True:
            async with open_journal(path, run_sync=run_inline) as journal:
                assert not journal.renewed
                await model.check(journal)
                while remaining and remaining[0] not in [("crash",), ("restart",)]:
                    await model.apply(journal, remaining.pop(0))
                    await model.check(journal)
                if not remaining:
                    return
                if remaining.pop(0) == ("crash",):
                    path = crash(path, folder / str(len(remaining) + 1))

    with TemporaryDirectory() as folder:
        trio.run(check, Path(folder))


@given(st.integers(1, 12), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_torn_write_costs_the_end_only(commits: int, where: float) -> None:
    """Where a power cut tears the last write of a disk that lied about fsync, whole commits before it remain."""

    async def check(folder: Path) -> None:
        async with open_journal(folder / "0" / "journal.db", run_sync=run_inline) as journal:
            written = [await journal.commit(notice(str(n)), notice("x" * 3000)) for n in range(commits)]
            path = crash(folder / "0" / "journal.db", folder / "1")
        log = path.with_name("journal.db-wal")
        log.write_bytes(log.read_bytes()[: int(where * log.stat().st_size)])
        async with open_journal(path, run_sync=run_inline) as journal:
            events = await journal.read(0)
            assert events == [event for pair in written for event in pair][: len(events)]
            assert len(events) % 2 == 0

    with TemporaryDirectory() as folder:
        trio.run(check, Path(folder))
