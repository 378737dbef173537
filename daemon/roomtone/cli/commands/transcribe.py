"""`roomtone transcribe`: turn into text what the gate, or the budget, has held back."""

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import trio

from roomtone import paths
from roomtone.budget.governor import FREE, Governor, open_governor
from roomtone.budget.limits import CapAction
from roomtone.cli.commands.coverage import SINCE
from roomtone.cli.commands.sinks import reading
from roomtone.cli.commands.sinks_control import writing
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure
from roomtone.cli.output import say
from roomtone.cli.unit import enter
from roomtone.config.model import Config, Room, find_key
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.keys import backfill_mark
from roomtone.journal.records import CoverageSpan
from roomtone.live import Live
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.rooms import has_two_finals
from roomtone.spans import Spans
from roomtone.speech.endpoint import Endpoints, open_endpoints
from roomtone.speech.session_context import SessionContext
from roomtone.speech.transcriber import repair
from roomtone.spool.segment import SPOOL_FOLDER, list_segments
from roomtone.spool.spool import open_spool


class Unsent(NamedTuple):
    """What of a room no session was given: `there` is in the spool still, `gone` is not."""

    room: str
    rate: int
    there: Spans
    gone: Spans


@click.command(short_help="Transcribe what the gate or the budget has held back.")
@config_option
@click.option("--from", "since", type=SINCE, required=True, metavar="TIME", help="A time, or how long ago: 2h, 30m.")
@click.option("--to", "until", type=SINCE, metavar="TIME", help="Up to this time; without it, up to now.")
@click.option("--room", "chosen", metavar="NAME", multiple=True, help="Only this room; may be given several times.")
def command(given: Path | None, *, since: datetime, until: datetime | None, chosen: tuple[str, ...]) -> None:
    """Transcribe what was recorded between two times and never sent: the gate heard nobody speak, or the budget was
    spent. What is in the transcript already is left alone.

    A daemon that runs does it beside its other work. Where none does this command opens the sessions itself, and
    returns when all is in the journal; the sinks get it at the daemon's next start.
    """
    enter(given)
    config, _ = load(given)
    state = config.state(os.environ)
    if unknown := [room for room in chosen if room not in config.rooms]:
        raise CommandFailure(f"there is no room {', '.join(unknown)}; there is {', '.join(config.rooms)}")
    rooms = {name: room for name, room in config.rooms.items() if name in (chosen or config.rooms)}
    found = list(_find(state, rooms, since, until or datetime.now(UTC)))
    for one in found:
        say(_line(one))
    wishes = [backfill_mark(one.room, span) for one in found for span in one.there]
    if not wishes:
        return
    with writing(state / "journal.sqlite") as database:
        database.put(wishes)
    try:
        with paths.lock(state):
            os.umask(paths.UMASK)
            is_done = trio.run(partial(_work, config, rooms, os.environ))
    except paths.StateInUse:
        say("the daemon transcribes it")
        return
    if not is_done:
        raise CommandFailure(
            "the budget is spent: what is left is transcribed by the daemon, or by this command, in the next period or "
            "when [budget] has more"
        )


def _find(state: Path, rooms: Mapping[str, Room], since: datetime, until: datetime) -> Iterator[Unsent]:
    journal = state / "journal.sqlite"
    if not journal.exists():
        raise CommandFailure(f"{journal}: nothing was recorded with this configuration yet")
    with reading(journal) as database:
        for name, room in rooms.items():
            unsent = never_sent(database.covers(name, 0), since, until)
            segments = list_segments(state / SPOOL_FOLDER / name)
            there = unsent & Spans((one.position, one.end) for one in segments)
            yield Unsent(name, room.rate, there, unsent - there)


def never_sent(covers: Iterable[CoverageSpan], since: datetime, until: datetime) -> Spans:
    """The positions between these times that no session was given. Pure."""
    rows = list(covers)
    recorded = Spans(
        (_position(row, max(since, row.from_)), _position(row, min(until, row.until)))
        for row in rows
        if row.state == "captured" and row.from_ < until and row.until > since
    )
    states = {
        state: Spans((row.start, row.end) for row in rows if row.state == state)
        for state in ("unsent", "transcribed", "silent")
    }
    return (recorded & states["unsent"]) - states["transcribed"] - states["silent"]


def _position(row: CoverageSpan, at: datetime) -> int:
    """The position of a time within a stretch."""
    length = (row.until - row.from_).total_seconds()
    share = (at - row.from_).total_seconds() / length if length else 0.0
    return row.start + round((row.end - row.start) * share)


def _line(one: Unsent) -> str:
    there, gone = one.there.total / one.rate, one.gone.total / one.rate
    if not there and not gone:
        return f"{one.room}: nothing was held back"
    rest = f"; {gone:.0f} s are in the spool no more" if gone else ""
    return f"{one.room}: {there:.0f} s to transcribe{rest}"


async def _work(config: Config, rooms: Mapping[str, Room], environ: Mapping[str, str]) -> bool:
    """Do it here, room after room. False: the budget is spent before all is done."""
    state = config.state(environ)
    async with (
        open_journal(state / "journal.sqlite") as journal,
        open_endpoints(config.recognizer_settings(), journal) as endpoints,
        open_governor(journal, lambda: config.budget) as governor,
    ):
        for name, room in rooms.items():
            args = (name, room, config, environ)
            if not await _repair(*args, journal=journal, endpoints=endpoints, governor=governor):
                return False
    return True


async def _repair(
    name: str,
    room: Room,
    config: Config,
    environ: Mapping[str, str],
    *,
    journal: Journal,
    endpoints: Endpoints,
    governor: Governor,
) -> bool:
    terms = SessionParameters(room.streaming)
    endpoint = endpoints.choose(terms, room.rate, find_key(config, environ))
    async with open_spool(config.state(environ) / SPOOL_FOLDER / name, rate=room.rate) as spool:
        spool.end_of_data()
        desk = SessionContext(
            room=name,
            rate=room.rate,
            frame=room.frame,
            spool=spool,
            journal=journal,
            live=Live(),
            endpoint=endpoint,
            parameters=terms,
            speech_model=room.streaming.speech_model,
            two_finals=has_two_finals(room.streaming),
            seam=trio.Lock(),
            meter=governor.meter(name, terms) if endpoint.remote else FREE,
            speakers=room.speakers,
        )
        is_done = False

        async def within_the_budget(course: CapAction | None) -> None:
            nonlocal is_done
            if course is None or not endpoint.remote:
                await repair(desk)
                is_done = True

        await governor.run_within_budget(within_the_budget)
        return is_done
