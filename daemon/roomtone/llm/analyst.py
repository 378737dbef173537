"""Asks language models what streaming sessions do not: about conversations that are over, and about turns again."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx2
import msgspec
import structlog
import trio

from roomtone.backoff import Backoff
from roomtone.budget.governor import Governor
from roomtone.containment import supervise
from roomtone.events import Answer, Notice, Turn, notice
from roomtone.journal.journal import Journal
from roomtone.journal.keys import ANALYSIS_PREFIX, ANSWER_PREFIX, REFUSED_ANALYSIS_PREFIX
from roomtone.journal.records import Mark, Record
from roomtone.llm import completion, conversations
from roomtone.llm.client import LLMClient, RequestFailed, Retryability
from roomtone.llm.completion import Completion, Usage
from roomtone.llm.prompt_task import PromptTask, mark_key
from roomtone.llm.request_pool import RequestPool
from roomtone.llm.room_answers import Policy, Question, RoomAnswers, Unanswered
from roomtone.llm.settings import LLMSettings
from roomtone.protocol.parameters import Streaming

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAX_ATTEMPTS = 3
"""Times that a turn's missing answer is asked for, where the failure is a passing one."""


class Analyst:
    """Asks, for as long as it is open. Made by `open_analyst`."""

    def __init__(self, pool: RequestPool, settings: LLMSettings, transport: httpx2.AsyncBaseTransport | None) -> None:
        self._pool = pool
        self._settings = settings
        self._transport = transport
        self._unanswered = Unanswered()
        self._answers: dict[str, RoomAnswers] = {}
        self._all = trio.CancelScope()
        self._work = trio.CancelScope()
        self._at_work = trio.Lock()
        self._over = trio.Event()

    def answers(self, room: str, streaming: Streaming, *, remote: bool = True) -> RoomAnswers | None:
        """The answers of a room whose sessions ask about turns; None for any other.

        The recognizer, which is not `remote`, asks no model: its turns are asked about here, or not at all.
        """
        access = self._settings.access
        if streaming.llm_gateway is None or not (remote or access.ask_again):
            return None
        policy = Policy(access.answer_within if remote else 0.0, access.ask_again)
        model = streaming.llm_gateway.model

        def pay(usage: Usage, answered: str | None) -> None:
            self._pool.pay(self._settings, room, model, usage, answered)

        answers = RoomAnswers(streaming.llm_gateway, policy, self._unanswered, pay)
        if (before := self._answers.get(room)) is not None:
            answers.told = before.told
        self._answers[room] = answers
        return answers

    def change(self, settings: LLMSettings) -> None:
        """Go on by another configuration. Pending questions stay as long as their prompt and their room do."""
        self._settings = settings
        for answers in self._answers.values():
            within = settings.access.answer_within if answers.policy.within else 0.0
            answers.policy = Policy(within, settings.access.ask_again)
        self._work.cancel()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nothing is asked, and no answer comes, as long as this lasts; then all that is pending is read anew."""
        self._work.cancel()
        async with self._at_work:
            yield

    def stop(self, patience: float) -> None:
        """The daemon stops: questions that are not answered within `seconds` wait for its next start."""
        self._all.deadline = min(self._all.deadline, trio.current_time() + patience)

    async def finish(self) -> None:
        """No more will be said: return when all that is over has been asked about, or waits for the next start."""
        self._pool.close()
        self._unanswered.close()
        await self._over.wait()

    async def recover(self) -> None:
        """Take up the answers that an earlier run still expected: no session will bring them."""
        marks = []
        for key, value in (await self._pool.journal.marks(ANSWER_PREFIX)).items():
            question = _question(value)
            room = None if question is None else self._settings.rooms.get(question.room)
            if question is None or room is None or self.answers(question.room, room.streaming) is None:
                marks.append(Mark(key, None))
            else:
                self._unanswered.add(question)
        if marks:
            await self._pool.journal.commit(*marks)

    async def run(self) -> None:
        """Ask, until `finish`. Errors: JournalError; the network's are waited out, and any other is contained here."""
        try:
            with self._all:
                while True:
                    async with self._at_work:
                        with self._work as scope:
                            run = partial(self._run, self._settings)
                            pool = self._pool
                            await supervise("Asking language models", run, pool.journal, until=pool.closing)
                    if not scope.cancel_called:
                        return
                    self._work = trio.CancelScope()
        finally:
            self._over.set()

    async def _run(self, settings: LLMSettings) -> None:
        await self._begin_prompts(settings)
        client, journal, closing = (
            LLMClient(settings.access.timeout, self._transport),
            self._pool.journal,
            self._pool.closing,
        )
        async with trio.open_nursery() as nursery:
            for name, room in settings.pairs():
                task = PromptTask(self._pool, settings, client, name, room)
                asking = partial(supervise, f"[analysis.{name}]", task.run, journal, room=room, until=closing)
                nursery.start_soon(asking)
            again = partial(self._ask_again, settings, client)
            nursery.start_soon(partial(supervise, "Asking for answers again", again, journal, until=closing))

    async def _begin_prompts(self, settings: LLMSettings) -> None:
        """Begin prompts that are new with what is said from now on, and forget those that are configured no more; where
        the room itself was removed, its words may not be sent anywhere: pending questions are reported.
        """
        wanted = {mark_key(name, room): room for name, room in settings.pairs()}
        known = await self._pool.journal.marks(ANALYSIS_PREFIX)
        gone = [key for key in known if key not in wanted]
        marks: list[Record] = [Mark(key, None) for key in gone]
        marks += [Mark(REFUSED_ANALYSIS_PREFIX + key.removeprefix(ANALYSIS_PREFIX), None) for key in gone]
        marks += [dropped for key in gone if (dropped := await self._drop(settings, key, known[key]))]
        marks += [Mark(key, await self._pool.head(room)) for key, room in wanted.items() if key not in known]
        if marks:
            await self._pool.journal.commit(*marks)

    async def _drop(self, settings: LLMSettings, key: str, done: int) -> Notice | None:
        """The notice for a prompt that has lost its room, if speech is left that it was not asked about."""
        name, _, room = key.removeprefix(ANALYSIS_PREFIX).rpartition("/")
        if room in settings.rooms or name not in settings.prompts:
            return None
        turns = conversations.current(await self._pool.journal.select(room, ["turn", "forgotten"], done, 1 << 62))
        if sum(len(turn.text.split()) for turn in turns) < settings.prompts[name].least_words:
            return None
        text = f"[analysis.{name}] is not asked about the last words in {room}, which is not configured any more."
        return notice("analysis.dropped", text, at=turns[0].at, room=room, position=turns[0].position)

    # --- turns whose answer did not come ------------------------------------------------------------------------------

    async def _ask_again(self, settings: LLMSettings, client: LLMClient) -> None:
        while (question := await self._unanswered.first()) is not None:
            facts = await self._ask_once_more(question, settings, client)
            if question in self._unanswered:  # else the session's own answer has come after all
                await self._pool.journal.commit(question.done, *facts)
                self._unanswered.discard(question)

    async def _ask_once_more(self, question: Question, settings: LLMSettings, client: LLMClient) -> list[Record]:
        """The records to commit: the answer, or that there is none; nothing where the question is obsolete."""
        answers, turn = self._answers.get(question.room), await self._turn(question)
        if answers is None or turn is None or question.room not in settings.rooms:
            return []
        if not settings.access.ask_again:
            return answers.give_up(question, turn.at, "the daemon ended before")
        request = completion.question(answers.gateway, turn)
        backoff = Backoff(first=2.0)
        while True:
            try:
                answer = await self._pool.ask(settings, client, question.room, request)
            except RequestFailed as failed:
                if failed.verdict is Retryability.HELD:
                    return []  # the notice about the budget says so for all turns
                is_passing = failed.verdict is Retryability.PASSING and not self._pool.has_given_up
                if is_passing and backoff.failures + 1 < MAX_ATTEMPTS:
                    await self._pool.wait(max(failed.wait, backoff.next()))
                    continue
                log.warning("answer.missing", room=question.room, session_id=question.session_id, reason=str(failed))
                return answers.give_up(question, turn.at, str(failed))
            return [_answer(turn, answer)]

    async def _turn(self, question: Question) -> Turn | None:
        """The turn that a question is about, as it was corrected last."""
        found = await self._pool.journal.select(question.room, ["turn"], question.position, question.position + 1)
        turns = (turn for turn in conversations.current(found) if turn.session_id == question.session_id)
        return next((turn for turn in turns if turn.turn_order == question.turn_order), None)


@asynccontextmanager
async def open_analyst(
    journal: Journal,
    settings: LLMSettings,
    heads: Callable[[str], int | None],
    governor: Governor,
    *,
    transport: httpx2.AsyncBaseTransport | None = None,
    utc: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[Analyst]:
    """Ask until the context is left; `finish` before that does what there is left to do.

    `heads` gives the position after a room's last sample, None where unknown; `governor` counts what answers cost, and
    says when there is no budget for more. `transport` and `utc` stand in for the network and the clock.

    Resources: a task and its connections. Errors: those of the journal.
    """
    analyst = Analyst(RequestPool(journal, governor, heads, utc), settings, transport)
    await analyst.recover()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(analyst.run)
        yield analyst
        nursery.cancel_scope.cancel()


def _answer(turn: Turn, answer: Completion) -> Answer:
    return Answer(
        room=turn.room,
        position=turn.position,
        at=turn.at,
        session_id=turn.session_id,
        turn_order=turn.turn_order,
        turn=turn.id,
        text=answer.text,
        response=answer.body,
    )


def _question(value: Any) -> Question | None:
    try:
        return msgspec.convert(value, Question)
    except msgspec.ValidationError:
        return None
