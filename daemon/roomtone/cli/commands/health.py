"""`roomtone health`: report problems of the running daemon to a monitor."""

from pathlib import Path

import click
import msgspec

from roomtone.cli.config_option import config_option
from roomtone.cli.daemon_client import ask
from roomtone.cli.exit_codes import Exit
from roomtone.cli.output import say, say_json
from roomtone.control.protocol import Status
from roomtone.control.unix_socket import ControlError
from roomtone.monitoring.healthcheck import problems
from roomtone.monitoring.report import Report


class Health(msgspec.Struct, frozen=True):
    """The output of `--json`. `running` is False if no daemon answers; `problems` then has the reason."""

    healthy: bool
    running: bool
    problems: list[str]
    report: Report | None


@click.command(short_help="Report if the running daemon is healthy, with an exit code.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: healthy, running, problems, and the report.")
@click.pass_context
def command(context: click.Context, given: Path | None, *, as_json: bool) -> None:
    """Report if the running daemon is healthy, with a line for each problem.

    The exit code is 0 if all is well, 1 if something needs an operator, and 69 if no daemon answers. A muted room, a
    paused sink, and a device that is away for less than a minute are not problems.
    """
    try:
        report = ask(given, Status())
        assert isinstance(report, Report)  # noqa: S101 - the answer to Status
    except ControlError as error:
        health, code = Health(healthy=False, running=False, problems=[str(error)], report=None), Exit.UNAVAILABLE
    else:
        found = list(problems(report))
        health, code = (
            Health(healthy=not found, running=True, problems=found, report=report),
            Exit.FAILED if found else Exit.OK,
        )
    if as_json:
        say_json(health)
    else:
        say(*health.problems or ["healthy"])
    context.exit(code)
