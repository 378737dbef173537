"""Compresses closed files with gzip, a little at a time: a day of lines must not hold up the next one."""

import gzip
import os
import time
from collections.abc import Generator, Iterable
from pathlib import Path

import structlog

from roomtone.durable import create_file, named, put_in_place, remove
from roomtone_jsonl.rotation import packed_name

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_SLICE_S = 0.5
"""Seconds of compression after a batch."""
_READ_BYTES = 2**18


class Packer:
    """Compresses files one after the other. A crash at any moment leaves the file, or its compressed form, or both.

    A failure is logged, and the file stays as it is until the sink is opened again: it is not a reason to stop writing.
    """

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._work: Generator[None, None, None] | None = None

    def add(self, files: Iterable[Path]) -> None:
        self._files.extend(files)

    def advance(self) -> None:
        """Compress for a moment."""
        until = time.monotonic() + _SLICE_S
        while self._files and time.monotonic() < until:
            self._work = self._work or _pack(self._files[0])
            try:
                next(self._work)
            except StopIteration:
                self._drop()
            except FileNotFoundError:  # another program has removed it
                self._drop()
            except OSError as error:
                log.warning("file.unpacked", path=str(self._files[0]), error=str(error))
                self._drop()

    def close(self) -> None:
        """Discard the half-done work: it is begun anew."""
        if self._files:
            self._drop()

    def interrupt(self) -> None:
        """Restart the current file later, because it is about to change."""
        self._leave()

    def _drop(self) -> None:
        del self._files[0]
        self._leave()

    def _leave(self) -> None:
        if self._work is not None:
            self._work.close()
        self._work = None


def _pack(path: Path) -> Generator[None, None, None]:
    packed = packed_name(path)
    new = packed.with_name(packed.name + ".new")
    try:
        with (
            path.open("rb") as source,
            named(new),
            os.fdopen(create_file(new), "wb") as file,
        ):
            # With the file's own time, so that the same file always has the same compressed form.
            with gzip.GzipFile(path.name, "wb", 6, file, mtime=os.fstat(source.fileno()).st_mtime) as target:
                while part := source.read(_READ_BYTES):
                    target.write(part)
                    yield
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    put_in_place(new, packed)
    remove(path)
    log.info("file.packed", path=str(packed))
