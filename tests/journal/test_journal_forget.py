"""Forgotten records are in none of the journal's files, and the others are as they were."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from roomtone.events import Analysis, Answer, Durable, Forgotten, Notice, Turn, Word
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.journal.words import program_words

RATE = 1000
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LONGEST = 600 * RATE


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def turn(second: int, text: str, *, order: int = 0, session: str = "s", supersedes: str | None = None) -> Turn:
    """A turn whose words take a second each."""
    words = tuple(
        Word(text=word, start=(second + n) * RATE, end=(second + n + 1) * RATE) for n, word in enumerate(text.split())
    )
    return Turn(
        room="desk",
        position=second * RATE,
        at=at(second),
        session_id=session,
        turn_order=order,
        text=text,
        words=words,
        supersedes=supersedes,
    )


def answer(second: int, text: str, *, order: int) -> Answer:
    return Answer(
        room="desk",
        position=second * RATE,
        at=at(second),
        session_id="s",
        turn_order=order,
        text=text,
        response={"choices": [{"message": {"content": text}}]},
    )


def gone(start: int, end: int) -> Forgotten:
    """These seconds."""
    return Forgotten(
        room="desk",
        position=start * RATE,
        at=at(start),
        start=start * RATE,
        end=end * RATE,
        from_=at(start),
        until=at(end),
    )


def files_with(folder: Path, text: str) -> list[str]:
    """The files that have this text anywhere in their bytes."""
    return [path.name for path in sorted(folder.rglob("*")) if path.is_file() and text.encode() in path.read_bytes()]


async def texts(journal: Journal) -> list[str]:
    return [event.text for event in await journal.read(0) if isinstance(event, Turn | Answer | Analysis)]


async def forget(journal: Journal, forgotten: Forgotten) -> Sequence[Durable]:
    removed = await journal.forget(forgotten, LONGEST, forgotten)
    assert await journal.compact()
    return removed


async def test_nothing_is_left_in_any_file(tmp_path: Path) -> None:
    """Text of the stretch is in no table, free page or log of the open journal, and the tombstone is the last event."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        for second in range(0, 3000, 10):
            text = f"xylophone{second} plum" if 1000 <= second < 2000 else f"ordinary{second} plum"
            await journal.commit(turn(second, text, order=second))
        await journal.commit(*(answer(1500, "xylophone " * 2000, order=1500),))
        assert files_with(tmp_path, "xylophone")

        removed = await forget(journal, gone(1000, 2000))

        assert len(removed) == 101
        assert not files_with(tmp_path, "xylophone")
        assert [text for text in await texts(journal) if "ordinary" not in text] == []
        assert len(await texts(journal)) == 200
        (*_, last) = await journal.read(0)
        assert isinstance(last, Forgotten)
        assert last.seq == journal.tip
    assert not files_with(tmp_path, "xylophone")


async def test_what_an_earlier_version_left_in_free_pages_is_gone_too(tmp_path: Path) -> None:
    """Rows that were deleted without being overwritten are in no file any more."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await journal.commit(*(turn(second, f"xylophone{second} " * 300, order=second) for second in range(50)))
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("DELETE FROM events WHERE seq < 50")
    database.close()
    assert files_with(tmp_path, "xylophone10")
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await forget(journal, gone(0, 100))
        assert not files_with(tmp_path, "xylophone")


async def test_a_turn_goes_whole_and_with_all_that_was_made_of_it(tmp_path: Path) -> None:
    """A turn with one word in the stretch goes, with its corrections and answers; so does an analysis that heard it."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        (first,) = await journal.commit(turn(0, "one two three", order=1))
        await journal.commit(
            turn(0, "one", order=1, supersedes=first.id),
            answer(0, "about one", order=1),
            turn(3, "stays", order=2),
            answer(3, "about stays", order=2),
            turn(0, "another session", order=1, session="other"),
            Analysis(room="desk", position=0, at=NOON, name="sum", start=0, end=5 * RATE, text="all", response={}),
            Analysis(room="hall", position=0, at=NOON, name="sum", start=0, end=5 * RATE, text="hall", response={}),
        )
        await forget(journal, gone(2, 3))

        assert await texts(journal) == ["stays", "about stays", "another session", "hall"]


