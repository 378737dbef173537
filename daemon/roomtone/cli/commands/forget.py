"""`roomtone forget`: remove the audio and text of a stretch of time."""

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
from roomtone.cli.unit import continue_as_service
from roomtone.config.model import Config
from roomtone.control import client
from roomtone.control.protocol import Answer, Forget, Forgot, Refused, Status
from roomtone.control.unix_socket import ControlError, NoDaemonError
from roomtone.forget.room import clamp
from roomtone.monitoring.report import Report

FORGET_TIMEOUT_S = 900.0
"""Seconds for the answer of the daemon, which may have to rewrite a journal of gigabytes."""


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A time, or a time of today: `2026-11-22T14:00`, `14:00`, `14:00:30`. Times without a zone are local."""

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
        except (OverflowError, ValueError):  # on the first or last day of the calendar, with a zone offset
            return at.replace(tzinfo=UTC)


MOMENT: Final = Moment()


@click.command(short_help="Remove the audio and text of a stretch of time.")
@config_option
@click.option("--last", "seconds", type=DURATION, help="The time up to now: 90s, 10m, 1h.")
@click.option("--from", "since", type=MOMENT, help="From this time on: 14:00, 2026-11-22T14:00.")
@click.option("--to", "until", type=MOMENT, help="Up to this time. Default: now.")
@click.option("--room", help="Only in this room. Default: in all rooms.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
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

    A turn with a word in that time is removed as a whole, with its answers. Webhooks and programs receive the event
    `forgotten`. At the end the files are searched for what was removed. The exit code is 1 if something is left, if a
    sink has not processed the request yet, or if there was nothing to forget. This cannot be undone. The daemon may or
    may not be running. Without a terminal, --yes is required.
    """
    if (seconds is None) == (since is None):
        raise click.UsageError("give the time to forget: --last 10m, or --from 14:00 --to 14:30")
    if seconds is not None and until is not None:
        raise click.UsageError("--last reaches up to now; use --to with --from")
    continue_as_service(given)
    now = datetime.now(UTC)
    since, until = clamp(since or now - timedelta(seconds=seconds or 0), until or now, now)
    if since >= until:
        begin, end = since.astimezone(), until.astimezone()
        raise click.UsageError(
            f"{begin:%Y-%m-%d %H:%M:%S} is not before {end:%Y-%m-%d %H:%M:%S}; the future cannot be forgotten"
        )
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for confirmation; add --yes to forget without it")
    if not yes:
        begin, end = since.astimezone(), until.astimezone()
        click.confirm(f"Permanently forget {begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S}?", abort=True)
    answer = _forget(given, Forget(room=room, since=since, until=until))
    for line in answer.lines:
        say(line)
    if answer.left:
        raise CommandFailure("\n".join(answer.left))


def _forget(given: Path | None, request: Forget) -> Forgot:
    """Forget through the daemon if it runs, else here. Raises ControlError, StateError and CommandFailure."""
    state = paths.state_folder(None, Path.cwd(), os.environ)
    answer: Answer
    if find(given) is None:
        answer = client.ask(
            client.find_socket(paths.control_sockets(state, os.environ)), request, timeout_s=FORGET_TIMEOUT_S
        )
    else:
        answer = _forget_with(load(given).config, request)
    if isinstance(answer, Refused):
        raise ControlError("\n".join(answer.lines))
    assert isinstance(answer, Forgot)  # noqa: S101 - the answer to Forget, for mypy
    return answer


def _forget_with(config: Config, request: Forget) -> Answer:
    """Forget through the daemon that runs with this configuration's state, never through another; else offline."""
    state = config.state(os.environ)
    try:
        path = client.find_socket(paths.control_sockets(state, os.environ))
    except NoDaemonError:
        other = "a stopped service has a state folder of its own: start it, then try again"
    except ControlError as error:  # the daemon of another user
        other = str(error)
    else:
        report = client.ask(path, Status())
        if not isinstance(report, Report) or _runs_with(report, config, state):
            return client.ask(path, request, timeout_s=FORGET_TIMEOUT_S)
        other = f"the daemon at {path} runs with {report.configuration}: name that with --config"
    if not _has_journal(state):
        raise CommandFailure(
            f"nothing was forgotten: there are no recordings in {state}, the state of {config.path}; {other}"
        )
    return _forget_offline(config, request)


def _runs_with(report: Report, config: Config, state: Path) -> bool:
    return report.configuration == str(config.path.absolute()) or report.state == str(state.absolute())


def _has_journal(state: Path) -> bool:
    """True if there is a journal. Creates nothing. Raises ControlError for another user's folder."""
    try:
        return (state / "journal.sqlite").exists()
    except PermissionError:
        raise ControlError(f"{state} belongs to another user: run this as that user, or with sudo") from None


def _forget_offline(config: Config, request: Forget) -> Forgot | Refused:
    """Forget with the state locked, so that no daemon starts meanwhile. Sinks receive their waiting events first."""
    from roomtone.forget import offline  # noqa: PLC0415 - late: not needed with a daemon

    os.umask(paths.UMASK)
    erased = trio.run(
        partial(offline.forget, config, secret.take(os.environ), request.room, request.since, request.until)
    )
    return Refused(erased.refused) if erased.refused else Forgot(erased.lines, erased.left)
