"""One prompt in one room: the model is asked about each conversation that is over, and its answer is journalled.

Durable without a queue: a mark says up to which position a prompt has been asked about a room, and the journal has the
rest. So what is pending survives a restart and an outage, and the answer is committed together with the mark.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.events import Analysis, Notice, Severity, notice
from roomtone.journal.keys import ANALYSIS_PREFIX, REFUSED_ANALYSIS_PREFIX
from roomtone.journal.records import Mark, Record
from roomtone.llm import conversations
from roomtone.llm.client import LLMClient, RequestFailed, Retryability
from roomtone.llm.completion import Completion, Usage
from roomtone.llm.conversations import AnalysisPrompt, Conversation, Progress
from roomtone.llm.request_pool import CHECK_INTERVAL_S, RequestPool
from roomtone.llm.settings import LLMSettings
from roomtone.network import find_fault

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

CHECK_COST_RATIO = 20
"""The pause before the next check, as a multiple of the last one's time: hours of talk keep a small computer busy."""
MAX_CHECK_INTERVAL_S = 30.0
"""Seconds between two looks at most."""
MAX_UNUSABLE_ANSWERS = 5
"""Answers in a row that cannot be used after which a conversation is left: each of them may have cost something."""
REFUSED_RETRY_S = 300.0
"""Seconds between attempts that only the operator can make succeed."""

Ask = Callable[[Mapping[str, Any]], Awaitable[Completion]]


class Result(NamedTuple):
    """The answer to a whole conversation, and the usage and cost of all its requests."""

    completion: Completion
    usage: Usage
    cost: float | None


async def analyze(
    prompt: AnalysisPrompt,
    room: str,
    conversation: Conversation,
    ask: Ask,
    *,
    cost: Callable[[Completion, str], float | None],
    progress: Progress = conversations.untold,
    known: dict[str, Completion] | None = None,
) -> Result:
    """Ask about a conversation: as a whole, or, where it is too long, about its parts and then about their answers.

    `known` keeps the answers to parts, so that a failure asks only for the missing ones again. `cost` is that of one
    answer, by the model that was asked. Raises Failed.
    """
    known = {} if known is None else known
    values = conversations.values_of(room, conversation)
    texts = conversations.cut(conversations.lines(conversation.turns), prompt.portion)
    given: list[tuple[Completion, str]] = []

    async def each(text: str, count: int) -> Completion:
        progress(len(given), len(given) + count)
        if text not in known:
            known[text] = await _ask_models(prompt, text, values, ask)
        given.append((known[text], prompt.model))
        return known[text]

    while len(texts) > 1:
        numbered = [conversations.part(i, len(texts), text) for i, text in enumerate(texts, 1)]
        answers = [await each(text, len(numbered) - i + 1) for i, text in enumerate(numbered)]
        texts = conversations.combine([answer.text for answer in answers], prompt.portion)
    last = await each(texts[0], 1)
    progress(len(given), len(given))
    costs = [cost(answer, model) for answer, model in given]
    total = None if None in costs else round(sum(filter(None, costs)), 6)
    return Result(last, sum((answer.usage for answer, _ in given), Usage()), total)


async def _ask_models(prompt: AnalysisPrompt, text: str, values: Mapping[str, str], ask: Ask) -> Completion:
    """The first answer of the prompt's models. Raises the failure that gives most hope."""
    failures: list[RequestFailed] = []
    for model in (prompt.model, *prompt.fallbacks):
        try:
            answer = await ask(prompt.request(model, text, values))
        except RequestFailed as failed:
            failures.append(failed)
        else:
            return answer if answer.model else msgspec.structs.replace(answer, model=model)
    hopes = [Retryability.PASSING, Retryability.HELD, Retryability.UNUSABLE, Retryability.FATAL, Retryability.REFUSED]
    raise min(failures, key=lambda failed: (hopes.index(failed.verdict), failed.wait))


