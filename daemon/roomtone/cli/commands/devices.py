"""`roomtone devices`: list the microphones by the names for the configuration."""

from collections.abc import Iterator

import click
import trio

from roomtone.capture.source_process import Listing, list_devices
from roomtone.cli.exit_codes import CommandFailure
from roomtone.cli.output import say, say_json


@click.command(short_help="List the microphones, by names that survive a reboot.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: devices [{name, label}] and problems.")
def command(*, as_json: bool) -> None:
    """List the microphones of this machine.

    The names survive a reboot. Use one in a room: source = { kind = "microphone", device = "NAME" }. The exit code is 1
    if there is no microphone.
    """
    listing = trio.run(list_devices)
    if as_json:
        say_json(_json(listing))
    else:
        say(*table(listing))
    for problem in listing.problems:
        say(f"roomtone: {' '.join(problem.split())}", err=True)
    if not listing.devices:
        raise CommandFailure("no microphone was found; is one connected, and may this user use it (group audio)?")


def table(listing: Listing) -> Iterator[str]:
    """A line for each device."""
    width = max((len(name) for name, _ in listing.devices), default=0)
    return (f"{name:{width}}  {label}".rstrip() for name, label in listing.devices)


def _json(listing: Listing) -> dict[str, object]:
    devices = [{"name": name, "label": label} for name, label in listing.devices]
    return {"devices": devices, "problems": listing.problems}
