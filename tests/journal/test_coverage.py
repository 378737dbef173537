"""The ledger: the summary of a room's coverage is what happened, and unexplained positions show."""

from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import NamedTuple

from hypothesis import assume, given
from hypothesis import strategies as st

from roomtone.events import Cause
from roomtone.journal.coverage import Summary, Unexplained, draw, summarize
from roomtone.journal.records import CoverageSpan

RATE = 1000
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
CAUSES: tuple[Cause, ...] = ("overrun", "device", "disk full", "daemon down")


class Piece(NamedTuple):
    """What happened for some seconds: `audio` moves the position on; cause None leaves it unexplained."""

    what: str
    seconds: int
    audio: bool = True
    cause: Cause | None = None


Recorded = st.builds(
    Piece,
    st.sampled_from(["transcribed", "silent", "pending", "removed", "forgotten"]),
    st.integers(1, 9),
    st.just(value=True),
)
Lost = st.builds(Piece, st.just("lost"), st.integers(1, 9), st.booleans(), st.sampled_from(CAUSES))
Forgotten = st.builds(Piece, st.just("unexplained"), st.integers(1, 9), st.booleans())
First = st.builds(Piece, st.just("silent"), st.integers(1, 9), st.just(value=True))


def kept(covers: list[CoverageSpan], cover: CoverageSpan) -> list[CoverageSpan]:
    """The rows with one more, joined as the journal joins them."""
    for other in [one for one in covers if cover.adjoins(one)]:
        covers = [one for one in covers if one is not other]
        cover = cover.joined(other)
    return [*covers, cover]


def happen(pieces: list[Piece]) -> list[CoverageSpan]:
    """The journal's coverage of these pieces, one after the other."""
    covers: list[CoverageSpan] = []
    position, time = 0, BEGAN
    for piece in pieces:
        end, until = position + piece.seconds * RATE * piece.audio, time + timedelta(seconds=piece.seconds)
        match piece.what:
            case "lost":
                covers = kept(covers, CoverageSpan("desk", position, end, "lost", piece.cause, time, until))
            case "unexplained":
                pass
            case _:
                covers = kept(covers, CoverageSpan("desk", position, end, "captured", None, time, until))
                if piece.what != "pending":
                    covers = kept(covers, CoverageSpan("desk", position, end, piece.what, None, time, until))  # type: ignore[arg-type]
        position, time = end, until
    return covers


def seconds(pieces: list[Piece], what: str, *, audio: bool | None = None) -> int:
    return sum(one.seconds for one in pieces if one.what == what and audio in {None, one.audio})


def check(summary: Summary | None, pieces: list[Piece]) -> Summary:
    assert summary is not None
    for state in ("transcribed", "silent", "removed", "forgotten", "pending"):
        assert getattr(summary, state) == seconds(pieces, state) * RATE
    assert sum(loss.samples for loss in summary.lost) == seconds(pieces, "lost", audio=True) * RATE
    assert sum(loss.seconds for loss in summary.lost) == seconds(pieces, "lost")
    missing = sum((one.until - one.from_).total_seconds() for one in summary.unexplained)
    assert missing == seconds(pieces, "unexplained")
    assert sum(one.end - one.start for one in summary.unexplained) == seconds(pieces, "unexplained", audio=True) * RATE
    assert summary.is_explained == (missing == 0)
    assert summary.twice == 0
    return summary


@given(First, st.lists(st.one_of(Recorded, Lost, Forgotten), max_size=12), First)
def test_the_summary_is_what_happened(first: Piece, pieces: list[Piece], last: Piece) -> None:
    """Every second of every stretch is counted once, as what it is; what has no account is unexplained."""
    whole = [first, *pieces, last]
    summary = check(summarize("desk", RATE, happen(whole)), whole)

    total = sum(one.seconds for one in whole)
    recorded = total - seconds(whole, "lost") - seconds(whole, "unexplained")
    assert abs(summary.ratio - recorded / total) < 1e-9
    assert (summary.until - summary.from_).total_seconds() == total


