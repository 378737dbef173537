"""Decides which turn messages of a session count: upsert by `turn_order`, final by `end_of_turn`, one final per turn.

The service's `turn_order` is not an identity: if it restarted in the middle of a session, each turn would replace
another. So a turn is identified by the times of its words, and has a number here. The two are equal as long as the
service counts as it should. All outcomes have the number as their `turn_order`.

Pure: messages and the time go in, outcomes come out. Time is in seconds of any clock that only grows.
"""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec

from roomtone.protocol.messages import Revision, SpeakerRevision, Termination, TimedWord, TurnMessage, weigh

MAX_REMEMBERED_TURNS: Final = 2048
"""Final turns kept for corrections, the oldest go first: three hours of uninterrupted talk. A correction of a turn that
is not remembered is dropped."""
MAX_REMEMBERED_BYTES: Final = 4 << 20
"""Bytes, as messages, of the final turns kept for corrections: three hours of uninterrupted talk have as many."""
MAX_OPEN_TURNS: Final = 16
"""Turns without a final that are kept; the service has one open, or two while it changes over. Then the oldest is
abandoned."""
EDGE_MS: Final = 1000
"""Milliseconds by which a correction may be shorter than its turn: the service pads the edges by up to a second."""
_MAX_ORDER: Final = 1 << 31


class InterimText(msgspec.Struct, frozen=True):
    """An open turn. Each replaces the one before of the same `turn_order`."""

    turn: TurnMessage


class FinalTurn(msgspec.Struct, frozen=True):
    """A turn that counts. `corrects`: this `turn_order` was reported as final before, with other text or speakers."""

    turn: TurnMessage
    corrects: bool = False


class EmptyFinal(msgspec.Struct, frozen=True):
    """A final without words: its audio is heard."""

    turn_order: int


class Abandoned(msgspec.Struct, frozen=True):
    """A turn that had text, but no final when a later turn had one or the session ended: its words are lost."""

    turn: TurnMessage


TurnOutcome: TypeAlias = InterimText | FinalTurn | EmptyFinal | Abandoned


class _Known(NamedTuple):
    """A turn that was reported, as a final or as abandoned. `place` is where its words lie, as `_place` has it."""

    turn: TurnMessage
    is_final: bool
    place: int | None
    weight: int


