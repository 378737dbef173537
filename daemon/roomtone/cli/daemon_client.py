"""The daemon that a command is about: where it answers, and what it says."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from roomtone import paths
from roomtone.cli.config_option import find
from roomtone.cli.output import say
from roomtone.cli.unit import find_unit, standing
from roomtone.config import toml_file as document
from roomtone.config.toml_file import ConfigError
from roomtone.control import client
from roomtone.control.protocol import Done, Forgot, Request
from roomtone.control.unix_socket import ControlError
from roomtone.monitoring.report import Report


def find_daemon(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket of the running daemon. Raises ControlError where none answers.

    Of the configuration only the state folder is wanted: a file with mistakes in it, just being edited, keeps nobody
    from muting.
    """
    try:
        path = find(given, environ)
    except ConfigError as error:
        if document.FORBIDDEN in str(error):
            raise ControlError(str(error)) from None
        raise
    folder = (path or Path(paths.FILE)).absolute().parent
    state = paths.state_folder(None if path is None else _state_of(path), folder, environ)
    try:
        return client.find_socket(paths.control_sockets(state, environ))
    except ControlError:
        unit = find_unit(path, environ)
        if unit and (why := standing(unit)):
            raise ControlError(f"no daemon answers: {why}") from None
        raise


def _state_of(path: Path) -> str | None:
    """`[service] state`, of a file that may be no TOML at the moment. Raises ControlError where it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "replace")
    except PermissionError:
        raise ControlError(f"{path}: {document.FORBIDDEN}") from None
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
    """What the daemon answers. Raises ControlError where there is none, or it refuses."""
    return client.ask(find_daemon(given), request)


def tell(answer: Done | Forgot | Report) -> None:
    """Say what was done."""
    if isinstance(answer, Done):
        for line in answer.lines:
            say(line)
