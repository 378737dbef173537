"""Removes forgotten lines from files, including closed, compressed, and externally renamed ones."""

import gzip
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import msgspec

from roomtone import Durable, Forgotten
from roomtone.durable import create_file, named, put_in_place, remove
from roomtone.events import decode, spoken_in, turn_of
from roomtone_jsonl.rotation import JsonLine

_MTIME_TOLERANCE = timedelta(days=1)
"""A file may seem this much older than it is: clocks are set, and copies keep the time of a file."""
_REMOVABLE = (b'"turn"', b'"answer"', b'"analysis"', b'"notice"')
"""A line that may have to be removed contains one of these; others are not parsed."""


def family(path: Path) -> list[Path]:
    """The file and its rotated ones beside it, by the names of this sink or of logrotate."""
    names = (f"{path.name}*", f"{path.stem}-*{path.suffix}*")
    return sorted({found for name in names for found in path.parent.glob(name) if found.is_file()})


def turns_in(path: Path, forgotten: Forgotten) -> set[tuple[str, int]]:
    """The forgotten turns in this file. Errors: OSError that names the file."""
    if path.suffix == ".new" or _is_older(path, forgotten):
        return set()
    with _reading(path) as lines:
        return spoken_in(forgotten, (event for line in lines if (event := _event(line)) is not None))


def turns_among(lines: Iterable[JsonLine], forgotten: Forgotten) -> set[tuple[str, int]]:
    """The forgotten turns among these lines. Pure."""
    return spoken_in(forgotten, (event for line in lines if (event := _event(line.text)) is not None))


def kept(lines: Iterable[JsonLine], forgotten: Forgotten, turns: set[tuple[str, int]]) -> list[JsonLine]:
    """The lines that are neither in the forgotten stretch nor about these turns. Pure."""
    return [line for line in lines if not _is_forgotten(line.text, forgotten, turns)]


def rewrite(path: Path, forgotten: Forgotten, turns: set[tuple[str, int]]) -> None:
    """Replace the file by one without the forgotten lines, if it has any. Errors: OSError that names the file.

    A half-written file that a crash has left is removed: it may contain such lines too.
    """
    if path.suffix == ".new":
        remove(path)
        return
    if _is_older(path, forgotten):
        return
    with _reading(path) as lines:
        if not any(_is_forgotten(line, forgotten, turns) for line in lines):
            return
    new = path.with_name(path.name + ".new")
    with named(new), os.fdopen(create_file(new), "wb") as file, _reading(path) as lines, _writing(path, file) as target:
        for line in lines:
            if not _is_forgotten(line, forgotten, turns):
                target.write(line)
    put_in_place(new, path)


def _is_older(path: Path, forgotten: Forgotten) -> bool:
    """True if the last write to the file was before the forgotten stretch."""
    return path.stat().st_mtime < forgotten.from_.timestamp() - _MTIME_TOLERANCE.total_seconds()


def _is_forgotten(line: bytes, forgotten: Forgotten, turns: set[tuple[str, int]]) -> bool:
    event = _event(line)
    return event is not None and (forgotten.covers(event) or turn_of(event) in turns)


def _event(line: bytes) -> Durable | None:
    """The event in the line, if it may have to be removed."""
    if not any(word in line for word in _REMOVABLE):
        return None
    try:
        return decode(line.strip())
    except (msgspec.DecodeError, UnicodeDecodeError):  # a foreign line, or of a newer version
        return None


@contextmanager
def _reading(path: Path) -> Iterator[Iterable[bytes]]:
    with gzip.open(path, "rb") if _is_packed(path) else path.open("rb") as file:
        yield file


@contextmanager
def _writing(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """A target whose data is durable when the context ends, compressed if the file at `path` is."""
    if _is_packed(path):
        with gzip.GzipFile(path.name.removesuffix(".gz"), "wb", 6, file, mtime=path.stat().st_mtime) as packed:
            yield packed  # type: ignore[misc]  # it has the methods that are used here
    else:
        yield file
    file.flush()
    os.fsync(file.fileno())


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"
