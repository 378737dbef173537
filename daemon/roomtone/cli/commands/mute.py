"""`roomtone mute`: close a room's device."""

from pathlib import Path

import click

from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import ask, print_answer
from roomtone.cli.duration import DURATION
from roomtone.control.protocol import Mute


@click.command(short_help="Close a room's microphone, for a while or until unmuted.")
@config_option
@click.argument("room", required=False)
@click.option("--for", "seconds", type=DURATION, help="Open it again after this time: 90s, 30m, 2h, 1d.")
def command(given: Path | None, room: str | None, *, seconds: float | None) -> None:
    """Close the device of ROOM, or of every room.

    When this returns, the process that had the device open has ended. The device stays closed, also across restarts and
    crashes, until `roomtone unmute` or the end of --for. The missing time is recorded as a gap with the cause "muted".
    """
    print_answer(ask(given, Mute(room=room, seconds=seconds)))
