"""`roomtone coverage`: what became of every sample and every second."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click

from roomtone.budget.ledger import Cost, CostLedger, Spent
from roomtone.cli.commands.sinks import reading
from roomtone.cli.commands.status import breakdown
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure
from roomtone.cli.output import say, say_json
from roomtone.cli.unit import enter
from roomtone.journal.coverage import State, Summary, draw, summarize
from roomtone.journal.keys import PAID_PREFIX, ROOM_PREFIX, SPENT_PREFIX, rates_of
from roomtone.journal.records import CoverageSpan
from roomtone.legible import legible

WIDTH = 72
"""Characters of the timeline."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

MARKS: Mapping[State | None, tuple[str, str]] = {
    "transcribed": ("#", "green"),
    "silent": (".", "dim"),
    "unsent": (",", "dim"),
    "pending": ("?", "yellow"),
    "forgotten": ("-", "magenta"),
    "removed": ("x", "magenta"),
    "lost": ("!", "red"),
    "unexplained": ("E", "bold reverse red"),
    None: (" ", ""),
}
"""What the timeline shows for a state, and in which color where there are colors."""


class RoomCoverage(NamedTuple):
    """One room's summary and the rows that it was made of."""

    summary: Summary
    covers: Sequence[CoverageSpan]


class Since(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A time, or how long ago: `2h`, `30m`, `1.5d`, `2026-11-22`, `2026-11-22T14:00`. Without a zone it is local."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if ago := re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhdw])", value.strip()):
                return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * UNITS[ago[2]])
            return datetime.fromisoformat(value.strip()).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither a time like 2026-11-22T14:00 nor a duration like 2h, 30m or 7d", param, ctx
            )


SINCE = Since()


@click.command(short_help="Say what became of every sample and every second.")
@config_option
@click.option("--room", "chosen", metavar="NAME", multiple=True, help="Only this room; may be given several times.")
@click.option("--since", type=SINCE, metavar="TIME", help="Only from then on: a time, or a duration like 2h or 7d.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: explained, and rooms with positions and times.")
def command(given: Path | None, *, chosen: tuple[str, ...], since: datetime | None, as_json: bool) -> None:
    """Say of every room what was captured, what was lost and why, and what is transcribed.

    The journal is only looked at, so that the daemon may run meanwhile; the segment that it is writing is not counted
    yet. The exit code is 1 when there is a position or a second that nothing explains, which is a fault of Roomtone.
    """
    enter(given)
    config, _ = load(given)
    journal = config.state(os.environ) / "journal.sqlite"
    accounts = _accounts(journal, chosen, since)
    bills = _bills(journal, [account.summary.room for account in accounts])
    if as_json:
        explained = all(account.summary.is_explained for account in accounts)
        rooms = [one.summary for one in accounts]
        spent = {"currency": config.budget.currency, "rooms": bills}
        say_json({"explained": explained, "rooms": rooms, "spent": spent})
    else:
        _print(accounts, since)
        for room, bill in bills.items():
            for line in _costs(bill, config.budget.currency):
                say(f"{room}   {line}")
    if faults := [one.summary.room for one in accounts if not one.summary.is_explained]:
        raise CommandFailure(f"not everything is explained in {', '.join(faults)}: please report this")


def _accounts(journal: Path, chosen: Sequence[str], since: datetime | None) -> list[RoomCoverage]:
    if not journal.exists():
        raise CommandFailure(f"{journal}: nothing was recorded with this configuration yet")
    with reading(journal) as database:
        rates = rates_of(database.marks(ROOM_PREFIX))
        if unknown := [room for room in chosen if room not in rates]:
            known = ", ".join(rates) or "none"
            raise CommandFailure(f"nothing was recorded of {', '.join(unknown)} yet; rooms with recordings: {known}")
        covers = {room: database.covers(room, 0) for room in (chosen or rates)}
    summaries = {room: summarize(room, rates[room], rows, since=since) for room, rows in covers.items()}
    return [RoomCoverage(summary, covers[room]) for room, summary in summaries.items() if summary]


def _bills(journal: Path, rooms: Sequence[str]) -> dict[str, Cost]:
    """What each room has cost today and this month; a session that is open, up to ten seconds ago."""
    with reading(journal) as database:
        books = CostLedger(database.marks(SPENT_PREFIX))
        books.take(database.marks(PAID_PREFIX))
    return {room: books.bill(time.time(), room) for room in rooms}


def _costs(bill: Cost, currency: str) -> Iterator[str]:
    for when, spent in (("today", bill.day), ("this month", bill.month)):
        if bill.month != Spent():
            yield f"cost {when} (UTC) {spent.money:.2f} {currency}: {breakdown(spent)}"


def _print(accounts: Sequence[RoomCoverage], since: datetime | None) -> None:
    """For people: in color on a terminal, and the same characters without it elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - late: `--json` and other commands want none of it
    from rich.text import Text  # noqa: PLC0415 - late, as above

    console = Console(highlight=False, soft_wrap=True)
    if not accounts:
        console.print("nothing was recorded" + (" since then" if since else " yet"), markup=False)
    for summary, covers in accounts:
        timeline = Text("  ")
        parts = draw(covers, WIDTH, rate=summary.rate, since=since)
        for part in parts:
            timeline.append(*MARKS[part])
        begin, end = summary.from_.astimezone(), summary.until.astimezone()
        head = f"{summary.room}   {begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S}, {summary.rate} Hz"
        console.print(legible(head), markup=False, style="bold")
        console.print(timeline)
        shown = [state for state in MARKS if state in parts and state]
        console.print("  " + "   ".join(f"{MARKS[state][0]} {state}" for state in shown), markup=False, style="dim")
        for line in _lines(summary):
            console.print(legible(line), markup=False)


def _lines(summary: Summary) -> Iterator[str]:
    yield f"  captured     {_percent(summary.ratio):>8}  {_duration(summary.captured / summary.rate)}"
    for state in ("transcribed", "silent", "unsent", "pending", "removed", "forgotten"):
        samples = getattr(summary, state)
        if samples or state not in {"unsent", "removed", "forgotten"}:
            share = _percent(samples / summary.captured if summary.captured else 0)
            yield f"    {state:11}{share:>8}  {_duration(samples / summary.rate)}"
    for loss in summary.lost:
        times = "once" if loss.times == 1 else f"{loss.times} times"
        yield f"  lost, {loss.cause}: {_duration(loss.seconds)}, {times}, {loss.samples} samples"
    if not summary.lost:
        yield "  lost: nothing"
    for hole in summary.unexplained:
        at, seconds = hole.from_.astimezone(), (hole.until - hole.from_).total_seconds()
        yield f"  UNEXPLAINED: positions {hole.start} to {hole.end}, {_duration(seconds)} from {at:%Y-%m-%d %H:%M:%S}"
    if summary.twice:
        yield f"  CONTRADICTION: {summary.twice} samples are said to be both captured and lost"
    if summary.is_explained:
        yield "  unexplained: nothing"


def _percent(share: float) -> str:
    """100 % means all of it, 0 % nothing."""
    if share in {0.0, 1.0}:
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(100 * share, 0.01), 99.99):.2f} %"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < UNITS["m"]:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, UNITS["h"])
    return f"{hours}:{rest // 60:02}:{rest % 60:02} h" if hours else f"{rest // 60}:{rest % 60:02} min"
