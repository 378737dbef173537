"""The proof of forgetting finds what is there, wherever it lies, and nothing that has a right to be there."""

import gzip
import os
import random
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import run
from typing import Any

import msgspec
import pytest

from roomtone.events import Turn
from roomtone.forget.search import Search, SearchRequest, long_texts, search
from roomtone.journal.words import has_quote, program_words, telling_words
from roomtone.spool.segment import name_segment

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ID = "01955100-0000-7000-8000-00000000000a"
PIECE = random.Random(1).randbytes(200)
"""A hundred samples that do not occur by chance."""


def find(folder: Path, **wanted: Any) -> Search:
    return search(SearchRequest(places=(str(folder),), since=NOW, seconds=60, **(wanted or {"words": (b"xylophone",)})))


def names(paths: tuple[str, ...]) -> list[str]:
    return [Path(path).name for path in paths]


def write(path: Path, data: bytes, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (NOW.timestamp() - age, NOW.timestamp() - age))
    return path


def turn(text: str) -> Turn:
    return Turn(room="desk", position=0, at=NOW, session_id="s", turn_order=0, text=text)


def test_files(tmp_path: Path) -> None:
    """Anywhere in a file that may have been written since then; a database is looked into whatever its time says."""
    write(tmp_path / "a.txt", b"a xylophone")
    write(tmp_path / "b.txt", b"nothing")
    write(tmp_path / "old.txt", b"xylophone", age=86_400)
    write(tmp_path / "journal.sqlite-wal", b"2026xylophone", age=86_400)

    assert names(find(tmp_path).left) == ["a.txt", "journal.sqlite-wal"]


def test_packed_files_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what was packed, also where it lies across two parts of the reading."""
    monkeypatch.setattr("roomtone.forget.search.PART_BYTES", 8)
    write(tmp_path / "a.gz", gzip.compress(b"1234 xylophone 1234"))
    write(tmp_path / "b.gz", gzip.compress(b"nothing"))
    write(tmp_path / "c.txt", b"1234 Xylophone, 1234")

    assert names(find(tmp_path).left) == ["a.gz", "c.txt"]


def test_ids_and_texts(tmp_path: Path) -> None:
    """All ids, and texts whose words tell nothing one by one."""
    write(tmp_path / "a.txt", f'"id":"{ID}"'.encode())
    write(tmp_path / "b.txt", b"he said: I do not want to see you again")
    texts = long_texts([turn("I do not want to see you again")])

    assert names(find(tmp_path, ids=(ID,), texts=texts).left) == ["a.txt", "b.txt"]


def test_what_belongs_to_a_database(tmp_path: Path) -> None:
    """A sink that names its database means its log too, and what was put aside of it."""
    path = write(tmp_path / "mine.db", b"")
    for name in ("mine.db-wal", "mine.db-journal", "mine.spoiled", "other"):
        write(tmp_path / name, b"xylophone")

    assert names(find(path).left) == ["mine.db-journal", "mine.db-wal", "mine.spoiled"]


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file that refuses to be read hides no other, and is not a success."""
    path = write(tmp_path / "a.txt", b"xylophone")
    write(tmp_path / "b.txt", b"xylophone")
    original = Path.open

    def refuse(self: Path, *arguments: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    found = find(tmp_path)
    assert (found.unread, names(found.left)) == ((f"{path}: Permission denied",), ["b.txt"])


def test_words_that_are_there_by_right(tmp_path: Path) -> None:
    """A word that an event still has, or a path, is not a remainder. Where events were pruned, that is unknown."""
    journal = tmp_path / "journal"
    with closing(sqlite3.connect(journal)) as database:
        database.executescript(
            "CREATE TABLE events (seq INTEGER PRIMARY KEY, body TEXT); CREATE TABLE marks (key TEXT);"
            "CREATE TABLE sinks (name TEXT); INSERT INTO marks VALUES ('analysis/kalimba/desk');"
        )
        database.execute("INSERT INTO events VALUES (1, ?)", ('{"text":"Another xylophone!"}',))
        database.commit()
        write(tmp_path / "files" / "marimba" / "a.txt", b"xylophone, marimba, kalimba")
        write(tmp_path / "files" / "b.txt", b"xylophone, zither")
        words = (b"xylophone", b"marimba", b"zither", b"kalimba")
        found = find(tmp_path / "files", words=words, journal=str(journal))
        assert (names(found.left), found.doubtful) == (["b.txt"], ())
        database.execute("UPDATE events SET seq = 7")
        database.commit()
        found = find(tmp_path / "files", words=words, journal=str(journal))
        assert (found.left, names(found.doubtful)) == ((), ["b.txt"])


def segment(folder: Path, position: int, audio: bytes, room: str = "desk") -> Path:
    return write(folder / "spool" / room / name_segment(position, NOW, fresh=False), audio)


def other(samples: int) -> bytes:
    return random.Random(samples).randbytes(2 * samples)


def hear(folder: Path, *gone: tuple[str, int, int]) -> Search:
    wanted = {"sounds": (PIECE,), "spool": str(folder / "spool"), "rates": {"desk": 100, "hall": 100}}
    return find(folder, **wanted, gone=gone)


def test_sound_that_was_recorded_at_another_time_too(tmp_path: Path) -> None:
    """It is a note that says when, and no file is blamed for it."""
    segment(tmp_path, 0, other(300) + PIECE)
    write(tmp_path / "a.wav", other(22) + PIECE)
    found = hear(tmp_path, ("desk", 1000, 2000))
    assert (found.left, found.again) == ((), (("desk", NOW + timedelta(seconds=3)),))


def test_sound_that_is_left(tmp_path: Path) -> None:
    """In a file, where no room has recorded it at another time; and in what is forgotten of a segment."""
    write(tmp_path / "a.wav", other(22) + PIECE)
    assert names(hear(tmp_path, ("desk", 1000, 2000)).left) == ["a.wav"]
    path = segment(tmp_path, 900, other(50) + PIECE)
    found = hear(tmp_path, ("desk", 1000, 2000))
    assert (names(found.left), found.again) == (["a.wav", path.name], ())


def test_files_that_have_gone_or_are_empty(tmp_path: Path) -> None:
    """Retention removes files at any moment; neither is a find, nor an error."""
    write(tmp_path / "empty.txt", b"")
    assert find(tmp_path).left == ()
    assert find(tmp_path / "absent") == Search()


def test_it_is_a_program(tmp_path: Path) -> None:
    """It reads its order and writes what it found; what it looks for stands in no list of processes."""
    write(tmp_path / "a.txt", b"a xylophone")
    order = SearchRequest(places=(str(tmp_path),), since=NOW, seconds=60, words=(b"xylophone",), sounds=(PIECE,))
    done = run(
        [sys.executable, "-P", "-m", "roomtone.forget.search"],
        input=msgspec.json.encode(order),
        check=True,
        capture_output=True,
    )
    assert msgspec.json.decode(done.stdout, type=Search) == search(order)


def test_words() -> None:
    """A quote is known by a word that the program does not write itself, whatever its case and its neighbors."""
    known = program_words()
    said = [turn("The sink is open, Xylophone! 7000003 of 2026, decade; naïveté.")]
    words = telling_words(said, known)
    assert words == {b"xylophone", b"7000003", "naïveté".encode()}
    assert has_quote("cannot understand '7000003'", words, ())
    assert has_quote("HTTP 422: XYLOPHONE", words, ())
    assert not has_quote("the sink is open at 10:26, 12345678", words, ())
    assert has_quote("said: I do not want to see you", set(), ["I do not want to see you"])
