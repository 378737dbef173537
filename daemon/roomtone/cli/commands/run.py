"""`roomtone run`: the daemon."""

import io
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from roomtone.cli.config_option import config_option, find, load
from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.cli.output import say
from roomtone.config.model import Config
from roomtone.sinks import Sink


@click.command(short_help="Record, transcribe and deliver.")
@config_option
@click.option("--print", "is_printing", is_flag=True, help="Print turns and answers; log only warnings and errors.")
@click.option("--verbose", "-v", is_flag=True, help="Log everything, regardless of [service] log_level.")
def command(given: Path | None, *, is_printing: bool, verbose: bool) -> None:
    """Record, transcribe and deliver until SIGTERM or Ctrl-C.

    After the first SIGTERM or Ctrl-C, the last turns are awaited and delivered to every sink, within [service] grace. A
    second one stops immediately; nothing is lost, and the next start continues from there. If all rooms are files, the
    command ends when they have been recorded, transcribed and delivered.
    """
    import trio  # noqa: PLC0415 - late: `roomtone --help` and configuration errors do not need it

    from roomtone import daemon, paths, secret  # noqa: PLC0415 - late, as above
    from roomtone.cli import print_sink  # noqa: PLC0415 - late, as above
    from roomtone.monitoring import logs  # noqa: PLC0415 - late, as above

    _refuse_service(given)
    config, _ = load(given)
    since = datetime.now(UTC)
    shown = print_sink.Print(write=say, since=since, currency=config.budget.currency)
    extra: dict[str, Sink] = {print_sink.NAME: shown} if is_printing else {}

    def reread() -> Config:
        again = load(config.path).config
        again.sinks.update(extra)
        return again

    level = "warning" if is_printing else config.service.log_level
    logs.configure("debug" if verbose else level, sys.stderr)
    config.sinks.update(extra)
    os.umask(paths.UMASK)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the output of sinks appears line by line, not after 8 kB
    environ = secret.take(os.environ)
    trio.run(daemon.run, config, environ, reread)
    if is_printing:
        with suppress(OSError):  # the terminal may have been closed
            for line in print_sink.recordings(config, environ, since):
                say(line)


def _refuse_service(given: Path | None) -> None:
    """Refuse to run beside the machine's service: the same rooms would be recorded into another state. The service
    itself, started by systemd, passes.
    """
    if "INVOCATION_ID" in os.environ or "STATE_DIRECTORY" in os.environ:
        return
    from roomtone.cli import unit  # noqa: PLC0415 - late: the service itself does not need it

    path = find(given)
    found = unit.find_unit(path)
    if found and not found.user:
        raise CommandFailure(
            f"{path}: {found.name} uses it; start that instead: systemctl start {found.short}. To run a second daemon, "
            "name another configuration with --config",
            Exit.CONFIG,
        )