@given(First, st.lists(st.one_of(Recorded, Lost), max_size=12), First, st.data())
def test_since(first: Piece, pieces: list[Piece], last: Piece, data: st.DataObject) -> None:
    """The account since a time is that of what happened since, to the sample, wherever the time lies."""
    whole = [first, *pieces, last]
    total = sum(one.seconds for one in whole)
    since = data.draw(st.integers(0, total - 1))
    # Where time and samples were lost in one stretch, no journal tells which was first.
    ends = list(accumulate(piece.seconds for piece in whole))
    assume(whole[bisect_right(ends, since)].what != "lost")
    rest, passed = [], 0
    for piece in whole:
        left = min(piece.seconds, passed + piece.seconds - since)
        passed += piece.seconds
        if left > 0:
            rest.append(piece._replace(seconds=left))

    check(summarize("desk", RATE, happen(whole), since=BEGAN + timedelta(seconds=since)), rest)


def test_nothing_is_summed_up_of_nothing() -> None:
    """A room that the journal does not know has no summary, and neither has the time after the last sample."""
    assert summarize("desk", RATE, []) is None
    assert summarize("desk", RATE, happen([Piece("silent", 5)]), since=BEGAN + timedelta(seconds=6)) is None
    assert draw([], 10, rate=RATE) == []


def test_a_clock_that_is_set_back_explains_nothing_away() -> None:
    """After a step back the time goes on from there: what is missing behind it still shows."""
    back = timedelta(hours=-1)
    covers = happen([Piece("silent", 5), Piece("silent", 5), Piece("unexplained", 3, audio=False), Piece("silent", 5)])
    rows = sorted((row for row in covers if row.state == "captured"), key=lambda row: row.start)
    first = CoverageSpan("desk", 0, 5000, "captured", None, BEGAN, BEGAN + timedelta(seconds=5))
    rest = [CoverageSpan("desk", 5000, 10_000, "captured", None, first.until + back, rows[0].until + back)]
    rest.append(CoverageSpan("desk", 10_000, 15_000, "captured", None, rows[1].from_ + back, rows[1].until + back))

    summary = summarize("desk", RATE, [first, *rest])

    assert summary is not None
    assert summary.unexplained == (Unexplained(10_000, 10_000, rows[0].until + back, rows[1].from_ + back),)


def test_a_clock_that_is_set_forward_is_explained() -> None:
    """The hours that it jumps over are not lost time: what was captured around them is one stretch."""
    hours = timedelta(hours=3)
    (first,) = (row for row in happen([Piece("silent", 5)]) if row.state == "captured")
    step = CoverageSpan("desk", 5000, 5000, "captured", None, first.until, first.until + hours)
    after = CoverageSpan("desk", 5000, 9000, "captured", None, step.until, step.until + timedelta(seconds=4))
    rows: list[CoverageSpan] = []
    for row in (first, step, after):
        rows = kept(rows, row)

    assert len(rows) == 1
    summary = summarize("desk", RATE, rows)
    assert summary is not None
    assert summary.is_explained
    assert (summary.ratio, summary.captured) == (1.0, 9000)


def test_what_is_captured_and_lost_is_a_contradiction() -> None:
    """A sample has one fate."""
    covers = happen([Piece("silent", 5)])
    covers.append(CoverageSpan("desk", 1000, 2000, "lost", "device", BEGAN, BEGAN + timedelta(seconds=1)))
    summary = summarize("desk", RATE, covers)

    assert summary is not None
    assert summary.twice == 1000
    assert not summary.is_explained


@given(st.integers(1, 60))
def test_the_timeline_shows_the_worst_of_each_part(cells: int) -> None:
    """However coarse it is drawn, a loss shows, and unexplained audio shows above all."""
    pieces = [
        Piece("transcribed", 400),
        Piece("lost", 1, cause="device"),
        Piece("silent", 300),
        Piece("pending", 200),
        Piece("unexplained", 2, audio=False),
        Piece("silent", 97),
    ]
    parts = draw(happen(pieces), cells, rate=RATE)

    assert len(parts) == cells
    assert "unexplained" in parts
    assert None not in parts
    if cells > 1:
        assert "lost" in parts
    if cells == 60:
        assert parts[0] == "transcribed"
        assert parts[-1] == "silent"
        assert parts.count("pending") >= 10