class PromptTask:
    """One prompt, asked about one room's conversations, one after another."""

    def __init__(self, pool: RequestPool, settings: LLMSettings, client: LLMClient, name: str, room: str) -> None:
        self._pool = pool
        self._settings = settings
        self._client = client
        self._name = name
        self._room = room
        self._prompt = settings.prompts[name]
        self._limits = conversations.limits_of(
            self._prompt, settings.rooms[room].rate, gated=settings.rooms[room].gated
        )
        self._key = mark_key(name, room)
        self._refusal = f"{REFUSED_ANALYSIS_PREFIX}{name}/{room}"
        self._has_reported_refusal = False

    async def run(self) -> None:
        """Ask until the pool closes and nothing is left, or what is left fails."""
        journal = self._pool.journal
        done = await journal.mark(self._key) or 0
        self._has_reported_refusal = bool(await journal.mark(self._refusal))
        await self._look_at_the_way(done)
        seen, is_open = -1, True
        while True:
            is_last, conversation, begun = self._pool.is_closing, None, trio.current_time()
            if is_open or journal.tip != seen:
                seen = journal.tip
                conversation, is_open = await self._pool.look(self._room, self._limits, done)
            took = trio.current_time() - begun
            if conversation is not None:
                if not await self._settle(conversation):
                    return
                done = conversation.end
            elif is_last:
                return
            else:
                await self._pool.wait(min(max(CHECK_INTERVAL_S, CHECK_COST_RATIO * took), MAX_CHECK_INTERVAL_S))

    async def _look_at_the_way(self, done: int) -> None:
        """Say now, and not after hours of talk, that a key is lacking, or that the environment leads nowhere."""
        reason: str | None
        try:
            way = await self._settings.route(self._room)
            reason = await find_fault(way.url)
        except RequestFailed as failed:
            reason = str(failed)
        if reason is not None:
            log.warning("analysis.failed", name=self._name, room=self._room, reason=reason)
            if not self._has_reported_refusal:
                await self._report_refusal(reason, done, self._pool.utc())

    async def _settle(self, conversation: Conversation) -> bool:
        """Ask about this conversation, for as long as it takes. False: it is left for the next start."""
        known: dict[str, Completion] = {}
        backoff = Backoff(first=2.0, longest=REFUSED_RETRY_S)
        unusable = 0
        if conversation.words < self._prompt.least_words:
            await self._commit(conversation)
            return True
        while True:
            try:
                result = await analyze(
                    self._prompt, self._room, conversation, self._ask, cost=self._settings.cost, known=known
                )
            except RequestFailed as failed:
                unusable += failed.verdict is Retryability.UNUSABLE
                if failed.verdict is Retryability.REFUSED or unusable >= MAX_UNUSABLE_ANSWERS:
                    await self._give_up(conversation, failed)
                    return True
                if not await self._wait_out(conversation, failed, backoff):
                    return False
            else:
                await self._commit(conversation, *self._facts(conversation, result))
                log.info("analysis.done", name=self._name, room=self._room, requests=result.usage.requests)
                return True

    async def _ask(self, request: Mapping[str, Any]) -> Completion:
        return await self._pool.ask(self._settings, self._client, self._room, request)

    async def _wait_out(self, conversation: Conversation, failed: RequestFailed, backoff: Backoff) -> bool:
        """Wait until it can be tried again. False: not before the next start."""
        if failed.verdict is Retryability.HELD:
            log.info("analysis.held", name=self._name, room=self._room, reason=str(failed))
            return await self._pool.wait_for_budget()
        is_fatal = failed.verdict is Retryability.FATAL
        delay = max(failed.wait, backoff.next() + (REFUSED_RETRY_S if is_fatal else 0.0))
        if is_worth_saying(backoff.failures):
            log.warning(
                "analysis.failed",
                name=self._name,
                room=self._room,
                reason=str(failed),
                attempts=backoff.failures,
                next_in=round(delay, 1),
            )
        if is_fatal and not self._has_reported_refusal:
            await self._report_refusal(str(failed), conversation.end, conversation.until)
        if self._pool.is_closing and is_fatal:
            return False
        await self._pool.wait(delay)
        return not self._pool.has_given_up

    async def _report_refusal(self, reason: str, position: int, at: datetime) -> None:
        self._has_reported_refusal = True
        text = f"The language model refuses [analysis.{self._name}]: {reason}. Roomtone keeps trying."
        refused = notice("analysis.refused", text, at=at, room=self._room, position=position, severity="error")
        await self._pool.journal.commit(refused, Mark(self._refusal, True))

    async def _give_up(self, conversation: Conversation, failed: RequestFailed) -> None:
        """Leave a conversation that no attempt would get further with, so that the next one is asked about."""
        text = f"[analysis.{self._name}] got no usable answer: {failed}. `roomtone analyze` can ask again."
        log.error("analysis.given_up", name=self._name, room=self._room, reason=str(failed))
        await self._commit(conversation, self._notice_after(conversation, "error", "analysis.failed", text))

    def _facts(self, conversation: Conversation, result: Result) -> list[Record]:
        answer, usage = result.completion, result.usage
        event = Analysis(
            room=self._room,
            position=conversation.start,
            at=conversation.turns[0].at,
            name=self._name,
            start=conversation.start,
            end=conversation.end,
            text=answer.text,
            response=answer.body,
            model=answer.model,
            requests=usage.requests,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost=result.cost,
        )
        facts: list[Record] = [event]
        if self._has_reported_refusal:
            self._has_reported_refusal = False
            text = f"The language model answers [analysis.{self._name}] again."
            facts.append(self._notice_after(conversation, "info", "analysis.recovered", text))
            facts.append(Mark(self._refusal, None))
        return facts

    async def _commit(self, conversation: Conversation, *facts: Record) -> None:
        await self._pool.journal.commit(*facts, Mark(self._key, conversation.end))

    def _notice_after(self, conversation: Conversation, severity: Severity, code: str, text: str) -> Notice:
        at, position = conversation.until, conversation.end
        return notice(code, text, at=at, room=self._room, position=position, severity=severity)


def mark_key(name: str, room: str) -> str:
    """The mark that says up to which position this prompt has been asked about this room."""
    return f"{ANALYSIS_PREFIX}{name}/{room}"
