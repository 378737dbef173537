"""Retention: settled audio goes first, and the quota outranks what waits."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.retention.policy import SETTLED_MARGIN_S, DroppedAudio, LowWatermark, Removal, RoomAudio, choose
from roomtone.spans import Spans
from roomtone.spool.segment import Segment

RATE = 1000
SEGMENT = 30
"""Seconds."""
SIZE = 2 * SEGMENT * RATE
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
MINUTE = 60 * RATE


def shelf(room: str, held: list[Segment], heard: Spans, delivered: dict[str, int]) -> RoomAudio:
    """A room's audio, and all of it may go."""

    def since(start: int) -> Iterator[Segment]:
        return (one for one in held if one.position >= start)

    return RoomAudio(room, RATE, sum(one.samples for one in held) * 2, since, heard, delivered)


def segments(count: int, *, offset: int = 0) -> list[Segment]:
    """So many segments, one after the other; `offset` in seconds moves their times."""
    return [
        Segment(
            n * SEGMENT * RATE, SEGMENT * RATE, BEGAN + timedelta(seconds=n * SEGMENT + offset), False, Path(str(n))
        )
        for n in range(count)
    ]


Shelves = st.lists(
    st.builds(
        lambda room, count, offset, heard, delivered: shelf(
            room, segments(count, offset=offset), Spans(heard), delivered
        ),
        st.sampled_from("abc"),
        st.integers(0, 12),
        st.integers(0, 400),
        st.lists(st.tuples(st.integers(0, 400 * RATE), st.integers(0, 400 * RATE)), max_size=3),
        st.dictionaries(st.sampled_from(["archive", "other"]), st.integers(0, 400 * RATE)),
    ),
    max_size=3,
    unique_by=lambda shelf: shelf.room,
)


@given(Shelves, st.integers(0, 40 * SIZE), st.integers(-SIZE, 40 * SIZE), st.integers(-1, 900))
def test_what_goes(shelves: list[RoomAudio], quota: int, lacking: int, age: int) -> None:
    """Settled audio goes first and oldest first, no more than is asked for; what somebody waits for goes for the quota
    alone, the oldest first, and only when nothing settled is left.
    """
    before = BEGAN + timedelta(seconds=age)
    settled, forced = choose(shelves, quota=quota, lacking=lacking, before=before)

    held = sum(shelf.size for shelf in shelves)
    left = {(shelf.room, one.position) for shelf in shelves for one in shelf.segments(0)}
    left -= {(one.room, one.segment.position) for one in [*settled, *forced]}
    freed = SIZE * len(settled)
    assert len({(one.room, one.segment.position) for one in [*settled, *forced]}) == len(settled) + len(forced)
    for removals in (settled, forced):
        times = [one.segment.at for one in removals]
        assert times == sorted(times)
    assert all(not one.sinks and not one.unheard and is_settled(one, shelves) for one in settled)
    assert all((one.sinks or one.unheard) and not is_settled(one, shelves) for one in forced)
    # Everything that is old and settled goes; beyond that, nothing goes that need not.
    young = [one for one in settled if one.segment.at >= before]
    if young:
        assert max(held - quota, lacking) > freed - SIZE
    rest = [one for shelf in shelves for one in removals_of(shelf) if (one.room, one.segment.position) in left]
    rest_settled = [one for one in rest if is_settled(one, shelves)]
    assert not [one for one in rest_settled if one.segment.at < before]
    if rest_settled:
        assert max(held - quota, lacking) <= freed
    if forced:
        assert not rest_settled
        assert held - quota > freed + SIZE * (len(forced) - 1)
    if rest and not rest_settled:
        assert held - freed - SIZE * len(forced) <= quota


def removals_of(shelf: RoomAudio) -> list[Removal]:
    return [Removal(shelf.room, shelf.rate, one, (), Spans()) for one in shelf.segments(0)]


def is_settled(removal: Removal, shelves: list[RoomAudio]) -> bool:
    (shelf,) = [one for one in shelves if one.room == removal.room]
    segment = removal.segment
    near = Spans([(max(0, segment.position - SETTLED_MARGIN_S * RATE), segment.end + SETTLED_MARGIN_S * RATE)])
    return not near - shelf.heard and all(position >= segment.end for position in shelf.delivered.values())


@pytest.mark.parametrize("heard", [0, 600 * MINUTE])
def test_what_waits_is_not_looked_at(heard: int) -> None:
    """A year of audio that waits for a sink, or for its transcription, does not block the loop on a low disk."""
    looked = 0

    def since(start: int) -> Iterator[Segment]:
        nonlocal looked
        for place in itertools.count(start // (SEGMENT * RATE)):
            looked += 1
            at = BEGAN + place * timedelta(seconds=SEGMENT)
            yield Segment(place * SEGMENT * RATE, SEGMENT * RATE, at, False, Path("x"))

    year = RoomAudio("desk", RATE, 10**6 * SIZE, since, Spans([(0, heard)]), {"archive": 5 * MINUTE})
    settled, forced = choose([year], quota=10**6 * SIZE, lacking=10**9, before=LONG_AGO)
    assert len(settled) == (10 if heard else 0)
    assert not forced
    assert looked <= 12
    settled, forced = choose([year], quota=(10**6 - 50) * SIZE, lacking=0, before=LONG_AGO)
    assert len(settled) + len(forced) == 50
    assert looked <= 100


def test_a_disk_is_called_low_once() -> None:
    """A disk that hovers about its mark is told once, and once when it is clearly better."""
    gauge = LowWatermark()
    told = [gauge.read(free, 100) for free in (500, 99, 80, 101, 99, 109, 111, 105, 99)]
    assert told == [None, "disk.low", None, None, None, None, "disk.recovered", None, "disk.low"]


def test_the_toll_is_told_at_once_and_then_hourly() -> None:
    """The first segment that a reader loses is reported immediately, the others together once in an hour; none is left
    out.
    """
    toll, now, told = DroppedAudio(), BEGAN, []
    for _ in range(500):
        toll.take(timedelta(seconds=30))
        told += [taken] if (taken := toll.due(now)) else []
        now += timedelta(seconds=30)
    told += [taken] if (taken := toll.due(now + timedelta(hours=1))) else []

    assert told[0] == timedelta(seconds=30)
    assert len(told) <= 6
    assert sum(told, timedelta()) == timedelta(seconds=30 * 500)
