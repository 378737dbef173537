"""Sound that was forgotten and stands somewhere else too: a source may play the same again, and that stays.

So a piece of sound proves nothing by itself, and its place is asked for. In the spool each byte has its position. A
sink may say where in its files it keeps which positions. Anywhere else the piece is a remainder, unless it is known to
be recorded outside of what was forgotten: then the file may have it from there, and nothing in it tells.

Rejected: counting the pieces before and after. A file grows meanwhile, and by the same sound.
"""

import mmap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from roomtone.capture.segment import WIDTH, parse_segment

_STEP = 2**20


class Passage(NamedTuple):
    """Bytes of a file, from `first` up to `end`, in which nothing of it may be."""

    path: Path
    first: int
    end: int


class Spools(NamedTuple):
    """The rooms' audio below `folder`, and by room the positions that are forgotten."""

    folder: Path
    gone: Mapping[str, Sequence[tuple[int, int]]]

    def has(self, path: Path) -> bool:
        """Whether the file is a room's segment."""
        return path.parent.parent == self.folder and parse_segment(path, 0) is not None

    def segments(self) -> Iterator[Path]:
        """Every segment, the newest of each room first: what plays again has most often just done so."""
        for room in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            yield from (path for path in sorted(room.glob("*.pcm"), reverse=True) if self.has(path))

    def passages(self, path: Path) -> list[Passage]:
        """What of a segment is forgotten."""
        segment = parse_segment(path, path.stat().st_size)
        if segment is None:
            return []
        cut = (
            (max(start, segment.position), min(end, segment.end)) for start, end in self.gone.get(path.parent.name, ())
        )
        return [
            Passage(path, (start - segment.position) * WIDTH, (end - segment.position) * WIDTH)
            for start, end in cut
            if start < end
        ]


def has_any(passage: Passage, sounds: Iterable[bytes]) -> bool:
    """Whether any of these pieces, or a part of one, is in the passage. A file that is gone has nothing."""
    with _opened(passage.path) as data:
        return any(
            data[max(place, passage.first) : min(place + len(sound), passage.end)].strip(b"\0")
            for sound in sounds
            for place in _places(data, sound, passage.first - len(sound) + 1, passage.end + len(sound) - 1)
        )


def stands_outside(sounds: Iterable[bytes], spools: Spools, before: Iterable[Path], seconds: float) -> set[bytes]:
    """Which of these pieces are recorded outside of what was forgotten: in a segment, or in a file from `before` it.

    Those that are not found within so many seconds are taken for not recorded elsewhere.
    """
    ends = time.monotonic() + seconds
    left, found = set(sounds), set[bytes]()
    for path in (*spools.segments(), *before):
        if not left or time.monotonic() > ends:
            break
        try:
            passages = spools.passages(path) if spools.has(path) else []
            with _opened(path) as data:
                known = {sound for sound in left if _is_outside(data, sound, passages)}
        except FileNotFoundError:
            continue
        left -= known
        found |= known
    return found


def _is_outside(data: bytes | mmap.mmap, sound: bytes, passages: Sequence[Passage]) -> bool:
    return any(
        all(place + len(sound) <= one.first or place >= one.end for one in passages)
        for place in _places(data, sound, 0, len(data))
    )


def _places(data: bytes | mmap.mmap, sound: bytes, first: int, end: int) -> Iterator[int]:
    """Where the piece begins in these bytes, wholly inside of them."""
    place = data.find(sound, max(0, first), end)
    while place >= 0:
        yield place
        place = data.find(sound, place + 1, end)


@contextmanager
def _opened(path: Path) -> Iterator[bytes | mmap.mmap]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (FileNotFoundError, ValueError):  # gone, or empty
        yield b""
