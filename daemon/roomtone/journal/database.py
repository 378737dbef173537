"""The journal's file: every statement that touches its tables. Synchronous; `journal/journal.py` puts it into trio.

SQLite in WAL mode with synchronous=FULL: what `transact` has returned survives a power cut. Two connections: one
writes, the other can only read, so that reading never waits for writing. Each is used by one thread at a time.
"""

import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from roomtone.events import Audio, Durable, Forgotten, Notice, decode, encode, kind_of, spoken_in, turn_of
from roomtone.journal.keys import CLEAN_KEY, SinkMark, sink_key, sink_prefix
from roomtone.journal.records import CoverageSpan, Mark, Record, Refusal, next_id
from roomtone.journal.schema import explained, open_file
from roomtone.journal.words import has_quote, telling_words, texts_in

_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""Raised for the body of an event that cannot be read: of a newer version, or nested too deeply for this stack."""

_READ_BYTES = 4 * 1024 * 1024
"""One read ends here even with fewer events than asked for: an answer of the gateway may have a megabyte."""
FORGOTTEN = "forgotten"
"""The reason of a refusal or a pause whose own reason had to go."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


_OF_ONE_WRITE = {sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}
"""SQLite's errors that speak of a value and not of the file. Not a violated constraint: then another process writes."""


class Rejected(NamedTuple):
    """In the place of a result: this work cannot be done, and the others of its transaction are not concerned."""

    error: Exception


