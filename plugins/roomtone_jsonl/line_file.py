"""A file of lines that is whole after any crash, and that other programs may rename or delete at any time.

Each batch opens the file by its path and closes it. So if logrotate has renamed the file, the next batch begins a new
one, without signals and without comparing inodes.
"""

import errno
import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from roomtone import Forgotten
from roomtone.descriptors import kept_from_forks
from roomtone.durable import make_folder, named, open_file, sync_folder
from roomtone_jsonl.forgetting import family, kept, rewrite, turns_among, turns_in
from roomtone_jsonl.packer import Packer
from roomtone_jsonl.rotation import JsonLine, Rotate, closed_name, fitting, is_closed, time_of

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAX_TAIL_BYTES = 8 * 2**20
"""Bytes at the end of the file that are read when the sink opens."""
MAX_KNOWN_IDS = 2_000
"""Lines of the tail whose ids are remembered: two of the delivery's batches."""


class _Id(msgspec.Struct):
    id: str = ""


class LineFile:
    """The end of one growing file, and its closed files.

    Opening repairs it: a last line that a crash tore was never acknowledged, so it is removed, and comes again.
    The ids of the last lines are remembered, so that a batch that was written but not acknowledged is not written
    twice. Rejected: comparing sequence numbers, which restart with a new journal, whose events would be left out.

    Errors: OSError that names the file, from every method but `add`.
    """

    def __init__(
        self, path: Path, rotate: Rotate = "never", *, packer: Packer | None = None, sync: bool = True
    ) -> None:
        """Repair the file at `path`. With a packer, closed files are compressed; without `sync`, the system decides
        when lines get to the disk.
        """
        self._path = path
        self._rotate: Rotate = rotate
        self._packer = packer
        self._sync = sync
        self._pending: list[JsonLine] = []
        with _opened(path) as file:
            ids = _repair(file)
        sync_folder(path.parent)
        self._last = ids[-1] if ids else None
        self._closed = _closed(path) if rotate != "never" or packer else []
        self._written = frozenset(_with_closed(ids, self._closed))

    def add(self, id_: str, line: bytes) -> None:
        """Keep the line for the next `write`, unless the file has it already. A batch bounds their number."""
        if id_ not in self._written:
            self._pending.append(JsonLine(id_, line))

    def write(self) -> None:
        """Append the kept lines and wait until they are on the disk. On failure they stay for the next attempt."""
        if self._packer:
            self._packer.advance()
        is_new = bool(self._pending)
        while self._pending:
            self._append()
        if self._packer and is_new:
            # From the next batch on: its coming means that this one was acknowledged, with everything before it. A file
            # whose lines may come again stays uncompressed, for its ids are read when the sink opens.
            self._packer.add(reversed(self._closed))
            self._closed = []

    def forget(self, forgotten: Forgotten) -> None:
        """Remove every line of the forgotten stretch: from the kept lines, from the file, and from its closed files.

        Each file is replaced as a whole; after a crash the event comes again, and so does this.
        """
        if self._packer:
            self._packer.interrupt()
        # An answer may stand in another file than its turn.
        files = family(self._path)
        turns = turns_among(self._pending, forgotten).union(*(turns_in(path, forgotten) for path in files))
        self._pending = kept(self._pending, forgotten, turns)
        for path in files:
            rewrite(path, forgotten, turns)

    def _append(self) -> None:
        """Write the lines that fit into the file, or close it."""
        with _opened(self._path) as file:
            size = os.fstat(file.fileno()).st_size
            count = fitting(self._pending, size, self._last, self._rotate)
            if not count:
                self._close(file)
                return
            _write(file, b"".join(line.text + b"\n" for line in self._pending[:count]), sync=self._sync)
            if os.fstat(file.fileno()).st_nlink == 0:
                raise OSError(errno.ENOENT, "The file was deleted while it was written")
        self._last = self._pending[count - 1].id
        del self._pending[:count]

    def _close(self, file: io.FileIO) -> None:
        """Give the file its final name. The next line begins another."""
        os.fsync(file.fileno())
        at = time_of(self._last or "") or _written(file)
        name = closed_name(self._path, at, self._rotate)
        self._path.rename(name)
        sync_folder(self._path.parent)
        self._closed.insert(0, name)
        log.info("file.closed", path=str(name))


def _written(file: io.FileIO) -> datetime:
    """The time of the last write, limited to the range of a datetime."""
    return datetime.fromtimestamp(min(max(0.0, os.fstat(file.fileno()).st_mtime), 253_402_300_799.0), UTC)


def _closed(path: Path) -> list[Path]:
    """The closed files that are not compressed, the newest first."""
    with os.scandir(path.parent) as entries:
        found = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if is_closed(entry.name, path)]
    return [path.with_name(name) for _, name in sorted(found, reverse=True)]


def _with_closed(ids: Sequence[str], closed: Iterable[Path]) -> list[str]:
    """The ids of the last lines of all files, as many as can come again."""
    known = list(ids)
    for path in closed:
        if len(known) >= MAX_KNOWN_IDS:
            break
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_TAIL_BYTES))
            known.extend(_ids(file.read()))
    return known


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """The file, made if missing, for reading and appending. An OSError inside gets the file's name."""
    make_folder(path.parent)
    with named(path):
        is_new = not path.exists()
        with io.FileIO(open_file(path, os.O_APPEND | os.O_CREAT), "r+") as file, kept_from_forks(file.fileno()):
            with suppress(OSError):  # a file system without locks
                # `roomtone sinks test` opens it too, and would remove, as torn, a line that is just being written.
                fcntl.flock(file, fcntl.LOCK_EX)
            if is_new:
                sync_folder(path.parent)
            yield file


def _write(file: io.FileIO, data: bytes, *, sync: bool = True) -> None:
    """Append and wait for the disk. On failure the file gets its former length: after a failed fsync the kernel takes
    the lost pages for written, so those lines must not be found here when they come again.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        if sync:
            os.fsync(file.fileno())
    except OSError:
        file.truncate(size)
        raise


def _repair(file: io.FileIO) -> list[str]:
    """Cut the file after its last whole line, make it durable, and return the ids of the last lines."""
    size = file.seek(0, os.SEEK_END)
    begin = max(0, size - MAX_TAIL_BYTES)
    file.seek(begin)
    whole, _, torn = file.readall().rpartition(b"\n")
    if _parsed(torn) is not None:  # whole but for its newline: an editor leaves files like this
        _write(file, b"\n")
        whole += b"\n" + torn
    elif torn:
        # A power cut can leave zeros, and data after them; anything else is foreign and must not be removed.
        if torn.strip(b"\0")[:1] not in (b"", b"{") or (begin and not whole):
            raise OSError(
                errno.EINVAL, "The file does not end in lines of JSON: move it away, or set path to another file"
            )
        file.truncate(size - len(torn))
    os.fsync(file.fileno())  # lines that a killed daemon wrote and never synced are skipped from now on
    return _ids(whole)


def _ids(whole: bytes) -> list[str]:
    """The ids of the last lines, in order."""
    lines = map(_parsed, whole.split(b"\n")[-MAX_KNOWN_IDS:])
    return [line.id for line in lines if line is not None and line.id]


def _parsed(line: bytes) -> _Id | None:
    try:
        return msgspec.json.decode(line, type=_Id)
    except msgspec.DecodeError:
        return None
