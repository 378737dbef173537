"""`roomtone sinks`: list the installed kinds of sinks and the state of each configured sink."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from roomtone.cli.commands import sinks_control, sinks_new, sinks_test
from roomtone.cli.config_option import config_option, find
from roomtone.cli.daemon_client import ask
from roomtone.cli.output import say, say_json
from roomtone.cli.unit import continue_as_service
from roomtone.config import loader, toml_file
from roomtone.config.loader import Broken
from roomtone.control.protocol import Status
from roomtone.control.unix_socket import ControlError
from roomtone.delivery.controls import controls_of
from roomtone.delivery.health import SinkStatus
from roomtone.delivery.plugins import PluginProblem, Plugins, load_plugins
from roomtone.journal.database import Database
from roomtone.journal.keys import sink_prefix
from roomtone.monitoring.report import Report as ControlReport
from roomtone.sinks import Sink, wants

EVENTS_PER_PAGE = 1000


class SinkReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a sink: `behind` events wait for it, and `refused` were set aside; None if it has not run yet.

    `status` is that of the running daemon (*active*, *failing*, *stuck*, ...), else *stopped*, *new* (never run),
    *paused*, *disabled*, *load error*, *configuration error*, or *removed*: it is in the journal, but not in the
    configuration. `reason` explains it.
    """

    name: str
    kind: str
    status: str
    behind: int | None
    refused: int | None
    reason: str | None = None


class Kind(msgspec.Struct, frozen=True):
    """A kind of sink, its purpose, and the module that provides it."""

    kind: str
    purpose: str
    module: str


class SinksReport(msgspec.Struct, frozen=True):
    """The output of `--json`."""

    kinds: list[Kind]
    sinks: list[SinkReport]
    problems: tuple[PluginProblem, ...]


@click.group(invoke_without_command=True, short_help="List the sinks and their state; pause, replay or test one.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: kinds, sinks and problems.")
@click.pass_context
def command(context: click.Context, given: Path | None, *, as_json: bool) -> None:
    """List the installed kinds of sinks, and the state of each configured sink.

    The journal is only read, so the daemon may keep running. Without a configuration only the kinds are listed.
    """
    context.obj = given
    if context.invoked_subcommand is not None:
        return
    continue_as_service(given)
    path = find(given)
    tables: dict[str, Any] = {} if path is None else toml_file.read(path)
    plugins = load_plugins(() if path is None else loader.plugin_paths(tables, path))
    reports: list[SinkReport] = []
    if path is not None:
        statuses = ask_daemon(path)
        reports = [
            _merge_status(each, statuses)
            for each in report_sinks(tables, plugins, sinks_control.state_of(tables, path))
        ]
    report = SinksReport(list(_kinds(plugins)), reports, plugins.problems)
    if as_json:
        say_json(report)
    else:
        say(*_lines(report))


for subcommand in (
    sinks_control.pause,
    sinks_control.resume,
    sinks_control.replay,
    sinks_control.forget,
    sinks_test.test,
    sinks_new.new,
):
    command.add_command(subcommand)


def report_sinks(tables: dict[str, Any], plugins: Plugins, state: Path) -> Iterator[SinkReport]:
    """The state of each sink of the configuration or the journal. Raises sqlite3.Error for an unreadable journal."""
    found = loader.each_sink(tables, plugins)
    named = found.keys() | {_kind(sink) for sink in found.values() if isinstance(sink, Sink)}
    found |= {name: module() for name, module in plugins.modules.items() if name not in named}
    unloaded = loader.each_unloaded(tables, plugins)
    found |= {name: Broken("load error", text) for name, text in unloaded.items() if name not in found}
    journal = state / "journal.sqlite"
    if not journal.exists():
        yield from (_report_sink(name, sink, None, "new") for name, sink in found.items())
        return
    with open_for_reading(journal) as database:
        for name, sink in found.items():
            yield _report_sink(name, sink, database, "stopped")
        for name in database.cursors().keys() - found.keys():
            yield SinkReport(name, "", "removed", None, database.count_refusals(name))


