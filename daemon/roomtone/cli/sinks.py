"""`roomtone sinks`: the kinds of sink there are, and how far each configured one is."""

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import click
import msgspec

from roomtone.cli.loaded import config_option, find, load
from roomtone.config import Config
from roomtone.database import Database
from roomtone.plugins import Plugins, Problem, load_plugins
from roomtone.sinks import Sink, wants

PAGE = 1000


class Standing(msgspec.Struct, frozen=True):
    """How far a configured sink is, by the journal: `behind` events wait for it, `refused` were set aside.

    Both are None for a sink that has not run yet.
    """

    name: str
    kind: str
    behind: int | None
    refused: int | None


class Kind(msgspec.Struct, frozen=True):
    """A kind of sink, what it is for, and the module that it comes from."""

    kind: str
    purpose: str
    module: str


class Report(msgspec.Struct, frozen=True):
    """What `--json` gives."""

    kinds: list[Kind]
    sinks: list[Standing]
    problems: tuple[Problem, ...]


@click.command(short_help="List the kinds of sink, and how far each configured one is.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: kinds, sinks and problems.")
def command(given: Path | None, *, as_json: bool) -> None:
    """List the kinds of sink that are installed, and of each configured sink how far it is.

    The journal is only looked at, so that the daemon may run meanwhile. Without a configuration only the kinds are
    listed.
    """
    if find(given) is None:
        plugins, standings = load_plugins(()), []
    else:
        config, plugins = load(given)
        standings = list(standings_of(config, config.state(os.environ) / "journal.sqlite"))
    report = Report(list(_kinds(plugins)), standings, plugins.problems)
    click.echo(msgspec.json.encode(report) if as_json else "\n".join(_lines(report)))


def standings_of(config: Config, journal: Path) -> Iterator[Standing]:
    """How far each sink of the configuration is. Raises sqlite3.Error where the journal cannot be read."""
    if not journal.exists():
        yield from (Standing(name, _kind(sink), None, None) for name, sink in config.sinks.items())
        return
    with reading(journal) as database:
        cursors = database.cursors()
        for name, sink in config.sinks.items():
            if name in cursors:
                behind = _behind(database, sink, cursors[name])
                yield Standing(name, _kind(sink), behind, len(database.refusals(name)))
            else:
                yield Standing(name, _kind(sink), None, None)


@contextmanager
def reading(journal: Path) -> Iterator[Database]:
    """The journal, to look at only: the daemon may have it."""
    address = f"file:{quote(str(journal))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=5, isolation_level=None)) as connection:
        yield Database(connection, connection, None)


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


def _lines(report: Report) -> Iterator[str]:
    yield "kinds"
    yield from (f"  {kind.kind:12} {kind.purpose}" for kind in report.kinds)
    if report.sinks:
        yield "configured"
    for sink in report.sinks:
        if sink.behind is None:
            standing = "has not run yet"
        else:
            standing = f"behind by {sink.behind}" if sink.behind else "has everything"
        refused = f", refused {sink.refused}" if sink.refused else ""
        yield f"  {sink.name:12} {sink.kind:10} {standing}{refused}"
    if report.problems:
        yield "plugins that do not load"
    yield from (f"  {problem.plugin:12} {problem.text}" for problem in report.problems)


def _kind(sink: Sink) -> str:
    return str(sink.__struct_config__.tag)
