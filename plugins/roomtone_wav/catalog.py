"""The catalog of the files and their positions: one small SQLite file in the sink's own folder.

The sidecars say the same, but there can be tens of thousands of them, and users move and delete them. An entry is
durable before its file is made, so a crash cannot leave an unknown file.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from roomtone import Turn, encode
from roomtone.durable import open_sqlite, scrub
from roomtone.trusted_clock import TrustedClock, reading_of
from roomtone_wav.recording import MAX_TURN_S, PositionSpan, Recording, part_of

CATALOG = "recordings.sqlite"
"""The file's name in the sink's own folder."""

_SCHEMA = """
-- `era` is 0 for the current journal, and more for those that were lost: their positions no longer count, but their
-- files are still to be compressed and removed.
CREATE TABLE IF NOT EXISTS recordings (
    room TEXT NOT NULL, era INTEGER NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL, until TEXT NOT NULL,
    size INTEGER NOT NULL, todo TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (room, era, first)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS recordings_to_do ON recordings (todo) WHERE todo != '';
CREATE INDEX IF NOT EXISTS recordings_by_end ON recordings (until, size);
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY, room TEXT NOT NULL, position INTEGER NOT NULL, end INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS turns_by_position ON turns (room, position);
CREATE TABLE IF NOT EXISTS forgotten (room TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL);
-- One row: the last reading of the calendar that ages are judged by.
CREATE TABLE IF NOT EXISTS calendar (id INTEGER PRIMARY KEY CHECK (id = 0), reading TEXT NOT NULL);
"""

_NEVER = datetime.max.replace(tzinfo=UTC)

Todo: TypeAlias = Literal["", "grow", "encode", "remove"]
"""The work left on a file: none; compress it when it has grown; compress it now; remove its WAV."""


class Kept(msgspec.Struct, frozen=True):
    """A recording with its place in the catalog."""

    era: int
    recording: Recording


class Catalog:
    """The recordings of all rooms by their first position. What is put is durable after `commit`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def holding(self, room: str, position: int) -> Recording | None:
        """The recording that the position belongs to, or would continue: the last that begins at or before it."""
        return self._one("room = ? AND era = 0 AND first <= ? ORDER BY first DESC LIMIT 1", room, position)

    def following(self, room: str, position: int) -> Recording | None:
        """The first recording that begins after the position."""
        return self._one("room = ? AND era = 0 AND first > ? ORDER BY first LIMIT 1", room, position)

    def newest(self, room: str) -> Recording | None:
        return self._one("room = ? AND era = 0 ORDER BY first DESC LIMIT 1", room)

    def overlapping(self, room: str, start: int, end: int) -> list[Recording]:
        """The recordings that hold any position from `start` up to `end`."""
        return list(self._all("room = ? AND era = 0 AND first < ? AND end > ? ORDER BY first", room, end, start))

    def put(self, recording: Recording, *, era: int = 0) -> None:
        """Save the recording. The work left on it stays the same."""
        todo: Todo = "" if recording.format == "wav" else "grow"
        self._database.execute(
            "INSERT INTO recordings VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (room, era, first) DO UPDATE "
            "SET end = excluded.end, until = excluded.until, size = excluded.size, body = excluded.body",
            (
                recording.room,
                era,
                recording.first,
                recording.end,
                recording.until.isoformat(),
                recording.size,
                todo,
                msgspec.json.encode(recording),
            ),
        )

    def part(self, newest: Recording) -> None:
        """Let no position of the room belong to its files up to this newest one. They stay known."""
        self._database.execute(
            "UPDATE recordings SET era = (SELECT max(era) + 1 FROM recordings WHERE room = :room), "
            "todo = CASE todo WHEN 'grow' THEN 'encode' ELSE todo END WHERE room = :room AND era = 0",
            {"room": newest.room},
        )
        self._database.execute("DELETE FROM turns WHERE room = ? AND id <= ?", (newest.room, newest.last))
        self._database.execute("DELETE FROM forgotten WHERE room = ?", (newest.room,))

    def adopt(self, recordings: Iterable[Recording]) -> int:
        """Add these files, to remove them later. No position belongs to them. Returns their number."""
        eras = Counter[tuple[str, int]]()
        for recording in recordings:
            key = recording.room, recording.first
            eras[key] += 1
            self.put(recording, era=eras[key])
        self._database.execute("UPDATE recordings SET todo = '' WHERE era > 0")
        self._database.commit()
        return eras.total()

    def open_up(self, recording: Recording) -> None:
        """Note that the recording is a WAV again, and to be compressed again."""
        self.put(recording)
        where = "room = ? AND era = 0 AND first = ? AND todo != 'grow'"
        values = (recording.room, recording.first)
        self._database.execute(f"UPDATE recordings SET todo = 'encode' WHERE {where}", values)  # noqa: S608 - our own text

    def complete(self, room: str, before: int) -> None:
        """Note that every recording of the room that begins before this position has all its samples, durably."""
        self._database.execute(
            "UPDATE recordings SET todo = 'encode' WHERE room = ? AND era = 0 AND first < ? AND todo = 'grow'",
            (room, before),
        )

    def is_empty(self) -> bool:
        return self._database.execute("SELECT 1 FROM recordings LIMIT 1").fetchone() is None

    def todo(self, what: Todo) -> list[Kept]:
        return self._kept("todo = ? AND todo != '' ORDER BY until", what)  # said twice, for the index to be used

    def get(self, kept: Kept) -> Recording | None:
        """The current state of the same recording."""
        return self._one("room = ? AND era = ? AND first = ?", kept.recording.room, kept.era, kept.recording.first)

    def set_todo(self, kept: Kept, todo: Todo) -> None:
        self._database.execute(
            "UPDATE recordings SET todo = ? WHERE room = ? AND era = ? AND first = ?",
            (todo, kept.recording.room, kept.era, kept.recording.first),
        )

    def finished(self, before: datetime = _NEVER) -> list[Kept]:
        """Every recording that ended before that time (UTC), the oldest first, except the newest of each room."""
        newest = "SELECT room, max(first) FROM recordings WHERE era = 0 GROUP BY room"
        where = f"until < ? AND NOT (era = 0 AND (room, first) IN ({newest})) ORDER BY until"
        return self._kept(where, before.isoformat())

    def calendar(self) -> TrustedClock:
        """The trusted clock for ages, with the last saved reading."""
        found = self._database.execute("SELECT reading FROM calendar").fetchone()
        return TrustedClock(reading_of(msgspec.json.decode(found[0])) if found else None)

    def note(self, calendar: TrustedClock) -> None:
        """Save the last reading for the next start."""
        if calendar.last is not None:
            reading = msgspec.json.encode(calendar.last.to_builtins())
            self._database.execute("INSERT OR REPLACE INTO calendar VALUES (0, ?)", (reading.decode(),))

    def size(self) -> int:
        """Bytes of all files, including those that a user has deleted since."""
        (size,) = self._database.execute("SELECT coalesce(sum(size), 0) FROM recordings").fetchone()
        return int(size)

    def newest_of_all(self) -> list[Recording]:
        """The newest recording of each room."""
        rooms = self._database.execute("SELECT DISTINCT room FROM recordings WHERE era = 0").fetchall()
        return [recording for (room,) in rooms if (recording := self.newest(room)) is not None]

    def remove(self, kept: Kept) -> None:
        """Remove the recording, and its turns."""
        recording = kept.recording
        key = (recording.room, kept.era, recording.first)
        self._database.execute("DELETE FROM recordings WHERE room = ? AND era = ? AND first = ?", key)
        if not kept.era:
            where = "room = ? AND position >= ? AND position < ?"
            self._database.execute(
                f"DELETE FROM turns WHERE {where}",  # noqa: S608 - our own text
                (recording.room, recording.first, recording.end),
            )

    def put_turn(self, turn: Turn, end: int) -> None:
        row = (turn.id, turn.room, turn.position, end, encode(turn))
        self._database.execute("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?)", row)

    def take_turn(self, id_: str) -> PositionSpan | None:
        """Remove the turn. Returns its positions, if it was known."""
        where = "DELETE FROM turns WHERE id = ? RETURNING position, max(end, position + 1)"
        rows = self._database.execute(where, (id_,)).fetchall()
        return PositionSpan(*rows[0]) if rows else None

    def forget_turns(self, room: str, start: int, end: int) -> None:
        """Remove every turn that overlaps these positions."""
        where = "room = ? AND position < ? AND max(end, position + 1) > ?"
        self._database.execute(f"DELETE FROM turns WHERE {where}", (room, end, start))  # noqa: S608 - our own text

    def put_forgotten(self, room: str, start: int, end: int) -> None:
        """Note that audio of these positions is to be silent if it comes later."""
        self._database.execute("INSERT INTO forgotten VALUES (?, ?, ?)", (room, start, end))

    def forgotten(self, room: str, start: int, end: int) -> list[PositionSpan]:
        """The forgotten stretches between these positions."""
        rows = self._database.execute(
            "SELECT DISTINCT max(start, ?), min(end, ?) FROM forgotten WHERE room = ? AND start < ? AND end > ?",
            (start, end, room, end, start),
        )
        return [PositionSpan(*row) for row in rows]

    def turns(self, recording: Recording) -> Sequence[Turn]:
        """The turns in the recording, by position; of a turn that goes on in another one, the part in this one."""
        rows = self._database.execute(
            "SELECT body FROM turns WHERE room = ? AND position >= ? AND position < ? AND max(end, position + 1) > ? "
            "ORDER BY position, id",
            (recording.room, recording.first - MAX_TURN_S * recording.rate, recording.end, recording.first),
        )
        following = self.following(recording.room, recording.first)
        end = None if following is None else following.first
        turns = [msgspec.json.decode(body, type=Turn) for (body,) in rows]
        parts = [part_of(turn, recording.first, end, recording.rate) for turn in turns]
        return [part for part in parts if part is not None]

    def commit(self) -> None:
        self._database.commit()

    def scrub(self) -> None:
        """Commit, and remove deleted data from the database's log. Errors: OSError while another process reads it."""
        scrub(self._database)

    def _kept(self, where: str, *values: Any) -> list[Kept]:
        rows = self._database.execute(f"SELECT era, body FROM recordings WHERE {where}", values)  # noqa: S608 - our own text
        return [Kept(era, msgspec.json.decode(body, type=Recording)) for era, body in rows]

    def _one(self, where: str, *values: Any) -> Recording | None:
        return next(self._all(where, *values), None)

    def _all(self, where: str, *values: Any) -> Iterator[Recording]:
        rows = self._database.execute(f"SELECT body FROM recordings WHERE {where}", values)  # noqa: S608 - our own text
        return (msgspec.json.decode(body, type=Recording) for (body,) in rows)


@contextmanager
def open_catalog(path: Path) -> Iterator[Catalog]:
    """The catalog at this path. A damaged one is set aside: then new files begin, and none is lost."""
    with open_sqlite(path, _SCHEMA) as database:
        yield Catalog(database)


@contextmanager
def read_catalog(path: Path) -> Iterator[Catalog | None]:
    """The catalog at this path, read-only beside its writer, or None if it does not exist."""
    if not path.exists():
        yield None
        return
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        yield Catalog(database)
