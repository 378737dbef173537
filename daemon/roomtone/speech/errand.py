"""One prompt's errand in one room: each conversation that is over is asked about, and the answer is journalled.

Durable without a queue: a mark says up to which position a prompt has been asked about a room, and the journal has the
rest. So what is pending survives a restart and an outage, and the answer is committed together with the mark.
"""

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.events import Analysis, Notice, Severity
from roomtone.journal import Fact, Journal, Mark
from roomtone.speech import analysis, completion
from roomtone.speech.analysis import Conversation, Inquiry, Progress, Rules
from roomtone.speech.books import Spent
from roomtone.speech.completion import Access, Completion, Usage
from roomtone.speech.coverage import Spans
from roomtone.speech.endpoint import Key
from roomtone.speech.gateway import Failed, Gateway, Route, Verdict, route
from roomtone.speech.governor import Governor
from roomtone.speech.parameters import Streaming

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

LOOKS = 5.0
"""Seconds between two looks whether a conversation is over."""
AT_ONCE = 2
"""Requests that are under way at a time."""
TRIES = 5
"""Answers in a row that cannot be used after which a conversation is left: each of them may have cost something."""
REFUSED = 300.0
"""Seconds between attempts that only a person can make succeed."""
FINISHING = 60.0
"""Seconds for which a daemon that has nothing else to do lets failures pass; what is left waits for its next start."""
MARKS = "analysis/"
"""What the keys of the marks begin with; the prompt's name and the room's follow."""

Ask = Callable[[Mapping[str, Any]], Awaitable[Completion]]


class RoomFacts(NamedTuple):
    """What is to be known of a room: its rate in Hz, its streaming table, and whether its sessions follow speech."""

    rate: int
    streaming: Streaming
    gated: bool = False


class Setting(msgspec.Struct, frozen=True):
    """What the configuration says. `account` is the key of the speech service, `own` that of `[gateway] endpoint`."""

    access: Access
    prompts: dict[str, Inquiry]
    rooms: dict[str, RoomFacts]
    account: Key | None = None
    own: Key | None = None

    def route(self, room: str) -> Route:
        """Where what is said in this room may go."""
        return route(self._url(room), account=self.account, own=self.own)

    def _url(self, room: str) -> str:
        return completion.resolve(self.access.endpoint, self.rooms[room].streaming.endpoint)

    def cost(self, answer: Completion, asked: str) -> float | None:
        """What this answer cost; None where neither the model that gave it nor the one that was asked has a price."""
        return answer.usage.cost(self.access.price(asked, answer.model))

    def is_free(self, room: str, model: str) -> bool:
        """Whether asking this model costs nothing: its price says so, or it has none and runs on this machine."""
        price = self.access.price(model)
        return completion.is_loopback(self._url(room)) if price is None else not (price.input or price.output)

    def held(self) -> Iterator[str]:
        """What does not go on without a budget, for a person."""
        for name, prompt in self.prompts.items():
            if any(one == name and not self.is_free(room, prompt.model) for one, room in self.pairs()):
                yield f"[analysis.{name}] waits"
        asked = [(room, facts.streaming.llm_gateway) for room, facts in self.rooms.items()]
        if any(one is not None and not self.is_free(room, one.model) for room, one in asked):
            yield "no language model is asked about turns"

    def pairs(self) -> list[tuple[str, str]]:
        """Each prompt's name with each room that it is for."""
        return [
            (name, room)
            for name, prompt in self.prompts.items()
            for room in self.rooms
            if not prompt.rooms or room in prompt.rooms
        ]


class Result(NamedTuple):
    """What came of a conversation: the answer to it all, and what all requests took."""

    completion: Completion
    usage: Usage
    cost: float | None


async def analyze(
    prompt: Inquiry,
    room: str,
    conversation: Conversation,
    ask: Ask,
    *,
    cost: Callable[[Completion, str], float | None],
    progress: Progress = analysis.untold,
    known: dict[str, Completion] | None = None,
) -> Result:
    """Ask about a conversation: at once, or, where it is too long, about its parts and then about their answers.

    `known` keeps the answers to parts, so that a failure asks only for the missing ones again. `cost` is that of one
    answer, by the model that was asked. Raises Failed.
    """
    known = {} if known is None else known
    values = analysis.values_of(room, conversation)
    texts = analysis.cut(analysis.lines(conversation.turns), prompt.portion)
    given: list[tuple[Completion, str]] = []

    async def each(text: str, count: int) -> Completion:
        progress(len(given), len(given) + count)
        if text not in known:
            known[text] = await _ask_models(prompt, text, values, ask)
        given.append((known[text], prompt.model))
        return known[text]

    while len(texts) > 1:
        numbered = [analysis.part(i, len(texts), text) for i, text in enumerate(texts, 1)]
        answers = [await each(text, len(numbered) - i + 1) for i, text in enumerate(numbered)]
        texts = analysis.combine([answer.text for answer in answers], prompt.portion)
    last = await each(texts[0], 1)
    progress(len(given), len(given))
    costs = [cost(answer, model) for answer, model in given]
    total = None if None in costs else round(sum(filter(None, costs)), 6)
    return Result(last, sum((answer.usage for answer, _ in given), Usage()), total)


