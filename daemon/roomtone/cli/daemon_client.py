"""Requests of commands to the running daemon."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from roomtone import paths
from roomtone.cli.config_option import find
from roomtone.cli.exit_codes import check_names
from roomtone.cli.output import say
from roomtone.cli.unit import find_unit, why_not_running
from roomtone.config import toml_file
from roomtone.config.toml_file import ConfigError
from roomtone.control import client
from roomtone.control.protocol import Done, Forgot, Request, Status
from roomtone.control.unix_socket import ControlError
from roomtone.monitoring.report import Report


def find_daemon(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket of the running daemon. Raises ControlError where none answers.

    Only the state folder is read from the configuration, so that muting works while the file is being edited and has
    mistakes.
    """
    try:
        path = find(given, environ)
    except ConfigError as error:
        if toml_file.FORBIDDEN in str(error):
            raise ControlError(str(error)) from None
        raise
    folder = (path or Path(paths.FILE)).absolute().parent
    state = paths.state_folder(None if path is None else _state_of(path), folder, environ)
    try:
        return client.find_socket(paths.control_sockets(state, environ))
    except ControlError:
        unit = find_unit(path, environ)
        if unit and (reason := why_not_running(unit)):
            raise ControlError(f"no daemon answers: {reason}") from None
        raise


def _state_of(path: Path) -> str | None:
    """`[service] state` of a file that may be invalid TOML at the moment. Raises ControlError if it is unreadable."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "replace")
    except PermissionError:
        raise ControlError(f"{path}: {toml_file.FORBIDDEN}") from None
    except OSError as error:
        raise ControlError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        service = tomllib.loads(text).get("service")
    except tomllib.TOMLDecodeError:
        found = re.search(r"""^\s*state\s*=\s*(["'])(.+?)\1""", text, re.MULTILINE)
        return found[2] if found else None
    named = service.get("state") if isinstance(service, dict) else None
    return named if isinstance(named, str) else None


def ask(given: Path | None, request: Request) -> Done | Forgot | Report:
    """Send a request and return the answer. Raises ControlError where no daemon runs, or where it refuses."""
    path = find_daemon(given)
    check_room(path, getattr(request, "room", None))
    return client.ask(path, request)


def check_room(path: Path, room: str | None) -> None:
    """Raises CommandFailure with `Exit.USAGE` for the name of a room that the daemon does not have."""
    if room is not None:
        report = client.ask(path, Status())
        assert isinstance(report, Report)  # noqa: S101 - the answer to Status
        check_names("room", [room], [one.name for one in report.rooms])


def print_answer(answer: Done | Forgot | Report) -> None:
    """Print the lines of an answer that has some."""
    if isinstance(answer, Done):
        for line in answer.lines:
            say(line)