def _report_sink(name: str, sink: Sink | Broken, database: Database | None, usual: str) -> SinkReport:
    cursor = database.cursors().get(name) if database else None
    refused = database.count_refusals(name) if database and cursor is not None else None
    if isinstance(sink, Broken):
        waiting = database.tip - cursor if database and cursor is not None else None
        return SinkReport(name, "", sink.what, waiting, refused, sink.text)
    behind = _behind(database, sink, cursor) if database and cursor is not None else None
    controls = controls_of(name, database.marks(sink_prefix(name)) if database else {})
    if sink.disabled:
        return SinkReport(name, _kind(sink), "disabled", behind, refused)
    if controls.paused:
        return SinkReport(name, _kind(sink), "paused", behind, refused, controls.paused.reason)
    return SinkReport(name, _kind(sink), "new" if cursor is None else usual, behind, refused)


@contextmanager
def open_for_reading(journal: Path) -> Iterator[Database]:
    """Open the journal for queries, beside a running daemon. No files are left behind.

    The file is opened for writing all the same: SQLite creates files beside a closed journal, and only a writer removes
    them again.
    """
    address = f"file:{quote(str(journal))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=5, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = 1")
        yield Database(connection, connection, None)


def ask_daemon(path: Path | None) -> dict[str, SinkStatus]:
    """The state of the running daemon's sinks, by name; empty where no daemon runs."""
    try:
        answer = ask(path, Status())
    except ControlError:
        return {}
    return {status.name: status for status in answer.sinks} if isinstance(answer, ControlReport) else {}


def _merge_status(report: SinkReport, statuses: dict[str, SinkStatus]) -> SinkReport:
    status = statuses.get(report.name)
    if status is None:
        return report
    changes = {"status": status.state, "behind": status.behind, "refused": status.refused, "reason": status.error}
    return msgspec.structs.replace(report, **changes)


def _behind(database: Database, sink: Sink, cursor: int) -> int:
    """The number of events that wait for the sink: those after its cursor that pass its filters."""
    count = 0
    while events := database.events(cursor, EVENTS_PER_PAGE):
        count += sum(wants(sink, event) for event in events)
        cursor = events[-1].seq
    return count


def _kinds(plugins: Plugins) -> Iterator[Kind]:
    for name, kind in sorted(plugins.kinds.items()):
        # The first line of the module states the purpose of the sink; that of the class describes its table.
        module = sys.modules.get(kind.__module__)
        purpose = (getattr(module, "__doc__", None) or kind.__doc__ or "").strip().split("\n")[0]
        yield Kind(name, purpose, str(getattr(module, "__file__", None) or kind.__module__))


def _lines(report: SinksReport) -> Iterator[str]:
    yield "kinds"
    yield from (f"  {kind.kind:12} {kind.purpose}" for kind in report.kinds)
    if report.sinks:
        yield "configured"
    for sink in report.sinks:
        yield f"  {sink.name:12} {sink.kind:10} {', '.join(_facts(sink))}"
        if sink.reason:
            yield f"  {'':12} {sink.reason}"
    shown = [sink.reason for sink in report.sinks if sink.reason]
    others = [problem for problem in report.problems if not any(problem.text in reason for reason in shown)]
    if others:
        yield "plugins that do not load"
    yield from (f"  {problem.plugin:12} {problem.text}" for problem in others)


def _facts(sink: SinkReport) -> Iterator[str]:
    yield "has not run yet" if sink.status == "new" else sink.status
    if sink.status == "removed":
        yield f"remove it with: roomtone sinks forget {sink.name}"
    if sink.behind is not None:
        yield f"behind by {sink.behind}" if sink.behind else "has everything"
    if sink.refused:
        yield f"refused {sink.refused}"


def _kind(sink: Sink) -> str:
    return str(sink.__struct_config__.tag)
