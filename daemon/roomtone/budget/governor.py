"""The governor: what sessions and language models have cost, and what happens when the budget is spent.

The service bills the time that a session is open, silence included, and not the audio in it. So what is counted is
Begin to the end, by the service's own seconds where it says them, at the price that the configuration has when it
begins. Each answer of a language model is counted when it comes. The sums are marks of the journal,
committed with the end of each session, and once in ten seconds while one is open: a crash forgets no more than that,
and what it may have left open at the service is added.

There is one budget, for there is one bill. What is spent stays spent until its period ends or its sum is changed: the
service's last word on a session may be less than what was charged, and a room must not hover at the cap.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog
import trio

from roomtone.budget.ledger import Cost, CostLedger, OpenSession, Spent, day_of, month_of
from roomtone.budget.limits import Budget, CapAction, Period
from roomtone.events import Notice, notice
from roomtone.journal.journal import Journal
from roomtone.journal.keys import BUDGET_KEY, OPEN_SESSION_PREFIX, PAID_PREFIX, SPENT_PREFIX
from roomtone.journal.records import Mark, Record
from roomtone.protocol.parameters import Streaming
from roomtone.protocol.session_parameters import SessionParameters

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

COMMIT_INTERVAL_S: Final = 10.0
"""Seconds between two commits of what open sessions have cost."""
WARNING_SHARE: Final = 0.8
"""The share of a budget at which a notice warns."""


class Meter(Protocol):
    """Counts the sessions of one room. Its records are to be committed with the beginning and the end."""

    def begin(self, session: str) -> Sequence[Record]: ...
    def end(self, session: str, seconds: float) -> Sequence[Record]: ...


class Free:
    """The meter of sessions that cost nothing."""

    def begin(self, session: str) -> Sequence[Record]:
        return ()

    def end(self, session: str, seconds: float) -> Sequence[Record]:
        return ()


FREE: Final = Free()


class Reached(msgspec.Struct, frozen=True):
    """The percentage of this sum that was reported, on this day or in this month."""

    when: str
    limit: float
    stage: int


class BudgetState(msgspec.Struct):
    """The state that the governor has reported last, by period."""

    is_spent: bool = False
    reached: dict[str, Reached] = {}


class Governor:
    """Counts what is spent, and says when that is all of the budget. Made by `open_governor`."""

    def __init__(
        self,
        journal: Journal,
        ledger: CostLedger,
        budget: Callable[[], Budget],
        *,
        held: Callable[[], Sequence[str]],
        utc: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._budget = budget
        self._held = held
        self._utc = utc
        self._advanced_at = trio.current_time()
        self._state = BudgetState()
        self._wake = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def is_spent(self) -> bool:
        """True if the budget is spent, and a notice has said so."""
        return self._state.is_spent

    @property
    def has_budget(self) -> bool:
        """True if something that costs money may begin: as `is_spent`, but including costs that are not judged yet."""
        now, limits = self._utc(), self._budget().limits()
        return not self.is_spent and all(
            self._ledger.spent(_name_of(period, now)).money < limit for period, limit in limits.items()
        )

    @property
    def cap_action(self) -> CapAction | None:
        """The action instead of opening sessions; None while there is a budget."""
        return self._budget().at_cap if self.is_spent else None

    def meter(self, room: str, parameters: SessionParameters) -> Meter:
        """A meter for the sessions of this room, at the price that these parameters have when one begins."""
        return _Meter(self, room, parameters)

    def pay(self, room: str, spent: Spent) -> None:
        """A language model has answered this room. It is committed, and the budget judged, immediately."""
        self._ledger.add(room, spent, self._utc())
        self._wake.set()

    def spent(self, room: str | None = None) -> Cost:
        """The costs of today and this month up to now, of one room or of all."""
        self._advance()
        return self._ledger.bill(self._utc(), room)

    async def run_within_budget(self, work: Callable[[CapAction | None], Awaitable[None]]) -> None:
        """Do the work with the present action; restart it whenever that changes, until it returns by itself."""
        is_done = False
        while not is_done:
            course = self.cap_action
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_on_change, course, nursery.cancel_scope)
                await work(course)
                is_done = True
                nursery.cancel_scope.cancel()

    async def _cancel_on_change(self, course: CapAction | None, scope: trio.CancelScope) -> None:
        while self.cap_action == course:
            await self._changed.park()
        scope.cancel()

    async def load(self) -> None:
        """Go on from an earlier daemon: sessions that it did not see the end of, and its last reports."""
        self._state = msgspec.convert(await self._journal.mark(BUDGET_KEY) or {}, BudgetState)
        left = await self._journal.marks(OPEN_SESSION_PREFIX)
        for value in left.values():
            self._ledger.abandon(msgspec.convert(value, OpenSession), self._utc())
        await self.settle(*(Mark(key, None) for key in left))
        await self._judge()

    async def run(self) -> None:
        """Charge, and judge, until cancelled."""
        while True:
            with trio.move_on_after(self._due_in()):
                await self._wake.wait()
            self._wake = trio.Event()
            await self.settle()
            await self._judge()

    async def settle(self, *more: Mark) -> None:
        """Commit what was spent up to now, also beside the daemon, and these marks."""
        with trio.CancelScope(shield=True):  # what is taken in and not committed would be taken in twice
            paid = await self._journal.marks(PAID_PREFIX)
            self._ledger.take(paid)
            self._advance()
            await self._journal.commit(*self._facts(), *more, *(Mark(key, None) for key in paid))

    def _advance(self) -> None:
        now = trio.current_time()
        self._ledger.advance(self._utc(), now - self._advanced_at)
        self._advanced_at = now

    def _due_in(self) -> float:
        """Seconds until the budget may be spent, at most TICK: a cap is met to the second, not to the tick."""
        now, limits = self._utc(), self._budget().limits()
        left = [limit - self._ledger.spent(_name_of(period, now)).money for period, limit in limits.items()]
        burning = sum(one.price for one in self._ledger.running.values()) / 3600
        if self.is_spent or not left or not burning:
            return COMMIT_INTERVAL_S
        return min(COMMIT_INTERVAL_S, max(1.0, min(left) / burning))

    def begin(self, session: str, room: str, streaming: Streaming) -> Sequence[Record]:
        """See Meter."""
        self._wake.set()
        self._advance()
        price, leak = self._budget().price(streaming), COMMIT_INTERVAL_S + streaming.inactivity_timeout
        self._ledger.begin(session, room, price=price, leak=leak, now=self._utc())
        return self._facts()

    def end(self, session: str, seconds: float) -> Sequence[Record]:
        """See Meter. The budget is looked at as soon as that is committed."""
        self._ledger.end(session, seconds, self._utc())
        self._wake.set()
        return [*self._facts(), Mark(OPEN_SESSION_PREFIX + session, None)]

    def _facts(self) -> list[Record]:
        running = self._ledger.running.items()
        return [
            *self._ledger.changes(),
            *(Mark(OPEN_SESSION_PREFIX + session, msgspec.to_builtins(one)) for session, one in running),
        ]

    async def _judge(self) -> None:
        """Compare the costs with the budget, and report each crossing once."""
        now, budget, before = self._utc(), self._budget(), self._state
        after, due = BudgetState(), list[Notice]()
        for period, limit in budget.limits().items():
            when = _name_of(period, now)
            spent, last = self._ledger.spent(when), before.reached.get(period)
            known = last.stage if last is not None and (last.when, last.limit) == (when, limit) else 0
            stage = max(known, 100 if spent.money >= limit else 80 if spent.money >= WARNING_SHARE * limit else 0)
            after.reached[period] = reached = Reached(when, limit, stage)
            after.is_spent = after.is_spent or stage == 100
            if stage > known:
                due.append(notice(*_words(period, reached, spent, budget, self._held()), at=_datetime(now)))
        if after.is_spent != before.is_spent:
            log.info("budget.spent" if after.is_spent else "budget.renewed", at_cap=budget.at_cap)
            if not after.is_spent:
                due.append(notice("budget.renewed", _RENEWED, at=_datetime(now), severity="info"))
        if after != before:
            await self._journal.commit(*due, Mark(BUDGET_KEY, msgspec.to_builtins(after)))
        self._state = after
        self._changed.unpark_all()


class _Meter(NamedTuple):
    governor: Governor
    room: str
    parameters: SessionParameters

    def begin(self, session: str) -> Sequence[Record]:
        return self.governor.begin(session, self.room, self.parameters.streaming)

    def end(self, session: str, seconds: float) -> Sequence[Record]:
        return self.governor.end(session, seconds)


def _nothing() -> Sequence[str]:
    return ()


@asynccontextmanager
async def open_governor(
    journal: Journal,
    budget: Callable[[], Budget],
    *,
    held: Callable[[], Sequence[str]] = _nothing,
    utc: Callable[[], float] = time.time,
) -> AsyncIterator[Governor]:
    """A governor that goes on where the journal says. `budget` is asked each time, for a reload may have changed it.

    `held` says, for users, what else does not go on when the budget is spent.
    """
    governor = Governor(journal, CostLedger(await journal.marks(SPENT_PREFIX)), budget, held=held, utc=utc)
    await governor.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(governor.run)
        yield governor
        nursery.cancel_scope.cancel()
    await governor.settle()


def _name_of(period: Period, now: float) -> str:
    return day_of(now) if period == "daily" else month_of(now)


_RENEWED = "The budget is renewed: sessions are opened, and language models are asked again."


def _words(period: Period, reached: Reached, spent: Spent, budget: Budget, held: Sequence[str]) -> tuple[str, str]:
    """The code and the text of a notice."""
    sums = f"{spent.money:.2f} of {reached.limit:.2f} {budget.currency}"
    if spent.models:
        sums += f" (sessions {spent.sessions:.2f}, language models {spent.models:.2f})"
    if reached.stage < 100:
        return "budget.near", f"{reached.stage} % of the {period} budget: {sums}."
    action = (
        "the recognizer on this machine goes on"
        if budget.at_cap == "local"
        else "recording goes on, but nothing is transcribed"
    )
    until = "the next day" if period == "daily" else "the next month"
    return "budget.spent", (
        f"The {period} budget is spent, {sums}. Until {until} (UTC) begins: {'; '.join([action, *held])}."
    )


def _datetime(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)
