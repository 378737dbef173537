"""The accounts: what sessions and language models have cost, by day and room. Pure.

A day and a month are those of UTC, so that a daemon that moves, and a change of the clocks, shift no budget.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec

from roomtone.journal.keys import PAID_PREFIX, SPENT_PREFIX
from roomtone.journal.records import Mark

_MEETING = 1.0
"""Seconds by which two clocks may differ that were read one after the other, on a machine that is busy."""


class Spent(msgspec.Struct, frozen=True):
    """Costs: `sessions` is money for `seconds` of sessions, `models` is money for requests and tokens.

    The costs of `unpriced` requests are unknown, for their model has no price.
    """

    seconds: float = 0.0
    sessions: float = 0.0
    requests: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    models: float = 0.0

    @property
    def money(self) -> float:
        """All of it."""
        return self.sessions + self.models

    def __add__(self, other: "Spent") -> "Spent":
        sums = (getattr(self, name) + getattr(other, name) for name in self.__struct_fields__)
        return Spent(*(round(one, 6) for one in sums))


class Cost(msgspec.Struct, frozen=True):
    """The costs of today and of this month (UTC)."""

    day: Spent = Spent()
    month: Spent = Spent()


class Paid(msgspec.Struct, frozen=True):
    """Costs that a command has caused beside the daemon, for this room at this Unix time."""

    room: str
    at: float
    spent: Spent

    @property
    def mark(self) -> Mark:
        """Where the governor finds it; a new one each time."""
        return Mark(f"{PAID_PREFIX}{uuid4()}", msgspec.to_builtins(self))


class OpenSession(msgspec.Struct):
    """An open session: what an hour of it costs, and what was charged of it, up to which Unix time.

    `leak` is the number of seconds that it may go on at the service unless it is ended.
    """

    room: str
    price: float
    since: float
    charged: float
    leak: float


class CostLedger:
    """The accounts, by day and room, and the sessions that are open. Times are Unix seconds."""

    def __init__(self, marks: Mapping[str, Any]) -> None:
        """From the journal's marks that begin with `spent/`."""
        self.running: dict[str, OpenSession] = {}
        self._days: dict[tuple[str, str], Spent] = {}
        self._changed: set[tuple[str, str]] = set()
        for key, value in marks.items():
            _, day, room = key.split("/")
            self._days[day, room] = msgspec.convert(value, Spent)

    def begin(self, session: str, room: str, *, price: float, leak: float, now: float) -> None:
        """A session is open from now on."""
        self.running[session] = OpenSession(room, price, now, 0.0, leak)

    def advance(self, now: float, elapsed: float) -> None:
        """Charge what the open sessions have cost up to now, to the days on which they were open.

        `elapsed` are the seconds since that was done last, by a clock that cannot be set: where this one was set
        meanwhile, the time that it has jumped over is not charged.
        """
        for one in self.running.values():
            if not now - elapsed - _MEETING <= one.since <= now:
                one.since = now - elapsed
            self._charge_until(one, now)

    def end(self, session: str, seconds: float, now: float) -> None:
        """A session is over and is billed `seconds` in all: what differs from what was charged is today's."""
        one = self.running.pop(session, None)
        if one is not None:
            one.since = now
            self._charge(one, seconds - one.charged)

    def abandon(self, one: OpenSession, now: float) -> None:
        """A session that was open when an earlier daemon died: charge what it may have been open at the service."""
        most = one.since + one.leak
        self._charge_until(one, min(now, most) if now >= one.since else most)

    def add(self, room: str, more: Spent, now: float) -> None:
        """Add costs of this room."""
        place = day_of(now), room
        self._days[place] = self._days.get(place, Spent()) + more
        self._changed.add(place)

    def take(self, paid: Mapping[str, Any]) -> None:
        """Add the costs that arose beside the daemon: the values of marks that begin with `paid/`."""
        for value in paid.values():
            one = msgspec.convert(value, Paid)
            self.add(one.room, one.spent, one.at)

    def _charge_until(self, one: OpenSession, until: float) -> None:
        while one.since < until:
            end = min(until, _midnight(one.since))
            self._charge(one, end - one.since)
            one.since = end

    def _charge(self, one: OpenSession, seconds: float) -> None:
        self.add(one.room, Spent(seconds=seconds, sessions=seconds / 3600 * one.price), one.since)
        one.charged += seconds

    def spent(self, period: str, room: str | None = None) -> Spent:
        """The costs of a day (`2026-11-22`) or a month (`2026-11`), of one room or of all."""
        days = (spent for (day, name), spent in self._days.items() if day.startswith(period) and room in {None, name})
        return sum(days, Spent())

    def bill(self, now: float, room: str | None = None) -> Cost:
        """The costs of the day and the month of that time, of one room or of all."""
        return Cost(self.spent(day_of(now), room), self.spent(month_of(now), room))

    def changes(self) -> list[Mark]:
        """The marks of the sums that have changed since they were asked for last."""
        changed, self._changed = sorted(self._changed), set()
        return [
            Mark(f"{SPENT_PREFIX}{day}/{room}", msgspec.to_builtins(self._days[day, room])) for day, room in changed
        ]


def day_of(now: float) -> str:
    """The day (UTC) of a Unix time."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def month_of(now: float) -> str:
    """The month (UTC) of a Unix time: what its days begin with."""
    return day_of(now)[:7]


def _midnight(now: float) -> float:
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day + timedelta(days=1)).timestamp()
