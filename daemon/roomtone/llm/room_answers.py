"""The answers of a language model that final turns wait for: which are expected, and what becomes of those missing.

An account without the LLM Gateway gets no answer and no error, so each final turn is watched. Each expected answer is a
mark in the journal, committed with its turn: a crash loses none without a word.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, TypeAlias

import msgspec
import trio

from roomtone.events import notice
from roomtone.journal.keys import ANSWER_PREFIX
from roomtone.journal.records import Mark, Record
from roomtone.llm.completion import Usage
from roomtone.protocol.parameters import LLMGatewayConfig

MAX_UNANSWERED = 1000
"""Questions that wait to be asked again; then the oldest are given up."""

Pay: TypeAlias = Callable[[Usage, str | None], None]


class Question(msgspec.Struct, frozen=True):
    """A turn that has, or waits for, an answer. It names the turn and contains none of its words."""

    room: str
    session_id: str
    turn_order: int
    position: int

    @property
    def key(self) -> str:
        return f"{ANSWER_PREFIX}{self.room}/{self.session_id}/{self.turn_order}"

    @property
    def mark(self) -> Mark:
        """Says that the answer is expected."""
        return Mark(self.key, msgspec.to_builtins(self))

    @property
    def done(self) -> Mark:
        """Says that the answer is not expected any more."""
        return Mark(self.key, None)


class Unanswered:
    """The questions of all rooms that are to be asked again, oldest first, at most MOST."""

    def __init__(self) -> None:
        self._questions: dict[str, Question] = {}
        self._is_closed = False
        self._changed = trio.Event()

    def __contains__(self, question: Question) -> bool:
        return question.key in self._questions

    def add(self, question: Question) -> Question | None:
        """Put a question behind the others. Returns the one that is given up for it, if any."""
        given_up = None
        if question.key not in self._questions and len(self._questions) >= MAX_UNANSWERED:
            given_up = self._questions.pop(next(iter(self._questions)))
        self._questions[question.key] = question
        self._changed.set()
        return given_up

    def discard(self, question: Question) -> None:
        self._questions.pop(question.key, None)

    def close(self) -> None:
        """No more questions will come."""
        self._is_closed = True
        self._changed.set()

    async def first(self) -> Question | None:
        """The oldest question, as soon as there is one; None: never again."""
        while not self._questions:
            if self._is_closed:
                return None
            self._changed = trio.Event()
            await self._changed.wait()
        return next(iter(self._questions.values()))


class Policy(NamedTuple):
    """The keys of the `[gateway]` table about missing answers."""

    within: float
    ask_again: bool


class RoomAnswers:
    """One room's answers, across its sessions. `pay` is called with the usage and the model of each answer."""

    def __init__(self, gateway: LLMGatewayConfig, policy: Policy, unanswered: Unanswered, pay: Pay) -> None:
        self.gateway = gateway
        self.policy = policy
        self.pay = pay
        self.told = False
        """True if the last report about this room's answers is that they are missing."""
        self._unanswered = unanswered

    def is_asked_again(self, question: Question) -> bool:
        """True if this question waits to be asked again, outside of its session."""
        return question in self._unanswered

    def ask_again(self, question: Question) -> None:
        """Have this question wait once more: what was to settle it could not be written."""
        self._unanswered.add(question)

    def is_settled(self, question: Question) -> bool:
        """True if this overdue question was asked again, and that is done."""
        return self.policy.ask_again and question not in self._unanswered

    def answered(self, question: Question, at: datetime) -> list[Record]:
        """The records to commit with the answer to this turn, in time or late."""
        self._unanswered.discard(question)
        if not self.told:
            return [question.done]
        self.told = False
        text = "Turns get their answers again."
        room, position = question.room, question.position
        return [question.done, notice("answer.recovered", text, at=at, room=room, position=position, severity="info")]

    def missing(self, question: Question, at: datetime, reason: str) -> list[Record]:
        """The records for a turn without an answer: none where it is asked again, else a notice once in a row."""
        if self.policy.ask_again:
            given_up = self._unanswered.add(question)
            return [] if given_up is None else [given_up.done, *self.give_up(given_up, at, "too many wait")]
        return [question.done, *self.give_up(question, at, reason)]

    def give_up(self, question: Question, at: datetime, reason: str) -> list[Record]:
        """The notice that answers are missing, unless it was the last report."""
        if self.told:
            return []
        self.told = True
        text = f"A turn got no answer from the language model: {reason}. {_ADVICE}"
        return [notice("answer.missing", text, at=at, room=question.room, position=question.position)]


_ADVICE = (
    "If no turn gets one, the account may lack the LLM Gateway; `ask_again` in [gateway] asks once more outside of "
    "the session. Further missing answers are not reported until one comes."
)
