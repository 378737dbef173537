"""Files that survive a power cut: for the bundled sinks, and for plugin authors whose sink keeps files or a database.

A file is durable when its bytes and its name are: fsync of a file says nothing of the folder that names it.
Everything is for the daemon's user only, whatever the umask: files 0600, folders 0700. Where others may write in the
folder, what they have put there is not written to: see `files.py`.
Errors: OSError that names the file or folder, from all of these.
"""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import structlog

from roomtone.descriptors import kept_from_forks
from roomtone.files import PRIVATE, create_file, named, open_file, sync_folder

__all__ = [
    "PRIVATE",
    "SPOILED",
    "alone",
    "append",
    "create_file",
    "make_folder",
    "named",
    "open_file",
    "open_sqlite",
    "put_in_place",
    "remove",
    "replace",
    "scrub",
    "sync_folder",
]

SPOILED = ".spoiled"
"""The ending of a database that was put aside."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def make_folder(folder: Path) -> None:
    """Make the folder and its parents where they are missing."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def make_writable_folder(folder: Path, key: str) -> None:
    """Make the folder where it is missing, for a sink's `key` that names it. An OSError says what to do."""
    hint = f"{key} must be a folder that the daemon can write (its user, and ReadWritePaths= under systemd)"
    try:
        make_folder(folder)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {hint}", str(folder)) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, hint, str(folder))


def replace(path: Path, data: bytes) -> None:
    """Put a file with these bytes in the place of what is there: readers and crashes see the old or the new, whole."""
    new = path.with_name(path.name + ".new")
    with named(new), os.fdopen(create_file(new), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(new, path)


def create_private(path: Path) -> None:
    """Make the file, for this user only, where it is missing. One that is there is not even opened: closing it would
    drop the locks that a database of this process has on it (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))


def append(path: Path, data: bytes, *, size: int) -> bool:
    """Put these bytes behind the `size` bytes of the file. False: it has not as many, or is gone; nothing was written.

    A full disk leaves it as it was. A power cut may leave some of the bytes: the caller knows the size that counts.
    """
    with suppress(FileNotFoundError), named(path), os.fdopen(open_file(path), "r+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END) != size:
            return False
        try:
            written = file.write(data)
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
        return True
    return False


def put_in_place(new: Path, path: Path) -> None:
    """Give the finished file, whose bytes are durable, the name that it is for."""
    new.replace(path)
    sync_folder(path.parent)


def remove(path: Path) -> int:
    """Remove the file and return its size in bytes: 0 for one that is not there."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    sync_folder(path.parent)
    return size


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """True if no other process is in this context with this file, which is made where it is missing. It ends with the
    process too.

    `roomtone sinks test` opens a sink beside the daemon's: work that two processes must not do concurrently asks here.
    """
    descriptor = open_file(path, os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            with kept_from_forks(descriptor):
                yield True
    finally:
        os.close(descriptor)


@contextmanager
def open_sqlite(path: Path, tables: str) -> Iterator[sqlite3.Connection]:
    """The database in this file, made where it is missing, with these tables (`CREATE TABLE IF NOT EXISTS ...`).

    What is committed survives a power cut, and what is deleted is zeros in the file; `scrub` takes it from the log too.
    Hooks come from one worker thread at a time, not always the same one: each may use the connection. Changes that
    are not committed when the context is left are lost.

    A file that the disk has spoiled is put aside, with the ending `.spoiled`, and a new one begun: immediately where
    opening shows it, else when the context is left with SQLite's error, so that a sink goes on when it is opened again.
    """
    database = _connect(path, tables)
    try:
        with closing(database):
            yield database
    except BaseException as error:
        if (damage := _damage(error)) is not None:
            _put_aside(path, damage)
        raise


def scrub(database: sqlite3.Connection) -> None:
    """Commit, and leave nothing in the log of what was deleted. Errors: OSError where another program reads it."""
    database.commit()
    busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        (_, _, path), *_ = database.execute("PRAGMA database_list").fetchall()
        raise OSError(f"another program is reading {path}, so it cannot be scrubbed")


def _connect(path: Path, tables: str) -> sqlite3.Connection:
    try:
        try:
            return _prepared(path, tables)
        except sqlite3.DatabaseError as error:
            if _damage(error) is None:
                raise
            _put_aside(path, error)
            return _prepared(path, tables)
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error


def _prepared(path: Path, tables: str) -> sqlite3.Connection:
    create_private(path)  # SQLite gives its log the mode of the file
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in free pages of the file
        database.executescript(tables)
    except BaseException:
        database.close()
        raise
    return database


def _damage(error: BaseException) -> sqlite3.Error | None:
    """The error in it, or in a group, by which SQLite says that the file is damaged."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _damage(each)) is not None), None)
    if not isinstance(error, sqlite3.Error):
        return None
    # Errors of the library's own, such as a closed connection, have no code.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return error if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} else None


def _put_aside(path: Path, error: sqlite3.Error) -> None:
    """Only the last one is kept. Its log goes with it: SQLite would take the new file for the one it belongs to."""
    aside = path.with_suffix(SPOILED)
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).replace(aside.with_name(aside.name + end))
    sync_folder(path.parent)
    log.warning("database.spoiled", path=str(path), aside=str(aside), error=str(error))
