"""Takes lines out of files of lines, those that are closed, packed, or renamed by somebody else included."""

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
"""How much older than what is forgotten a file's time may be: clocks are set, and copies keep the time of a file."""
_TELLING = (b'"turn"', b'"answer"', b'"analysis"', b'"notice"')
"""What a line has in it that may have to go; others are not even parsed."""


def family(path: Path) -> list[Path]:
    """The file, and those beside it that it was before, by our names or by those that logrotate gives."""
    names = (f"{path.name}*", f"{path.stem}-*{path.suffix}*")
    return sorted({found for name in names for found in path.parent.glob(name) if found.is_file()})


def turns_in(path: Path, forgotten: Forgotten) -> set[tuple[str, int]]:
    """The turns that go, as far as this file tells. Errors: OSError that names the file."""
    if path.suffix == ".new" or _is_older(path, forgotten):
        return set()
    with _reading(path) as lines:
        return spoken_in(forgotten, (event for line in lines if (event := _event(line)) is not None))


def turns_among(lines: Iterable[JsonLine], forgotten: Forgotten) -> set[tuple[str, int]]:
    """The turns that go, as far as these lines tell. Pure."""
    return spoken_in(forgotten, (event for line in lines if (event := _event(line.text)) is not None))


def kept(lines: Iterable[JsonLine], forgotten: Forgotten, turns: set[tuple[str, int]]) -> list[JsonLine]:
    """The lines that tell nothing of it, nor of these turns. Pure."""
    return [line for line in lines if not _tells(line.text, forgotten, turns)]


def rewrite(path: Path, forgotten: Forgotten, turns: set[tuple[str, int]]) -> None:
    """Put a file without those lines in the place of this one, if it has any. Errors: OSError that names the file.

    What a crash has left half written goes: it may have some of them too.
    """
    if path.suffix == ".new":
        remove(path)
        return
    if _is_older(path, forgotten):
        return
    with _reading(path) as lines:
        if not any(_tells(line, forgotten, turns) for line in lines):
            return
    new = path.with_name(path.name + ".new")
    with named(new), os.fdopen(create_file(new), "wb") as file, _reading(path) as lines, _writing(path, file) as target:
        for line in lines:
            if not _tells(line, forgotten, turns):
                target.write(line)
    put_in_place(new, path)


def _is_older(path: Path, forgotten: Forgotten) -> bool:
    """Whether it was written for the last time before any of it was said."""
    return path.stat().st_mtime < forgotten.from_.timestamp() - _MTIME_TOLERANCE.total_seconds()


def _tells(line: bytes, forgotten: Forgotten, turns: set[tuple[str, int]]) -> bool:
    event = _event(line)
    return event is not None and (forgotten.covers(event) or turn_of(event) in turns)


def _event(line: bytes) -> Durable | None:
    """The event in the line, if it may have to go."""
    if not any(word in line for word in _TELLING):
        return None
    try:
        return decode(line.strip())
    except (msgspec.DecodeError, UnicodeDecodeError):  # no line of ours, or of a newer version
        return None


@contextmanager
def _reading(path: Path) -> Iterator[Iterable[bytes]]:
    with gzip.open(path, "rb") if _is_packed(path) else path.open("rb") as file:
        yield file


@contextmanager
def _writing(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """What is written is durable when the context ends, packed if the file is."""
    if _is_packed(path):
        with gzip.GzipFile(path.name.removesuffix(".gz"), "wb", 6, file, mtime=path.stat().st_mtime) as packed:
            yield packed  # type: ignore[misc]  # it is one in all that is used here
    else:
        yield file
    file.flush()
    os.fsync(file.fileno())


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"
