"""`roomtone run`: the daemon."""

import os
import sys
from pathlib import Path

import click

from roomtone.cli.loaded import config_option, load


@click.command(short_help="Record, transcribe and deliver.")
@config_option
@click.option("--verbose", "-v", is_flag=True, help="Log everything, whatever [service] log_level says.")
def command(given: Path | None, *, verbose: bool) -> None:
    """Record, transcribe and deliver until SIGTERM or Ctrl-C.

    A first SIGTERM or Ctrl-C finishes what was heard: the last turns arrive and every sink is finished, within
    [service] grace. A second one stops at once; nothing is lost, the next start goes on from there. With rooms that are
    files it ends by itself when all is recorded, transcribed and delivered.
    """
    import trio  # noqa: PLC0415 - late: `roomtone --help` and errors of the configuration wait for none of it

    from roomtone import logs, places, secret, service  # noqa: PLC0415 - late, as above

    config, _ = load(given)
    logs.configure("debug" if verbose else config.service.log_level, sys.stderr)
    os.umask(places.UMASK)
    trio.run(service.run, config, secret.take(os.environ), lambda: load(config.path).config)
