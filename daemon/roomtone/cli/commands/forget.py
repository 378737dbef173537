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

from roomtone import paths, secret
from roomtone.cli.config_option import config_option, find, load
from roomtone.cli.duration import DURATION
from roomtone.cli.exit_codes import CommandFailure
from roomtone.cli.output import say
from roomtone.cli.unit import enter
from roomtone.config.model import Config
from roomtone.control import client
from roomtone.control.protocol import Answer, Forget, Forgot, Refused, Status
from roomtone.control.unix_socket import ControlError, NoDaemonError
from roomtone.forget.room import clamp
from roomtone.monitoring.report import Report

FORGET_TIMEOUT_S = 900.0
"""Seconds for the answer of the daemon: a journal of gigabytes is written anew."""


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A time, or a time of today: `2026-11-22T14:00`, `14:00`, `14:00:30`. Without a zone it is local."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        text = str(value).strip()
        if re.fullmatch(r"\d?\d:\d\d(:\d\d)?", text):
            text = f"{datetime.now(UTC).astimezone():%Y-%m-%d}T{text:0>5}"
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{value!r} is not a time; write 14:00 or 2026-11-22T14:00", param, ctx)
        try:
            return at.astimezone(UTC)
        except (OverflowError, ValueError):  # on the first or the last day that there is, in a zone ahead or behind
            return at.replace(tzinfo=UTC)


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
    where something is left, a sink has not heard of it yet, or nothing was there to forget. There is no way back. The
    daemon may run or not. Without a terminal to ask at, --yes must be given.
    """
    if (seconds is None) == (since is None):
        raise click.UsageError("say what to forget: --last 10m, or --from 14:00 --to 14:30")
    if seconds is not None and until is not None:
        raise click.UsageError("--last reaches up to now; use --from with --to")
    enter(given)
    now = datetime.now(UTC)
    since, until = clamp(since or now - timedelta(seconds=seconds or 0), until or now, now)
    if since >= until:
        begin, end = since.astimezone(), until.astimezone()
        raise click.UsageError(
            f"{begin:%Y-%m-%d %H:%M:%S} is not before {end:%Y-%m-%d %H:%M:%S}; what is to come cannot be forgotten"
        )
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask at; add --yes to forget without being asked")
    if not yes:
        begin, end = since.astimezone(), until.astimezone()
        click.confirm(f"Forget {begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} for ever?", abort=True)
    answer = _forget(given, Forget(room=room, since=since, until=until))
    for line in answer.lines:
        say(line)
    if answer.left:
        raise CommandFailure("\n".join(answer.left))


def _forget(given: Path | None, wish: Forget) -> Forgot:
    """By the daemon where it runs, else here. Raises ControlError, StateError, Failure and what `load` raises."""
    state = paths.state_folder(None, Path.cwd(), os.environ)
    answer: Answer
    if find(given) is None:
        answer = client.ask(
            client.find_socket(paths.control_sockets(state, os.environ)), wish, timeout_s=FORGET_TIMEOUT_S
        )
    else:
        answer = _forget_with(load(given).config, wish)
    if isinstance(answer, Refused):
        raise ControlError("\n".join(answer.lines))
    assert isinstance(answer, Forgot)  # noqa: S101 - which mypy cannot know
    return answer


def _forget_with(config: Config, wish: Forget) -> Answer:
    """By the running daemon that has this configuration's state, never by another one, else in that state."""
    state = config.state(os.environ)
    try:
        path = client.find_socket(paths.control_sockets(state, os.environ))
    except NoDaemonError:
        other = "a service that is stopped has a state of its own: start it, then ask again"
    except ControlError as error:  # the daemon of another user
        other = str(error)
    else:
        report = client.ask(path, Status())
        if not isinstance(report, Report) or _is_its(report, config, state):
            return client.ask(path, wish, timeout_s=FORGET_TIMEOUT_S)
        other = f"the daemon that answers at {path} runs with {report.configuration}: name that with --config"
    if not _has_journal(state):
        raise CommandFailure(
            f"nothing was forgotten: nothing was ever recorded in {state}, the state of {config.path}; {other}"
        )
    return _alone(config, wish)


def _is_its(report: Report, config: Config, state: Path) -> bool:
    return report.configuration == str(config.path.absolute()) or report.state == str(state.absolute())


def _has_journal(state: Path) -> bool:
    """Looking makes nothing: neither the folder nor a journal. Raises ControlError for another user's folder."""
    try:
        return (state / "journal.sqlite").exists()
    except PermissionError:
        raise ControlError(f"{state} belongs to another user: ask as that user, or with sudo") from None


def _alone(config: Config, wish: Forget) -> Forgot | Refused:
    """With the state locked, so that no daemon begins meanwhile. The sinks get all that waits for them."""
    from roomtone.forget import offline  # noqa: PLC0415 - late: who has a daemon needs none of it

    os.umask(paths.UMASK)
    erased = trio.run(partial(offline.forget, config, secret.take(os.environ), wish.room, wish.since, wish.until))
    return Refused(erased.refused) if erased.refused else Forgot(erased.lines, erased.left)
