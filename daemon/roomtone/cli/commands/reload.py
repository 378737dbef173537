"""`roomtone reload`: have the running daemon read its configuration again."""

from pathlib import Path

import click

from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import ask, tell
from roomtone.control.protocol import Reload


@click.command(short_help="Put a changed configuration into force.")
@config_option
def command(given: Path | None) -> None:
    """Have the running daemon read its configuration again.

    The file is checked as a whole first, and a mistake in it leaves the old one in force. Rooms and sinks that did not
    change are not touched. SIGHUP does the same, with the answer in the log.
    """
    tell(ask(given, Reload()))
