"""The entries of the pages: one small SQLite file in the sink's own folder.

The pages are made from it, so that they can be made again when an entry comes late, is corrected or is forgotten.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from roomtone import Turn, encode
from roomtone.durable import open_sqlite, scrub
from roomtone_transcript.page import Entry

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id TEXT PRIMARY KEY, room TEXT NOT NULL, page TEXT NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL,
    session TEXT, turn INTEGER, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_page ON entries (room, page);
CREATE INDEX IF NOT EXISTS entries_by_place ON entries (room, start);
CREATE INDEX IF NOT EXISTS entries_by_turn ON entries (session, turn);
CREATE TABLE IF NOT EXISTS pages (
    room TEXT NOT NULL, page TEXT NOT NULL, start TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (room, page)
) WITHOUT ROWID;
"""

_MAX_PAGE_AGE = timedelta(hours=30)
"""More than the duration of any page: of the longest day at a change of clocks, or of the longest session."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


class Page(NamedTuple):
    """The key of a page: its room, and its day or session."""

    room: str
    key: str


class Store:
    """The entries of all pages. They are durable after `commit`; a repeated event changes nothing."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def put(self, page: Page, entry: Entry, start: int, end: int) -> None:
        session, turn = getattr(entry, "session_id", None), getattr(entry, "turn_order", None)
        row = (entry.id, page.room, page.key, start, end, session, turn, encode(entry))
        self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def remove(self, id_: str) -> set[Page]:
        """Remove the entry. Returns its page."""
        return self._delete("id = ?", id_)

    def forget(self, room: str, start: int, end: int) -> set[Page]:
        """Remove the entries between these positions, and the answers to them. Returns their pages."""
        overlap = 'room = ? AND start < ? AND max("end", start + 1) > ?'
        spoken = f"SELECT session, turn FROM entries WHERE turn IS NOT NULL AND {overlap}"  # noqa: S608 - our own text
        pages = self._delete(f"(session, turn) IN ({spoken})", room, end, start)
        return pages | self._delete(overlap, room, end, start)

    def entries(self, page: Page) -> list[Entry]:
        """The entries of the page. A damaged entry is logged and left out: it must not keep the others from being
        written.
        """
        found = []
        for id_, body in self._database.execute("SELECT id, body FROM entries WHERE room = ? AND page = ?", page):
            try:
                found.append(_decoder.decode(body))
            except msgspec.DecodeError as error:
                log.warning("entry.unreadable", room=page.room, page=page.key, id=id_, error=type(error).__name__)
        return found

    def answered(self, turn: Turn) -> set[Page]:
        """The pages of answers to this turn that came before it."""
        row = (turn.session_id, turn.turn_order, turn.id)
        rows = self._database.execute(
            "SELECT DISTINCT room, page FROM entries WHERE session = ? AND turn = ? AND id != ?", row
        )
        return {Page(*row) for row in rows}

    def begin(self, page: Page, start: datetime, path: Path) -> None:
        """Save the start and the path of the page, unless they are known."""
        row = (*page, start.isoformat(), str(path))
        self._database.execute("INSERT OR IGNORE INTO pages VALUES (?, ?, ?, ?)", row)

    def page(self, page: Page) -> tuple[datetime, Path] | None:
        """The start and the path of the page."""
        found = self._database.execute("SELECT start, path FROM pages WHERE room = ? AND page = ?", page).fetchone()
        return (datetime.fromisoformat(found[0]), Path(found[1])) if found else None

    def move(self, page: Page, path: Path) -> None:
        """Save the new path of the page."""
        self._database.execute("UPDATE pages SET path = ? WHERE room = ? AND page = ?", (str(path), *page))

    def pages(self, room: str, since: datetime, until: datetime) -> set[Page]:
        """The pages of the room that may have entries of this time."""
        rows = self._database.execute("SELECT page, start FROM pages WHERE room = ?", (room,))
        starts = {Page(room, key): datetime.fromisoformat(start) for key, start in rows}
        return {page for page, start in starts.items() if since - _MAX_PAGE_AGE <= start <= until}

    def is_taken(self, path: Path) -> bool:
        found = self._database.execute("SELECT 1 FROM pages WHERE path = ?", (str(path),)).fetchone()
        return found is not None

    def commit(self) -> None:
        self._database.commit()

    def scrub(self) -> None:
        """Commit, and remove deleted data from the database's log. Errors: OSError while another process reads it."""
        scrub(self._database)

    def _delete(self, where: str, *values: Any) -> set[Page]:
        rows = self._database.execute(f"SELECT DISTINCT room, page FROM entries WHERE {where}", values)  # noqa: S608 - our own text
        pages = {Page(*row) for row in rows}
        self._database.execute(f"DELETE FROM entries WHERE {where}", values)  # noqa: S608 - our own text
        return pages


@contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """The store at this path. A damaged one is set aside: its pages stay, and new ones begin beside them."""
    with open_sqlite(path, _SCHEMA) as database:
        yield Store(database)
