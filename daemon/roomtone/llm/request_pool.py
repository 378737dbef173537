"""Shared by all tasks that ask language models: request slots, budget, journal, deadline."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import trio

from roomtone.budget.governor import Governor
from roomtone.journal.journal import Journal
from roomtone.journal.keys import room_key
from roomtone.llm import conversations
from roomtone.llm.client import LLMClient, RequestFailed, Retryability
from roomtone.llm.completion import Completion, Usage
from roomtone.llm.conversations import Conversation, ConversationLimits
from roomtone.llm.settings import LLMSettings
from roomtone.spans import Spans

CHECK_INTERVAL_S = 5.0
"""Seconds between two looks whether a conversation is over."""
MAX_CONCURRENT_REQUESTS = 2
"""Requests that are under way at a time."""
FINISH_TIMEOUT_S = 60.0
"""Seconds for which a daemon that has nothing else to do lets failures pass; what is left waits for its next start."""


class RequestPool:
    """The shared state. `heads` gives the position after a room's last sample, None where unknown."""

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
        self._places = trio.CapacityLimiter(MAX_CONCURRENT_REQUESTS)
        self._heads = heads
        self.closing = trio.Event()
        self._given_up_at = math.inf

    def close(self) -> None:
        """No more speech will come: the last conversations are asked about, and then all tasks end."""
        self._given_up_at = trio.current_time() + FINISH_TIMEOUT_S
        self.closing.set()

    @property
    def is_closing(self) -> bool:
        """True if no more speech will come."""
        return self.closing.is_set()

    @property
    def has_given_up(self) -> bool:
        """True if failures are not waited out any more: nothing else keeps the daemon from ending."""
        return trio.current_time() >= self._given_up_at

    async def ask(self, settings: LLMSettings, client: LLMClient, room: str, request: Mapping[str, Any]) -> Completion:
        """The answer to one request, which is paid for. Raises Failed, which is paid for too."""
        model = request["model"]
        async with self._places:
            if not (self._governor.has_budget or settings.is_free(room, model)):
                raise RequestFailed("the budget is spent", Retryability.HELD)
            try:
                answer = await client.ask(await settings.route(room), request)
            except RequestFailed as failed:
                self.pay(settings, room, model, failed.usage)
                raise
        self.pay(settings, room, model, answer.usage, answer.model)
        return answer

    def pay(self, settings: LLMSettings, room: str, asked: str, usage: Usage, answered: str | None = None) -> None:
        """So much was used for this room, of the model that has answered or else of the one that was asked."""
        if usage.requests:
            self._governor.pay(room, settings.spent(room, asked, usage, answered))

    async def wait_for_budget(self) -> bool:
        """Return when there is one. False: the pool closes before."""
        while not (self._governor.has_budget or self.is_closing):
            await self.wait(CHECK_INTERVAL_S)
        return self._governor.has_budget

    async def wait(self, seconds: float) -> None:
        """Wait; until the pool closes at most, or, when it has, until it gives up."""
        if self.is_closing:
            await trio.sleep(max(0.0, min(seconds, self._given_up_at - trio.current_time())))
            return
        with trio.move_on_after(seconds):
            await self.closing.wait()

    async def head(self, room: str) -> int:
        """The position after the room's last sample, as far as it is known."""
        head = self._heads(room)
        return head if head is not None else await self.journal.mark(room_key(room, "audio")) or 0

    async def look(self, room: str, rules: ConversationLimits, done: int) -> tuple[Conversation | None, bool]:
        """The first conversation from this position on, if it is over; and whether there is any."""
        kinds = ["turn", "recording_stopped", "session_started", "session_ended", "gap", "forgotten"]
        events = await self.journal.select(room, kinds, done, 1 << 62)
        turns = conversations.current(events)
        if not turns:
            return None, False
        covers = await self.journal.covered(room, done)
        settled = Spans((cover.start, cover.end) for cover in covers if cover.state != "captured")
        edges = conversations.edges(events, by_session=rules.by_session)
        return conversations.first_over(
            turns, edges, rules, settled=settled, head=await self.head(room), now=self.utc()
        ), True
