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
from roomtone.durable import PRIVATE, put_in_place, remove
from roomtone.events import decode, spoken_in, turn_of
from roomtone_jsonl.rotation import Line

_SLACK = timedelta(days=1)
"""How much older than what is forgotten a file's time may be: clocks are set, and copies keep the time of a file."""
_TELLING = (b'"turn"', b'"answer"', b'"analysis"')
"""What a line has in it that may have to go; others are not even parsed."""


def family(path: Path) -> list[Path]:
    """The file, and those beside it that it was before, by our names or by those that logrotate gives."""
    names = (f"{path.name}*", f"{path.stem}-*{path.suffix}*")
    return sorted({found for name in names for found in path.parent.glob(name) if found.is_file()})


def kept(lines: Iterable[Line], forgotten: Forgotten) -> list[Line]:
    """The lines that tell nothing of it. Pure."""
    lines = list(lines)
    known = {line: event for line in lines if (event := _event(line.text)) is not None}
    turns = spoken_in(forgotten, known.values())
    return [line for line in lines if line not in known or not _tells(known[line], forgotten, turns)]


def rewrite(path: Path, forgotten: Forgotten) -> None:
    """Put a file without those lines in the place of this one, if it has any. Errors: OSError that names the file.

    What a crash has left half written goes: it may have some of them too.
    """
    if path.suffix == ".new":
        remove(path)
        return
    if path.stat().st_mtime < (forgotten.from_ - _SLACK).timestamp():
        return
    with _reading(path) as lines:
        events = (event for line in lines if (event := _event(line)) is not None)
        gone = [event for event in events if forgotten.covers(event)]
    if not gone:
        return
    turns = spoken_in(forgotten, gone)
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE)
    with os.fdopen(descriptor, "wb") as file, _reading(path) as lines, _writing(path, file) as target:
        for line in lines:
            event = _event(line)
            if event is None or not _tells(event, forgotten, turns):
                target.write(line)
    put_in_place(new, path)


def _tells(event: Durable, forgotten: Forgotten, turns: set[tuple[str, int]]) -> bool:
    return forgotten.covers(event) or turn_of(event) in turns


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
