"""Decides when a file of lines is full, and names it then. Pure.

The day of a line is that of its commit, which its id contains (UUIDv7), not that of its `at`: text that was repaired
after an outage is delivered late, and a closed file stays closed. By the id, a line that is delivered again belongs to
the same file.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Rotate: TypeAlias = Literal["never", "daily"] | int
MEGABYTE = 1_000_000

_LABEL = r"-(\d{4}-\d\d-\d\d|\d{8}T\d{6}Z)(_\d+)?"


class JsonLine(NamedTuple):
    """A line without its end, and the id of its event."""

    id: str
    text: bytes

    @property
    def day(self) -> str | None:
        at = time_of(self.id)
        return None if at is None else f"{at:%Y-%m-%d}"


def time_of(id_: str) -> datetime | None:
    """The commit time of the event with this id, to the millisecond (RFC 9562, 5.7); None if it is not a UUIDv7."""
    try:
        return datetime.fromtimestamp(int(id_[:8] + id_[9:13], 16) / 1000, UTC)
    except (ValueError, OverflowError):
        return None


def fitting(lines: Sequence[JsonLine], size: int, last: str | None, rotate: Rotate) -> int:
    """The number of lines, from the first, that fit into a file of this size whose last line has the id `last`.

    0 if the file must be closed first. A file gets at least one line, however long.
    """
    match rotate:
        case "never":
            return len(lines)
        case "daily":
            day = JsonLine(last, b"").day if last and size else None
            return next((index for index, line in enumerate(lines) if line.day != (day := day or line.day)), len(lines))
        case megabytes:
            for index, line in enumerate(lines):
                if size and size + len(line.text) + 1 > megabytes * MEGABYTE:
                    return index
                size += len(line.text) + 1
            return len(lines)


def closed_name(path: Path, at: datetime, rotate: Rotate) -> Path:
    """The final name of a file whose last line was committed `at`; a taken name gets a number."""
    label = f"{at:%Y-%m-%d}" if rotate == "daily" else f"{at:%Y%m%dT%H%M%SZ}"
    number, name = 1, path.with_name(f"{path.stem}-{label}{path.suffix}")
    free = name
    while free.exists() or packed_name(free).exists():
        number += 1
        free = name.with_stem(f"{name.stem}_{number}")
    return free


def packed_name(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def is_closed(name: str, path: Path) -> bool:
    """True if a file of this name beside `path` is a closed one of it, and not compressed."""
    return re.fullmatch(re.escape(path.stem) + _LABEL + re.escape(path.suffix), name) is not None
