"""The governor: what sessions have cost, and what happens when the budget is spent.

The service bills the time that a session is open, silence included, and not the audio in it. So what is counted is
Begin to the end, by the service's own seconds where it says them, at the price that the configuration had meanwhile.
The sums are marks of the journal, committed with the end of each session, and once in ten seconds while one is open: a
crash forgets no more than that, and what it may have left open at the service is added.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec
import structlog
import trio

from roomtone.events import Notice, Severity
from roomtone.facts import Fact, Mark
from roomtone.journal import Journal
from roomtone.speech.books import SPENT, Bill, Books, Running, day_of, month_of
from roomtone.speech.budget import Budget, Period
from roomtone.speech.parameters import Streaming

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

TICK: Final = 10.0
"""Seconds between two commits of what open sessions have cost."""
NEAR: Final = 0.8
"""The share of a budget at which somebody is told."""

_OPEN = "session/"
_TOLD = "budget/told"


class Meter(Protocol):
    """Counts the sessions of one room. What it returns is to be committed with the beginning and the end."""

    def begin(self, session: str) -> Sequence[Fact]: ...
    def end(self, session: str, seconds: float) -> Sequence[Fact]: ...


class Free:
    """The meter of sessions that cost nothing."""

    def begin(self, session: str) -> Sequence[Fact]:
        return ()

    def end(self, session: str, seconds: float) -> Sequence[Fact]:
        return ()


FREE: Final = Free()


class Governor:
    """Counts what sessions cost and says when the budget is spent. Made by `open_governor`."""

    def __init__(self, journal: Journal, books: Books, budget: Callable[[], Budget], utc: Callable[[], float]) -> None:
        self.is_spent = False
        """Whether no session is to be opened that costs money."""
        self._journal = journal
        self._books = books
        self._budget = budget
        self._utc = utc
        self._told: dict[str, Any] = {}
        self._wake = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def at_cap(self) -> Literal["local", "record"]:
        """What to do when the budget is spent."""
        return self._budget().at_cap

    def meter(self, room: str, streaming: Streaming) -> Meter:
        """A meter for the sessions of this room with these parameters, at the price that they have now."""
        return _Meter(self, room, self._budget().price(streaming), TICK + streaming.inactivity_timeout)

    def spent(self, room: str | None = None) -> Bill:
        """What today and this month have cost up to now, of one room or of all."""
        now = self._utc()
        self._books.advance(now)
        return self._books.bill(now, room)

    async def obey(self, work: Callable[[bool], Awaitable[None]]) -> None:
        """Do the work, told whether the budget is spent; anew whenever that changes, until it returns by itself."""
        is_done = False
        while not is_done:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_on_change, self.is_spent, nursery.cancel_scope)
                await work(self.is_spent)
                is_done = True
                nursery.cancel_scope.cancel()

    async def _cancel_on_change(self, was_spent: bool, scope: trio.CancelScope) -> None:
        while self.is_spent == was_spent:
            await self._changed.park()
        scope.cancel()

    async def load(self) -> None:
        """What an earlier daemon has left: sessions that it did not see the end of, and what was told already."""
        self._told = await self._journal.mark(_TOLD) or {}
        left = await self._journal.marks(_OPEN)
        for key, value in left.items():
            self._books.abandon(key, msgspec.convert(value, Running), self._utc())
        await self._journal.commit(*self._books.changes(), *(Mark(key, None) for key in left))
        await self._judge()

    async def run(self) -> None:
        """Charge, and judge, for ever."""
        while True:
            with trio.move_on_after(self._due_in()):
                await self._wake.wait()
            self._wake = trio.Event()
            self._books.advance(self._utc())
            await self._journal.commit(*self._facts())
            await self._judge()

    def _due_in(self) -> float:
        """Seconds until the budget may be spent, at most TICK: a cap is met to the second, not to the tick."""
        now, limits = self._utc(), self._budget().limits()
        left = [limit - self._books.spent(_name_of(period, now)).money for period, limit in limits.items()]
        burning = sum(one.price for one in self._books.running.values()) / 3600
        if self.is_spent or not left or not burning:
            return TICK
        return min(TICK, max(1.0, min(left) / burning))

    def begin(self, session: str, room: str, price: float, leak: float) -> Sequence[Fact]:
        """See Meter."""
        self._wake.set()
        self._books.begin(session, room, price=price, leak=leak, now=self._utc())
        return self._facts()

    def end(self, session: str, seconds: float) -> Sequence[Fact]:
        """See Meter. The budget is looked at as soon as that is committed."""
        self._books.end(session, seconds, self._utc())
        self._wake.set()
        return [*self._facts(), Mark(_OPEN + session, None)]

    def _facts(self) -> list[Fact]:
        running = self._books.running.items()
        return [
            *self._books.changes(),
            *(Mark(_OPEN + session, msgspec.to_builtins(one)) for session, one in running),
        ]

    async def _judge(self) -> None:
        """Compare what was spent with the budget, and tell once what is to be told."""
        now, budget = self._utc(), self._budget()
        is_spent, due = False, list[Notice]()
        for period, limit in budget.limits().items():
            name = _name_of(period, now)
            money = self._books.spent(name).money
            stage = 100 if money >= limit else 80 if money >= NEAR * limit else 0
            is_spent = is_spent or stage == 100
            told, reached = self._told.get(period, ("", 0))
            if stage > (reached if told == name else 0):
                self._told[period] = (name, stage)
                due.append(_notice(period, stage, money, budget, now))
        if is_spent != self.is_spent:
            self.is_spent = is_spent
            log.info("budget.spent" if is_spent else "budget.renewed", at_cap=budget.at_cap)
            if not is_spent:
                due.append(_say(now, "info", "budget.renewed", "There is a budget again: sessions are opened."))
        if due:
            await self._journal.commit(*due, Mark(_TOLD, self._told))
        self._changed.unpark_all()


class _Meter(NamedTuple):
    governor: Governor
    room: str
    price: float
    leak: float

    def begin(self, session: str) -> Sequence[Fact]:
        return self.governor.begin(session, self.room, self.price, self.leak)

    def end(self, session: str, seconds: float) -> Sequence[Fact]:
        return self.governor.end(session, seconds)


@asynccontextmanager
async def open_governor(
    journal: Journal, budget: Callable[[], Budget], *, utc: Callable[[], float] = time.time
) -> AsyncIterator[Governor]:
    """A governor that goes on where the journal says. `budget` is asked each time, for a reload may have changed it."""
    governor = Governor(journal, Books(await journal.marks(SPENT)), budget, utc)
    await governor.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(governor.run)
        yield governor
        nursery.cancel_scope.cancel()


def _name_of(period: Period, now: float) -> str:
    return day_of(now) if period == "daily" else month_of(now)


def _notice(period: Period, stage: int, money: float, budget: Budget, now: float) -> Notice:
    sums = f"{money:.2f} of {budget.limits()[period]:.2f} {budget.currency}"
    if stage < 100:
        return _say(now, "warning", "budget.near", f"{stage} % of the {period} budget of the speech service: {sums}.")
    then = (
        "the recognizer on this machine goes on"
        if budget.at_cap == "local"
        else "recording goes on, and nothing is transcribed"
    )
    until = "the next day" if period == "daily" else "the next month"
    text = f"The {period} budget of the speech service is spent, {sums}: {then} until {until} (UTC) begins."
    return _say(now, "warning", "budget.spent", text)


def _say(now: float, severity: Severity, code: str, text: str) -> Notice:
    at = datetime.fromtimestamp(now, UTC)
    return Notice(room="", position=0, at=at, severity=severity, code=code, text=text)
