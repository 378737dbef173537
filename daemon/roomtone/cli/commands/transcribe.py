"""`roomtone transcribe`: transcribe audio that the gate or the budget held back."""

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
from roomtone.cli.commands.sinks import open_for_reading
from roomtone.cli.commands.sinks_control import open_for_writing
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure, check_names
from roomtone.cli.output import say
from roomtone.cli.unit import continue_as_service
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
    """Audio of a room that was not sent to a session: `there` is still in the spool, `gone` is not."""

    room: str
    rate: int
    there: Spans
    gone: Spans


@click.command(short_help="Transcribe audio that the gate or the budget held back.")
@config_option
@click.option("--from", "since", type=SINCE, required=True, metavar="TIME", help="A time, or how long ago: 2h, 30m.")
@click.option("--to", "until", type=SINCE, metavar="TIME", help="A time, or how long ago. Default: now.")
@click.option("--room", "chosen", metavar="NAME", multiple=True, help="Only this room; may be given several times.")
def command(given: Path | None, *, since: datetime, until: datetime | None, chosen: tuple[str, ...]) -> None:
    """Transcribe audio of a stretch of time that was recorded but not sent, because the gate detected no speech or the
    budget was spent. Audio that is already transcribed is skipped.

    A running daemon does this beside its other work. Without one, this command opens the sessions itself and returns
    when all turns are in the journal; the sinks get them at the daemon's next start.
    """
    continue_as_service(given)
    config, _ = load(given)
    state = config.state(os.environ)
    check_names("room", chosen, config.rooms)
    rooms = {name: room for name, room in config.rooms.items() if name in (chosen or config.rooms)}
    found = list(_find_all(state, rooms, since, until or datetime.now(UTC)))
    for one in found:
        say(_line(one))
    requests = [backfill_mark(one.room, span) for one in found for span in one.there]
    if not requests:
        return
    with open_for_writing(state / "journal.sqlite") as database:
        database.put(requests)
    try:
        with paths.lock(state):
            os.umask(paths.UMASK)
            is_done = trio.run(partial(_transcribe, config, rooms, os.environ))
    except paths.StateInUse:
        say("the running daemon transcribes it")
        return
    if not is_done:
        raise CommandFailure(
            "the budget is spent; the daemon, or this command, transcribes the rest in the next period, or once "
            "[budget] allows more"
        )


def _find_all(state: Path, rooms: Mapping[str, Room], since: datetime, until: datetime) -> Iterator[Unsent]:
    journal = state / "journal.sqlite"
    if not journal.exists():
        raise CommandFailure(f"{journal}: nothing has been recorded with this configuration yet")
    with open_for_reading(journal) as database:
        for name, room in rooms.items():
            unsent = find_unsent(database.covers(name, 0), since, until)
            segments = list_segments(state / SPOOL_FOLDER / name)
            there = unsent & Spans((one.position, one.end) for one in segments)
            yield Unsent(name, room.rate, there, unsent - there)


def find_unsent(covers: Iterable[CoverageSpan], since: datetime, until: datetime) -> Spans:
    """The positions between these times that were not sent to a session. Pure."""
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
    """The position of a time within a span."""
    length = (row.until - row.from_).total_seconds()
    share = (at - row.from_).total_seconds() / length if length else 0.0
    return row.start + round((row.end - row.start) * share)


def _line(one: Unsent) -> str:
    there, gone = one.there.total / one.rate, one.gone.total / one.rate
    if not there and not gone:
        return f"{one.room}: nothing was held back"
    rest = f"; {gone:.0f} s are no longer in the spool" if gone else ""
    return f"{one.room}: {there:.0f} s to transcribe{rest}"


async def _transcribe(config: Config, rooms: Mapping[str, Room], environ: Mapping[str, str]) -> bool:
    """Transcribe room after room in this process. Returns False if the budget is spent before all is done."""
    state = config.state(environ)
    async with (
        open_journal(state / "journal.sqlite") as journal,
        open_endpoints(config.recognizer_settings(), journal) as endpoints,
        open_governor(journal, lambda: config.budget) as governor,
    ):
        for name, room in rooms.items():
            args = (name, room, config, environ)
            if not await _transcribe_room(*args, journal=journal, endpoints=endpoints, governor=governor):
                return False
    return True


async def _transcribe_room(
    name: str,
    room: Room,
    config: Config,
    environ: Mapping[str, str],
    *,
    journal: Journal,
    endpoints: Endpoints,
    governor: Governor,
) -> bool:
    parameters = SessionParameters(room.streaming)
    endpoint = endpoints.choose(parameters, room.rate, find_key(config, environ))
    async with open_spool(config.state(environ) / SPOOL_FOLDER / name, rate=room.rate) as spool:
        spool.end_of_data()
        context = SessionContext(
            room=name,
            rate=room.rate,
            frame=room.frame,
            spool=spool,
            journal=journal,
            live=Live(),
            endpoint=endpoint,
            parameters=parameters,
            speech_model=room.streaming.speech_model,
            two_finals=has_two_finals(room.streaming),
            seam=trio.Lock(),
            meter=governor.meter(name, parameters) if endpoint.remote else FREE,
            speakers=room.speakers,
        )
        is_done = False

        async def transcribe_within_budget(action: CapAction | None) -> None:
            nonlocal is_done
            if action is None or not endpoint.remote:
                await repair(context)
                is_done = True

        await governor.run_within_budget(transcribe_within_budget)
        return is_done
