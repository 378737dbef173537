"""The space on the disk of the state folder: measured, watched, and some of it reserved for the next start."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import structlog

from roomtone.events import Notice, notice
from roomtone.retention.policy import LowWatermark

RESERVE_BYTES = 4 << 20
"""Bytes that are kept for the next start. On a disk without any room SQLite opens no journal, and a daemon that cannot
start cannot make room either.
"""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Space(NamedTuple):
    """Bytes of a file system: free for this user, and in all."""

    free: int
    total: int


def measure(folder: Path) -> Space:
    """The space of the file system that the folder lies in. Raises OSError."""
    status = os.statvfs(folder)
    return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def use_reserve(state: Path) -> None:
    """Before the journal is opened: give it the reserve, where the disk has no room. Contained: OSError."""
    reserve = _reserve(state)
    with suppress(OSError):
        if reserve.exists() and measure(state).free < RESERVE_BYTES:
            reserve.unlink()
            log.warning("disk.reserve_used", folder=str(state))


def keep_reserve(state: Path) -> None:
    """Set room aside for the next start, once. Contained: OSError."""
    reserve = _reserve(state)
    with suppress(OSError):
        if not reserve.exists():
            file = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, RESERVE_BYTES)
            finally:
                os.close(file)


def _reserve(state: Path) -> Path:
    return state / "reserve"


class DiskWatch:
    """Reports when the disk of the state folder becomes low on space, and when it has recovered."""

    def __init__(self, state: Path, measure_space: Callable[[Path], Space]) -> None:
        self._state = state
        self._measure = measure_space
        self._watermark = LowWatermark()

    @property
    def is_low(self) -> bool:
        """True if the disk has less space than it should."""
        return self._watermark.is_low

    def lacking(self, wanted: int) -> int:
        """The bytes that must become free until `wanted` are; negative where there are more."""
        space = self._space()
        return _low_mark(wanted, space) - space.free

    def check(self, wanted: int, now: datetime) -> Iterator[Notice]:
        """The notice that is due now. Where there is enough space, the reserve is kept."""
        space = self._space()
        mark = _low_mark(wanted, space)
        if space.free >= mark + RESERVE_BYTES:
            keep_reserve(self._state)
        free = f"{show_bytes(space.free)} are free on the disk of {self._state}"
        match self._watermark.read(space.free, mark):
            case "disk.low":
                log.warning("disk.low", folder=str(self._state), free=space.free, mark=mark)
                text = (
                    f"Only {free}, less than {show_bytes(mark)}, and all audio there still has to be transcribed or "
                    "delivered. Free some space: recording stops when the disk is full."
                )
                yield notice("disk.low", text, at=now)
            case "disk.recovered":
                log.info("disk.recovered", folder=str(self._state), free=space.free)
                yield notice("disk.recovered", f"The disk has space again: {free}.", at=now, severity="info")

    def _space(self) -> Space:
        try:
            return self._measure(self._state)
        except OSError as error:
            log.error("disk.unmeasurable", folder=str(self._state), error=str(error))  # noqa: TRY400 - the error's text says it all
            return Space(1 << 62, 1 << 62)


def _low_mark(wanted: int, space: Space) -> int:
    # A mark above what a small disk can have free would remove everything, again and again.
    return min(wanted, space.total // 10)


def show_bytes(size: int) -> str:
    """A size for users."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}"
    return f"{max(size, 0) / 1000:.3g} kB"
