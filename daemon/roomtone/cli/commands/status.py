"""`roomtone status`: the state of the running daemon."""

import math
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import click
import trio

from roomtone.budget.ledger import Spent
from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import find_daemon
from roomtone.cli.output import say, say_json
from roomtone.control.client import open_client
from roomtone.control.protocol import Status
from roomtone.delivery.health import SinkStatus
from roomtone.legible import count_of, legible
from roomtone.monitoring.report import CostReport, Report, RoomReport

WATCH_INTERVAL_S = 1.0
"""Seconds between two requests."""


@click.command(short_help="Show the state of the running daemon.")
@config_option
@click.option("--watch", is_flag=True, help="Repeat every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, or one a second with --watch.")
def command(given: Path | None, *, watch: bool, as_json: bool) -> None:
    """Show the state of the running daemon: rooms with their level, session and gaps, sinks, and the disk."""
    path = find_daemon(given)
    if watch and not as_json and sys.stdout.isatty():
        _watch(path)
        return
    trio.run(_look, path, math.inf if watch else 1, partial(_show, as_json=as_json))


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        say_json(report)
    else:
        say(*lines(report, datetime.now(UTC)))


def _watch(path: Path) -> None:
    from rich.live import Live  # noqa: PLC0415 - late: only a terminal needs it
    from rich.text import Text  # noqa: PLC0415 - late, as above

    with Live(refresh_per_second=4, screen=True) as live:
        trio.run(
            _look,
            path,
            math.inf,
            lambda report: live.update(Text("\n".join(map(legible, lines(report, datetime.now(UTC)))))),
        )


async def _look(path: Path, times: float, take: Callable[[Report], None]) -> None:
    async with open_client(path) as client:
        while times > 0:
            answer = await client.ask(Status())
            if isinstance(answer, Report):
                take(answer)
            times -= 1
            await trio.sleep(WATCH_INTERVAL_S if times > 0 else 0)


def lines(report: Report, now: datetime) -> Iterator[str]:
    """The report as text. Pure."""
    stopping = ", stopping" if report.stopping else ""
    yield f"roomtone {report.version}, process {report.pid}, up {span(now - report.since)}{stopping}"
    yield f"configuration {report.configuration}"
    yield ""
    for room in report.rooms:
        yield from _room(room, now)
    if report.sinks:
        yield "sinks"
        yield from map(_sink, report.sinks)
    disk = report.disk
    if report.cost is not None:
        yield from _cost(report.cost)
    yield f"disk     spool {size(disk.spool)}, journal {size(disk.journal)}, free {size(disk.free)} in {report.state}"


def _cost(cost: CostReport) -> Iterator[str]:
    if cost.bill.month == Spent():
        return
    for head, when, spent, limit in (
        ("cost", "today", cost.bill.day, cost.daily),
        ("", "this month", cost.bill.month, cost.monthly),
    ):
        budget = "" if limit is None else f" of {limit:.2f}"
        yield f"{head:9}{when} {spent.money:.2f}{budget} {cost.currency}: {breakdown(spent)}"
    actions = {"local": "the recognizer on this machine takes over", "record": "nothing is transcribed"}
    if cost.spent is not None:
        yield f"         the budget is spent: {actions[cost.spent]}, and language models with a price are not asked"


def breakdown(spent: Spent) -> str:
    """The items of a sum: sessions and language models."""
    minutes = f"sessions {spent.sessions:.2f} for {round(spent.seconds / 60, 1):g} min"
    if not spent.requests:
        return minutes
    unpriced = f", {spent.unpriced} of them of unknown cost" if spent.unpriced else ""
    return f"{minutes}, language models {spent.models:.2f} for {count_of(spent.requests, 'answer')}{unpriced}"


def _room(room: RoomReport, now: datetime) -> Iterator[str]:
    yield f"{room.name}: {_state(room, now)}"
    yield f"  source    {room.source}, {room.rate} Hz, position {room.position:,}"
    if room.gap is not None and room.gap.reason:
        yield f"            last error: {room.gap.reason}"
    if room.rms is not None and room.peak is not None:
        yield f"  level     {room.rms:.1f} dB, peak {room.peak:.1f} dB"
    if room.session is not None:
        yield f"  session   {room.session.id} at {room.session.endpoint}, since {span(now - room.session.since)}"
    elif room.state != "ended":
        yield "  session   none"
    if room.session_error is not None:
        yield f"            last error: {room.session_error}"
    if room.coverage is not None:
        lost = ", ".join(f"{cause} {span(timedelta(seconds=seconds))}" for cause, seconds in room.coverage.lost.items())
        percent = math.floor(room.coverage.ratio * 10_000) / 100
        yield f"  last 24 h {percent:.2f} % recorded{f' (missing: {lost})' if lost else ''}"
    yield ""


def _state(room: RoomReport, now: datetime) -> str:
    match room.state:
        case "recording":
            return f"recording since {span(now - room.since)}" if room.since else "recording"
        case "muted":
            until = f" until {room.muted_until.astimezone():%Y-%m-%d %H:%M:%S}" if room.muted_until else ""
            return f"muted{until}, since {span(timedelta(seconds=room.gap.seconds if room.gap else 0))}"
        case "waiting":
            gap = room.gap
            return f"no samples ({gap.cause}) since {span(timedelta(seconds=gap.seconds))}" if gap else "no samples"
        case "ended":
            return "has ended"


def _sink(sink: SinkStatus) -> str:
    behind = f"{count_of(sink.behind, 'event')} behind" if sink.behind else "has everything"
    refused = f", refused {sink.refused}" if sink.refused else ""
    error = f": {sink.error}" if sink.error else ""
    return f"  {sink.name:12} {sink.kind:10} {sink.state}, {behind}{refused}{error}"


def span(elapsed: timedelta) -> str:
    """A duration in its two largest units."""
    seconds = max(0, round(elapsed.total_seconds()))
    for unit, length, lesser, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length} {unit} {seconds % length // part} {lesser}"
    return f"{seconds} s"


def size(count: int) -> str:
    """A number of bytes in the largest unit that gives at least 1."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} bytes"
