"""Coverage: sets of positions, and what one session has heard of what it was sent."""

from hypothesis import given
from hypothesis import strategies as st

from roomtone.spans import Span, Spans
from roomtone.speech.acks import SETTLE_DELAY_S, AckTracker

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def positions(spans: Spans) -> set[int]:
    return {position for start, end in spans for position in range(start, end)}


@given(SPANS, SPANS)
def test_spans_are_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    """Union, difference and intersection of spans are those of the sets of their positions, and spans never touch."""
    left, right = Spans(a), Spans(b)

    assert positions(left | right) == positions(left) | positions(right)
    assert positions(left - right) == positions(left) - positions(right)
    assert positions(left & right) == positions(left) & positions(right)
    assert (left | right).total == len(positions(left | right))
    edges = [edge for span in left | right for edge in span]
    assert edges == sorted(set(edges))


@given(SPANS, st.integers(0, 40))
def test_reach(spans: list[tuple[int, int]], position: int) -> None:
    """From a position the set reaches to its first missing one."""
    covered = Spans(spans)
    end = position
    while end in positions(covered):
        end += 1

    assert covered.reach(position) == end
    assert (position in covered) == (position in positions(covered))


def test_sent_is_not_heard() -> None:
    """Audio that was sent, and even answered, is not heard before the service had ten seconds to think."""
    ledger = AckTracker(0, floor=0)
    ledger.sent = 1000

    assert ledger.acknowledged(100) == 0

    ledger.answered(1000, now=100)

    assert ledger.acknowledged(100 + SETTLE_DELAY_S - 0.1) == 0
    assert ledger.acknowledged(100 + SETTLE_DELAY_S) == 1000


def test_an_open_turn_is_not_heard() -> None:
    """Nothing at or behind an open turn is acknowledged before the turn is in the journal."""
    ledger = AckTracker(0, floor=0)
    ledger.sent = 1000
    ledger.opened(0, 300)
    ledger.answered(1000, now=0)

    assert ledger.acknowledged(60) == 300

    ledger.closed(0, Span(300, 500))

    assert ledger.report(60) == (
        1000,
        [(Span(0, 300), "silent"), (Span(300, 500), "transcribed"), (Span(500, 1000), "silent")],
    )


def test_a_turn_reaches_past_what_is_heard() -> None:
    """Words of a final turn that touch what is heard move the acknowledged position; words beyond a hole do not."""
    ledger = AckTracker(0, floor=0)
    ledger.sent = 1000
    ledger.answered(200, now=0)
    ledger.closed(0, Span(200, 400))
    ledger.closed(1, Span(500, 600))

    assert ledger.acknowledged(SETTLE_DELAY_S) == 400


def test_a_service_that_is_late_has_longer() -> None:
    """Twice as long as its words took to come, and never less than ten seconds."""
    ledger = AckTracker(0, floor=0)
    ledger.sent = 1000
    ledger.answered(1000, now=100)

    ledger.late_by(20)
    assert ledger.acknowledged(100 + 39.9) == 0
    assert ledger.acknowledged(100 + 40) == 1000

    ledger.sent = 2000
    ledger.answered(2000, now=200)
    ledger.late_by(1)
    assert ledger.acknowledged(200 + SETTLE_DELAY_S - 0.1) == 1000
    assert ledger.acknowledged(200 + SETTLE_DELAY_S) == 2000


def test_a_turn_that_is_later_than_that() -> None:
    """Audio that counted as silent is transcribed after all, except where older sessions have settled it."""
    ledger = AckTracker(0, floor=100)
    ledger.sent = 1000
    ledger.answered(1000, now=0)
    assert ledger.report(SETTLE_DELAY_S) == (1000, [(Span(100, 1000), "silent")])
    ledger.settle(1000)

    late = {0: Span(50, 300)}
    assert ledger.after(late).report(SETTLE_DELAY_S) == (1000, [(Span(100, 300), "transcribed")])

    ledger.settle(1000, late)
    assert ledger.report(SETTLE_DELAY_S) == (1000, [])


def test_termination_settles_everything() -> None:
    """After Termination all that this session was sent is heard."""
    ledger = AckTracker(0, floor=0)
    ledger.sent = 1000
    ledger.terminated()

    assert ledger.acknowledged(0) == 1000


def test_what_others_settled_is_not_reported_again() -> None:
    """Audio that is sent a second time, before the fallback, is not reported twice."""
    ledger = AckTracker(0, floor=600)
    ledger.sent = 1000
    ledger.closed(0, Span(500, 700))
    ledger.terminated()

    assert ledger.report(0) == (1000, [(Span(600, 700), "transcribed"), (Span(700, 1000), "silent")])


@given(st.lists(st.tuples(st.sampled_from(["send", "ping", "open", "close"]), st.integers(1, 50)), max_size=40))
def test_reports_cover_everything_once(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, the rows of all reports are adjacent, but for the turns of a service that was too late; and the
    acknowledged position never goes back.
    """
    ledger, now, turn, reported, last = AckTracker(0, floor=0), 0.0, 0, 0, 0
    for step, amount in steps:
        now += amount
        match step:
            case "send":
                ledger.sent += amount
            case "ping":
                ledger.answered(ledger.sent, now)
            case "open":
                ledger.opened(turn, min(ledger.sent, ledger.heard(now)))
            case "close":
                ledger.closed(turn, Span(max(0, ledger.sent - amount), ledger.sent))
                turn += 1
        assert ledger.report(now) == ledger.report(now)
        acknowledged, rows = ledger.report(now)
        ledger.settle(acknowledged)
        for span, state in rows:
            if span.end <= reported:
                assert state == "transcribed"
            else:
                assert span.start == reported
                reported = span.end
        assert acknowledged >= last
        assert reported == max(acknowledged, 0)
        last = acknowledged


def test_termination_hears_what_was_still_being_said() -> None:
    """A turn that never had its final holds nothing back behind the service's last word; settled spans are released."""
    ledger = AckTracker(0, floor=0)
    ledger.opened(0, 100)
    ledger.closed(0, Span(100, 200))
    ledger.opened(1, 300)
    ledger.sent = 1000
    ledger.terminated()
    assert ledger.report(0.0) == (
        1000,
        [(Span(0, 100), "silent"), (Span(100, 200), "transcribed"), (Span(200, 1000), "silent")],
    )
    ledger.settle(1000)
    assert not ledger._finals
