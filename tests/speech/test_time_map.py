"""Tracks and paces: a session's milliseconds as the room's positions, and how fast a backlog may be sent."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from roomtone.protocol.messages import TimedWord
from roomtone.speech.time_map import Pace, TimeMap

RATE = 16_000


def test_one_addition() -> None:
    """Without a jump a position is the start plus the samples."""
    track = TimeMap(5_000, RATE)
    track.send(3 * RATE)

    assert track.at(1_000) == 5_000 + RATE
    assert track.position == 5_000 + 3 * RATE


def test_a_word_lies_in_one_stretch() -> None:
    """A word that the service begins too early, before a jump, begins at the jump: no word spans a gap."""
    track = TimeMap(0, RATE)
    track.send(2 * RATE)
    track.jump(100 * RATE)
    track.send(2 * RATE)

    (word,) = track.words([TimedWord(start=1_500, end=2_500, text="after")])

    assert (word.start, word.end) == (100 * RATE, 100 * RATE + RATE // 2)


def test_padding_is_no_position() -> None:
    """Silence that was sent but never recorded takes no positions."""
    track = TimeMap(0, RATE)
    track.send(800)
    track.jump(100)
    track.send(RATE)

    assert track.position == 100 + RATE
    assert track.at(50) in {100, 800}
    assert track.at(1_050) == 100 + RATE


@given(
    st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 5_000)), min_size=1, max_size=12),
    st.floats(-1e6, 1e6, allow_nan=False),
)
def test_every_time_has_a_place(stretches: list[tuple[int, int]], milliseconds: float) -> None:
    """Whatever the service says, a position lies between the first and the last one that was sent."""
    track = TimeMap(0, 1_000)
    for samples, skipped in stretches:
        track.send(samples)
        track.jump(track.position + skipped)

    assert 0 <= track.at(milliseconds) <= track.position


def test_a_backlog_is_paced() -> None:
    """Five seconds go immediately, and from then on 1.2 seconds in a second."""
    pace = Pace(RATE, now=0.0)
    now, sent, times = 0.0, 0, []
    for _ in range(100):
        now += pace.wait(sent, now)
        times.append(now)
        sent += RATE

    assert times[5] == 0.0
    assert all(after - before >= 1 / 1.2 - 1e-9 for before, after in pairwise(times[6:]))
    assert Pace(RATE, now=0.0, speed=None).wait(10**9, 0.0) == 0.0
