"""Which of a session's turn messages count: upsert by `turn_order`, final by `end_of_turn`, one final per turn.

Pure: messages and the time go in, outcomes come out. Time is in seconds of any clock that only grows.
"""

import math
from typing import Final, TypeAlias

import msgspec

from roomtone.speech.protocol import Revision, SpeakerRevision, Termination, TimedWord, TurnMessage

REMEMBERED: Final = 2048
"""Final turns kept for corrections, the oldest go first: three hours of uninterrupted talk. A correction of a turn that
is not remembered is dropped."""


class InterimText(msgspec.Struct, frozen=True):
    """A turn that is still being said. Each replaces the one before of the same `turn_order`."""

    turn: TurnMessage


class FinalTurn(msgspec.Struct, frozen=True):
    """A turn that counts. `corrects`: this `turn_order` was reported as final before, with other text or speakers."""

    turn: TurnMessage
    corrects: bool = False


class EmptyFinal(msgspec.Struct, frozen=True):
    """A final without words: nothing was said, and that is acknowledged."""

    turn_order: int


class Abandoned(msgspec.Struct, frozen=True):
    """A turn that had text, but no final when a later turn had one or the session ended: its words are lost."""

    turn: TurnMessage


Outcome: TypeAlias = InterimText | FinalTurn | EmptyFinal | Abandoned


class TurnBook:
    """The turns of one session.

    `two_finals` is for the US models with `format_turns`, which can send an unformatted final and then a formatted one
    of the same turn: the first waits for its twin, until `patience` seconds have passed, another turn comes, or the
    session ends.
    """

    def __init__(self, *, two_finals: bool = False, patience: float = 2.0) -> None:
        self._two_finals = two_finals
        self._patience = patience
        self._partials: dict[int, TurnMessage] = {}
        self._held: tuple[float, TurnMessage] | None = None
        self._finals: dict[int, TurnMessage] = {}
        self._last_final = -1

    def feed(self, message: TurnMessage | SpeakerRevision | Termination, now: float) -> list[Outcome]:
        """What this message means, in order."""
        match message:
            case TurnMessage(end_of_turn=True):
                return self._final(message, now)
            case TurnMessage():
                return self._partial(message)
            case SpeakerRevision(revisions=revisions):
                return [outcome for revision in revisions for outcome in self._revise(revision)]
            case Termination():
                return self.close()

    def deadline(self) -> float:
        """When `expire` has something to do; infinity while nothing waits."""
        return math.inf if self._held is None else self._held[0]

    def expire(self, now: float) -> list[Outcome]:
        """The final whose twin did not come in time."""
        return self._release() if now >= self.deadline() else []

    def close(self) -> list[Outcome]:
        """The session is over, however it ended: what waits counts, what was never final is abandoned."""
        released = self._release()
        abandoned = [Abandoned(turn) for turn in self._partials.values() if turn.text]
        self._partials.clear()
        return [*released, *abandoned]

    def open_since(self) -> float:
        """Where, in ms of the session's audio, the first words begin that have no final yet; infinity without any.

        A partial that names no words counts from the end of nothing: 0.
        """
        waiting = [*self._partials.values(), *([self._held[1]] if self._held else [])]
        return min((_start(turn) for turn in waiting), default=math.inf)

    def _partial(self, message: TurnMessage) -> list[Outcome]:
        order = message.turn_order
        if order in self._finals or order <= self._last_final:
            return []  # overtaken by its own final
        released = self._release() if self._held and order > self._held[1].turn_order else []
        if self._held and order == self._held[1].turn_order:
            return released
        self._partials[order] = message
        return [*released, InterimText(message)]

    def _final(self, message: TurnMessage, now: float) -> list[Outcome]:
        order = message.turn_order
        outcomes: list[Outcome] = []
        if self._held and order != self._held[1].turn_order:
            outcomes += self._release()
        if not message.text:
            # The US models send one when a session terminates. It must take no words from a turn that has some.
            if order not in self._finals and (self._held is None or self._held[1].turn_order != order):
                outcomes += self._settle(order)
                self._partials.pop(order, None)
            return [*outcomes, EmptyFinal(order)]
        if self._two_finals and not message.turn_is_formatted and order not in self._finals:
            due = now + self._patience if self._held is None else self._held[0]
            self._held = (due, message)
            self._partials.pop(order, None)
            return outcomes
        if self._held and self._held[1].turn_order == order:
            self._held = None
        return [*outcomes, *self._count(message)]

    def _release(self) -> list[Outcome]:
        if self._held is None:
            return []
        _, message = self._held
        self._held = None
        return self._count(message)

    def _count(self, message: TurnMessage) -> list[Outcome]:
        order = message.turn_order
        self._partials.pop(order, None)
        abandoned = self._settle(order)
        before = self._finals.get(order)
        if before == message or (before is not None and before.turn_is_formatted and not message.turn_is_formatted):
            return abandoned
        self._finals[order] = message
        if len(self._finals) > REMEMBERED:
            del self._finals[next(iter(self._finals))]
        return [*abandoned, FinalTurn(message, corrects=before is not None)]

    def _settle(self, order: int) -> list[Outcome]:
        """The service is past every turn below this one: their finals will not come."""
        self._last_final = max(self._last_final, order)
        past = [turn for turn in self._partials.values() if turn.turn_order < order]
        for turn in past:
            del self._partials[turn.turn_order]
        return [Abandoned(turn) for turn in past if turn.text]

    def _revise(self, revision: Revision) -> list[Outcome]:
        before = self._finals.get(revision.turn_order)
        if before is None:
            return []
        after = revise(before, revision)
        if after == before:
            return []
        self._finals[revision.turn_order] = after
        return [FinalTurn(after, corrects=True)]


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
