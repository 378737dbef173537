"""`roomtone tail`: live captions and events in the terminal."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import trio

from roomtone import events
from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import check_room, find_daemon
from roomtone.cli.display import Display, open_display
from roomtone.cli.output import say, say_document
from roomtone.control.client import open_client
from roomtone.control.protocol import Dropped, Tail
from roomtone.control.unix_socket import ControlError
from roomtone.events import Interim, Level
from roomtone.legible import count_of

_decoder: msgspec.json.Decoder[Interim | Level | Dropped] = msgspec.json.Decoder(Interim | Level | Dropped)


@click.command(short_help="Show live captions and events.")
@config_option
@click.argument("room", required=False)
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines, levels included.")
def command(given: Path | None, room: str | None, *, as_json: bool) -> None:
    """Show live captions, the level and events of ROOM, or of every room, until Ctrl-C."""
    path = find_daemon(given)
    check_room(path, room)
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
    """Show one line of the daemon on the display."""
    try:
        event = events.decode(line)
    except msgspec.MsgspecError:
        try:
            live = _decoder.decode(line)
        except msgspec.MsgspecError:
            raise ControlError(
                "the daemon has another version; use the `roomtone` command that it was installed with"
            ) from None
        match live:
            case Interim():
                display.caption(live)
            case Level():
                display.meter(live)
            case Dropped(count=count):
                say(f"{count_of(count, 'live event')} dropped: this terminal did not keep up", err=True)
    else:
        display.show(event)
