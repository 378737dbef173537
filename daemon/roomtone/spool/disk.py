"""The file of a spool's open segment, and all that a spool does to a disk while it writes and reads."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from roomtone.files import sync_folder
from roomtone.spool.segment import SAMPLE_BYTES, Segment, name_segment

_CHUNK = 2**20

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def make_folder(folder: Path) -> None:
    """Make a spool's folder again if it was removed.

    Not the state folder itself: its disk may be absent, and another must not fill. Raises OSError.
    """
    if not folder.is_dir():
        log.error("spool.gone", folder=str(folder))
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


class Disk:
    """All accesses of the spool to a disk, in one place, where a test can inject the faults of real disks."""

    def create(self, path: Path) -> int:
        """A new file that only its owner may read, as a descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, file: int, audio: bytes, offset: int) -> None:
        """Write all of it or nothing: the rest of a failed write is cut off. Raises OSError."""
        rest, at = memoryview(audio), offset
        try:
            while rest:
                written = self.put(file, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            os.ftruncate(file, offset)
            raise

    def put(self, file: int, audio: memoryview, offset: int) -> int:
        """Write as much as the disk takes in one call. Returns bytes. Raises OSError."""
        return os.pwrite(file, audio, offset)

    def sync(self, file: int) -> None:
        """Durable when this returns. Raises OSError."""
        os.fdatasync(file)

    def sync_folder(self, folder: Path) -> None:
        """The names in the folder are durable when this returns. Raises OSError."""
        sync_folder(folder)

    def rename(self, path: Path, new: Path) -> None:
        """Give the file another name in its folder. Raises OSError."""
        path.rename(new)

    def has(self, file: int, path: Path) -> bool:
        """True if the path names this open file. Raises OSError."""
        try:
            return os.path.samestat(os.fstat(file), path.stat())
        except FileNotFoundError:
            return False

    def copy(self, file: int, path: Path) -> None:
        """A new file with the bytes of this open one, durable when this returns. Raises OSError."""
        target = self.create(path)
        try:
            offset = 0
            while sent := os.sendfile(target, file, offset, _CHUNK):
                offset += sent
            os.fdatasync(target)
        finally:
            os.close(target)

    def erase(self, path: Path, offset: int, size: int) -> None:
        """Overwrite `size` bytes with zeros, durable when this returns. Raises OSError."""
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            end = offset + size
            while offset < end:
                offset += os.pwrite(file, bytes(min(_CHUNK, end - offset)), offset)
            os.fdatasync(file)
        finally:
            os.close(file)

    def load(self, path: Path, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`. Raises OSError."""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


class OpenSegment:
    """The segment that is being written. `at` is the time of its first sample, by the best estimate so far."""

    def __init__(self, disk: Disk, path: Path, position: int, at: datetime, *, fresh: bool) -> None:
        self.path = path
        self.position = position
        self.at = at
        self.fresh = fresh
        self.samples = 0
        self._disk = disk
        self._dated = at
        self._file = disk.create(path)
        self._named = False
        self._synced = 0

    @property
    def end(self) -> int:
        return self.position + self.samples

    def segment(self) -> Segment:
        return Segment(self.position, self.samples, self.at, self.fresh, self.path)

    def write(self, audio: bytes) -> None:
        self._disk.write(self._file, audio, self.samples * SAMPLE_BYTES)

    def count(self, audio: bytes, at: datetime, rate: int) -> None:
        # Reads are late and never early: a block that implies an earlier beginning is more accurate.
        self.at = min(self.at, at - timedelta(seconds=self.samples / rate))
        self.samples += len(audio) // SAMPLE_BYTES

    def sync(self) -> None:
        """Make durable what is new, and the first time the name too."""
        samples = self.samples
        if samples > self._synced:
            self._disk.sync(self._file)
            self._synced = samples
        if not self._named:
            self._disk.sync_folder(self.path.parent)
            self._named = True

    def rename(self) -> None:
        """Give the file the name for the best estimate of its time.

        If the disk refuses, the segment keeps the time of its old name, because it is found by its name. A file that
        was removed meanwhile is written again: all of it is in the file that is still open.
        """
        path = self.path.with_name(name_segment(self.position, self.at, fresh=self.fresh))
        try:
            if not self._disk.has(self._file, self.path):
                make_folder(path.parent)
                self._disk.copy(self._file, path)
                log.warning("segment.restored", file=str(path))
            elif path != self.path:
                self._disk.rename(self.path, path)
            else:
                return
        except OSError:
            self.at = self._dated
            raise
        self.path, self._dated = path, self.at
        self._disk.sync_folder(path.parent)

    def close(self) -> None:
        os.close(self._file)

    def discard(self) -> None:
        """Remove the file: no sample could be written to it."""
        self.close()
        self.path.unlink(missing_ok=True)
