"""`roomtone mute`: close a room's device."""

from pathlib import Path

import click

from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import ask, tell
from roomtone.cli.duration import DURATION
from roomtone.control.protocol import Mute


@click.command(short_help="Close a room's microphone, for a while or until unmuted.")
@config_option
@click.argument("room", required=False)
@click.option("--for", "seconds", type=DURATION, help="Listen again after this time, as in 90s, 30m, 2h or 1d.")
def command(given: Path | None, room: str | None, *, seconds: float | None) -> None:
    """Close the device of ROOM, or of every room.

    When this returns, the process that had the device open is gone. It stays closed across restarts and crashes, until
    `roomtone unmute`, or until its time is over. The time is in the recording's account as a gap, cause "muted".
    """
    tell(ask(given, Mute(room=room, seconds=seconds)))
