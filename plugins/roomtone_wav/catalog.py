"""Which file holds which positions: one small SQLite file in the sink's own folder.

The sidecars say the same, but they lie among tens of thousands of others, and people move and delete them. What is
written here is durable before the file that it names is made, so no crash leaves a file that nobody knows.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog

from roomtone_wav.recording import Recording

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS recordings (
    room TEXT NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (room, first)
) WITHOUT ROWID
"""


class Catalog:
    """The recordings of all rooms by their first position. What is put is durable after `commit`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def holding(self, room: str, position: int) -> Recording | None:
        """The recording that the position belongs to, or would continue: the last that begins at or before it."""
        return self._one("room = ? AND first <= ? ORDER BY first DESC LIMIT 1", room, position)

    def following(self, room: str, position: int) -> Recording | None:
        """The first recording that begins after the position."""
        return self._one("room = ? AND first > ? ORDER BY first LIMIT 1", room, position)

    def newest(self, room: str) -> Recording | None:
        return self._one("room = ? ORDER BY first DESC LIMIT 1", room)

    def overlapping(self, room: str, start: int, end: int) -> list[Recording]:
        """The recordings that hold any position from `start` up to `end`."""
        return list(self._all("room = ? AND first < ? AND end > ? ORDER BY first", room, end, start))

    def put(self, recording: Recording) -> None:
        row = (recording.room, recording.first, recording.end, msgspec.json.encode(recording))
        self._database.execute("INSERT OR REPLACE INTO recordings VALUES (?, ?, ?, ?)", row)

    def drop(self, room: str) -> None:
        """No position of the room belongs to any file of before. The files stay."""
        self._database.execute("DELETE FROM recordings WHERE room = ?", (room,))

    def commit(self) -> None:
        self._database.commit()

    def _one(self, where: str, *values: Any) -> Recording | None:
        return next(self._all(where, *values), None)

    def _all(self, where: str, *values: Any) -> Iterator[Recording]:
        rows = self._database.execute(f"SELECT body FROM recordings WHERE {where}", values)  # noqa: S608 - our own text
        return (msgspec.json.decode(body, type=Recording) for (body,) in rows)


@contextmanager
def open_catalog(path: Path) -> Iterator[Catalog]:
    """The catalog at this path. One that the disk has spoiled is put aside: then files begin anew, and none is lost."""
    with closing(_connect(path)) as database:
        yield Catalog(database)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return _prepare(path)
    except sqlite3.OperationalError as error:
        raise OSError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        aside = path.replace(path.with_suffix(".spoiled"))
        for beside in ("-wal", "-shm"):  # else SQLite would take the new file for the one that these belong to
            path.with_name(path.name + beside).unlink(missing_ok=True)
        log.warning("catalog.spoiled", path=str(path), aside=str(aside), error=str(error))
        return _prepare(path)


def _prepare(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    # Hooks come from one worker thread at a time, not always the same one.
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(_SCHEMA)
        database.execute("SELECT count(*) FROM recordings").fetchone()
    except BaseException:
        database.close()
        raise
    return database
