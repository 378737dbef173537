"""The daemon that a command is about: where it answers, and what it says."""

import os
from collections.abc import Mapping
from pathlib import Path

import click

from roomtone import config as configuration
from roomtone import control, places
from roomtone.cli.loaded import find
from roomtone.config import ConfigError
from roomtone.control import ControlError, Done, Report, Request


def find_daemon(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket of the running daemon. Raises ControlError where none answers.

    Of the configuration only the state folder is wanted: a file with mistakes in it, just being edited, keeps nobody
    from muting.
    """
    path = find(given, environ)
    named = None
    if path is not None:
        try:
            service = configuration.read(path).get("service")
        except ConfigError as error:
            if given is not None:
                raise ControlError(str(error)) from None
            service = None
        named = service.get("state") if isinstance(service, dict) else None
    folder = (path or Path(places.FILE)).absolute().parent
    state = places.state_folder(named if isinstance(named, str) else None, folder, environ)
    return control.find_socket(places.control_sockets(state, environ))


def ask(given: Path | None, request: Request) -> Done | Report:
    """What the daemon answers. Raises ControlError where there is none, or it refuses."""
    return control.ask(find_daemon(given), request)


def tell(answer: Done | Report) -> None:
    """Say what was done."""
    if isinstance(answer, Done):
        for line in answer.lines:
            click.echo(line)
