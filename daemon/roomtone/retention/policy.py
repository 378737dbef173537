"""Retention: which audio leaves the disk. Pure.

Audio goes, the oldest first, when all of it is *settled*: transcribed, and acknowledged by every configured sink that
takes audio. It goes at its age, when the spools are over their quota, and when the disk has little room left. The quota
outranks all: where nothing settled is left, the oldest goes whatever waits for it, and a notice says who missed how
many hours. Little space on the disk does not: it is reported, and recording goes on by itself after the disk was full.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from roomtone.spans import Spans
from roomtone.spool.segment import SAMPLE_BYTES, Segment

SETTLED_MARGIN_S = 60
"""Seconds of audio behind what is settled that stay: a session that begins again hears the last ones twice."""
NOTICE_INTERVAL = timedelta(hours=1)
"""Between two notices of audio that the quota takes from the same sink."""
RECOVERY_FACTOR = 1.1
"""This multiple of the low water mark must be free until the disk has recovered: no notice at every segment."""


class RoomAudio(NamedTuple):
    """One room's audio on disk: its segments by position, of `size` bytes, and how far they are settled.

    `segments` gives those that begin at a position or behind it, without the newest one, which shows where the room
    goes on. `heard` are the positions that are transcribed or silent; `delivered` has, of each sink that takes this
    room's audio, the position up to which it has acknowledged all segments.
    """

    room: str
    rate: int
    size: int
    segments: Callable[[int], Iterator[Segment]]
    heard: Spans
    delivered: Mapping[str, int]


class Removal(NamedTuple):
    """A segment that must go. `sinks` did not have it, and `unheard` was not transcribed: both empty if settled."""

    room: str
    rate: int
    segment: Segment
    sinks: tuple[str, ...]
    unheard: Spans


def choose(
    rooms: Sequence[RoomAudio], *, quota: int, lacking: int, before: datetime
) -> tuple[list[Removal], list[Removal]]:
    """The segments that go because nothing waits for them, and those that must go; both oldest first. Pure.

    `quota` is what the rooms may hold, `lacking` what the disk lacks, in bytes; settled segments that began before
    `before` go in any case.
    """
    # Only segments that go are looked at: a year's audio that waits for its sink must not hold the loop up each time.
    settled: list[Removal] = []
    over = sum(audio.size for audio in rooms) - quota
    for removal in heapq.merge(*map(_settled, rooms), key=_age):
        if max(over, lacking) <= 0 and removal.segment.at >= before:
            return settled, []
        settled.append(removal)
        freed = removal.segment.samples * SAMPLE_BYTES
        over, lacking = over - freed, lacking - freed
    forced: list[Removal] = []
    waiting = heapq.merge(*map(_waiting, rooms), key=_age)
    while over > 0 and (next_one := next(waiting, None)):
        forced.append(next_one)
        over -= next_one.segment.samples * SAMPLE_BYTES
    return settled, forced


def _age(removal: Removal) -> datetime:
    return removal.segment.at


def _settled(audio: RoomAudio) -> Iterator[Removal]:
    """The segments that all sinks have, and that are heard with `SETTLED_MARGIN_S` on either side."""
    margin = SETTLED_MARGIN_S * audio.rate
    delivered = min(audio.delivered.values(), default=None)
    for start, end in audio.heard:
        last = end - margin if delivered is None else min(end - margin, delivered)
        for segment in audio.segments(start + margin if start else 0):
            if segment.end > last:
                break
            yield Removal(audio.room, audio.rate, segment, (), Spans())


def _waiting(audio: RoomAudio) -> Iterator[Removal]:
    """The segments that are not settled."""
    margin = SETTLED_MARGIN_S * audio.rate
    for segment in audio.segments(0):
        removal = lacking(audio, segment)
        near = Spans([(max(0, segment.position - margin), segment.end + margin)])
        if not removal.unheard and near - audio.heard:
            # All of it is heard, and a session that has to begin again may want it: it waits as if it were not.
            removal = removal._replace(unheard=Spans([(segment.position, segment.end)]))
        if removal.sinks or removal.unheard:
            yield removal


def lacking(audio: RoomAudio, segment: Segment) -> Removal:
    """The segment, with the sinks and the transcript that lack it. Pure."""
    sinks = tuple(name for name, position in audio.delivered.items() if position < segment.end)
    return Removal(audio.room, audio.rate, segment, sinks, Spans([(segment.position, segment.end)]) - audio.heard)


def first_lacking(audio: RoomAudio) -> int:
    """A position before which nothing waits for audio. Pure."""
    heard = next(iter(audio.heard), (0, 0))
    return min([heard[1] if heard[0] == 0 else 0, *audio.delivered.values()])


class LowWatermark:
    """Reports once when a disk becomes low on space, and once when it has recovered."""

    def __init__(self) -> None:
        self.is_low = False

    def read(self, free: int, mark: int) -> Literal["disk.low", "disk.recovered"] | None:
        """The report that is due now that `free` bytes are free of a disk that should have `mark`."""
        was_low, self.is_low = self.is_low, free < (mark * RECOVERY_FACTOR if self.is_low else mark)
        if self.is_low == was_low:
            return None
        return "disk.low" if self.is_low else "disk.recovered"


class DroppedAudio:
    """Audio that one reader misses: reported at the first segment, and then once in an hour."""

    def __init__(self) -> None:
        self._unsaid = timedelta()
        self._silent_until: datetime | None = None

    def take(self, duration: timedelta) -> None:
        """Add audio of this length."""
        self._unsaid += duration

    def due(self, now: datetime) -> timedelta | None:
        """The length to report now: all that was taken since the last report."""
        if not self._unsaid or (self._silent_until is not None and now < self._silent_until):
            return None
        taken, self._unsaid, self._silent_until = self._unsaid, timedelta(), now + NOTICE_INTERVAL
        return taken
