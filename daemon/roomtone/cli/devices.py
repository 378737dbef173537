"""`roomtone devices`: the microphones of this machine, by the names that a configuration can use."""

import click
import msgspec
import trio

from roomtone.capture.feed import Listing, list_devices
from roomtone.cli.exits import Failure


@click.command(short_help="List the microphones, by names that survive a reboot.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: devices [{name, label}] and problems.")
def command(*, as_json: bool) -> None:
    """List the microphones that can be recorded here.

    The names survive a reboot; put one into a room as source = { kind = "microphone", device = "NAME" }. The exit code
    is 1 when there is none.
    """
    listing = trio.run(list_devices)
    click.echo(_json(listing) if as_json else table(listing), nl=as_json)
    for problem in listing.problems:
        click.echo(f"roomtone: {' '.join(problem.split())}", err=True)
    if not listing.devices:
        raise Failure("no microphone is visible here; is one connected, and may this user use it (group audio)?")


def table(listing: Listing) -> str:
    """The devices for people, a line each."""
    width = max((len(name) for name, _ in listing.devices), default=0)
    return "".join(f"{name:{width}}  {label}".rstrip() + "\n" for name, label in listing.devices)


def _json(listing: Listing) -> bytes:
    devices = [{"name": name, "label": label} for name, label in listing.devices]
    return msgspec.json.encode({"devices": devices, "problems": listing.problems})