async def _ask_models(prompt: Inquiry, text: str, values: Mapping[str, str], ask: Ask) -> Completion:
    """The first answer of the prompt's models. Raises the failure that gives most hope."""
    failures: list[Failed] = []
    for model in (prompt.model, *prompt.fallbacks):
        try:
            answer = await ask(prompt.request(model, text, values))
        except Failed as failed:
            failures.append(failed)
        else:
            return answer if answer.model else msgspec.structs.replace(answer, model=model)
    hopes = [Verdict.PASSING, Verdict.HELD, Verdict.UNUSABLE, Verdict.FATAL, Verdict.REFUSED]
    raise min(failures, key=lambda failed: (hopes.index(failed.verdict), failed.wait))


class Office:
    """What all errands share. `heads` gives the position after a room's last sample, None where unknown."""

    def __init__(
        self,
        journal: Journal,
        governor: Governor,
        heads: Callable[[str], int | None],
        utc: Callable[[], datetime],
    ) -> None:
        self.journal = journal
        self.utc = utc
        self._governor = governor
        self._places = trio.CapacityLimiter(AT_ONCE)
        self._heads = heads
        self._closing = trio.Event()
        self._given_up_at = math.inf

    def close(self) -> None:
        """No more will be said: what is over is asked about, and then all errands end."""
        self._given_up_at = trio.current_time() + FINISHING
        self._closing.set()

    @property
    def is_closing(self) -> bool:
        """Whether no more will be said."""
        return self._closing.is_set()

    @property
    def has_given_up(self) -> bool:
        """Whether a failure is no longer waited out: nothing else keeps the daemon."""
        return trio.current_time() >= self._given_up_at

    async def ask(self, setting: Setting, gateway: Gateway, room: str, request: Mapping[str, Any]) -> Completion:
        """The answer to one request, which is paid for. Raises Failed, which is paid for too."""
        model = request["model"]
        async with self._places:
            if not (self._governor.has_budget or setting.is_free(room, model)):
                raise Failed("the budget is spent", Verdict.HELD)
            try:
                answer = await gateway.ask(setting.route(room), request)
            except Failed as failed:
                self.pay(setting, room, model, failed.usage)
                raise
        self.pay(setting, room, model, answer.usage, answer.model)
        return answer

    def pay(self, setting: Setting, room: str, asked: str, usage: Usage, answered: str | None = None) -> None:
        """So much was used for this room, of the model that has answered or else of the one that was asked."""
        cost = usage.cost(setting.access.price(asked, answered))
        is_known = cost is not None or setting.is_free(room, asked)
        spent = Spent(
            requests=usage.requests,
            unpriced=0 if is_known else usage.requests,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            models=cost or 0.0,
        )
        if usage.requests:
            self._governor.pay(room, spent)

    async def wait_for_budget(self) -> bool:
        """Return when there is one. False: the office closes before."""
        while not (self._governor.has_budget or self.is_closing):
            await self.wait(LOOKS)
        return self._governor.has_budget

    async def wait(self, seconds: float) -> None:
        """Wait; until the office closes at most, or, when it has, until it gives up."""
        if self.is_closing:
            await trio.sleep(max(0.0, min(seconds, self._given_up_at - trio.current_time())))
            return
        with trio.move_on_after(seconds):
            await self._closing.wait()

    async def head(self, room: str) -> int:
        """The position after the room's last sample, as far as it is known."""
        head = self._heads(room)
        return head if head is not None else await self.journal.mark(f"room/{room}/audio") or 0

    async def look(self, room: str, rules: Rules, done: int) -> tuple[Conversation | None, bool]:
        """The first conversation from this position on, if it is over; and whether there is any."""
        kinds = ["turn", "recording_stopped", "session_started", "session_ended", "gap", "forgotten"]
        events = await self.journal.select(room, kinds, done, 1 << 62)
        turns = analysis.current(events)
        if not turns:
            return None, False
        covers = await self.journal.covered(room, done)
        settled = Spans((cover.start, cover.end) for cover in covers if cover.state != "captured")
        edges = analysis.edges(events, by_session=rules.by_session)
        return analysis.first_over(
            turns, edges, rules, settled=settled, head=await self.head(room), now=self.utc()
        ), True


