"""The governor: what sessions have cost, and what happens when the budget is spent.

The service bills the time that a session is open, silence included, and not the audio in it. So what is counted is
Begin to the end, by the service's own seconds where it says them, at the price that the configuration had meanwhile.
The sums are marks of the journal, committed with the end of each session, and once in ten seconds while one is open: a
crash forgets no more than that, and what it may have left open at the service is added.

A day and a month are those of UTC, so that a daemon that moves, and a change of the clocks, shift no budget.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec
import structlog
import trio

from roomtone.events import Notice, Severity
from roomtone.facts import Fact, Mark
from roomtone.journal import Journal
from roomtone.speech.parameters import Streaming

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

PRICES: Final[Mapping[str, float]] = {
    **dict.fromkeys(
        ("universal-3-5-pro", "universal-3-6", "universal-3-6-pro", "u3-rt-pro", "u3-rt-pro-beta-1"),
        0.45,
    ),
    "universal-streaming-english": 0.15,
    "universal-streaming-multilingual": 0.15,
    "whisper-rt": 0.30,
}
"""AssemblyAI's list prices in USD for an hour of a session (October 2026), by `speech_model`."""
ADDONS: Final[Mapping[str, float]] = {
    "speaker_labels": 0.12,
    "voice_focus": 0.10,
    "domain": 0.15,
    "prompt": 0.05,
    "keyterms_prompt": 0.05,
    "filter_profanity": 0.01,
    "redact_pii": 0.08,
}
"""What an hour costs more, by the parameter that is set. Terms are free but for `universal-streaming-english`."""
FEE_FOR_TERMS: Final = frozenset({"universal-streaming-english"})
TICK: Final = 10.0
"""Seconds between two commits of what open sessions have cost."""
NEAR: Final = 0.8
"""The share of a budget at which somebody is told."""

_SPENT = "spent/"
_OPEN = "session/"
_TOLD = "budget/told"

Price = Annotated[float, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(gt=0)]
Period: TypeAlias = Literal["daily", "monthly"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[budget]` table: what the speech service may cost. Without a sum nothing is capped, only counted."""

    daily: Amount | None = None
    """What a day (UTC) may cost."""
    monthly: Amount | None = None
    """What a month (UTC) may cost."""
    currency: Annotated[str, msgspec.Meta(min_length=1, max_length=8)] = "USD"
    """What the sums are in; prices below have to be in it too."""
    at_cap: Literal["local", "record"] = "local"
    """When the budget is spent: go on with the recognizer on this machine, or only record."""
    prices: dict[str, Price] = {}
    """An hour of a session by `speech_model`, where it is not the list price."""
    addons: dict[str, Price] = {}
    """What an hour costs more where this parameter is set, where it is not the list price."""

    def price(self, streaming: Streaming) -> float:
        """What an hour of such a session costs. A model that is not known costs as much as the dearest that is."""
        prices, addons = {**PRICES, **self.prices}, {**ADDONS, **self.addons}
        hour = prices.get(streaming.speech_model, max(prices.values()))
        for parameter, more in addons.items():
            is_free = parameter == "keyterms_prompt" and streaming.speech_model not in FEE_FOR_TERMS
            if getattr(streaming, parameter, None) and not (is_free and parameter not in self.addons):
                hour += more
        return hour

    def limits(self) -> dict[Period, float]:
        """The sums that are not to be exceeded."""
        given: dict[Period, float | None] = {"daily": self.daily, "monthly": self.monthly}
        return {period: limit for period, limit in given.items() if limit is not None}


class Spent(NamedTuple):
    """Seconds of sessions, and what they cost."""

    seconds: float
    money: float


class Bill(NamedTuple):
    """What today and this month have cost (UTC)."""

    day: Spent
    month: Spent


class Running(msgspec.Struct):
    """An open session: what an hour of it costs, and what was charged of it, up to which Unix time.

    `leak` is how many seconds it may go on at the service when nobody ends it.
    """

    room: str
    price: float
    since: float
    charged: float
    leak: float


class Books:
    """The accounts: seconds and money by day and room, and the sessions that are open. Pure; times are Unix seconds."""

    def __init__(self, marks: Mapping[str, Any]) -> None:
        """From the journal's marks that begin with `spent/`."""
        self.running: dict[str, Running] = {}
        self._days: dict[tuple[str, str], Spent] = {}
        self._changed: set[tuple[str, str]] = set()
        for key, (seconds, money) in marks.items():
            _, day, room = key.split("/")
            self._days[day, room] = Spent(seconds, money)

    def begin(self, session: str, room: str, *, price: float, leak: float, now: float) -> None:
        """A session is open from now on."""
        self.running[session] = Running(room, price, now, 0.0, leak)

    def advance(self, now: float) -> None:
        """Charge what the open sessions have cost up to now, to the days on which they were open."""
        for one in self.running.values():
            while one.since < now:
                until = min(now, _midnight(one.since))
                self._charge(one, until - one.since)
                one.since = until

    def end(self, session: str, seconds: float, now: float) -> None:
        """A session is over and is billed so many seconds in all: what differs from what was charged is today's."""
        one = self.running.pop(session, None)
        if one is not None:
            one.since = now
            self._charge(one, seconds - one.charged)

    def abandon(self, session: str, one: Running, now: float) -> None:
        """A session that was open when an earlier daemon died: charge what it may have been open at the service."""
        self.running[session] = one
        self.advance(min(now, one.since + one.leak))
        del self.running[session]

    def _charge(self, one: Running, seconds: float) -> None:
        place = day_of(one.since), one.room
        before = self._days.get(place, Spent(0.0, 0.0))
        money = before.money + seconds / 3600 * one.price
        self._days[place] = Spent(round(before.seconds + seconds, 3), round(money, 6))
        self._changed.add(place)
        one.charged += seconds

    def spent(self, period: str, room: str | None = None) -> Spent:
        """What a day (`2026-11-22`) or a month (`2026-11`) has cost, of one room or of all."""
        sums = [sum_ for (day, name), sum_ in self._days.items() if day.startswith(period) and room in {None, name}]
        return Spent(sum(one.seconds for one in sums), sum(one.money for one in sums))

    def bill(self, now: float, room: str | None = None) -> Bill:
        """What the day and the month of that time have cost, of one room or of all."""
        return Bill(self.spent(day_of(now), room), self.spent(month_of(now), room))

    def changes(self) -> list[Mark]:
        """The marks of the sums that have changed since they were asked for last."""
        changed, self._changed = sorted(self._changed), set()
        return [Mark(f"{_SPENT}{day}/{room}", list(self._days[day, room])) for day, room in changed]


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
    governor = Governor(journal, Books(await journal.marks(_SPENT)), budget, utc)
    await governor.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(governor.run)
        yield governor
        nursery.cancel_scope.cancel()


def day_of(now: float) -> str:
    """The day (UTC) of a Unix time."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def month_of(now: float) -> str:
    """The month (UTC) of a Unix time: what its days begin with."""
    return day_of(now)[:7]


def _name_of(period: Period, now: float) -> str:
    return day_of(now) if period == "daily" else month_of(now)


def _midnight(now: float) -> float:
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day + timedelta(days=1)).timestamp()


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
