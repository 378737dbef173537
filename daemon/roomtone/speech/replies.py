"""What a language model has said to the turns of one session, each behind its turn. Pure: facts come out.

Time is in seconds of any clock that only grows.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import structlog

from roomtone.events import Answer, Turn
from roomtone.journal import Fact
from roomtone.speech import completion
from roomtone.speech.answers import Answers, Question
from roomtone.speech.completion import Completion, Unusable, Usage
from roomtone.speech.protocol import LLMGatewayResponse

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

UNCLAIMED = 256
"""Answers that wait for their turn to be journalled; then the oldest are dropped."""


class Replies:
    """The answers of one session. `at` gives the time of a position; `answers` is None where none were asked for.

    An answer is journalled when its turn is, and dropped where an older session had said that turn already.
    """

    def __init__(self, room: str, session_id: str, at: Callable[[int], datetime], answers: Answers | None) -> None:
        self._room = room
        self._session = session_id
        self._at = at
        self._answers = answers
        self._turns: dict[int, tuple[str, int] | None] = {}
        self._expected: dict[int, float] = {}
        self._overdue: set[int] = set()
        self._said: dict[int, Completion | str] = {}

    def expect(self, order: int, now: float) -> None:
        """The service has said this turn's final, so it asks the language model now."""
        if self._answers is not None:
            self._expected[order] = now + self._answers.policy.within

    @property
    def is_expecting(self) -> bool:
        """Whether the language model has not yet answered a turn that it was asked about."""
        return bool(self._expected.keys() - self._said.keys())

    def marks(self, turns: Iterable[Turn]) -> list[Fact]:
        """What to commit with these turns: that their answers are expected."""
        return [
            self._question(turn.turn_order, turn.position).mark for turn in turns if turn.turn_order in self._expected
        ]

    def written(self, orders: Iterable[int], turns: Mapping[int, Turn]) -> None:
        """These turns are decided; those that were journalled are `turns`."""
        for order in orders:
            turn = turns.get(order)
            if turn is not None:
                self._turns[order] = (turn.id, turn.position)
            else:
                self._turns.setdefault(order, None)

    def take(self, message: LLMGatewayResponse) -> None:
        """What the language model said to a turn, or that it failed."""
        try:
            said = completion.read(message.data)
        except Unusable as unusable:
            self._said[message.turn_order] = str(unusable)
            self._pay(unusable.usage, None)
        else:
            self._said[message.turn_order] = said
            self._pay(said.usage, said.model)
        if len(self._said) > UNCLAIMED:
            del self._said[next(iter(self._said))]

    def _pay(self, usage: Usage, model: str | None) -> None:
        """An answer is billed when it comes, whatever becomes of it here."""
        if self._answers is not None:
            self._answers.pay(usage, model)

    def facts(self, now: float, *, is_last: bool = False) -> list[Fact]:
        """What to commit: answers whose turn is in the journal, and what is said of those that will not come.

        `is_last`: the session is over, and what has not come will not.
        """
        facts: list[Fact] = []
        for order in sorted(self._turns.keys() & self._said.keys()):
            said, is_expected = self._said.pop(order), self._expected.pop(order, None) is not None
            if isinstance(said, Completion):
                facts += self._answered(order, said)
            elif is_expected:
                facts += self._missing(order, said)
        for order in sorted(self._turns.keys() & self._expected.keys()):
            if is_last or self._expected[order] <= now:
                del self._expected[order]
                facts += self._missing(order, "the session ended before" if is_last else "none has come in time")
        return facts

    def _answered(self, order: int, said: Completion) -> list[Fact]:
        turn, answers = self._turns[order], self._answers
        if turn is None:
            return []
        id_, position = turn
        question, at = self._question(order, position), self._at(position)
        if order in self._overdue and answers is not None and answers.is_settled(question):
            return []  # it was asked again, and answered, in the meantime
        answer = Answer(
            room=self._room,
            position=position,
            at=at,
            session_id=self._session,
            turn_order=order,
            turn=id_,
            text=said.text,
            response=said.body,
        )
        if answers is None:
            return [answer]
        return [answer, *answers.answered(question, at)]

    def _missing(self, order: int, reason: str) -> list[Fact]:
        turn, answers = self._turns[order], self._answers
        log.warning("answer.missing", room=self._room, session_id=self._session, turn_order=order, reason=reason)
        if turn is None or answers is None:
            return []
        self._overdue.add(order)
        return answers.missing(self._question(order, turn[1]), self._at(turn[1]), reason)

    def _question(self, order: int, position: int) -> Question:
        return Question(self._room, self._session, order, position)