class Errand:
    """One prompt, asked about one room's conversations, one after another."""

    def __init__(self, office: Office, setting: Setting, gateway: Gateway, name: str, room: str) -> None:
        self._office = office
        self._setting = setting
        self._gateway = gateway
        self._name = name
        self._room = room
        self._prompt = setting.prompts[name]
        self._rules = analysis.rules_of(self._prompt, setting.rooms[room].rate, gated=setting.rooms[room].gated)
        self._key = mark_key(name, room)
        self._told = False

    async def run(self) -> None:
        """Ask until the office closes and nothing is left, or what is left fails."""
        journal = self._office.journal
        done = await journal.mark(self._key) or 0
        seen, is_open = -1, True
        while True:
            is_last, conversation = self._office.is_closing, None
            if is_open or journal.tip != seen:
                seen = journal.tip
                conversation, is_open = await self._office.look(self._room, self._rules, done)
            if conversation is not None:
                if not await self._settle(conversation):
                    return
                done = conversation.end
            elif is_last:
                return
            else:
                await self._office.wait(LOOKS)

    async def _settle(self, conversation: Conversation) -> bool:
        """Ask about this conversation, for as long as it takes. False: it is left for the next start."""
        known: dict[str, Completion] = {}
        backoff = Backoff(first=2.0, longest=REFUSED)
        unusable = 0
        if conversation.words < self._prompt.least_words:
            await self._commit(conversation)
            return True
        while True:
            try:
                result = await analyze(
                    self._prompt, self._room, conversation, self._ask, cost=self._setting.cost, known=known
                )
            except Failed as failed:
                unusable += failed.verdict is Verdict.UNUSABLE
                if failed.verdict is Verdict.REFUSED or unusable >= TRIES:
                    await self._give_up(conversation, failed)
                    return True
                if not await self._wait_out(conversation, failed, backoff):
                    return False
            else:
                await self._commit(conversation, *self._facts(conversation, result))
                log.info("analysis.done", name=self._name, room=self._room, requests=result.usage.requests)
                return True

    async def _ask(self, request: Mapping[str, Any]) -> Completion:
        return await self._office.ask(self._setting, self._gateway, self._room, request)

    async def _wait_out(self, conversation: Conversation, failed: Failed, backoff: Backoff) -> bool:
        """Wait until it can be tried again. False: not before the next start."""
        if failed.verdict is Verdict.HELD:
            log.info("analysis.held", name=self._name, room=self._room, reason=str(failed))
            return await self._office.wait_for_budget()
        is_fatal = failed.verdict is Verdict.FATAL
        delay = max(failed.wait, backoff.next() + (REFUSED if is_fatal else 0.0))
        if is_worth_saying(backoff.failures):
            log.warning(
                "analysis.failed",
                name=self._name,
                room=self._room,
                reason=str(failed),
                attempts=backoff.failures,
                next_in=round(delay, 1),
            )
        if is_fatal and not self._told:
            self._told = True
            text = f"The language model is not to be had for [analysis.{self._name}]: {failed}. It is tried again."
            await self._office.journal.commit(self._notice(conversation, "error", "analysis.refused", text))
        if self._office.is_closing and is_fatal:
            return False
        await self._office.wait(delay)
        return not self._office.has_given_up

    async def _give_up(self, conversation: Conversation, failed: Failed) -> None:
        """Leave a conversation that no attempt would get further with, so that the next one is asked about."""
        text = f"[analysis.{self._name}] has nothing to say of a conversation: {failed}. `roomtone analyze` asks again."
        log.error("analysis.given_up", name=self._name, room=self._room, reason=str(failed))
        await self._commit(conversation, self._notice(conversation, "error", "analysis.failed", text))

    def _facts(self, conversation: Conversation, result: Result) -> list[Fact]:
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
        facts: list[Fact] = [event]
        if self._told:
            self._told = False
            text = f"The language model answers [analysis.{self._name}] again."
            facts.append(self._notice(conversation, "info", "analysis.recovered", text))
        return facts

    async def _commit(self, conversation: Conversation, *facts: Fact) -> None:
        await self._office.journal.commit(*facts, Mark(self._key, conversation.end))

    def _notice(self, conversation: Conversation, severity: Severity, code: str, text: str) -> Notice:
        return Notice(
            room=self._room, position=conversation.end, at=conversation.until, severity=severity, code=code, text=text
        )


def mark_key(name: str, room: str) -> str:
    """The mark that says up to which position this prompt has been asked about this room."""
    return f"{MARKS}{name}/{room}"
