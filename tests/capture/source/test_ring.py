"""The ring between a source and the pipe, and the frames on the pipe."""

import json
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.capture.source.ring import BLOCK, ENDED, FAILED, Frame, Frames, Lead, Ring


def read_all(ring: Ring, limit: int = 65536) -> list[Frame]:
    """Take until nothing follows; the ring must be closed."""
    frames, found = Frames(), []
    while portion := ring.take(limit):
        frames.feed(portion)
        while frame := frames.pop():
            found.append(frame)
    return found


@given(
    bodies=st.lists(st.binary(max_size=60).map(lambda body: body[: len(body) // 2 * 2]), max_size=12),
    cuts=st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_come_out_whole_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    """A pipe may move the boundaries of writes."""
    ring = Ring(10_000)
    for number, body in enumerate(bodies):
        ring.put(body, float(number))
    ring.close(ENDED, "source.ended", "over", 99.0)
    stream = b"".join(iter(lambda: ring.take(100), b""))
    frames, found, at, turn = Frames(), [], 0, 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        frames.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
        while frame := frames.pop():
            found.append(frame)
    assert [(frame.body, frame.boottime) for frame in found[:-1]] == [(body, float(n)) for n, body in enumerate(bodies)]
    assert json.loads(found[-1].body) == {"code": "source.ended", "text": "over"}


@given(sizes=st.lists(st.integers(1, 50), max_size=60), limit=st.integers(1, 200), taken=st.sets(st.integers(0, 60)))
def test_every_sample_is_delivered_or_counted_where_it_is_missing(
    sizes: list[int], limit: int, taken: set[int]
) -> None:
    """Whatever the ring drops, the position after a block is the number of samples that were put up to its end."""
    ring, frames, position, ends = Ring(limit), Frames(), 0, {}
    for number, size in enumerate(sizes):
        position += size
        ends[float(number)] = position
        ring.put(bytes(2 * size), float(number))
        if number in taken:
            frames.feed(ring.take(1))
    ring.close(ENDED, "", "", 0.0)
    while portion := ring.take(64):
        frames.feed(portion)
    counted = 0
    while (frame := frames.pop()) and frame.kind == BLOCK:
        counted += frame.dropped + len(frame.body) // 2
        assert counted == ends[frame.boottime]
    assert counted == position


@pytest.mark.parametrize("limit", [30, 39])
def test_the_oldest_whole_block_gives_way_to_the_newest(limit: int) -> None:
    """A full ring keeps what is newest, as many whole blocks as it has room for: the next header counts what went."""
    ring = Ring(limit)
    for number in range(5):
        ring.put(bytes([number]) * 20, float(number))
    ring.close(ENDED, "", "", 9.0)
    blocks = read_all(ring)[:-1]
    assert [(block.body[0], block.dropped) for block in blocks] == [(2, 20), (3, 0), (4, 0)]


def test_a_block_that_was_taken_no_longer_gives_way() -> None:
    """A write cannot be taken back: only blocks whose write has not begun are dropped."""
    ring = Ring(20)
    ring.put(b"a" * 20, 0.0)
    ring.put(b"b" * 20, 1.0)
    frames = Frames()
    frames.feed(ring.take(1))
    for number in range(3):
        ring.put(b"c" * 20, float(number))
    ring.close(ENDED, "", "", 9.0)
    frames.feed(ring.take(1000))
    found = [(frame.body[:1], frame.dropped) for frame in iter(frames.pop, None) if frame.kind == BLOCK]
    assert found == [(b"a", 0), (b"c", 20), (b"c", 0)]


def test_who_has_patience_loses_nothing() -> None:
    """A file waits for room: a thousand blocks pass a ring for two, in order, and none is dropped."""
    ring = Ring(20)

    def write() -> None:
        for number in range(1000):
            ring.put(number.to_bytes(2, "little") * 10, 0.0, timeout_s=None)
        ring.close(ENDED, "", "", 0.0)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    blocks = read_all(ring, limit=1)[:-1]
    writer.join()
    assert [int.from_bytes(block.body[:2], "little") for block in blocks] == list(range(1000))
    assert not any(block.dropped for block in blocks)


def test_a_ring_smaller_than_a_block_still_passes_it_on() -> None:
    """An empty ring takes any block, so that no writer waits for room that there will never be."""
    ring = Ring(3)
    ring.put(bytes(20), 0.0, timeout_s=None)
    ring.close(ENDED, "", "", 0.0)
    assert [frame.kind for frame in read_all(ring)] == [BLOCK, ENDED]


def test_patience_ends() -> None:
    """A writer with a timeout drops the oldest block only after it."""
    ring = Ring(10)
    ring.put(bytes(20), 0.0)
    ring.put(bytes(20), 1.0, timeout_s=0.05)
    ring.close(ENDED, "", "", 0.0)
    assert [frame.dropped for frame in read_all(ring)] == [10, 0]


def test_the_first_message_counts_and_nothing_follows_it() -> None:
    """A source is over once: what its threads say afterwards is not sent."""
    ring = Ring(10)
    ring.put(bytes(4), 0.0)
    ring.close(FAILED, "device.lost", "gone", 1.0)
    ring.put(bytes(4), 2.0, timeout_s=None)
    ring.close(ENDED, "source.ended", "over", 3.0)
    assert [(frame.kind, frame.boottime) for frame in read_all(ring)] == [(BLOCK, 0.0), (FAILED, 1.0)]


def test_a_live_stream_is_never_ahead_for_long() -> None:
    """A crystal that runs 0.1 % fast, and 50 ms of jitter, do not add up: samples may be dropped immediately."""
    lead = Lead(1000)
    early = [lead.seconds(100, number * 0.0999 + (0.05 if number % 7 == 0 else 0.0)) for number in range(100_000)]
    assert max(early) < 0.06


def test_a_file_in_disguise_is_ahead_by_what_it_has_given_too_early() -> None:
    """Ten seconds of audio in an instant are ten seconds ahead, and real time catches up with them."""
    lead = Lead(1000)
    early = [lead.seconds(100, 5.0) for _ in range(101)]
    assert early[-1] == pytest.approx(10.0)
    assert all(after > before for before, after in pairwise(early))
    assert lead.seconds(100, 15.2) == 0.0


def test_the_backlog_after_a_stall_is_ahead_too() -> None:
    """Lateness is forgiven, so that a network stream which pours out its backlog is waited for, not dropped from."""
    lead = Lead(1000)
    lead.seconds(100, 0.0)
    early = [lead.seconds(100, 60.0) for _ in range(50)]
    assert early[-1] == pytest.approx(4.9)
