"""A language model's answers to the turns of one session, each after its turn. Pure: records come out.

Time is in seconds of any clock that only grows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple

import structlog

from roomtone.events import Answer, Turn
from roomtone.journal.records import Record
from roomtone.llm import completion
from roomtone.llm.completion import Completion, InvalidCompletion, Usage
from roomtone.llm.room_answers import Question, RoomAnswers
from roomtone.protocol.messages import LLMGatewayResponse, weigh
from roomtone.protocol.turns import MAX_REMEMBERED_TURNS

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAX_UNCLAIMED_ANSWERS = 256
"""Answers that wait for their turn to be journalled; then the oldest are dropped."""
MAX_UNCLAIMED_BYTES = 4 << 20
"""Bytes of such answers; then the oldest are dropped."""


class _Heard(NamedTuple):
    """The result of a turn, taken once: an answer, or that there is none; and its bytes."""

    is_answer: bool
    size: int


class _Taken(NamedTuple):
    """The sources of one turn's records: its answer, its deadline, and the question that waited to be asked again."""

    order: int
    said: Completion | str | None
    expected: float | None
    asked_again: Question | None


class SessionAnswers:
    """The answers of one session. `at` gives the time of a position; `answers` is None where none were asked for.

    An answer is journalled when its turn is, and dropped where an older session had said that turn already.
    """

    def __init__(self, room: str, session_id: str, at: Callable[[int], datetime], answers: RoomAnswers | None) -> None:
        self._room = room
        self._session = session_id
        self._at = at
        self._answers = answers
        self._turns: dict[int, tuple[str, int] | None] = {}
        self._expected: dict[int, float] = {}
        self._overdue: dict[int, None] = {}
        self._said: dict[int, Completion | str] = {}
        self._heard: dict[int, _Heard] = {}

    def expect(self, order: int, now: float) -> None:
        """The service has said this turn's final, so it asks the language model now."""
        if self._answers is not None:
            self._expected[order] = now + self._answers.policy.within

    @property
    def is_expecting(self) -> bool:
        """True if the language model has not yet answered a turn that it was asked about."""
        return bool(self._expected.keys() - self._said.keys())

    def marks(self, turns: Iterable[Turn]) -> list[Record]:
        """The records to commit with these turns: their answers are expected."""
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
        for remembered in (self._turns, self._overdue):
            if len(remembered) > 2 * MAX_REMEMBERED_TURNS:
                del remembered[next(iter(remembered))]

    def take(self, message: LLMGatewayResponse) -> None:
        """The language model has answered a turn, or failed. A turn has one answer, and is billed for it once,
        however often it is sent.
        """
        order = message.turn_order
        said: Completion | str
        try:
            said = completion.read(message.data)
        except InvalidCompletion as unusable:
            said, usage, model = str(unusable), unusable.usage, None
        else:
            usage, model = said.usage, said.model
        is_answer = isinstance(said, Completion)
        before = self._heard.get(order)
        if before is not None and (before.is_answer or not is_answer):
            return
        self._heard[order] = _Heard(is_answer, weigh(message))
        if len(self._heard) > 2 * MAX_REMEMBERED_TURNS:
            del self._heard[next(iter(self._heard))]
        self._pay(usage, model)
        self._said[order] = said
        while len(self._said) > MAX_UNCLAIMED_ANSWERS or self._unclaimed() > MAX_UNCLAIMED_BYTES:
            del self._said[next(iter(self._said))]

    def _unclaimed(self) -> int:
        """The bytes of what waits for its turn."""
        return sum(self._heard[order].size for order in self._said if order in self._heard)

    def _pay(self, usage: Usage, model: str | None) -> None:
        """An answer is billed when it comes, whatever becomes of it here."""
        if self._answers is not None:
            self._answers.pay(usage, model)

    @contextmanager
    def due(self, now: float, *, is_last: bool = False) -> Iterator[list[Record]]:
        """The records to commit inside: answers whose turn is in the journal, and reports of those that will not come.

        `is_last`: the session is over, and what has not come will not. Where the commit raises, or is cancelled, all
        of it waits on as it was; meanwhile no other caller is given it.
        """
        told = self._answers is not None and self._answers.told
        facts: list[Record] = []
        taken: list[_Taken] = []
        for order in sorted(self._turns.keys() & (self._said.keys() | self._expected.keys())):
            if order in self._said or is_last or self._expected[order] <= now:
                one = _Taken(
                    order, self._said.pop(order, None), self._expected.pop(order, None), self._asked_again(order)
                )
                new = self._settle(one, is_last=is_last)
                facts += new
                taken += [one] if new else []
        try:
            yield facts
        except BaseException:
            self._put_back(taken, told=told)
            raise

    def _settle(self, one: _Taken, *, is_last: bool) -> list[Record]:
        match one.said:
            case Completion() as said:
                return self._answered(one.order, said)
            case str() as reason:
                return self._missing(one.order, reason) if one.expected is not None else []
            case None:
                return self._missing(one.order, "the session ended before" if is_last else "none has come in time")

    def _put_back(self, taken: Iterable[_Taken], *, told: bool) -> None:
        for order, said, expected, asked_again in taken:
            if said is not None:
                self._said.setdefault(order, said)  # unless another has come meanwhile
            if expected is not None:
                self._expected.setdefault(order, expected)
            if asked_again is not None and self._answers is not None:
                self._answers.ask_again(asked_again)
        if self._answers is not None:
            self._answers.told = told

    def _asked_again(self, order: int) -> Question | None:
        """The question about this turn, where it waits to be asked again outside of the session."""
        turn = self._turns[order]
        if turn is None or self._answers is None:
            return None
        question = self._question(order, turn[1])
        return question if self._answers.is_asked_again(question) else None

    def _answered(self, order: int, said: Completion) -> list[Record]:
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

    def _missing(self, order: int, reason: str) -> list[Record]:
        turn, answers = self._turns[order], self._answers
        log.warning("answer.missing", room=self._room, session_id=self._session, turn_order=order, reason=reason)
        if turn is None or answers is None:
            return []
        self._overdue[order] = None
        return answers.missing(self._question(order, turn[1]), self._at(turn[1]), reason)

    def _question(self, order: int, position: int) -> Question:
        return Question(self._room, self._session, order, position)
