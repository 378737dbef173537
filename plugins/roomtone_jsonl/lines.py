"""A file of lines that is whole after any crash, and that somebody else may rename or delete at any time.

No handle outlives a batch. The file is opened by its path for each, so a file that logrotate took away is left to it
and the next batch begins a new one: no signal is needed, and no inode is compared.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from roomtone.durable import make_folder, sync_folder

TAIL = 8 * 2**20
"""Bytes at the end of the file that are read when it is opened first."""
KNOWN = 2_000
"""Lines of the tail whose ids are remembered: two of the delivery's batches."""


class _Line(msgspec.Struct):
    id: str = ""


class Lines:
    """The growing end of one file.

    Opening repairs it: a last line that a crash tore was never acknowledged, so it goes, and comes again.
    The ids of the last lines are remembered, so that a batch that was written but not acknowledged is not written
    twice. Ids are compared and not sequence numbers: those begin again with a new journal, whose events would be left
    out for ever.

    Errors: OSError that names the file, from every method but `add`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[bytes] = []
        with _opened(path) as file:
            self._written = _repair(file)
        sync_folder(path.parent)

    def add(self, id_: str, line: bytes) -> None:
        """Keep the line for the next `write`, unless the file has it already. A batch of the delivery is the bound."""
        if id_ not in self._written:
            self._pending.append(line)

    def write(self) -> None:
        """Append what was added and wait until it is on the disk. Where that fails, it stays for the next try."""
        if not self._pending:
            return
        with _opened(self._path) as file:
            _write(file, b"".join(line + b"\n" for line in self._pending))
            if os.fstat(file.fileno()).st_nlink == 0:
                raise OSError(errno.ENOENT, "The file was deleted while it was written")
        self._pending = []


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """The file, made where it is missing, to read and to append to. An OSError inside gets the file's name."""
    try:
        make_folder(path.parent)
        is_new = not path.exists()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        with io.FileIO(os.open(path, flags, 0o600), "r+") as file:
            _check(file)
            if is_new:
                sync_folder(path.parent)
            yield file
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check(file: io.FileIO) -> None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError(errno.EINVAL, "The path must name a regular file")


def _write(file: io.FileIO, data: bytes) -> None:
    """Append and wait for the disk. What fails leaves the file as long as it was: after a failed fsync the kernel takes
    the lost pages for written, so those lines must not be found here when they come again.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(size)
        raise


def _repair(file: io.FileIO) -> frozenset[str]:
    """End the file with its last whole line, make all of it durable, and return the ids of the last lines."""
    size = file.seek(0, os.SEEK_END)
    begin = max(0, size - TAIL)
    file.seek(begin)
    whole, _, torn = file.readall().rpartition(b"\n")
    if _parsed(torn) is not None:  # whole but for its newline: an editor leaves files like this
        _write(file, b"\n")
        whole += b"\n" + torn
    elif torn:
        # A power cut can leave zeros, and what follows them; anything else is not ours to cut off.
        if torn.strip(b"\0")[:1] not in (b"", b"{") or (begin and not whole):
            raise OSError(errno.EINVAL, "The file does not end in lines of JSON: move it away, or name another in path")
        file.truncate(size - len(torn))
    os.fsync(file.fileno())  # a batch that a killed daemon wrote and never synced is skipped from here on
    lines = map(_parsed, whole.split(b"\n")[-KNOWN:])
    return frozenset(line.id for line in lines if line is not None and line.id)


def _parsed(line: bytes) -> _Line | None:
    try:
        return msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError:
        return None
