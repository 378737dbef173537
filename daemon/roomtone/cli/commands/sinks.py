"""`roomtone sinks`: the kinds of sink there are, and how each configured one stands."""

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
from roomtone.cli.unit import enter
from roomtone.config import loader
from roomtone.config import toml_file as document
from roomtone.config.loader import Broken
from roomtone.control.protocol import Status
from roomtone.control.unix_socket import ControlError
from roomtone.delivery.controls import controls_of, prefix
from roomtone.delivery.health import SinkStatus
from roomtone.delivery.plugins import PluginProblem, Plugins, load_plugins
from roomtone.journal.database import Database
from roomtone.monitoring.report import Report as ControlReport
from roomtone.sinks import Sink, wants

PAGE = 1000


class SinkReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a sink stands: `behind` events wait for it, `refused` were set aside; None where it has not run yet.

    `status` is what the running daemon says (*active*, *failing*, *stuck*, ...), else *stopped*; *new* for a sink that
    has never run, *paused*, *disabled*, *load error*, *configuration error*, and *removed* for one that the journal
    knows and the file does not. `reason` says why.
    """

    name: str
    kind: str
    status: str
    behind: int | None
    refused: int | None
    reason: str | None = None


class Kind(msgspec.Struct, frozen=True):
    """A kind of sink, what it is for, and the module that it comes from."""

    kind: str
    purpose: str
    module: str


class SinksReport(msgspec.Struct, frozen=True):
    """What `--json` gives."""

    kinds: list[Kind]
    sinks: list[SinkReport]
    problems: tuple[PluginProblem, ...]


@click.group(invoke_without_command=True, short_help="List the sinks and how each one stands; pause, replay, test one.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: kinds, sinks and problems.")
@click.pass_context
def command(context: click.Context, given: Path | None, *, as_json: bool) -> None:
    """List the kinds of sink that are installed, and how each configured one stands.

    The journal is only looked at, so that the daemon may run meanwhile. Without a configuration only the kinds are
    listed.
    """
    context.obj = given
    if context.invoked_subcommand is not None:
        return
    enter(given)
    path = find(given)
    tables: dict[str, Any] = {} if path is None else document.read(path)
    plugins = load_plugins(() if path is None else loader.plugin_paths(tables, path))
    standings: list[SinkReport] = []
    if path is not None:
        statuses = working(path)
        standings = [
            _live(each, statuses) for each in standings_of(tables, plugins, sinks_control.state_of(tables, path))
        ]
    report = SinksReport(list(_kinds(plugins)), standings, plugins.problems)
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


def standings_of(tables: dict[str, Any], plugins: Plugins, state: Path) -> Iterator[SinkReport]:
    """How each sink of the file stands, and those that only the journal knows. Raises sqlite3.Error where the journal
    cannot be read.
    """
    found = loader.each_sink(tables, plugins)
    named = found.keys() | {_kind(sink) for sink in found.values() if isinstance(sink, Sink)}
    found |= {name: module() for name, module in plugins.modules.items() if name not in named}
    unloaded = loader.each_unloaded(tables, plugins)
    found |= {name: Broken("load error", text) for name, text in unloaded.items() if name not in found}
    journal = state / "journal.sqlite"
    if not journal.exists():
        yield from (_standing(name, sink, None, "new") for name, sink in found.items())
        return
    with reading(journal) as database:
        for name, sink in found.items():
            yield _standing(name, sink, database, "stopped")
        for name in database.cursors().keys() - found.keys():
            yield SinkReport(name, "", "removed", None, database.count_refusals(name))


def _standing(name: str, sink: Sink | Broken, database: Database | None, usual: str) -> SinkReport:
    cursor = database.cursors().get(name) if database else None
    refused = database.count_refusals(name) if database and cursor is not None else None
    if isinstance(sink, Broken):
        waiting = database.tip - cursor if database and cursor is not None else None
        return SinkReport(name, "", sink.what, waiting, refused, sink.text)
    behind = _behind(database, sink, cursor) if database and cursor is not None else None
    orders = controls_of(name, database.marks(prefix(name)) if database else {})
    if sink.disabled:
        return SinkReport(name, _kind(sink), "disabled", behind, refused)
    if orders.paused:
        return SinkReport(name, _kind(sink), "paused", behind, refused, orders.paused.reason)
    return SinkReport(name, _kind(sink), "new" if cursor is None else usual, behind, refused)


@contextmanager
def reading(journal: Path) -> Iterator[Database]:
    """The journal, to look at only: the daemon may have it. Nothing is left behind.

    Opened for writing all the same: SQLite makes files beside a journal that nobody has open, and only who may write
    removes them again.
    """
    address = f"file:{quote(str(journal))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=5, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = 1")
        yield Database(connection, connection, None)


def working(path: Path | None) -> dict[str, SinkStatus]:
    """What the running daemon says of its sinks, by name; empty where none runs, for the journal says the rest."""
    try:
        answer = ask(path, Status())
    except ControlError:
        return {}
    return {status.name: status for status in answer.sinks} if isinstance(answer, ControlReport) else {}


def _live(standing: SinkReport, statuses: dict[str, SinkStatus]) -> SinkReport:
    status = statuses.get(standing.name)
    if status is None:
        return standing
    changes = {"status": status.state, "behind": status.behind, "refused": status.refused, "reason": status.error}
    return msgspec.structs.replace(standing, **changes)


def _behind(database: Database, sink: Sink, cursor: int) -> int:
    """How many events wait for the sink: those after its cursor that its own filters let through."""
    count = 0
    while events := database.events(cursor, PAGE):
        count += sum(wants(sink, event) for event in events)
        cursor = events[-1].seq
    return count


def _kinds(plugins: Plugins) -> Iterator[Kind]:
    for name, kind in sorted(plugins.kinds.items()):
        # The first line of the module says what the sink is for; that of the class speaks of its table.
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
    told = [sink.reason for sink in report.sinks if sink.reason]
    left = [problem for problem in report.problems if not any(problem.text in reason for reason in told)]
    if left:
        yield "plugins that do not load"
    yield from (f"  {problem.plugin:12} {problem.text}" for problem in left)


def _facts(sink: SinkReport) -> Iterator[str]:
    yield "has not run yet" if sink.status == "new" else sink.status
    if sink.status == "removed":
        yield f"forget it with: roomtone sinks forget {sink.name}"
    if sink.behind is not None:
        yield f"behind by {sink.behind}" if sink.behind else "has everything"
    if sink.refused:
        yield f"refused {sink.refused}"


def _kind(sink: Sink) -> str:
    return str(sink.__struct_config__.tag)
