"""Files that survive a power cut: what is durable, and in which order."""

import os
import resource
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from roomtone.durable import append, make_folder, open_sqlite, remove, replace, scrub

TABLES = "CREATE TABLE IF NOT EXISTS notes (number INTEGER PRIMARY KEY, text TEXT NOT NULL);"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The name of each thing that was made durable, and the files that there were beside or in it at that moment."""
    seen: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        folder = path if path.is_dir() else path.parent
        seen.append((path.name, sorted(one.name for one in folder.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return seen


def test_replace(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """The bytes are durable before they get the name, and the name is durable before this returns."""
    replace(tmp_path / "file", b"new")

    assert synced == [("file.new", ["file.new"]), (tmp_path.name, ["file"])]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_append(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """The bytes are durable before this returns, and nothing is put behind what is not as it should be."""
    (tmp_path / "file").write_bytes(b"1234")

    assert append(tmp_path / "file", b"56", size=4)
    assert synced == [("file", ["file"])]
    assert not append(tmp_path / "file", b"78", size=4)
    assert not append(tmp_path / "other", b"78", size=0)
    assert (tmp_path / "file").read_bytes() == b"123456"
    assert not (tmp_path / "other").exists()


def test_append_where_there_is_no_room(tmp_path: Path) -> None:
    """Data that the disk cannot take whole is not written at all, and the error says so."""
    (tmp_path / "file").write_bytes(b"1234")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append(tmp_path / "file", b"5678", size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert (tmp_path / "file").read_bytes() == b"1234"


def test_remove(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """A file that was removed does not come back; one that is not there takes nothing."""
    (tmp_path / "file").write_bytes(b"1234")

    assert (remove(tmp_path / "file"), remove(tmp_path / "file")) == (4, 0)
    assert synced == [(tmp_path.name, [])]


def test_make_folder(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """Each folder that is made is named durably, and is for its user alone."""
    make_folder(tmp_path / "a" / "b")

    assert synced == [(tmp_path.name, ["a"]), ("a", ["b"])]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b")} == {0o700}


def numbers(path: Path) -> list[int]:
    with open_sqlite(path, TABLES) as database:
        return [number for (number,) in database.execute("SELECT number FROM notes ORDER BY number")]


def test_what_is_committed_stays(tmp_path: Path) -> None:
    """The database is private, waits for the disk at each commit, and forgets what was not committed."""
    path = tmp_path / "notes.sqlite"
    with open_sqlite(path, TABLES) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        database.execute("INSERT INTO notes VALUES (1, '')")
        database.commit()
        database.execute("INSERT INTO notes VALUES (2, '')")
        assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o600}
        assert len(list(tmp_path.iterdir())) == 3
    assert numbers(path) == [1]


def test_what_is_scrubbed_is_nowhere(tmp_path: Path) -> None:
    """Deleted rows are in no byte of the file or its log; who reads it meanwhile keeps it from being said too early."""
    path = tmp_path / "notes.sqlite"
    with open_sqlite(path, TABLES) as database:
        database.executemany("INSERT INTO notes (text) VALUES (?)", [("secret " * 500,)] * 9)
        database.commit()
        database.execute("PRAGMA busy_timeout = 10")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM notes").fetchone()
            database.execute("DELETE FROM notes")
            with pytest.raises(OSError, match=r"is reading .*notes\.sqlite"):
                scrub(database)
        scrub(database)
        assert b"secret" not in b"".join(each.read_bytes() for each in tmp_path.iterdir())


def test_a_file_that_is_no_database_is_put_aside(tmp_path: Path) -> None:
    """The old file stays to be looked at, and a new file begins."""
    path = tmp_path / "notes.sqlite"
    path.write_bytes(b"no database" * 500)
    assert numbers(path) == []
    assert (tmp_path / "notes.spoiled").read_bytes() == b"no database" * 500


def test_damage_that_shows_late_is_put_aside_too(tmp_path: Path) -> None:
    """A page in the middle of the file that the disk has spoiled fails once, and not each time."""
    path = tmp_path / "notes.sqlite"
    with open_sqlite(path, TABLES) as database:
        database.executemany("INSERT INTO notes (text) VALUES (?)", [("x" * 1000,)] * 100)
        database.commit()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        numbers(path)
    assert numbers(path) == []
    assert (tmp_path / "notes.spoiled").stat().st_size == len(whole)


def test_any_other_error_leaves_the_file(tmp_path: Path) -> None:
    """A fault of the statement or the folder is not the file's fault."""
    path = tmp_path / "notes.sqlite"
    with open_sqlite(path, TABLES) as database:
        database.execute("INSERT INTO notes VALUES (1, '')")
        database.commit()
    with pytest.raises(sqlite3.IntegrityError), open_sqlite(path, TABLES) as database:
        database.execute("INSERT INTO notes VALUES (1, '')")
    with pytest.raises(OSError, match=r"notes\.sqlite: .*syntax"), open_sqlite(path, "CREATE NOTHING"):
        pass
    assert numbers(path) == [1]
    with pytest.raises(OSError, match="missing"), open_sqlite(tmp_path / "missing/notes.sqlite", TABLES):
        pass
