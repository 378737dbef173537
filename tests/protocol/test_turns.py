"""Which turn messages count."""

import math
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.protocol.messages import Revision, SpeakerRevision, Termination, TimedWord, TurnMessage
from roomtone.protocol.turns import (
    MAX_OPEN_TURNS,
    MAX_REMEMBERED_BYTES,
    MAX_REMEMBERED_TURNS,
    Abandoned,
    EmptyFinal,
    FinalTurn,
    InterimText,
    TurnBook,
    TurnOutcome,
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
    outcomes: list[TurnOutcome] = {
        "time": lambda: book.expire(12.0),
        "partial": lambda: book.feed(partial(1, start=3000), 10.1),
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
    """Unformatted text of a model that does not format counts immediately."""
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
    """A revision that changes something is a correction; of an unknown turn it is nothing."""
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
    for order in range(MAX_REMEMBERED_TURNS + 1):
        book.feed(final(order), 0)
    assert book.feed(SpeakerRevision((Revision(0, "B"),)), 0) == []
    assert len(book.feed(SpeakerRevision((Revision(1, "B"),)), 0)) == 1


def said(order: int, start: int, *texts: str, final: bool = True) -> TurnMessage:
    """A turn under this order that begins at `start` ms, a word each 300 ms."""
    words = tuple(TimedWord(start + 300 * i, start + 300 * i + 250, text) for i, text in enumerate(texts))
    return TurnMessage(order, final, " ".join(texts), True, words=words)


def standing(outcomes: list[TurnOutcome]) -> list[str]:
    """The words that stand after these outcomes, by time."""
    turns = {one.turn.turn_order: one.turn for one in outcomes if isinstance(one, FinalTurn | Abandoned)}
    words = [word for turn in turns.values() for word in turn.words or ()]
    return [word.text for word in sorted(words, key=lambda word: word.start)]


@pytest.mark.parametrize("later", [0, -5, 1 << 53])
def test_an_order_that_is_used_again(later: int) -> None:
    """A final whose words lie elsewhere is another turn: it replaces nothing, and is no longer confused with the first.

    Nothing that was said counts twice where it comes again, by whatever order.
    """
    book = TurnBook()
    first, second = said(0, 0, "a", "b"), said(later, 9000, "c")
    outcomes = book.feed(first, 0) + book.feed(second, 1)
    numbers = [one.turn.turn_order for one in outcomes if isinstance(one, FinalTurn)]
    assert numbers == [0, 1]
    assert not any(one.corrects for one in outcomes if isinstance(one, FinalTurn))
    assert book.number(later) == 1
    assert book.feed(first, 2) == []
    assert book.feed(second, 2) == []
    assert book.feed(said(7, 0, "A,", "b."), 2) == [FinalTurn(said(0, 0, "A,", "b."), corrects=True)]
    assert standing(outcomes) == ["a", "b", "c"]


def test_orders_begin_anew() -> None:
    """After the service has begun to count anew its partials are shown and its finals count, under fresh numbers."""
    book = TurnBook()
    for order in range(3):
        book.feed(said(order, 3000 * order, "old"), 0)
    assert book.feed(said(0, 9000, "n", final=False), 1) == [InterimText(said(3, 9000, "n", final=False))]
    assert book.feed(said(0, 9000, "new"), 1) == [FinalTurn(said(3, 9000, "new"))]
    assert book.feed(said(3, 12_000, "next"), 1) == [FinalTurn(said(4, 12_000, "next"))]


def test_an_overtaken_partial_is_nothing() -> None:
    """One that lies where a final of a later turn has already spoken opens nothing."""
    book = TurnBook()
    book.feed(said(0, 0, "a", final=False), 0)
    book.feed(said(1, 3000, "b"), 0)
    assert book.feed(said(0, 0, "a", final=False), 0) == []
    assert book.feed(said(0, 2900, "a", final=False), 0) == []
    assert book.open_since() == math.inf


@pytest.mark.parametrize(
    ("start", "texts", "corrects"),
    [
        (0, ("a", "b", "d"), True),
        (600, ("c",), False),
        (-300, ("a", "b", "c"), True),
        (0, ("a", "b", "c", "d", "e", "f", "g", "h", "i"), True),
        (0, ("a", "b"), True),
        (0, ("a",), False),
        (1900, ("x", "y", "z", "w"), False),
        (2200, ("x",), False),
    ],
)
def test_only_times_that_overlap_correct(start: int, texts: tuple[str, ...], corrects: bool) -> None:
    """A correction stands over all that it replaces, give or take a padded edge; anything else is another turn."""
    book = TurnBook()
    book.feed(said(0, 0, "a", "b", "c"), 0)
    [outcome] = book.feed(said(0, start, *texts), 1)
    assert isinstance(outcome, FinalTurn)
    assert outcome.corrects is corrects


def test_a_short_final_does_not_take_a_long_turn() -> None:
    """One word inside of a minute, by the minute's order, leaves the minute where it was."""
    book = TurnBook()
    minute = said(0, 0, *(str(i) for i in range(200)))
    book.feed(minute, 0)
    [outcome] = book.feed(said(0, 300, "x"), 1)
    assert outcome == FinalTurn(said(1, 300, "x"))


def test_half_of_a_turn_does_not_take_the_rest() -> None:
    """A final that ends long before the turn of its order ends is another turn."""
    book = TurnBook()
    book.feed(said(0, 0, *(str(i) for i in range(200))), 0)
    shorter = said(0, 0, *(f"{i}." for i in range(150)), "x")
    [outcome] = book.feed(shorter, 1)
    assert outcome == FinalTurn(msgspec.structs.replace(shorter, turn_order=1))


def test_an_order_below_the_last() -> None:
    """A turn that is first heard of under an order that was passed keeps its fresh number from message to message."""
    book = TurnBook()
    book.feed(said(5, 0, "a"), 0)
    assert book.feed(said(2, 9000, "b", final=False), 0) == [InterimText(said(6, 9000, "b", final=False))]
    assert book.feed(said(2, 9000, "b", "c", final=False), 0) == [InterimText(said(6, 9000, "b", "c", final=False))]
    assert book.feed(said(2, 9000, "b", "c"), 0) == [FinalTurn(said(6, 9000, "b", "c"))]


def test_a_number_is_given_once() -> None:
    """Also where nothing but an answer has come under it yet."""
    book = TurnBook()
    assert book.number(-1) == 0
    assert book.feed(said(0, 0, "a"), 0) == [FinalTurn(said(1, 0, "a"))]


def test_a_waiting_final_is_not_replaced_from_elsewhere() -> None:
    """Of two unformatted finals of one order the second lies elsewhere: both count."""
    book = TurnBook(two_finals=True)
    first, second = (
        msgspec.structs.replace(said(0, start, text), turn_is_formatted=False)
        for start, text in ((0, "a"), (9000, "b"))
    )
    book.feed(first, 0)
    assert book.feed(second, 0) == [FinalTurn(first)]
    assert book.close() == [FinalTurn(msgspec.structs.replace(second, turn_order=1))]


def test_a_final_without_times_takes_no_words() -> None:
    """By the order of a turn with words it is nothing new where it says the same, else another turn."""
    book = TurnBook()
    book.feed(said(0, 0, "a", "b"), 0)
    assert book.feed(TurnMessage(0, True, "A, b.", True), 1) == []
    assert book.feed(TurnMessage(0, True, "c", True), 1) == [FinalTurn(TurnMessage(1, True, "c", True))]


def test_an_abandoned_turn_is_a_turn() -> None:
    """Its final comes late and replaces it where it stands; one elsewhere does not."""
    for start, number in ((0, 0), (9000, 2)):
        book = TurnBook()
        book.feed(said(0, 0, "a", final=False), 0)
        assert book.feed(said(1, 3000, "b"), 0)[0] == Abandoned(said(0, 0, "a", final=False))
        assert book.feed(said(0, start, "a."), 1) == [FinalTurn(said(number, start, "a."))]


def test_a_turn_that_moves_on_without_a_final() -> None:
    """An open turn whose order goes on elsewhere is not forgotten: its words count when a later turn's do."""
    book = TurnBook()
    book.feed(said(0, 0, "a", final=False), 0)
    assert book.feed(said(0, 5000, "b", final=False), 0) == [InterimText(said(1, 5000, "b", final=False))]
    assert book.feed(said(0, 9000, "c"), 0) == [
        Abandoned(said(0, 0, "a", final=False)),
        Abandoned(said(1, 5000, "b", final=False)),
        FinalTurn(said(2, 9000, "c")),
    ]


def test_a_final_ends_what_is_open_there() -> None:
    """A turn that was shown under one order and is final under another counts once; nothing stays open."""
    for first, second in ((0, 1), (1, 0)):
        book = TurnBook()
        book.feed(said(first, 0, "a", "b", final=False), 0)
        assert book.feed(said(second, 0, "a", "b."), 0) == [EmptyFinal(first), FinalTurn(said(second, 0, "a", "b."))]
        assert book.close() == []


def test_what_comes_again_does_not_end_what_is_open() -> None:
    """A final that is repeated while its order already stands for the next turn leaves that turn open."""
    book = TurnBook()
    book.feed(said(0, 0, "a"), 0)
    book.feed(said(0, 3000, "b", final=False), 0)
    assert book.feed(said(0, 0, "a"), 0) == []
    assert book.feed(said(0, 3000, "b", "c", final=False), 0) == [InterimText(said(1, 3000, "b", "c", final=False))]
    assert book.feed(said(0, 3000, "b", "c"), 0) == [FinalTurn(said(1, 3000, "b", "c"))]


def test_an_open_turn_without_text_is_closed() -> None:
    """A turn that was opened and never said anything ends with the next final, or it would be open for good."""
    book = TurnBook()
    book.feed(TurnMessage(0, False, ""), 0)
    assert book.feed(said(1, 3000, "b"), 0) == [EmptyFinal(0), FinalTurn(said(1, 3000, "b"))]


def test_the_memory_of_open_turns_is_bounded() -> None:
    """A service that opens turns without end has the oldest abandoned, each with its words."""
    book = TurnBook()
    outcomes: list[TurnOutcome] = []
    for order in range(3 * MAX_OPEN_TURNS):
        outcomes += book.feed(said(order, 1000 * order, str(order), final=False), 0)
    assert len([one for one in outcomes if isinstance(one, Abandoned)]) == 2 * MAX_OPEN_TURNS
    assert standing(outcomes + book.close()) == [str(order) for order in range(3 * MAX_OPEN_TURNS)]


def test_the_memory_of_long_turns_is_bounded() -> None:
    """Turns are remembered by their bytes; one that is forgotten does not lend its order to another."""
    book = TurnBook()
    text = "x" * (MAX_REMEMBERED_BYTES // 4)
    for order in range(8):
        book.feed(said(order, 1000 * order, text), 0)
    assert book.feed(SpeakerRevision((Revision(0, "B"),)), 0) == []
    assert len(book.feed(SpeakerRevision((Revision(7, "B"),)), 0)) == 1
    assert len(book._places) == len(book._known) < 8
    assert book.feed(said(0, 9000, "new"), 0) == [FinalTurn(said(8, 9000, "new"))]


def test_the_memory_of_orders_is_bounded() -> None:
    """Orders that are only asked for, as answers to turns that never come do, are forgotten too."""
    book = TurnBook()
    for order in range(5 * MAX_REMEMBERED_TURNS):
        book.number(order)
    assert len(book._numbers) == 2 * MAX_REMEMBERED_TURNS


def test_a_forgotten_number_is_not_given_again() -> None:
    """A turn whose order was forgotten cannot be confused with an earlier one, also where that was empty."""
    book = TurnBook()
    given = [book.number(order) for order in range(3 * MAX_REMEMBERED_TURNS)]
    assert book.number(0) not in given


def test_an_order_in_use_is_forgotten_last() -> None:
    """An order that got a new turn is remembered as if it were new."""
    book = TurnBook()
    book.feed(said(0, 1000, "a"), 0)
    for order in range(1, 2 * MAX_REMEMBERED_TURNS):
        book.number(order)
    (outcome,) = book.feed(said(0, 9000, "b"), 0)
    book.number(3 * MAX_REMEMBERED_TURNS)
    assert outcome == FinalTurn(said(2 * MAX_REMEMBERED_TURNS, 9000, "b"))
    assert book.number(0) == 2 * MAX_REMEMBERED_TURNS


def test_an_empty_final_ends_its_turn() -> None:
    """Nothing of it is left to be abandoned."""
    book = TurnBook()
    book.feed(said(0, 1000, "a", final=False), 0)
    assert book.feed(TurnMessage(0, True, ""), 0) == [EmptyFinal(0)]
    assert book.close() == []


def test_a_held_final_replaces_its_partial() -> None:
    """While it waits for its twin, the turn is open from the first word of the final."""
    book = TurnBook(two_finals=True)
    book.feed(TurnMessage(0, False, "a"), 0)
    assert book.open_since() == 0
    book.feed(msgspec.structs.replace(said(0, 1000, "a"), turn_is_formatted=False), 0)
    assert book.open_since() == 1000


class Utterance(NamedTuple):
    """Turns that are spoken once, and the messages of a service that cannot count."""

    order: int
    partials: int
    again: list[tuple[int, int]]
    """Finals that come again after this one: which utterance, under which order."""


orders = st.sampled_from([-1, 0, 1, 2, 3, 7, 1 << 53])
utterances = st.lists(
    st.builds(Utterance, orders, st.integers(0, 2), st.lists(st.tuples(st.integers(0, 9), orders), max_size=2)),
    max_size=10,
)


@given(utterances, st.booleans())
def test_orders_are_not_trusted(spoken: list[Utterance], two_finals: bool) -> None:
    """Whatever orders a service gives, and whatever it repeats: each utterance stands once, and nothing stays open."""
    book = TurnBook(two_finals=two_finals)
    outcomes: list[TurnOutcome] = []
    for now, one in enumerate(spoken):
        texts = [f"{now}{letter}" for letter in "abc"]
        for length in range(1, one.partials + 1):
            outcomes += book.feed(said(one.order, 3000 * now, *texts[:length], final=False), now)
        outcomes += book.feed(said(one.order, 3000 * now, *texts), now)
        for other, order in one.again:
            if other <= now:
                outcomes += book.feed(said(order, 3000 * other, *(f"{other}{letter}" for letter in "abc")), now)
    outcomes += book.close()
    assert standing(outcomes) == [f"{now}{letter}" for now in range(len(spoken)) for letter in "abc"]
    numbers = [one.turn.turn_order for one in outcomes if isinstance(one, FinalTurn) and not one.corrects]
    assert len(numbers) == len(set(numbers)) == len(spoken)
    assert book.open_since() == book.deadline() == math.inf


messages = st.lists(
    st.builds(
        lambda order, final, text, formatted: TurnMessage(
            order, final, text, formatted, words=(TimedWord(1000 * order, 1000 * order + 100, text),) if text else ()
        ),
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
    outcomes: list[TurnOutcome] = []
    for now, turn in enumerate(turns):
        outcomes += book.expire(now)
        outcomes += book.feed(turn, now)
    outcomes += book.close()
    counted = [outcome for outcome in outcomes if isinstance(outcome, FinalTurn)]
    places = {turn.turn_order for turn in turns if turn.end_of_turn and turn.text}
    assert {place_of(outcome) for outcome in counted} == places
    for place in places:
        corrections = [outcome.corrects for outcome in counted if place_of(outcome) == place]
        assert corrections == [False] + [True] * (len(corrections) - 1)
    assert book.open_since() == math.inf
    assert book.deadline() == math.inf


def place_of(outcome: FinalTurn) -> int:
    """Which utterance it is, wherever the service's count has gone."""
    return int(_first(outcome.turn).start // 1000)


def _first(turn: TurnMessage) -> TimedWord:
    assert turn.words
    return turn.words[0]
