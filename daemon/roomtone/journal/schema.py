"""The journal's file before it is used: its tables, its connections, and what is done with one that is damaged."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import structlog

from roomtone.durable import SPOILED, create_private
from roomtone.journal.keys import CLEAN_KEY

SCHEMA = 1
"""The version of the tables below, in the file's user_version."""

_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE events (
    -- AUTOINCREMENT: without it pruning would let numbers come again, below every cursor.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    room TEXT NOT NULL,
    kind TEXT NOT NULL,
    position INTEGER NOT NULL,
    at TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX events_by_position ON events (room, kind, position);
CREATE TABLE sinks (name TEXT PRIMARY KEY, cursor INTEGER NOT NULL, at TEXT NOT NULL);
CREATE TABLE refused (
    sink TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at TEXT NOT NULL,
    reason TEXT NOT NULL,
    body TEXT,
    PRIMARY KEY (sink, seq)
);
CREATE TABLE coverage (
    room TEXT NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    state TEXT NOT NULL,
    cause TEXT,
    "from" TEXT NOT NULL,
    until TEXT NOT NULL
);
CREATE INDEX coverage_by_end ON coverage (room, state, "end");
CREATE TABLE marks (key TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = {SCHEMA};
COMMIT;
"""

CORRUPT = ".corrupt-"
"""In the name of a journal that was moved aside, before the time of that."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class JournalError(Exception):
    """The journal cannot be used. Says which file, what is wrong with it, and what to do."""


class Connections(NamedTuple):
    """Two to one file: one writes, the other can only read. `corrupt` is where a damaged predecessor lies now."""

    writer: sqlite3.Connection
    reader: sqlite3.Connection
    corrupt: Path | None


@contextmanager
def open_file(path: Path) -> Iterator[Connections]:
    """Open the file, made with mode 0600 in a folder of 0700, with its tables in it.

    A damaged file is moved aside and a new one begun. Raises JournalError for a file of a newer version, one that is
    not a journal, and one that cannot be opened or written; what the body raises it raises as it is.
    """
    with ExitStack() as stack:
        with explained(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            corrupt = _move_if_corrupt(path)
            writer = stack.enter_context(closing(_connect(path)))
            reader = stack.enter_context(closing(_connect_to_read(path)))
            _prepare(path, writer)
        yield Connections(writer, reader, corrupt)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raises what goes wrong in here with the file as a JournalError that says what to do."""
    try:
        yield
    except OSError as error:
        raise JournalError(f"cannot open the journal {path}: {error}; the daemon's user must own its folder") from error
    except sqlite3.Error as error:
        raise JournalError(
            f"cannot use the journal {path}: {error}; see that the disk has space and that the daemon's user owns "
            f"{path.parent}"
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    create_private(path)
    return sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)


def _connect_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5, isolation_level=None, check_same_thread=False
    )


def _prepare(path: Path, writer: sqlite3.Connection) -> None:
    (version,) = writer.execute("PRAGMA user_version").fetchone()
    (tables,) = writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version > SCHEMA:
        raise JournalError(
            f"the journal {path} has version {version} and this Roomtone knows {SCHEMA}: "
            "install the newer Roomtone again, or move the file away to begin a new journal"
        )
    if version == 0 and tables:
        raise JournalError(f"{path} is a database of something else: move it away, or choose another state folder")
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA synchronous = FULL")
    writer.execute("PRAGMA journal_size_limit = 16777216")
    writer.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in free pages of the file
    if version == 0:
        writer.executescript(_TABLES)


def find_asides(state: Path) -> list[tuple[Path, datetime]]:
    """The damaged databases that were moved aside in the state folder, the journal's and those of the sinks, and when
    that was. The program never reads them; they contain speech.
    """
    found = [*state.glob(f"journal.sqlite{CORRUPT}*"), *(state / "sinks").glob(f"*/*{SPOILED}*")]
    # The change time, for the content's time is that of the last write before the damage was found.
    return [(path, datetime.fromtimestamp(path.lstat().st_ctime, UTC)) for path in sorted(found)]


def is_corrupt(error: sqlite3.Error) -> bool:
    """True if the error says that the file is damaged."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _move_if_corrupt(path: Path) -> Path | None:
    if not path.exists() or path.stat().st_size == 0:
        return None
    damage = _damage(path)
    if damage is None:
        return None
    aside = path.with_name(f"{path.name}{CORRUPT}{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    log.error("journal.corrupt", file=str(path), moved_to=str(aside), error=damage)
    return aside


def _damage(path: Path) -> str | None:
    """The damage of the file, if any. One that was closed in order is trusted: checking reads all of it."""
    try:
        with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA or connection.execute("SELECT 1 FROM marks WHERE key = ?", (CLEAN_KEY,)).fetchone():
                return None
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if is_corrupt(error):
            return str(error)
        raise
    return None if verdict == "ok" else str(verdict)