class Database:
    """The open file. Methods that write are called inside `transact` only; those that read see committed rows only.

    `tip` is the seq of the last committed event; `corrupt` is where a damaged predecessor of this file lies now;
    `was_closed` says that the last run ended in order.
    """

    def __init__(self, writer: sqlite3.Connection, reader: sqlite3.Connection, corrupt: Path | None) -> None:
        self.corrupt = corrupt
        self._writer = writer
        self._reader = reader
        row = writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        self.tip: int = row[0] if row else 0
        row = writer.execute("SELECT id FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self._last_id = uuid.UUID(row[0]) if row else uuid.UUID(int=0)
        self.was_closed = self.mark(CLEAN_KEY) is not None

    def transact(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """Do the works in one transaction, durable when this returns: all, but for those that cannot be stored.

        A work is done as a whole or not at all: one whose values cannot be encoded, or are too large for SQLite, gives
        `Rejected`. Raises what is wrong with the file; then none of them is done.
        """
        before = self.tip, self._last_id
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            self._writer.execute("DELETE FROM marks WHERE key = ?", (CLEAN_KEY,))
            results = [self._attempt(work) for work in works]
            self._writer.execute("COMMIT")
        except BaseException:
            self.tip, self._last_id = before
            if self._writer.in_transaction:  # SQLite itself has rolled back after some errors
                self._writer.execute("ROLLBACK")
            raise
        return results

    def _attempt(self, work: Callable[[], Any]) -> Any:
        before = self.tip, self._last_id
        self._writer.execute("SAVEPOINT work")
        try:
            result = work()
        except Exception as error:
            if not _is_of_one_write(error):
                raise
            self.tip, self._last_id = before
            self._writer.execute("ROLLBACK TO work")
            result = Rejected(error)
        self._writer.execute("RELEASE work")
        return result

    def put(self, facts: Sequence[Record]) -> tuple[Durable, ...]:
        """Add the facts and give the events their seq and id."""
        events: list[Durable] = []
        for fact in facts:
            match fact:
                case Mark():
                    self._put_mark(fact)
                case CoverageSpan():
                    self._put_cover(fact)
                case _:
                    events.append(self._put_event(fact))
        return tuple(events)

    def _put_event(self, event: Durable) -> Durable:
        self.tip += 1
        self._last_id = next_id(self._last_id, time.time_ns() // 1_000_000)
        event = msgspec.structs.replace(event, seq=self.tip, id=str(self._last_id))
        self._writer.execute(
            "INSERT INTO events (seq, id, room, kind, position, at, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                event.seq,
                event.id,
                event.room,
                kind_of(event),
                event.position,
                _text(event.at),
                encode(event).decode(),
            ),
        )
        return event

    def _put_mark(self, mark: Mark) -> None:
        if mark.value is None:
            self._writer.execute("DELETE FROM marks WHERE key = ?", (mark.key,))
        else:
            self._writer.execute(
                "INSERT INTO marks VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                (mark.key, msgspec.json.encode(mark.value).decode()),
            )

    def _put_cover(self, cover: CoverageSpan) -> None:
        """Join the stretch with those of its kind that it touches. Saying the same twice changes nothing."""
        touching = self._writer.execute(
            'SELECT rowid, room, start, "end", state, cause, "from", until FROM coverage '
            'WHERE room = ? AND state = ? AND cause IS ? AND "end" >= ? AND start <= ?',
            (cover.room, cover.state, cover.cause, cover.start, cover.end),
        ).fetchall()
        for rowid, *row in touching:
            other = _cover(row)
            if cover.adjoins(other):
                self._writer.execute("DELETE FROM coverage WHERE rowid = ?", (rowid,))
                cover = cover.joined(other)
        self._writer.execute(
            "INSERT INTO coverage VALUES (?, ?, ?, ?, ?, ?, ?)",
            (cover.room, cover.start, cover.end, cover.state, cover.cause, _text(cover.from_), _text(cover.until)),
        )

    def put_cursor(self, sink: str, seq: int) -> None:
        """Move the sink's cursor on; it never goes back."""
        self._writer.execute(
            "INSERT INTO sinks VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET cursor = max(cursor, excluded.cursor), at = excluded.at",
            (sink, seq, _now()),
        )

    def rewind(self, sink: str, seq: int) -> None:
        """Move the sink's cursor back. Events that it refused after that, and that are still here, come again."""
        self._writer.execute("UPDATE sinks SET cursor = min(cursor, ?), at = ? WHERE name = ?", (seq, _now(), sink))
        self._writer.execute(
            "DELETE FROM refused WHERE sink = ? AND seq > ? AND seq IN (SELECT seq FROM events)", (sink, seq)
        )

    def put_refusal(self, sink: str, seq: int, reason: str) -> None:
        """Set the event aside, with its body, for pruning does not wait for it; and move the cursor past it."""
        self._writer.execute(
            "INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?, (SELECT body FROM events WHERE seq = ?))",
            (sink, seq, _now(), reason, seq),
        )
        self.put_cursor(sink, seq)

    def put_refused_again(self, sink: str, seq: int, reason: str) -> None:
        """The event was tried again and refused again: its newest reason stands."""
        self._writer.execute(
            "UPDATE refused SET reason = ?, at = ? WHERE sink = ? AND seq = ?", (reason, _now(), sink, seq)
        )

    def drop_refusal(self, sink: str, seq: int) -> None:
        """The sink has taken the event after all."""
        self._writer.execute("DELETE FROM refused WHERE sink = ? AND seq = ?", (sink, seq))

    def drop_sink(self, sink: str) -> None:
        """Remove the sink's cursor, its refused events and the marks about it."""
        self._writer.execute("DELETE FROM sinks WHERE name = ?", (sink,))
        self._writer.execute("DELETE FROM refused WHERE sink = ?", (sink,))
        begin = sink_prefix(sink)
        self._writer.execute("DELETE FROM marks WHERE substr(key, 1, ?) = ?", (len(begin), begin))

    def prune(self, before: int, most: int, sinks: Collection[str] | None = None) -> int:
        """Remove at most `most` of the oldest events below `before` that every sink, or every one of `sinks`, has
        acknowledged. One that has not begun yet may want them all.

        The newest event stays in any case: its id is what the next id must exceed.
        """
        cursors = dict(self._writer.execute("SELECT name, cursor FROM sinks").fetchall())
        for key, seq in self._sink_marks("rewind"):
            name = key.split("/")[1]  # it is to go back there as soon as its delivery looks
            cursors[name] = min(cursors.get(name, 0), int(seq))
        slowest = [cursors.get(name, 0) + 1 for name in (cursors if sinks is None else sinks)]
        end = min([before, self.tip, *slowest])
        return self._writer.execute(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq < ? ORDER BY seq LIMIT ?)", (end, most)
        ).rowcount

    def _sink_marks(self, name: SinkMark) -> list[tuple[str, str]]:
        """The marks of this name of all sinks, each with its value as it is stored."""
        pattern = sink_key("*", name)
        return self._writer.execute("SELECT key, value FROM marks WHERE key GLOB ?", (pattern,)).fetchall()

    def prune_coverage(self, before: datetime, most: int) -> int:
        """Forget at most `most` of the stretches that were over before that time, a room at a time; and of the others
        what lies at their positions, so that what is left of a room's account is whole. Its last stretch stays.
        """
        oldest = self._writer.execute(
            'SELECT room, "end", until FROM coverage AS row WHERE until < ? '
            'AND "end" < (SELECT max("end") FROM coverage WHERE room = row.room) ORDER BY room, "end" LIMIT ?',
            (_text(before), most),
        ).fetchall()
        # The last one of each room is where its account begins from now on.
        for room, (end, until) in {room: (end, until) for room, end, until in oldest}.items():
            self._writer.execute('DELETE FROM coverage WHERE room = ? AND "end" <= ?', (room, end))
            self._writer.execute(
                'UPDATE coverage SET start = ?, "from" = max("from", min(until, ?)) WHERE room = ? AND start < ?',
                (end, until, room, end),
            )
        return len(oldest)

    def forget(self, forgotten: Forgotten, longest: int, known: Collection[bytes]) -> list[Durable]:
        """Remove the speech there: the events, delivered or not, and the copies that sinks have
        refused; a correction or an answer goes with its turn. The coverage shows where speech was: it is cut.

        Notices of that time go too, and those of any time that quote it, as the reasons of refusals do. The words that
        are `known` for another reason are not a quote. No turn is longer than `longest` samples. Returns the events of
        the stretch that were removed.
        """
        room, start, end = forgotten.room, forgotten.start, forgotten.end
        rows = self._writer.execute(
            "SELECT seq, body FROM events WHERE room = ? AND kind IN ('turn', 'answer') AND position BETWEEN ? AND ? "
            "UNION ALL SELECT seq, body FROM events WHERE room = ? AND kind = 'analysis' AND position < ? "
            "UNION ALL SELECT seq, body FROM events WHERE kind = 'notice'",
            (room, start - longest, end + longest, room, end),
        ).fetchall()
        refused = self._writer.execute("SELECT rowid, body FROM refused WHERE body IS NOT NULL").fetchall()
        bodies = [("events", seq, body) for seq, body in rows] + [("refused", row, body) for row, body in refused]
        read = [(table, row, event) for table, row, body in bodies if (event := _event(body)) is not None]
        turns = spoken_in(forgotten, (event for _, _, event in read))
        gone = [one for one in read if forgotten.covers(one[2]) or turn_of(one[2]) in turns]
        events = [event for _, _, event in gone]
        words, texts = telling_words(events, known), texts_in(events)
        quoting = [one for one in read if isinstance(one[2], Notice) and has_quote(one[2].text, words, texts)]
        for table, row, _ in (*gone, *quoting):
            self._writer.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))  # noqa: S608 - two names of ours
        self._forget_reasons(forgotten, {event.seq for event in events}, words, texts)
        self._cut_coverage(forgotten)
        return events

    def _forget_reasons(self, forgotten: Forgotten, gone: set[int], words: set[bytes], texts: Sequence[str]) -> None:
        """A receiver's answer may repeat what it was sent, and that of another event, when they came together."""
        rows = self._writer.execute("SELECT rowid, seq, at, reason, body FROM refused").fetchall()
        for row, seq, at, reason, body in rows:
            if body is None and seq in gone:
                self._writer.execute("DELETE FROM refused WHERE rowid = ?", (row,))
            elif _text(forgotten.from_) <= at < _text(forgotten.until) or has_quote(reason, words, texts):
                self._writer.execute("UPDATE refused SET reason = ? WHERE rowid = ?", (FORGOTTEN, row))
        for key, value in self._sink_marks("paused"):
            if has_quote(value, words, texts):
                self._put_mark(Mark(key, msgspec.json.decode(value) | {"reason": FORGOTTEN}))

    def _cut_coverage(self, forgotten: Forgotten) -> None:
        """*captured* and *lost* stay; every other state is replaced by *forgotten*."""
        rows = self._writer.execute(
            'SELECT rowid, room, start, "end", state, cause, "from", until FROM coverage '
            "WHERE room = ? AND state NOT IN ('captured', 'lost') AND \"end\" > ? AND start < ?",
            (forgotten.room, forgotten.start, forgotten.end),
        ).fetchall()
        for rowid, *row in rows:
            self._writer.execute("DELETE FROM coverage WHERE rowid = ?", (rowid,))
            for part in _cover(row).without(forgotten.start, forgotten.end):
                self._put_cover(part)

    def compact(self) -> bool:
        """Leave nothing in the files of what was deleted. Outside of a transaction.

        Deleted rows are zeros by then (secure_delete). What is left is the log, which still has the pages as they were,
        and pages of a time without secure_delete. False where the disk is full, or another process reads for long.
        """
        passing = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
        is_done = True
        for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            try:
                row = self._writer.execute(statement).fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in passing:
                    raise
                log.warning("journal.uncompacted", statement=statement, error=str(error))
                is_done = False
            else:
                is_done = is_done and not (row and row[0])
        return is_done

    def audio_between(self, room: str, since: datetime, until: datetime) -> list[Audio]:
        """The segments of audio that began between these times."""
        rows = self._reader.execute(
            "SELECT body FROM events WHERE room = ? AND kind = 'audio' AND at BETWEEN ? AND ?",
            (room, _text(since), _text(until)),
        ).fetchall()
        return [event for (body,) in rows if isinstance(event := _event(body), Audio)]

    def events(self, after: int, limit: int) -> list[Durable]:
        """The committed events after that seq, at most `limit`, ascending."""
        return self._decoded("SELECT seq, body FROM events WHERE seq > ? ORDER BY seq", (after,), limit, _READ_BYTES)

    def select(self, room: str, kinds: Sequence[str], start: int, end: int) -> list[Durable]:
        """The room's events of these kinds with a position in [start, end), by position."""
        return self._decoded(
            f"SELECT seq, body FROM events WHERE room = ? AND kind IN ({', '.join('?' * len(kinds))}) "  # noqa: S608 - only question marks are put in
            "AND position >= ? AND position < ? ORDER BY position, seq",
            (room, *kinds, start, end),
        )

    def _decoded(
        self, query: str, values: Sequence[Any], most: int | None = None, most_bytes: int | None = None
    ) -> list[Durable]:
        events: list[Durable] = []
        size = 0
        with closing(self._reader.execute(query, values)) as rows:
            for seq, body in rows:
                try:
                    events.append(decode(body))
                except _UNREADABLE as error:
                    # One unreadable row (a kind of a newer version) must not stop every sink at it.
                    log.exception("journal.unreadable", seq=seq, error=type(error).__name__)
                    continue
                size += len(body)
                if len(events) == most or (most_bytes is not None and size >= most_bytes):
                    break
        return events

    def marks(self, prefix: str) -> dict[str, Any]:
        """The marks whose keys begin with the prefix."""
        rows = self._reader.execute(
            "SELECT key, value FROM marks WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return {key: msgspec.json.decode(value) for key, value in rows}

    def mark(self, key: str) -> Any:
        """The mark under that key, or None."""
        row = self._reader.execute("SELECT value FROM marks WHERE key = ?", (key,)).fetchone()
        return msgspec.json.decode(row[0]) if row else None

    def covers(self, room: str, start: int) -> list[CoverageSpan]:
        """The room's stretches that end after `start` or lie at it, by start."""
        rows = self._reader.execute(
            'SELECT room, start, "end", state, cause, "from", until FROM coverage '
            'WHERE room = ? AND ("end" > ? OR start >= ?) ORDER BY start, "from"',
            (room, start, start),
        )
        return [_cover(row) for row in rows]

    def cursors(self) -> dict[str, int]:
        """The seq up to which each sink has acknowledged."""
        return dict(self._reader.execute("SELECT name, cursor FROM sinks ORDER BY name").fetchall())

    def undelivered(self, room: str, seq: int, position: int) -> int | None:
        """The first position, from `position` on, of a segment of audio whose event comes after `seq`."""
        row = self._reader.execute(
            "SELECT position FROM events WHERE room = ? AND kind = 'audio' AND position >= ? AND seq > ? "
            "ORDER BY position LIMIT 1",
            (room, position, seq),
        ).fetchone()
        return row[0] if row else None

    def first_since(self, at: datetime) -> int:
        """The seq of the first event that was committed at that time or later; beyond the tip where there is none."""
        # An id begins with the milliseconds of its commit, of which no time before 1970 has any; and ids grow with seq.
        least = uuid.UUID(int=max(0, round(at.timestamp() * 1000)) << 80)
        row = self._reader.execute("SELECT seq FROM events WHERE id >= ? ORDER BY id LIMIT 1", (str(least),)).fetchone()
        return row[0] if row else self.tip + 1

    def extent(self) -> tuple[int, int]:
        """The oldest seq there is, and the bytes in use in the file: what was pruned is used again, not given back."""
        (oldest,) = self._reader.execute("SELECT min(seq) FROM events").fetchone()
        pages, free, size = (
            self._reader.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return oldest or self.tip, (pages - free) * size

    def data_version(self) -> int:
        """A number that changes whenever another process has written the file. Asked where this one writes."""
        (version,) = self._writer.execute("PRAGMA data_version").fetchone()
        return int(version)

    def count_refusals(self, sink: str) -> int:
        """The number of events that the sink has refused."""
        (count,) = self._reader.execute("SELECT count(*) FROM refused WHERE sink = ?", (sink,)).fetchone()
        return int(count)

    def last_refusal(self, sink: str) -> int:
        """The greatest seq that the sink has refused; 0 where there is none."""
        (seq,) = self._reader.execute("SELECT max(seq) FROM refused WHERE sink = ?", (sink,)).fetchone()
        return seq or 0

    def refusals(self, sink: str, after: int = 0, most: int = -1) -> list[Refusal]:
        """The events that the sink has refused, by seq: those after `after`, at most `most` (-1: all)."""
        rows = self._reader.execute(
            "SELECT sink, seq, at, reason, body FROM refused WHERE sink = ? AND seq > ? ORDER BY seq LIMIT ?",
            (sink, after, most),
        )
        return [
            Refusal(name, seq, datetime.fromisoformat(at), reason, _event(body) if body else None)
            for name, seq, at, reason, body in rows
        ]

    def say_clean(self, *, is_clean: bool) -> None:
        """Say in the file whether it may be believed when it is opened again, unchecked.

        On a full disk that stays unsaid, and the next opening checks; so it does where the damage is in the marks.
        """
        with suppress(sqlite3.DatabaseError):
            if is_clean:
                self._writer.execute("INSERT OR REPLACE INTO marks VALUES (?, 'true')", (CLEAN_KEY,))
            else:
                self._writer.execute("DELETE FROM marks WHERE key = ?", (CLEAN_KEY,))


@contextmanager
def open_database(path: Path) -> Iterator[Database]:
    """Open the file, as `schema.open_file` does. The caller holds the folder (`paths.lock`): seq is counted in this
    process, and a second one that writes is refused by the table's primary key.
    """
    with open_file(path) as connections:
        with explained(path):
            database = Database(*connections)
        yield database


def _is_of_one_write(error: Exception) -> bool:
    if not isinstance(error, sqlite3.Error):
        return not isinstance(error, MemoryError)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_ONE_WRITE


def _event(body: str) -> Durable | None:
    try:
        return decode(body)
    except _UNREADABLE:
        return None


def _cover(row: Sequence[Any]) -> CoverageSpan:
    room, start, end, state, cause, from_, until = row
    return CoverageSpan(room, start, end, state, cause, datetime.fromisoformat(from_), datetime.fromisoformat(until))


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _now() -> str:
    return _text(datetime.now(UTC))