async def test_what_a_sink_has_refused_goes_too(tmp_path: Path) -> None:
    """A copy that was set aside is forgotten with its reason, also when its event is pruned; others stay."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await journal.commit(turn(0, "stays here", order=1), turn(10, "xylophone", order=2), *_notices(20))
        for seq in (1, 2):
            await journal.refuse("hook", seq, f"what is xylophone {seq}?")
        await journal.advance("hook", 20)
        assert await journal.prune(15) == 14
        await forget(journal, gone(10, 11))

        assert [refusal.seq for refusal in await journal.refused("hook")] == [1]
    assert not files_with(tmp_path, "xylophone 2")


async def test_notices_that_quote_it_go_too(tmp_path: Path) -> None:
    """Those of its time whatever they say, and those of any time that have a word of it; what a program says stays."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await journal.commit(
            turn(10, "Xylophone and the sink"),
            notice(10.5, "of this time"),
            notice(10.5, "of this time elsewhere", room="hall"),
            notice(900, "sink hook cannot take it: HTTP 422: 'xylophone an'"),
            notice(900, "the sink is paused, and marimba"),
            notice(5, "of another time", room="desk"),
        )
        gone_events = await journal.forget(gone(10, 12), LONGEST, gone(10, 12), known=program_words())
        assert await journal.compact()

        left = [event.text for event in await journal.read(0) if isinstance(event, Notice)]
        assert left == ["of this time elsewhere", "the sink is paused, and marimba", "of another time"]
        assert [type(event) for event in gone_events] == [Turn, Notice]
    assert not files_with(tmp_path, "ylophone")


async def test_what_a_refusal_quotes_goes_too(tmp_path: Path) -> None:
    """A receiver's answer may speak of another event than that which it refused, and of one that is pruned."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await journal.commit(turn(0, "stays here", order=1), turn(10, "xylophone", order=2), *_notices(20))
        await journal.refuse("hook", 1, "HTTP 422: [stays here, xylophone]")
        await journal.refuse("hook", 3, "the sink is not what it was")
        await journal.commit(Mark("sink/hook/paused", {"by": "proof", "reason": "it ended at 'xylophone'"}))
        row = ("old", 2, NOON.isoformat(timespec="microseconds"), "bad xylophone", None)
        journal._database._writer.execute("INSERT INTO refused VALUES (?, ?, ?, ?, ?)", row)
        await journal.forget(gone(10, 11), LONGEST, gone(10, 11), known=program_words())
        assert await journal.compact()

        assert [(one.seq, one.reason) for one in await journal.refused("hook")] == [
            (1, "forgotten"),
            (3, "the sink is not what it was"),
        ]
        assert await journal.refused("old") == []
        assert await journal.mark("sink/hook/paused") == {"by": "proof", "reason": "forgotten"}
    assert not files_with(tmp_path, "xylophone")


async def test_the_account_stays_whole(tmp_path: Path) -> None:
    """*captured* and *lost* stay; inside the stretch coverage no longer shows speech, outside it is as before."""
    rows = [
        CoverageSpan("desk", 0, 60 * RATE, "captured", None, at(0), at(60)),
        CoverageSpan("desk", 0, 20 * RATE, "silent", None, at(0), at(20)),
        CoverageSpan("desk", 20 * RATE, 50 * RATE, "transcribed", None, at(20), at(50)),
    ]
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await journal.commit(*rows)
        await forget(journal, gone(30, 40))

        assert [
            (row.state, row.start // RATE, row.end // RATE, row.until) for row in await journal.covered("desk")
        ] == [
            ("captured", 0, 60, at(60)),
            ("silent", 0, 20, at(20)),
            ("transcribed", 20, 30, at(30)),
            ("transcribed", 40, 50, at(50)),
        ]


async def test_who_reads_the_log_is_waited_for(tmp_path: Path) -> None:
    """As long as another process reads from the log, removed rows are still in it: that is not a success."""
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        await journal.commit(turn(0, "xylophone"))
        journal._database._writer.execute("PRAGMA busy_timeout = 0")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM events").fetchall()
            await journal.forget(gone(0, 1), LONGEST, gone(0, 1))
            assert not await journal.compact()
            assert files_with(tmp_path, "xylophone")
        assert await journal.compact()
        assert not files_with(tmp_path, "xylophone")


async def test_facts_are_of_the_same_transaction(tmp_path: Path) -> None:
    """The tombstone and the marks are there exactly when the events are gone."""
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await journal.commit(turn(0, "xylophone"))
        await journal.forget(gone(0, 1), LONGEST, gone(0, 1), Mark("room/desk/holes", [[5, 9]]))

        assert [type(event) for event in await journal.read(0)] == [Forgotten]
        assert await journal.mark("room/desk/holes") == [[5, 9]]


def notice(second: float, text: str, room: str = "") -> Notice:
    return Notice(room=room, position=0, at=at(second), severity="error", code="sink.failed", text=text)


def _notices(count: int) -> list[Notice]:
    return [
        Notice(room="desk", position=0, at=NOON, severity="info", code="test.ran", text=str(n)) for n in range(count)
    ]


def test_words_of_every_package_are_known() -> None:
    """A notice with a word of the program's own is not taken for a quotation: all packages count, not only one."""
    assert {b"journal", b"microphone", b"speaker", b"recording"} <= program_words()
