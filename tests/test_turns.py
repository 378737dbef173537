"""Which turn messages count."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.speech.protocol import Revision, SpeakerRevision, Termination, TimedWord, TurnMessage
from roomtone.speech.turns import (
    REMEMBERED,
    Abandoned,
    EmptyFinal,
    FinalTurn,
    InterimText,
    Outcome,
    TurnBook,
    revise,
)


def partial(order: int, text: str = "hello", start: int = 0) -> TurnMessage:
    return TurnMessage(order, False, text, words=(TimedWord(start, start + 100, text),))


def final(order: int, text: str = "hello", *, formatted: bool = True) -> TurnMessage:
    words = (TimedWord(1000 * order, 1000 * order + 100, text),) if text else ()
    return TurnMessage(order, True, text, formatted, words=words)


def test_partials_replace_and_a_final_ends_them() -> None:
    """Each partial is interim text, the final counts once, and what comes late of the same turn is nothing."""
    book = TurnBook()
    assert book.feed(partial(0, "hel"), 0) == [InterimText(partial(0, "hel"))]
    assert book.feed(partial(0), 1) == [InterimText(partial(0))]
    assert book.feed(final(0), 2) == [FinalTurn(final(0))]
    assert book.feed(partial(0), 3) == []
    assert book.feed(final(0), 3) == []
    assert book.deadline() == math.inf


def test_a_later_final_corrects() -> None:
    """Another text for a turn that counted is a correction."""
    book = TurnBook()
    book.feed(final(0), 0)
    assert book.feed(final(0, "hallo"), 1) == [FinalTurn(final(0, "hallo"), corrects=True)]


def test_empty_finals_only_acknowledge() -> None:
    """A final without words takes nothing from a turn that has some."""
    book = TurnBook()
    assert book.feed(final(0, ""), 0) == [EmptyFinal(0)]
    book.feed(final(1), 0)
    assert book.feed(final(1, ""), 0) == [EmptyFinal(1)]
    assert book.feed(Termination(), 0) == []


def test_the_unformatted_final_waits_for_its_twin() -> None:
    """Of two finals the formatted one counts, and the first is not reported."""
    book = TurnBook(two_finals=True)
    raw = final(0, "hello", formatted=False)
    assert book.feed(raw, 10.0) == []
    assert book.feed(final(0, "hello there", formatted=False), 11.0) == []
    assert book.deadline() == 12.0
    assert book.expire(11.9) == []
    assert book.feed(final(0, "Hello."), 11.9) == [FinalTurn(final(0, "Hello."))]
    assert book.deadline() == math.inf


@pytest.mark.parametrize("end", ["time", "partial", "final", "termination", "close"])
def test_a_twin_that_does_not_come_holds_nothing_up(end: str) -> None:
    """After 2 s, with a later turn, or at the end of the session, the first final counts; a late twin corrects it."""
    book = TurnBook(two_finals=True)
    raw = final(0, "hello", formatted=False)
    book.feed(raw, 10.0)
    outcomes: list[Outcome] = {
        "time": lambda: book.expire(12.0),
        "partial": lambda: book.feed(partial(1), 10.1),
        "final": lambda: book.feed(final(1), 10.1),
        "termination": lambda: book.feed(Termination(), 10.1),
        "close": book.close,
    }[end]()
    assert outcomes[0] == FinalTurn(raw)
    assert book.deadline() == math.inf
    assert book.feed(final(0, "Hello."), 13) == [FinalTurn(final(0, "Hello."), corrects=True)]


def test_the_unformatted_final_never_replaces_the_formatted() -> None:
    """Out of order, the formatted one stays."""
    book = TurnBook(two_finals=True)
    book.feed(final(0, "Hello."), 0)
    assert book.feed(final(0, "hello", formatted=False), 0.1) == []


def test_without_two_finals_nothing_waits() -> None:
    """Unformatted text of a model that does not format counts at once."""
    book = TurnBook()
    assert book.feed(final(0, formatted=False), 0) == [FinalTurn(final(0, formatted=False))]


def test_a_turn_without_a_final_is_abandoned() -> None:
    """Words that were shown and never became final are reported when a later turn is, or when the session ends."""
    book = TurnBook()
    book.feed(partial(0), 0)
    book.feed(partial(2), 0)
    assert book.feed(final(1), 1) == [Abandoned(partial(0)), FinalTurn(final(1))]
    assert book.close() == [Abandoned(partial(2))]
    assert book.close() == []


def test_where_words_wait_for_their_final() -> None:
    """Open is what partials and a waiting first final show, and nothing else."""
    book = TurnBook(two_finals=True)
    assert book.open_since() == math.inf
    book.feed(partial(0, start=700), 0)
    assert book.open_since() == 700
    book.feed(TurnMessage(0, True, "x", words=(TimedWord(650, 800, "x"),)), 0)
    assert book.open_since() == 650
    book.feed(TurnMessage(0, True, "X.", True, words=(TimedWord(660, 800, "X."),)), 0)
    assert book.open_since() == math.inf
    book.feed(TurnMessage(1, False, "x"), 0)
    assert book.open_since() == 0


def test_speakers_are_corrected() -> None:
    """A revision that changes something is a correction; of a turn that nobody knows it is nothing."""
    book = TurnBook()
    turn = TurnMessage(
        0, True, "a b", True, words=(TimedWord(0, 1, "a", speaker="A"), TimedWord(1, 2, "b")), speaker_label="A"
    )
    book.feed(turn, 0)
    same = Revision(0, "A", (TimedWord(0, 1, "a", speaker="A"), TimedWord(1, 2, "b")))
    other = Revision(0, "B", (TimedWord(0, 1, "a", speaker="B"), TimedWord(1, 2, "b", speaker="A")))
    assert book.feed(SpeakerRevision((same, msgspec.structs.replace(other, turn_order=9))), 1) == []
    [outcome] = book.feed(SpeakerRevision((other,)), 1)
    assert isinstance(outcome, FinalTurn)
    assert outcome.corrects
    assert (outcome.turn.speaker_label, [word.speaker for word in outcome.turn.words or ()]) == ("B", ["B", "A"])
    assert outcome.turn.text == "a b"


def test_a_revision_with_other_words_goes_by_their_times() -> None:
    """Where the revision has fewer words, those at the same times are corrected and the others stay."""
    turn = TurnMessage(0, True, "a b", words=(TimedWord(0, 1, "a", speaker="A"), TimedWord(1, 2, "b", speaker="A")))
    after = revise(turn, Revision(0, None, (TimedWord(1, 2, "b", speaker="C"),)))
    assert [word.speaker for word in after.words or ()] == ["A", "C"]


def test_the_memory_of_turns_is_bounded() -> None:
    """The oldest turns are forgotten, and a correction of one is nothing."""
    book = TurnBook()
    for order in range(REMEMBERED + 1):
        book.feed(final(order), 0)
    assert book.feed(SpeakerRevision((Revision(0, "B"),)), 0) == []
    assert len(book.feed(SpeakerRevision((Revision(1, "B"),)), 0)) == 1


messages = st.lists(
    st.builds(
        TurnMessage,
        st.integers(0, 4),
        st.booleans(),
        st.sampled_from(["", "a", "b"]),
        st.booleans(),
    ),
    max_size=20,
)


@given(messages, st.booleans())
def test_every_final_with_words_counts_once(turns: list[TurnMessage], two_finals: bool) -> None:
    """Whatever the order: each turn with a final that has text is reported, the first time not as a correction."""
    book = TurnBook(two_finals=two_finals)
    outcomes: list[Outcome] = []
    for now, turn in enumerate(turns):
        outcomes += book.expire(now)
        outcomes += book.feed(turn, now)
    outcomes += book.close()
    counted = [outcome for outcome in outcomes if isinstance(outcome, FinalTurn)]
    said = {turn.turn_order for turn in turns if turn.end_of_turn and turn.text}
    assert {outcome.turn.turn_order for outcome in counted} == said
    for order in said:
        corrections = [outcome.corrects for outcome in counted if outcome.turn.turn_order == order]
        assert corrections == [False] + [True] * (len(corrections) - 1)
    assert book.open_since() == math.inf
    assert book.deadline() == math.inf
