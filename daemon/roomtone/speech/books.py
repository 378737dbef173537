"""The accounts: what sessions have cost, by day and room. Pure.

A day and a month are those of UTC, so that a daemon that moves, and a change of the clocks, shift no budget.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from roomtone.facts import Mark

SPENT: Final = "spent/"
"""What the keys of the marks begin with; the day and the room follow."""


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
        return [Mark(f"{SPENT}{day}/{room}", list(self._days[day, room])) for day, room in changed]


def day_of(now: float) -> str:
    """The day (UTC) of a Unix time."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def month_of(now: float) -> str:
    """The month (UTC) of a Unix time: what its days begin with."""
    return day_of(now)[:7]


def _midnight(now: float) -> float:
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day + timedelta(days=1)).timestamp()
