"""The answers of a language model that final turns wait for: which are expected, and what becomes of those missing.

An account without the LLM Gateway gets no answer and no error, so each final turn is watched. What is expected is a
mark in the journal, committed with its turn: a crash loses none without a word.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import trio

from roomtone.events import Notice
from roomtone.journal.keys import ANSWER_PREFIX
from roomtone.journal.records import Mark, Record
from roomtone.llm.completion import Usage
from roomtone.protocol.parameters import LLMGatewayConfig

MAX_UNANSWERED = 1000
"""Questions that wait to be asked again; then the oldest are given up."""

Pay: TypeAlias = Callable[[Usage, str | None], None]


class Question(msgspec.Struct, frozen=True):
    """A turn that has, or waits for, an answer. It names the turn and holds nothing of what was said."""

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
        """Says that it is no longer."""
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
    """What the `[gateway]` table says about missing answers."""

    within: float
    ask_again: bool


class RoomAnswers:
    """One room's answers, across its sessions. `pay` is told what each used that came, and of which model."""

    def __init__(self, gateway: LLMGatewayConfig, policy: Policy, unanswered: Unanswered, pay: Pay) -> None:
        self.gateway = gateway
        self.policy = policy
        self.pay = pay
        self.told = False
        """Whether the last that was said of this room's answers is that they are missing."""
        self._unanswered = unanswered

    def is_asked_again(self, question: Question) -> bool:
        """Whether this question waits to be asked again, outside of its session."""
        return question in self._unanswered

    def ask_again(self, question: Question) -> None:
        """Have this question wait once more: what was to settle it could not be written."""
        self._unanswered.add(question)

    def is_settled(self, question: Question) -> bool:
        """Whether this overdue question was asked again, and that is done."""
        return self.policy.ask_again and question not in self._unanswered

    def answered(self, question: Question, at: datetime) -> list[Record]:
        """What to commit with the answer to this turn, in time or late."""
        self._unanswered.discard(question)
        if not self.told:
            return [question.done]
        self.told = False
        return [question.done, _notice(question, at, "info", "answer.recovered", "Turns get their answers again.")]

    def missing(self, question: Question, at: datetime, reason: str) -> list[Record]:
        """What to commit for a turn without an answer: nothing where it is asked again, else a notice once in a row."""
        if self.policy.ask_again:
            given_up = self._unanswered.add(question)
            return [] if given_up is None else [given_up.done, *self.give_up(given_up, at, "too many wait")]
        return [question.done, *self.give_up(question, at, reason)]

    def give_up(self, question: Question, at: datetime, reason: str) -> list[Record]:
        """The notice that answers are missing, unless it was the last that was said."""
        if self.told:
            return []
        self.told = True
        text = f"A turn got no answer from the language model: {reason}. {_ADVICE}"
        return [_notice(question, at, "warning", "answer.missing", text)]


_ADVICE = (
    "Where none comes at all the account may lack the LLM Gateway; `ask_again` in [gateway] asks once more outside of "
    "the session. Further missing answers are not reported until one comes."
)


def _notice(question: Question, at: datetime, severity: Literal["info", "warning"], code: str, text: str) -> Notice:
    return Notice(room=question.room, position=question.position, at=at, severity=severity, code=code, text=text)
