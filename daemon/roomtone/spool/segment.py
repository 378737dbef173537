"""Segments: a room's audio on disk, named so that the folder alone can be recovered, and the index of them.

A segment is a file of 16-bit little-endian mono, without a header, named after the position and the UTC of its first
sample: `0000000000480000_20261122T140000.000000Z.pcm`, with `_fresh` before the suffix when time without a source lies
directly before it. Everything that recovery needs is in the name and the size.

Rejected: WAV (its header is wrong until the file is closed) and one database of audio (a torn page loses more than a
torn sample).
"""

import os
import re
import stat
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

SPOOL_FOLDER = "spool"
"""The folder of the spools in the state folder."""
SAMPLE_BYTES = 2
"""Bytes of one sample."""

_NAME = re.compile(r"(\d{16,19})_(\d{8}T\d{6}\.\d{6})Z(_fresh)?\.pcm", re.ASCII)
_TIME = "%Y%m%dT%H%M%S.%f"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Segment(NamedTuple):
    """`samples` of audio from `position`, the first of them taken `at` (UTC), in the file `path`.

    `fresh`: time without a source lies directly before it.
    """

    position: int
    samples: int
    at: datetime
    fresh: bool
    path: Path

    @property
    def end(self) -> int:
        """The position after the last sample."""
        return self.position + self.samples

    def when(self, position: int, rate: int) -> datetime:
        """UTC of the sample at `position`, by this segment's own time, at `rate` Hz."""
        return self.at + timedelta(seconds=(position - self.position) / rate)


def name_segment(position: int, at: datetime, *, fresh: bool) -> str:
    """The file name of a segment."""
    return f"{position:016d}_{at.astimezone(UTC).strftime(_TIME)}Z{'_fresh' if fresh else ''}.pcm"


def parse_segment(path: Path, size: int) -> Segment | None:
    """The segment that a file of `size` bytes is, without a torn last byte; None for any other file."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        at = datetime.strptime(match[2], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Segment(int(match[1]), size // SAMPLE_BYTES, at, bool(match[3]), path)


def recover_segments(folder: Path) -> list[Segment]:
    """The folder's segments, ordered by position. Makes the folder (0700) if it is missing.

    A torn last byte is cut off, empty segments are removed, other files are left alone. Of two segments that overlap,
    which we never write, the earlier one counts up to the beginning of the later one.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found: list[Segment] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # retention may remove segments of a room that is just being opened
                status = entry.stat(follow_symlinks=False)
                segment = parse_segment(Path(entry.path), status.st_size) if stat.S_ISREG(status.st_mode) else None
                if segment is not None and _repair(segment, status.st_size):
                    found.append(segment)
    found.sort()
    for place, after in enumerate(found[1:]):
        found[place] = found[place]._replace(samples=min(found[place].samples, after.position - found[place].position))
    return [segment for segment in found if segment.samples]


def _repair(segment: Segment, size: int) -> bool:
    """Make the file match its segment. False if nothing is left of it."""
    if segment.samples == 0:
        log.info("segment.removed", file=segment.path.name, reason="empty")
        segment.path.unlink()
    elif size % SAMPLE_BYTES:
        log.info("segment.truncated", file=segment.path.name, bytes=size % SAMPLE_BYTES)
        os.truncate(segment.path, segment.samples * SAMPLE_BYTES)
    return segment.samples > 0


class Index:
    """The closed segments of one folder, ordered by position. 25 bytes each, so that a year of them costs 26 MB."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._positions = array("q")
        self._samples = array("q")
        self._times = array("q")
        self._fresh = bytearray()

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, place: int) -> Segment:
        position, at = self._positions[place], _EPOCH + self._times[place] * _MICROSECOND
        fresh = bool(self._fresh[place])
        path = self._folder / name_segment(position, at, fresh=fresh)
        return Segment(position, self._samples[place], at, fresh, path)

    def __iter__(self) -> Iterator[Segment]:
        return (self[place] for place in range(len(self)))

    @property
    def samples(self) -> int:
        """The number of samples of all segments."""
        return sum(self._samples)

    def add(self, segment: Segment) -> None:
        """Append a segment that begins where the last one ends, or later."""
        if self._positions and segment.position < self._positions[-1] + self._samples[-1]:
            raise ValueError(f"{segment.path.name} would give positions to other audio")
        self._positions.append(segment.position)
        self._samples.append(segment.samples)
        self._times.append((segment.at - _EPOCH) // _MICROSECOND)
        self._fresh.append(segment.fresh)

    def remove(self, position: int) -> bool:
        """Forget the segment that begins at `position`. False if there is none."""
        place = bisect_right(self._positions, position) - 1
        if place < 0 or self._positions[place] != position:
            return False
        for column in (self._positions, self._samples, self._times, self._fresh):
            del column[place]
        return True

    def place(self, position: int) -> int:
        """The number of segments that begin before `position`: the place of the first that does not."""
        return bisect_left(self._positions, position)

    def before(self, position: int) -> Segment | None:
        """The last segment that begins at or before `position`."""
        place = bisect_right(self._positions, position) - 1
        return self[place] if place >= 0 else None

    def after(self, position: int) -> Segment | None:
        """The segment with the first recorded sample at or after `position`."""
        place = max(bisect_right(self._positions, position) - 1, 0)
        if place < len(self) and self._positions[place] + self._samples[place] <= position:
            place += 1
        return self[place] if place < len(self) else None


def list_segments(folder: Path) -> list[Segment]:
    """The segments of a room that is closed, by position. Changes nothing."""
    found: list[Segment | None] = []
    with suppress(OSError), os.scandir(folder) as entries:
        found = [
            parse_segment(Path(entry.path), entry.stat(follow_symlinks=False).st_size)
            for entry in entries
            if entry.is_file(follow_symlinks=False)
        ]
    return sorted(segment for segment in found if segment)
