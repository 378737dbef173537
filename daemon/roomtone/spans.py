"""Sets of sample positions, as sorted spans. Pure."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Positions from `start` up to, and without, `end`."""

    start: int
    end: int


class Spans:
    """An immutable set of positions: sorted spans that neither touch nor overlap."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        merged: list[Span] = []
        for start, end in sorted(span for span in spans if span[0] < span[1]):
            if merged and start <= merged[-1].end:
                merged[-1] = Span(merged[-1].start, max(end, merged[-1].end))
            else:
                merged.append(Span(start, end))
        self._spans = tuple(merged)

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spans) and self._spans == other._spans

    def __hash__(self) -> int:
        return hash(self._spans)

    def __repr__(self) -> str:
        return f"Spans({[tuple(span) for span in self._spans]})"

    def __or__(self, other: "Spans") -> "Spans":
        return Spans((*self._spans, *other._spans))

    def __and__(self, other: "Spans") -> "Spans":
        return self - (self - other)

    def __sub__(self, other: "Spans") -> "Spans":
        left: list[Span] = []
        cuts = deque(other._spans)
        for start, end in self._spans:
            begin = start
            while cuts and cuts[0].end <= begin:
                cuts.popleft()
            for cut in cuts:
                if cut.start >= end:
                    break
                left.append(Span(begin, max(begin, cut.start)))
                begin = max(begin, cut.end)
            left.append(Span(min(begin, end), end))
        return Spans(left)

    def __contains__(self, position: int) -> bool:
        index = bisect_right(self._spans, (position, float("inf"))) - 1
        return index >= 0 and self._spans[index].start <= position < self._spans[index].end

    @property
    def total(self) -> int:
        """The number of positions."""
        return sum(end - start for start, end in self._spans)

    def reach(self, position: int) -> int:
        """The largest position p such that everything from `position` up to p is in the set."""
        index = bisect_right(self._spans, (position, float("inf"))) - 1
        if index >= 0 and self._spans[index].end > position:
            return self._spans[index].end
        return position
