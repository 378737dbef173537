"""The time of each sample: a room's positions on the line of UTC. Pure: no clock is read here.

A read shows that a sample existed at some moment. It is always a little late, never early: because of scheduling, or of
a sound server that hands over a stall as one burst. So the truth is the lower envelope of all reads, a straight line
whose slope is the difference between two crystals.

- **Lines** map positions to CLOCK_BOOTTIME, which runs on while the machine sleeps and which cannot be set. A line is
  refined while it is young and then left alone, so that the times of old positions do not change.
- **Offsets** map CLOCK_BOOTTIME to UTC. The kernel slews both clocks alike, so their difference changes only when
  the clock is set: a step. A step changes the times of later positions only.

Rejected: stamping each block when it arrives (words jump with the load of the machine), and counting samples from one
start time (50 ppm are 30 s in a week).
"""

from collections import deque
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple, TypeVar

MAX_BUCKETS = 90
"""Buckets of reads that the drift is measured over: half an hour."""
BUCKET_S = 20.0
"""Seconds of audio of which only the least late read is kept."""
MIN_DRIFT_SPAN_S = 600.0
"""Seconds of audio below which a slope shows lateness rather than drift: the last known slope is used."""
LINE_SETTLED_AFTER_S = 600.0
"""Seconds after which a line is left alone and the next one begins."""
MAX_DRIFT = 300e-6
"""The worst crystal of a sound card. A steeper slope is lost or doubled audio."""
STEP_TOLERANCE_S = 0.005
"""Seconds between two readings of the offset that two clocks read one after the other may differ without a step."""
MAX_LINES = 4096
MAX_OFFSETS = 1024
"""Kept of the past (a month of lines, a thousand steps); older positions use the oldest that is kept."""


class Instant(NamedTuple):
    """The machine's three clocks at one moment, in seconds: CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_REALTIME."""

    boottime: float
    monotonic: float
    utc: float


class Read(NamedTuple):
    """The sample before `position` existed at `boottime`, at the latest."""

    position: int
    boottime: float


class DriftLine(NamedTuple):
    """From `position` on, sample `position + n` is taken at `boottime + n / rate * (1 + slope)`."""

    position: int
    boottime: float
    slope: float


class Offset(NamedTuple):
    """From `position` on, UTC is CLOCK_BOOTTIME + `seconds`."""

    position: int
    seconds: float


P = TypeVar("P", DriftLine, Offset)