class TurnBook:
    """The turns of one session.

    `two_finals` is for the US models with `format_turns`, which can send an unformatted final and then a formatted one
    of the same turn: the first waits for its twin, until `twin_timeout_s` have passed, another turn comes, or the
    session ends.
    """

    def __init__(self, *, two_finals: bool = False, twin_timeout_s: float = 2.0) -> None:
        self._two_finals = two_finals
        self._twin_timeout_s = twin_timeout_s
        self._partials: dict[int, TurnMessage] = {}
        self._held: tuple[float, TurnMessage] | None = None
        self._known: dict[int, _Known] = {}
        self._places: dict[int, int] = {}
        self._weight = 0
        self._last_final = -1
        self._reach = 0.0
        self._numbers: dict[int, int] = {}
        self._highest = -1
        self._forgotten = -1

    def feed(self, message: TurnMessage | SpeakerRevision | Termination, now: float) -> list[TurnOutcome]:
        """The outcomes of this message, in order."""
        match message:
            case TurnMessage(end_of_turn=True):
                return self._final(self._identify_final(message), now)
            case TurnMessage():
                identified = self._identify_partial(message)
                return [] if identified is None else self._partial(identified)
            case SpeakerRevision(revisions=revisions):
                return [outcome for revision in revisions for outcome in self._revise(revision)]
            case Termination():
                return self.close()

    def number(self, order: int) -> int:
        """The number of the turn that the service now calls by this order, also where nothing of it has come yet."""
        number = self._numbers.get(order)
        return self._assign(order) if number is None else number

    def deadline(self) -> float:
        """When `expire` has something to do; infinity while nothing waits."""
        return math.inf if self._held is None else self._held[0]

    def expire(self, now: float) -> list[TurnOutcome]:
        """Returns the final whose twin did not come in time."""
        return self._release() if now >= self.deadline() else []

    def close(self) -> list[TurnOutcome]:
        """End the session: a final that waits counts, and open turns are abandoned."""
        released = self._release()
        return [*released, *self._abandon(list(self._partials))]

    def open_since(self) -> float:
        """Where, in ms of the session's audio, the first words begin that have no final yet; infinity without any.

        A partial that names no words counts from the end of nothing: 0.
        """
        waiting = [*self._partials.values(), *([self._held[1]] if self._held else [])]
        return min((_start(turn) for turn in waiting), default=math.inf)

    # --- which turn a message is about ---

    def _identify_final(self, message: TurnMessage) -> TurnMessage:
        order, place = message.turn_order, _place(message)
        number = self._numbers.get(order)
        if place is not None and place in self._places:
            # Said before, by whatever order: which still stands for the turn that is open under it.
            is_open, number = number in self._partials, self._places[place]
            self._numbers[order] = self._numbers[order] if is_open else number
        elif number is None or not self._may_replace(number, message):
            number = self._assign(order)
        return msgspec.structs.replace(message, turn_order=number)

    def _identify_partial(self, message: TurnMessage) -> TurnMessage | None:
        """The message under its turn's number; None for one that was overtaken by its own final, or a later one."""
        number = self._numbers.get(message.turn_order)
        is_past = number in self._known or (message.turn_order if number is None else number) <= self._last_final
        if is_past and not (message.words and _start(message) >= self._reach):
            return None
        if number is None or is_past or self._is_behind(number, message):
            number = self._assign(message.turn_order, is_fresh=is_past)
        return msgspec.structs.replace(message, turn_order=number)

    def _is_behind(self, number: int, message: TurnMessage) -> bool:
        """True if a turn is open under this number and the message begins where that has ended."""
        turn = self._partials.get(number)
        return turn is not None and bool(turn.words and message.words) and _start(message) >= _span(turn)[1]

    def _may_replace(self, number: int, message: TurnMessage) -> bool:
        """True if the message may stand for what is known under this number: only times that overlap correct."""
        if number <= self._forgotten:
            return False
        if self._held is not None and self._held[1].turn_order == number:
            return not message.text or _covers(message, self._held[1])
        known = self._known.get(number)
        if known is None:
            return not self._is_behind(number, message)
        return not message.text or _covers(message, known.turn)

    def _assign(self, order: int, *, is_fresh: bool = False) -> int:
        """A number for a new turn: the service's order where no other turn has had it, unless it `is_fresh`: behind
        all others.
        """
        is_taken = order <= self._highest and (
            is_fresh
            or order <= self._forgotten
            or any(order in numbers for numbers in (self._known, self._partials, self._numbers.values()))
        )
        number = self._highest + 1 if is_taken or not 0 <= order < _MAX_ORDER else order
        self._highest = max(self._highest, number)
        self._numbers.pop(order, None)
        self._numbers[order] = number
        if len(self._numbers) > 2 * MAX_REMEMBERED_TURNS:
            # Its number stays taken: a turn may have been reported by it.
            self._forgotten = max(self._forgotten, self._numbers.pop(next(iter(self._numbers))))
        return number

    # --- what becomes of it ---

    def _partial(self, message: TurnMessage) -> list[TurnOutcome]:
        order = message.turn_order
        released = self._release() if self._held and order > self._held[1].turn_order else []
        if self._held and order == self._held[1].turn_order:
            return released
        self._partials[order] = message
        crowded = self._abandon([next(iter(self._partials))]) if len(self._partials) > MAX_OPEN_TURNS else []
        return [*released, *crowded, InterimText(message)]

    def _final(self, message: TurnMessage, now: float) -> list[TurnOutcome]:
        order = message.turn_order
        outcomes: list[TurnOutcome] = []
        if self._held and order != self._held[1].turn_order:
            outcomes += self._release()
        if not message.text:
            # The US models send one when a session terminates. It must take no words from a turn that has some.
            if order not in self._known and (self._held is None or self._held[1].turn_order != order):
                outcomes += self._settle(order)
                self._partials.pop(order, None)
            return [*outcomes, EmptyFinal(order)]
        if self._two_finals and not message.turn_is_formatted and not self._is_final(order):
            due = now + self._twin_timeout_s if self._held is None else self._held[0]
            self._held = (due, message)
            self._partials.pop(order, None)
            return outcomes
        if self._held and self._held[1].turn_order == order:
            self._held = None
        return [*outcomes, *self._count(message)]

    def _is_final(self, number: int) -> bool:
        return number in self._known and self._known[number].is_final

    def _release(self) -> list[TurnOutcome]:
        if self._held is None:
            return []
        _, message = self._held
        self._held = None
        return self._count(message)

    def _count(self, message: TurnMessage) -> list[TurnOutcome]:
        order = message.turn_order
        self._partials.pop(order, None)
        same = [number for number, turn in self._partials.items() if _covers(message, turn)]
        abandoned: list[TurnOutcome] = [EmptyFinal(number) for number in same if self._partials.pop(number)]
        abandoned += self._settle(order)
        known = self._known.get(order)
        before = known.turn if known is not None and known.is_final else None
        if before is not None and (
            before == message
            or (before.turn_is_formatted and not message.turn_is_formatted)
            or (before.words and not message.words)
        ):
            return abandoned
        self._remember(message, is_final=True)
        return [*abandoned, FinalTurn(message, corrects=before is not None)]

    def _settle(self, order: int) -> list[TurnOutcome]:
        """Abandon every turn below this one: their finals will not come."""
        self._last_final = max(self._last_final, order)
        return self._abandon([number for number in self._partials if number < order])

    def _abandon(self, numbers: list[int]) -> list[TurnOutcome]:
        """End these turns without a final, also those without text, which would otherwise stay open."""
        outcomes: list[TurnOutcome] = []
        for number in numbers:
            turn = self._partials.pop(number)
            if turn.text:
                self._remember(turn, is_final=False)
                outcomes.append(Abandoned(turn))
            else:
                outcomes.append(EmptyFinal(number))
        return outcomes

    def _remember(self, turn: TurnMessage, *, is_final: bool) -> None:
        self._forget(turn.turn_order)
        place, weight = _place(turn), weigh(turn)
        self._known[turn.turn_order] = _Known(turn, is_final, place, weight)
        self._weight += weight
        self._reach = max([self._reach, *(word.end for word in turn.words or ())])
        if place is not None:
            self._places[place] = turn.turn_order
        while len(self._known) > MAX_REMEMBERED_TURNS or (self._weight > MAX_REMEMBERED_BYTES and len(self._known) > 1):
            oldest = next(iter(self._known))
            self._forgotten = max(self._forgotten, oldest)
            self._forget(oldest)

    def _forget(self, number: int) -> None:
        known = self._known.pop(number, None)
        if known is not None:
            self._weight -= known.weight
            if known.place is not None:
                self._places.pop(known.place, None)

    def _revise(self, revision: Revision) -> list[TurnOutcome]:
        number = self._numbers.get(revision.turn_order)
        known = None if number is None else self._known.get(number)
        if known is None or not known.is_final:
            return []
        after = revise(known.turn, revision)
        if after == known.turn:
            return []
        self._remember(after, is_final=True)
        return [FinalTurn(after, corrects=True)]


