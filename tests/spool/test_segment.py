"""Segments: what a name says, and finding them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.spool.segment import Index, Segment, name_segment, parse_segment

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@given(
    st.integers(0, 2**63 - 1),
    st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis asks for that
    st.booleans(),
)
def test_a_name_says_all(position: int, at: datetime, fresh: bool) -> None:
    """Position, time and break come back from the name, to the microsecond."""
    path = Path("/spool") / name_segment(position, at, fresh=fresh)
    assert parse_segment(path, 401) == Segment(position, 200, at, fresh, path)


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "1_20261122T120000.000000Z.pcm", "0000000000000000_20261122T120000Z.pcm", "000000000000000٣_x.pcm"],
)
def test_strangers_are_no_segments(name: str) -> None:
    """A file with another name is not a segment."""
    assert parse_segment(Path(name), 400) is None


def index_of(lengths: list[tuple[int, int]]) -> tuple[Index, list[Segment]]:
    """An index of segments, each with a distance from the end of the one before, and a length."""
    index, segments, end = Index(Path("/spool")), [], 0
    for gap, samples in lengths:
        position, at = end + gap, NOON + timedelta(microseconds=end + gap)
        path = Path("/spool") / name_segment(position, at, fresh=bool(gap % 2))
        segments.append(Segment(position, samples, at, bool(gap % 2), path))
        index.add(segments[-1])
        end = position + samples
    return index, segments


Lengths = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=8)


@given(Lengths, st.integers(0, 70), st.sets(st.integers(0, 7)))
def test_the_index_is_a_list(lengths: list[tuple[int, int]], position: int, removed: set[int]) -> None:
    """Packed as it is, it finds what a search through all segments finds."""
    index, segments = index_of(lengths)
    for place in sorted(removed, reverse=True):
        if place < len(segments):
            index.remove(segments.pop(place).position)
    assert list(index) == segments
    assert index.after(position) == next((one for one in segments if one.end > position), None)
    assert index.before(position) == next((one for one in reversed(segments) if one.position <= position), None)


def test_a_position_is_given_once() -> None:
    """A segment over positions that another one has is refused."""
    index, (segment,) = index_of([(0, 5)])
    with pytest.raises(ValueError, match="other audio"):
        index.add(segment._replace(position=4))
