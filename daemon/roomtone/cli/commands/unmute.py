"""`roomtone unmute`: open a room's device again."""

from pathlib import Path

import click

from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import ask, print_answer
from roomtone.control.protocol import Unmute


@click.command(short_help="Open a muted room's microphone again.")
@config_option
@click.argument("room", required=False)
def command(given: Path | None, room: str | None) -> None:
    """Open the device of ROOM again, or of every muted room."""
    print_answer(ask(given, Unmute(room=room)))
