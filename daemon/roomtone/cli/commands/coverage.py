"""`roomtone coverage`: the fate of every sample and every second."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click

from roomtone.budget.ledger import Cost, CostLedger, Spent
from roomtone.cli.commands.sinks import open_for_reading
from roomtone.cli.commands.status import breakdown
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure, check_names
from roomtone.cli.output import say, say_json
from roomtone.cli.unit import continue_as_service
from roomtone.journal.coverage import State, Summary, draw, summarize
from roomtone.journal.keys import PAID_PREFIX, ROOM_PREFIX, SPENT_PREFIX, rates_of
from roomtone.journal.records import CoverageSpan
from roomtone.legible import count_of, legible

TIMELINE_COLUMNS = 72
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
"""The character for each state in the timeline, and its color on a terminal."""


class RoomCoverage(NamedTuple):
    """One room's summary and the rows behind it."""

    summary: Summary
    covers: Sequence[CoverageSpan]


class Since(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A time, or how long ago: `2h`, `1.5d`, `2026-11-22`, `2026-11-22T14:00`. Times without a zone are local."""

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


@click.command(short_help="Account for every sample and every second.")
@config_option
@click.option("--room", "chosen", metavar="NAME", multiple=True, help="Only this room; may be given several times.")
@click.option("--since", type=SINCE, metavar="TIME", help="Only from this time on: a time, or how long ago: 2h, 7d.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: explained, and rooms with positions and times.")
def command(given: Path | None, *, chosen: tuple[str, ...], since: datetime | None, as_json: bool) -> None:
    """Show for every room what was captured, what was lost and why, and what has been transcribed.

    The journal is only read, so the daemon may keep running; the segment that it is writing is not counted yet. The
    exit code is 1 if a position or a second is unexplained, which is a bug in Roomtone.
    """
    continue_as_service(given)
    config, _ = load(given)
    journal = config.state(os.environ) / "journal.sqlite"
    rooms_coverage = _load_coverage(journal, chosen, since)
    costs = _load_costs(journal, [one.summary.room for one in rooms_coverage])
    if as_json:
        explained = all(one.summary.is_explained for one in rooms_coverage)
        rooms = [one.summary for one in rooms_coverage]
        spent = {"currency": config.budget.currency, "rooms": costs}
        say_json({"explained": explained, "rooms": rooms, "spent": spent})
    else:
        _print(rooms_coverage, since)
        for room, bill in costs.items():
            for line in _cost_lines(bill, config.budget.currency):
                say(f"{room}   {line}")
    if faults := [one.summary.room for one in rooms_coverage if not one.summary.is_explained]:
        raise CommandFailure(f"some samples are unexplained in {', '.join(faults)}: please report this bug")


def _load_coverage(journal: Path, chosen: Sequence[str], since: datetime | None) -> list[RoomCoverage]:
    if not journal.exists():
        raise CommandFailure(f"{journal}: nothing has been recorded with this configuration yet")
    with open_for_reading(journal) as database:
        rates = rates_of(database.marks(ROOM_PREFIX))
        check_names("recorded room", chosen, rates)
        covers = {room: database.covers(room, 0) for room in (chosen or rates)}
    summaries = {room: summarize(room, rates[room], rows, since=since) for room, rows in covers.items()}
    return [RoomCoverage(summary, covers[room]) for room, summary in summaries.items() if summary]


def _load_costs(journal: Path, rooms: Sequence[str]) -> dict[str, Cost]:
    """The cost of each room today and this month. The cost of an open session may be ten seconds old."""
    with open_for_reading(journal) as database:
        ledger = CostLedger(database.marks(SPENT_PREFIX))
        ledger.take(database.marks(PAID_PREFIX))
    return {room: ledger.bill(time.time(), room) for room in rooms}


def _cost_lines(bill: Cost, currency: str) -> Iterator[str]:
    for when, spent in (("today", bill.day), ("this month", bill.month)):
        if bill.month != Spent():
            yield f"cost {when} (UTC) {spent.money:.2f} {currency}: {breakdown(spent)}"


def _print(rooms_coverage: Sequence[RoomCoverage], since: datetime | None) -> None:
    """Print the report: in color on a terminal, elsewhere the same characters without color."""
    from rich.console import Console  # noqa: PLC0415 - late: `--json` does not need it
    from rich.text import Text  # noqa: PLC0415 - late, as above

    console = Console(highlight=False, soft_wrap=True)
    if not rooms_coverage:
        console.print("nothing has been recorded" + (" since then" if since else " yet"), markup=False)
    for summary, covers in rooms_coverage:
        timeline = Text("  ")
        parts = draw(covers, TIMELINE_COLUMNS, rate=summary.rate, since=since)
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
        yield f"  lost, {loss.cause}: {_duration(loss.seconds)}, {times}, {count_of(loss.samples, 'sample')}"
    if not summary.lost:
        yield "  lost: nothing"
    for hole in summary.unexplained:
        at, seconds = hole.from_.astimezone(), (hole.until - hole.from_).total_seconds()
        yield f"  UNEXPLAINED: positions {hole.start} to {hole.end}, {_duration(seconds)} from {at:%Y-%m-%d %H:%M:%S}"
    if summary.twice:
        yield f"  CONTRADICTION: {summary.twice} samples are marked as both captured and lost"
    if summary.is_explained:
        yield "  unexplained: nothing"


def _percent(share: float) -> str:
    """A share in percent. Only everything is 100 %, and only nothing is 0 %."""
    if share in {0.0, 1.0}:
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(100 * share, 0.01), 99.99):.2f} %"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < UNITS["m"]:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, UNITS["h"])
    return f"{hours}:{rest // 60:02}:{rest % 60:02} h" if hours else f"{rest // 60}:{rest % 60:02} min"