def _covers(new: TurnMessage, old: TurnMessage) -> bool:
    """True if the new turn stands where the old one does, so that nothing is lost where it replaces it.

    Turns without times are the same where they say the same.
    """
    if not new.words or not old.words:
        return fold(new.text) == fold(old.text)
    (begin, end), (old_begin, old_end) = _span(new), _span(old)
    common = min(end, old_end) - max(begin, old_begin)
    is_whole = begin <= old_begin + EDGE_MS and end >= old_end - EDGE_MS
    return is_whole and 2 * common >= old_end - old_begin


def _span(turn: TurnMessage) -> tuple[float, float]:
    words = turn.words or ()
    return min(word.start for word in words), max(word.end for word in words)


def _place(turn: TurnMessage) -> int | None:
    """Stands for these words at these times: the same ones are the same turn, whatever it is called."""
    return hash(tuple(_places(turn.words))) if turn.words else None


def _places(words: tuple[TimedWord, ...]) -> Iterator[tuple[float, float, str]]:
    for word in words:
        yield word.start, word.end, fold(word.text)


def revise(turn: TurnMessage, revision: Revision) -> TurnMessage:
    """The turn with its speakers corrected: by place where there are as many words, else by the words' times."""
    old, new = turn.words or (), revision.words or ()
    if len(old) == len(new):
        speakers = [word.speaker for word in new]
    else:
        by_time = {(word.start, word.end): word.speaker for word in new}
        speakers = [by_time.get((word.start, word.end), word.speaker) for word in old]
    words: tuple[TimedWord, ...] = tuple(
        msgspec.structs.replace(word, speaker=speaker or word.speaker)
        for word, speaker in zip(old, speakers, strict=True)
    )
    return msgspec.structs.replace(turn, words=words, speaker_label=revision.speaker_label or turn.speaker_label)


def _start(turn: TurnMessage) -> float:
    return min((word.start for word in turn.words or ()), default=0)


def fold(text: str) -> str:
    """A word's text for comparison: without case and punctuation."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())
