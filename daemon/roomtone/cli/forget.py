"""`roomtone forget`: remove what was recorded and said in a stretch of time."""

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from roomtone import client, places, secret
from roomtone.cli.duration import DURATION
from roomtone.cli.exits import Failure
from roomtone.cli.loaded import config_option, find, load
from roomtone.cli.unit import enter
from roomtone.config import Config
from roomtone.inquiry import Forget, Forgot, Refused, Report, Status
from roomtone.sockets import ControlError

PATIENCE = 900.0
"""Seconds for the answer of the daemon: a journal of gigabytes is written anew."""


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A time, or a time of today: `2026-11-22T14:00`, `14:00`, `14:00:30`. Without a zone it is local."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        text = str(value).strip()
        if re.fullmatch(r"\d?\d:\d\d(:\d\d)?", text):
            text = f"{datetime.now(UTC).astimezone():%Y-%m-%d}T{text:0>5}"
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except ValueError:
            self.fail(f"{value!r} is no time; write 14:00 or 2026-11-22T14:00", param, ctx)


MOMENT: Final = Moment()


@click.command(short_help="Remove what was recorded and said in a stretch of time.")
@config_option
@click.option("--last", "seconds", type=DURATION, help="What was heard in this time up to now, as in 90s, 10m or 1h.")
@click.option("--from", "since", type=MOMENT, help="From this time on, as in 14:00 or 2026-11-22T14:00.")
@click.option("--to", "until", type=MOMENT, help="Up to this time; without it, up to now.")
@click.option("--room", help="Only in this room; without it, in all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(
    given: Path | None,
    seconds: float | None,
    since: datetime | None,
    until: datetime | None,
    room: str | None,
    *,
    yes: bool,
) -> None:
    """Remove the audio and the text of a stretch of time: from the spool, the journal and the files of the sinks.

    Turns go as a whole that have a word in it, with their answers. What went out to others is told to them: a webhook
    or a program gets the event `forgotten`. At the end the files are searched for what was removed; the exit code is 1
    where something is left, or a sink has not heard of it yet. There is no way back. The daemon may run or not.
    """
    if (seconds is None) == (since is None):
        raise click.UsageError("say what to forget: --last 10m, or --from 14:00 --to 14:30")
    if seconds is not None and until is not None:
        raise click.UsageError("--last reaches up to now; use --from with --to")
    enter(given)
    now = datetime.now(UTC)
    until = until or now
    since = since or now - timedelta(seconds=seconds or 0)
    if since >= until:
        raise click.UsageError(f"{since.astimezone():%Y-%m-%d %H:%M:%S} is not before {until.astimezone():%H:%M:%S}")
    if not yes and sys.stdin.isatty():
        begin, end = since.astimezone(), until.astimezone()
        click.confirm(f"Forget {begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} for ever?", abort=True)
    answer = _forget(given, Forget(room=room, since=since, until=until))
    for line in answer.lines:
        click.echo(line)
    if answer.left:
        raise Failure("\n".join(answer.left))


def _forget(given: Path | None, wish: Forget) -> Forgot:
    """By the daemon where it runs, else here. Raises ControlError, StateError and what `load` raises."""
    config = None if find(given) is None else load(given).config
    daemon = _daemon_of(config)
    answer = _alone(config, wish) if daemon is None else client.ask(daemon, wish, patience=PATIENCE)
    if isinstance(answer, Refused):
        raise ControlError("\n".join(answer.lines))
    assert isinstance(answer, Forgot)  # noqa: S101 - which mypy cannot know
    return answer


def _daemon_of(config: Config | None) -> Path | None:
    """The running daemon that has this configuration's state, or any where there is none: never another one's."""
    state = places.state_folder(None, Path.cwd(), os.environ) if config is None else config.state(os.environ)
    try:
        path = client.find_socket(places.control_sockets(state, os.environ))
    except ControlError:
        if config is None:
            raise
        return None
    report = client.ask(path, Status())
    if config is None or not isinstance(report, Report):
        return path
    is_its = report.configuration == str(config.path.absolute()) or report.state == str(state.absolute())
    return path if is_its else None


def _alone(config: Config | None, wish: Forget) -> Forgot | Refused:
    """With the state locked, so that no daemon begins meanwhile. The sinks get all that waits for them."""
    assert config is not None  # noqa: S101 - else a daemon was found
    from roomtone import undertaking  # noqa: PLC0415 - late: who has a daemon needs none of it

    os.umask(places.UMASK)
    return trio.run(partial(undertaking.forget, config, secret.take(os.environ), wish))
