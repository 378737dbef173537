"""The book of a session's answers: what could not be written waits on as it was."""

from datetime import UTC, datetime

import pytest

from roomtone.events import Answer, Durable, Notice, Turn
from roomtone.journal.records import Record
from roomtone.llm.room_answers import Policy, RoomAnswers, Unanswered
from roomtone.llm.session_answers import MAX_UNCLAIMED_BYTES, SessionAnswers
from roomtone.protocol.messages import LLMGatewayResponse
from roomtone.protocol.parameters import LLMGatewayConfig, Prompt

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GATEWAY = LLMGatewayConfig("one", (Prompt("user", "Heard: {{turn}}"),), 100)


class Cancelled(BaseException):
    """As trio's own, which only trio can make."""


def open_replies(*, ask_again: bool) -> tuple[SessionAnswers, Unanswered]:
    """A session with one turn in the journal, whose answer may take ten seconds."""
    unanswered = Unanswered()
    answers = RoomAnswers(GATEWAY, Policy(10.0, ask_again), unanswered, lambda _usage, _model: None)
    replies = SessionAnswers("desk", "session", lambda _: NOON, answers)
    replies.expect(0, 0.0)
    turn = Turn(
        room="desk", position=0, at=NOON, id="turn", session_id="session", turn_order=0, text="Hello.", words=()
    )
    replies.written([0], {0: turn})
    return replies, unanswered


def answer(replies: SessionAnswers) -> None:
    replies.take(LLMGatewayResponse(0, "Hello.", {"choices": [{"message": {"content": "Hi!"}}]}))


def due(replies: SessionAnswers, now: float) -> list[Record]:
    with replies.due(now) as facts:
        return facts


def fail(replies: SessionAnswers, now: float) -> list[Record]:
    """A commit that is cancelled."""
    given: list[Record] = []

    def commit() -> None:
        with replies.due(now) as facts:
            given.extend(facts)
            assert due(replies, now) == []  # no other caller is given it meanwhile
            raise Cancelled

    with pytest.raises(Cancelled):
        commit()
    return given


def events(facts: list[Record]) -> list[type[Durable]]:
    return [type(fact) for fact in facts if isinstance(fact, Durable)]


def test_an_answer_in_time() -> None:
    """It is due again after a commit that failed, and no more after one that did not."""
    replies, _ = open_replies(ask_again=False)
    answer(replies)
    before = fail(replies, 1.0)

    assert due(replies, 2.0) == before
    assert events(before) == [Answer]
    assert due(replies, 3.0) == []
    assert not replies.is_expecting


def test_a_notice() -> None:
    """That an answer is missing, and that they come again, is said once each, in the commit that succeeds."""
    replies, _ = open_replies(ask_again=False)
    assert events(fail(replies, 11.0)) == events(due(replies, 12.0)) == [Notice]
    answer(replies)
    assert events(fail(replies, 13.0)) == events(due(replies, 14.0)) == [Answer, Notice]
    assert due(replies, 15.0) == []


def test_a_late_answer() -> None:
    """A question that waits to be asked again does so until its late answer is written."""
    replies, unanswered = open_replies(ask_again=True)
    assert due(replies, 11.0) == []
    answer(replies)
    before = fail(replies, 12.0)
    assert len(unanswered._questions) == 1

    assert due(replies, 13.0) == before
    assert events(before) == [Answer]
    assert not unanswered._questions


def test_an_answer_that_is_sent_again() -> None:
    """The first answer counts, and neither another nor a failure after it; a failure gives way to an answer, once."""
    replies, _ = open_replies(ask_again=False)
    failure = LLMGatewayResponse(0, "Hello.", {"error": "busy"})
    replies.take(failure)
    assert events(due(replies, 1.0)) == [Notice]
    replies.take(failure)
    assert due(replies, 2.0) == []
    answer(replies)
    assert events(due(replies, 3.0)) == [Answer, Notice]
    answer(replies)
    assert due(replies, 4.0) == []
    replies.take(failure)
    assert due(replies, 5.0) == []


def test_answers_to_turns_that_never_come_are_bounded() -> None:
    """They are dropped by their bytes, the oldest first."""
    replies, _ = open_replies(ask_again=False)
    for order in range(1, 20):
        content = f"{order}" + "x" * (MAX_UNCLAIMED_BYTES // 4)
        replies.take(LLMGatewayResponse(order, "", {"choices": [{"message": {"content": content}}]}))
    turns = {
        order: Turn(
            room="desk", position=0, at=NOON, id=f"{order}", session_id="session", turn_order=order, text="x", words=()
        )
        for order in range(1, 20)
    }
    replies.written(turns, turns)
    assert [fact.turn_order for fact in due(replies, 1.0) if isinstance(fact, Answer)] == [17, 18, 19]
