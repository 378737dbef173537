"""`roomtone rotate`: begin a new recording."""

from pathlib import Path

import click

from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import ask, print_answer
from roomtone.control.protocol import Rotate


@click.command(short_help="Begin a new recording, without losing a sample.")
@config_option
@click.argument("room", required=False)
def command(given: Path | None, room: str | None) -> None:
    """Begin a new recording in ROOM, or in every room.

    The segment is closed, and the wav sink begins a new file at the next sample. The source is not touched, and no
    sample is lost between the two files.
    """
    print_answer(ask(given, Rotate(room=room)))
