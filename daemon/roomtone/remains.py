"""The proof of forgetting: nothing by which it would be known is found in any file.

It is known by the ids of its events, which are in the world only once, by longer texts, and by pieces of its audio.
Texts are said again and sounds are played again: what is found of those is only a suspicion (see `echoes.py`).
Compressed audio is not searched: it shows nothing of what it holds.
"""

import gzip
import json
import mmap
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

from roomtone.events import Analysis, Answer, Durable, Turn

T = TypeVar("T")

IDS = 24
TEXTS = 12
"""So many are looked for, spread over the stretch: each of them costs a reading of every file."""
TELLING = 24
"""Characters from which on a text is taken to be said only once."""
SLACK = timedelta(hours=1)
"""How much older than the stretch a file's time may be: clocks are set."""
PART = 2**22
SEALED = (".flac", ".opus")


class Needle(NamedTuple):
    """What is looked for. `text` is what it says, where somebody may have said it at another time too; `is_sound`: it
    is audio, which a source may give again.
    """

    data: bytes
    text: str = ""
    is_sound: bool = False


class Search(NamedTuple):
    """What was searched. `found` has the files in which something is left, and what; `sealed` counts those that show
    nothing. `is_whole`: there was time for all of it.
    """

    files: int
    size: int
    sealed: int
    found: Sequence[tuple[Path, Needle]]
    is_whole: bool


def needles(events: Sequence[Durable], sound: Sequence[bytes]) -> list[Needle]:
    """By what these events and pieces of audio would be known. Pure."""
    ids = [Needle(event.id.encode()) for event in _spread(events, IDS)]
    said = [event.text for event in events if isinstance(event, Turn | Answer | Analysis)]
    texts = [Needle(text.encode(), text) for text in map(_plain, _spread(said, TEXTS)) if len(text) >= TELLING]
    return [*ids, *texts, *(Needle(piece, is_sound=True) for piece in sound)]


def _spread(things: Sequence[T], most: int) -> Sequence[T]:
    return things[:: max(1, -(-len(things) // most))]


def _plain(text: str) -> str:
    """As it stands in JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def search(places: Iterable[Path], wanted: Sequence[Needle], since: datetime, seconds: float) -> Search:
    """Look into every file below the places that was written since then, for so many seconds at most.

    Files that go meanwhile are as good as searched. Errors: OSError of one that cannot be read.
    """
    ends = time.monotonic() + seconds
    files = size = sealed = 0
    found: list[tuple[Path, Needle]] = []
    for path in _files(places):
        try:
            status = path.stat()
            if _is_from_before(path, status.st_mtime, since):
                continue
            if time.monotonic() > ends:
                return Search(files, size, sealed, found, is_whole=False)
            if path.suffix in SEALED:
                sealed += 1
                continue
            found += [(path, needle) for needle in _in_file(path, wanted)]
        except FileNotFoundError:
            continue
        files, size = files + 1, size + status.st_size
    return Search(files, size, sealed, found, is_whole=True)


def files_from_before(places: Iterable[Path], since: datetime) -> Iterator[Path]:
    """The files below the places that `search` leaves out, for they were last written before the stretch began."""
    for path in _files(places):
        with suppress(FileNotFoundError):
            if _is_from_before(path, path.stat().st_mtime, since):
                yield path


def _is_from_before(path: Path, written: float, since: datetime) -> bool:
    # A database is written through its log, or by way of memory: its time tells nothing.
    return written < (since - SLACK).timestamp() and ".sqlite" not in path.name


def _files(places: Iterable[Path]) -> Iterator[Path]:
    """Each file once, however the places overlap."""
    seen = set[Path]()
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and not path.is_symlink() and (real := path.resolve()) not in seen:
                seen.add(real)
                yield path


def _in_file(path: Path, wanted: Sequence[Needle]) -> set[Needle]:
    if path.stat().st_size == 0:
        return set()
    if path.suffix == ".gz":
        return _in_packed(path, wanted)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {needle for needle in wanted if data.find(needle.data) >= 0}


def _in_packed(path: Path, wanted: Sequence[Needle]) -> set[Needle]:
    """A part at a time, with as much of the one before as a needle may begin in."""
    longest = max((len(needle.data) for needle in wanted), default=0)
    found, held = set[Needle](), b""
    try:
        with gzip.open(path) as file:
            while part := file.read(PART):
                held = held[-longest:] + part
                found |= {needle for needle in wanted if needle.data in held}
    except (gzip.BadGzipFile, EOFError, zlib.error):  # no file of ours, or one that is just being written
        pass
    return found
