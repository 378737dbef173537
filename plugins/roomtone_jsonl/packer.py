"""Packs files that are closed with gzip, a little at a time: a day of lines must not hold up the next one."""

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
"""Seconds of packing after a batch."""
_READ_BYTES = 2**18


class Packer:
    """Files to pack, one after the other. A crash at any moment leaves the file, or its packed form, or both.

    What the disk refuses is logged and left as it is until the sink is opened again: packing is no reason to stop
    writing.
    """

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._work: Generator[None, None, None] | None = None

    def add(self, files: Iterable[Path]) -> None:
        self._files.extend(files)

    def advance(self) -> None:
        """Go on for a moment."""
        until = time.monotonic() + _SLICE_S
        while self._files and time.monotonic() < until:
            self._work = self._work or _pack(self._files[0])
            try:
                next(self._work)
            except StopIteration:
                self._drop()
            except FileNotFoundError:  # somebody has taken it away
                self._drop()
            except OSError as error:
                log.warning("file.unpacked", path=str(self._files[0]), error=str(error))
                self._drop()

    def close(self) -> None:
        """Leave what is half done: it is begun anew."""
        if self._files:
            self._drop()

    def interrupt(self) -> None:
        """Begin anew with the file that is being packed, for it is about to change."""
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
            # With the file's own time and without a level that costs more than it saves, the same file packs the same.
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
