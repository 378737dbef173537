"""Summary of a recording, counted from its events and from the journal's coverage of its samples. Pure."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from roomtone.events import Audio, Durable, Gap, RecordingStarted, Turn, kind_of
from roomtone.journal.records import CoverageSpan


class Tally:
    """Counts the events of one room from the start of its recording."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.words = 0
        self.rate = 0
        self.start: int | None = None
        self.end = 0
        self.causes: list[str] = []

    def add(self, event: Durable) -> None:
        """Count one more event."""
        self.kinds[kind_of(event)] += 1
        match event:
            case RecordingStarted():
                self.rate = event.rate
                self.start = event.position if self.start is None else self.start
            case Audio():
                self.end = max(self.end, event.position + event.samples)
            case Turn():
                self.words += len(event.words) or len(event.text.split())
            case Gap():
                self.end = max(self.end, event.end)
                self.causes.append(event.cause)


class RecordingCoverage(msgspec.Struct, frozen=True):
    """Coverage of the samples from `start` to `end`: how many were recorded, lost, transcribed, and silent."""

    start: int
    end: int
    captured: int
    lost: int
    transcribed: int
    silent: int

    @property
    def samples(self) -> int:
        return self.end - self.start

    def share(self, samples: int) -> str:
        """A count in percent. Only all samples give 100.0."""
        percent = 100 * samples / self.samples if self.samples else 0.0
        return f"{percent if samples == self.samples else min(percent, 99.9):.1f} %"


def coverage_of(covers: Iterable[CoverageSpan], start: int, end: int) -> RecordingCoverage:
    """The coverage of the positions [start, end), from the journal's spans."""
    spans = list(covers)

    def count(*states: str) -> int:
        return _union((max(cover.start, start), min(cover.end, end)) for cover in spans if cover.state in states)

    transcribed = count("transcribed")
    return RecordingCoverage(
        start=start,
        end=end,
        captured=count("captured"),
        lost=count("lost"),
        transcribed=transcribed,
        # Samples that both a turn and a silence claim, at their edge, count as the turn's.
        silent=count("transcribed", "silent") - transcribed,
    )


def _union(spans: Iterable[tuple[int, int]]) -> int:
    """The number of positions in any of the spans."""
    total, reached = 0, 0
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
