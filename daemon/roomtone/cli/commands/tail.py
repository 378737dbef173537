"""`roomtone tail`: live captions, and everything that happens, in the terminal."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import trio

from roomtone import events
from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import find_daemon
from roomtone.cli.display import Display, open_display
from roomtone.cli.output import say, say_document
from roomtone.control.client import open_client
from roomtone.control.protocol import Dropped, Tail
from roomtone.control.unix_socket import ControlError
from roomtone.events import Interim, Level

_decoder: msgspec.json.Decoder[Interim | Level | Dropped] = msgspec.json.Decoder(Interim | Level | Dropped)


@click.command(short_help="Watch what is said, while it is said.")
@config_option
@click.argument("room", required=False)
@click.option("--json", "as_json", is_flag=True, help="Events as they come, one JSON object a line, levels included.")
def command(given: Path | None, room: str | None, *, as_json: bool) -> None:
    """Watch ROOM, or every room: captions while they are said, the level, and each event. Until Ctrl-C."""
    path = find_daemon(given)
    if as_json:
        trio.run(_follow, path, room, say_document)
        return
    with open_display(terminal=sys.stdout.isatty()) as display:
        trio.run(_follow, path, room, lambda line: show(line, display))


async def _follow(path: Path, room: str | None, take: Callable[[bytes], None]) -> None:
    async with open_client(path, timeout_s=math.inf) as client:
        await client.ask(Tail(room=room))
        try:
            async for line in client.lines:
                take(line)
        except trio.BrokenResourceError:
            pass  # the daemon has ended


def show(line: bytes, display: Display) -> None:
    """One line of the daemon's, on the display."""
    try:
        event = events.decode(line)
    except msgspec.MsgspecError:
        try:
            live = _decoder.decode(line)
        except msgspec.MsgspecError:
            raise ControlError("the daemon says what this version does not know; use the `roomtone` it runs") from None
        match live:
            case Interim():
                display.caption(live)
            case Level():
                display.meter(live)
            case Dropped(count=count):
                say(f"{count} live events were dropped: this terminal did not keep up", err=True)
    else:
        display.show(event)
