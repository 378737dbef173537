"""`roomtone reload`: apply a changed configuration."""

from pathlib import Path

import click

from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import ask, print_answer
from roomtone.control.protocol import Reload


@click.command(short_help="Apply a changed configuration.")
@config_option
def command(given: Path | None) -> None:
    """Make the running daemon read its configuration again.

    The whole file is validated first; with a mistake in it, the old configuration stays in effect. Rooms and sinks that
    have not changed are not touched. SIGHUP does the same, and logs the result.
    """
    print_answer(ask(given, Reload()))