class RoomClock:
    """Maps one room's positions to UTC. Feed it every block; its memory is bounded for years.

    `steps` counts the steps of UTC that were seen, so that a caller notices one.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.steps = 0
        self._reads: deque[Read] = deque(maxlen=MAX_BUCKETS)
        self._lines: deque[DriftLine] = deque(maxlen=MAX_LINES)
        self._offsets: deque[Offset] = deque(maxlen=MAX_OFFSETS)
        self._slope = 0.0
        self._last = Offset(0, 0.0)
        self._began = False

    @property
    def ppm(self) -> float:
        """The source's crystal runs this much faster than the machine's clock, in parts per million."""
        return -self._slope * 1e6

    def observe(self, position: int, boottime: float, utc: float) -> None:
        """Learn that the sample before `position` was read at `boottime`, when CLOCK_REALTIME was `utc` (seconds)."""
        if not self._lines:
            self.restart(position, boottime)
        self._set_offset(position, utc - boottime)
        self._lower(Read(position, boottime))
        self._remember(Read(position, boottime))

    def restart(self, position: int, boottime: float) -> None:
        """End time without a source: the sample at `position` was taken at `boottime`, at the latest."""
        self._reads.clear()
        self._began = True
        self._lines.append(DriftLine(position, boottime, self._slope))

    def at(self, position: int) -> datetime:
        """UTC when the sample at this position was taken. Raises LookupError before the first `observe`."""
        if not self._lines or not self._offsets:
            raise LookupError("the room's clock has not seen a sample yet")
        offset = _newest(self._offsets, position)
        return datetime.fromtimestamp(self._boottime(position) + offset.seconds, UTC)

    def behind(self, position: int, boottime: float) -> float:
        """Seconds by which the count of samples is behind the line, if the sample before `position` was read now."""
        return boottime - self._boottime(position) if self._lines else 0.0

    def _boottime(self, position: int) -> float:
        line = _newest(self._lines, position)
        return line.boottime + (position - line.position) / self.rate * (1 + line.slope)

    def _set_offset(self, position: int, seconds: float) -> None:
        before, self._last = self._last, Offset(position, seconds)
        began, self._began = self._began, False
        if began:
            self._offsets.append(Offset(self._lines[-1].position, seconds))
        elif (
            abs(seconds - self._offsets[-1].seconds) > STEP_TOLERANCE_S
            and abs(seconds - before.seconds) <= STEP_TOLERANCE_S
        ):
            # Two readings must agree: between the readings of the two clocks the process may have been put aside.
            self._offsets.append(Offset(before.position, seconds))
            self.steps += 1

    def _lower(self, read: Read) -> None:
        early = self.behind(*read)
        if early < 0:
            line = self._lines[-1]
            self._lines[-1] = line._replace(boottime=line.boottime + early)

    def _remember(self, read: Read) -> None:
        """Keep the least late read of each bucket, and fit the line again when a bucket is complete."""
        if self._reads and read.position // self._bucket == self._reads[-1].position // self._bucket:
            if self.behind(*read) < self.behind(*self._reads[-1]):
                self._reads[-1] = read
            return
        self._reads.append(read)
        self._fit()

    @property
    def _bucket(self) -> int:
        return int(BUCKET_S * self.rate)

    def _fit(self) -> None:
        reads = self._reads
        if (reads[-1].position - reads[0].position) / self.rate >= MIN_DRIFT_SPAN_S:
            self._slope = max(-MAX_DRIFT, min(MAX_DRIFT, _slope(reads, self.rate)))
        line = self._lines[-1]
        old = (reads[-1].position - line.position) / self.rate > LINE_SETTLED_AFTER_S
        start = reads[-1].position if old else line.position
        fitted = min(read.boottime - (read.position - start) / self.rate * (1 + self._slope) for read in reads)
        if old:
            self._lines.append(DriftLine(start, fitted, self._slope))
        else:
            self._lines[-1] = DriftLine(start, fitted, self._slope)


class NominalClock:
    """The times of a file's samples, which have none of their own: one after the other from the moment of reading.

    It does not look at when a block is read, so that a file that is read fast or slowly, or again after a stop, has
    the same times. `began` is the time of the first sample at `position`, where that is known already; `earliest` is
    the time before which it must not begin.
    """

    steps = 0
    ppm = 0.0

    def __init__(
        self, rate: int, position: int, *, began: datetime | None = None, earliest: datetime | None = None
    ) -> None:
        self.rate = rate
        self._position = position
        self._began = began
        self._earliest = earliest

    def observe(self, position: int, boottime: float, utc: float) -> None:
        """Learn at the first block that reading has begun, at `utc` (seconds)."""
        if self._began is None:
            began = datetime.fromtimestamp(utc, UTC)
            self._began = max(began, self._earliest or began)

    def restart(self, position: int, boottime: float) -> None:
        """Do nothing: time without a source does not count for a file."""

    def at(self, position: int) -> datetime:
        """As `RoomClock.at`."""
        if self._began is None:
            raise LookupError("the file's clock has not seen a sample yet")
        return self._began + timedelta(seconds=(position - self._position) / self.rate)

    def behind(self, position: int, boottime: float) -> float:
        """A file is never behind."""
        return 0.0


def _newest(past: deque[P], position: int) -> P:
    """The newest that begins at or before `position`, else the oldest that is kept."""
    newest = past[-1]
    if newest.position <= position:
        return newest
    return next((one for one in reversed(past) if one.position <= position), past[0])


def _slope(reads: deque[Read], rate: int) -> float:
    """The slope, over nominal time, of the edge of the lower convex hull that spans the middle of the reads.

    That edge is the line below all reads with the least sum of distances to them (Moon, Skelly and Towsley 1999,
    "Estimation and removal of clock skew from network delay measurements").
    """
    origin = reads[0]
    hull: list[tuple[float, float]] = []
    for read in reads:
        x = (read.position - origin.position) / rate
        y = read.boottime - origin.boottime - x
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    middle = hull[-1][0] / 2
    for left, right in pairwise(hull):
        if right[0] >= middle:
            return (right[1] - left[1]) / (right[0] - left[0])
    return 0.0


def _above(left: tuple[float, float], point: tuple[float, float], right: tuple[float, float]) -> bool:
    return (point[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (point[0] - left[0])
