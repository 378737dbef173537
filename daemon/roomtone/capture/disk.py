"""The file of a spool's open segment, and all that a spool does to a disk while it writes and reads."""

import os
from datetime import datetime, timedelta
from pathlib import Path

from roomtone.capture.segment import WIDTH, Segment, name_segment
from roomtone.files import sync_folder

_CHUNK = 2**20


class Disk:
    """What the spool does to a disk: the only door, through which a test lets in the faults of real disks."""

    def create(self, path: Path) -> int:
        """A new file that only its owner may read, as a descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, file: int, audio: bytes, offset: int) -> None:
        """All of it or nothing: what a failed write has left is cut off again. Raises OSError."""
        rest, at = memoryview(audio), offset
        try:
            while rest:
                written = self.put(file, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            os.ftruncate(file, offset)
            raise

    def put(self, file: int, audio: memoryview, offset: int) -> int:
        """As much of it as the disk takes at once, in bytes. Raises OSError."""
        return os.pwrite(file, audio, offset)

    def sync(self, file: int) -> None:
        """Durable when this returns. Raises OSError."""
        os.fdatasync(file)

    def sync_folder(self, folder: Path) -> None:
        """The names in the folder are durable when this returns. Raises OSError."""
        sync_folder(folder)

    def erase(self, path: Path, offset: int, size: int) -> None:
        """Zeros in the place of so many bytes, durable when this returns. Raises OSError."""
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


class Sheet:
    """The segment that is being written. `at` is the time of its first sample, as the newest block tells it."""

    def __init__(self, disk: Disk, path: Path, position: int, at: datetime, *, fresh: bool) -> None:
        self.path = path
        self.position = position
        self.at = at
        self.fresh = fresh
        self.samples = 0
        self._disk = disk
        self._file = disk.create(path)
        self._named = False
        self._synced = 0

    @property
    def end(self) -> int:
        return self.position + self.samples

    def segment(self) -> Segment:
        return Segment(self.position, self.samples, self.at, self.fresh, self.path)

    def write(self, audio: bytes) -> None:
        self._disk.write(self._file, audio, self.samples * WIDTH)

    def count(self, audio: bytes, at: datetime, rate: int) -> None:
        # Reads are late and never early: a block that implies an earlier beginning knows better.
        self.at = min(self.at, at - timedelta(seconds=self.samples / rate))
        self.samples += len(audio) // WIDTH

    def sync(self) -> None:
        """Make durable what is new, and after the first time the name too."""
        samples = self.samples
        if samples > self._synced:
            self._disk.sync(self._file)
            self._synced = samples
        if not self._named:
            self._disk.sync_folder(self.path.parent)
            self._named = True

    def rename(self) -> None:
        """Give the file the name that the best knowledge of its time asks for."""
        path = self.path.with_name(name_segment(self.position, self.at, fresh=self.fresh))
        if path != self.path:
            self.path.rename(path)
            self.path = path
            self._disk.sync_folder(path.parent)

    def close(self) -> None:
        os.close(self._file)

    def discard(self) -> None:
        """Leave nothing of a sheet that no sample could be written to."""
        self.close()
        self.path.unlink(missing_ok=True)
