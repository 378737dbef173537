"""`roomtone sinks pause`, `resume`, `replay` and `forget`: what a person wants of one sink.

Each writes a mark into the journal and is done: a daemon that runs obeys within a second, one that does not at its next
start. So none of them needs the daemon to answer, or to be there.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from roomtone import paths
from roomtone.cli.config_option import config_option, find, load
from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.cli.output import say
from roomtone.cli.unit import enter
from roomtone.config import loader
from roomtone.config import toml_file as document
from roomtone.delivery.controls import Pause, Retry, cancel_mark, control_mark, controls_of
from roomtone.delivery.plugins import load_plugins
from roomtone.journal.database import Database
from roomtone.journal.keys import sink_prefix
from roomtone.journal.records import Mark
from roomtone.journal.schema import SCHEMA, JournalError
from roomtone.suggestions import unknown

Command = TypeVar("Command", bound=Callable[..., Any])

WITHIN = "A daemon that runs obeys within a second, one that does not at its next start."


def _sink_command(**settings: Any) -> Callable[[Command], click.Command]:
    """A command about one sink: its name is the argument, and --config may stand before it or after it."""

    def decorate(function: Command) -> click.Command:
        made: click.Command = click.command(**settings)(click.argument("name")(config_option(function)))
        return made

    return decorate


@_sink_command(short_help="Deliver nothing to a sink until it is resumed.")
@click.option("--reason", metavar="TEXT", default="somebody has paused it", help="Shown by `roomtone sinks`.")
def pause(name: str, given: Path | None, reason: str) -> None:
    """Deliver nothing to the sink NAME until it is resumed. Its events wait in the journal, over restarts too.

    The batch that is under way ends first.
    """
    with ordering(name, given) as (database, _):
        _put(database, control_mark(name, Pause(datetime.now(UTC), "person", reason)))
    say(f"{name} is paused; its events wait. `roomtone sinks resume {name}` goes on")


@_sink_command(short_help="Deliver to a paused sink again.")
def resume(name: str, given: Path | None) -> None:
    """Deliver to the sink NAME again, from where it was. Also for one that Roomtone itself has paused."""
    with ordering(name, given) as (database, cursor):
        if controls_of(name, database.marks(sink_prefix(name))).paused is None:
            say(f"{name} is not paused")
            return
        _put(database, cancel_mark(name, "paused"))
        say(f"{name} goes on after event {cursor}")


@_sink_command(short_help="Deliver events to a sink once more.")
@click.option("--from", "since", metavar="TIME|SEQ", help="Everything from this event, or since this time (ISO 8601).")
@click.option("--refused", "is_refused", is_flag=True, help="The events that the sink has refused, before all others.")
def replay(name: str, given: Path | None, since: str | None, *, is_refused: bool) -> None:
    """Deliver events to the sink NAME once more, in their order; what comes meanwhile waits behind them.

    A time without an offset is this machine's. Only what the journal still has can come again.
    """
    if since is None and not is_refused:
        raise click.UsageError("say what shall come again: --from TIME, --from SEQ, or --refused")
    with ordering(name, given) as (database, cursor):
        if is_refused:
            last, count = database.last_refusal(name), database.count_refusals(name)
            if count:
                _put(database, control_mark(name, Retry(0, last)))
            say(f"{name} gets {_events(count)} again that it refused")
        if since is not None:
            seq = _first(database, since)
            if seq > cursor:
                say(f"{name} has event {seq} and all after it still to come: it is at {cursor}")
                return
            _put(database, control_mark(name, seq - 1))
            say(f"{name} gets event {seq} and all after it again")


@_sink_command(short_help="Remove what the journal knows of a sink that is configured no more.")
def forget(name: str, given: Path | None) -> None:
    """Remove what the journal knows of the sink NAME, which must be in the configuration no more: how far it was, and
    what it refused. A table of that name is a new sink then.

    Nobody has to: a sink that is not configured holds back nothing. Until it is forgotten it would go on where it was.
    """
    given = _given(given)
    enter(given)
    config, _ = load(given)
    if name in config.sinks or name in config.unloaded or name in config.disabled:
        raise CommandFailure(
            f"{config.path}: [sinks.{name}] is there; take it out, or the plugin {name}.py, restart the daemon, "
            "then forget it"
        )
    with ordering(name, given) as (database, _):
        database.drop_sink(name)
    say(f"{name} is forgotten")


@contextmanager
def ordering(name: str, given: Path | None) -> Iterator[tuple[Database, int]]:
    """The journal, to write orders for this sink, and the sink's cursor.

    Errors: ConfigError, JournalError, and Failure for a sink that the journal does not know.
    """
    given = _given(given)
    enter(given)
    path = find(given)
    if path is None:
        load(None)  # says what to do
        raise AssertionError
    tables = document.read(path)
    journal = state_of(tables, path) / "journal.sqlite"
    if not journal.exists():
        raise CommandFailure(
            f"{journal}: there is no journal yet: no sink has run. Start the daemon first", Exit.FAILED
        )
    try:
        with writing(journal) as database:
            cursors = database.cursors()
            if name not in cursors:
                raise CommandFailure(_unknown(name, cursors, tables, path))
            yield database, cursors[name]
    except sqlite3.Error as error:
        raise JournalError(
            f"cannot write the journal {journal}: {error}; run this as the daemon's user, with space on the disk"
        ) from None


def _given(given: Path | None) -> Path | None:
    """The value of --config, which may stand before the command's name too."""
    parent = click.get_current_context().parent
    return given or (parent.obj if parent else None)


def state_of(tables: Mapping[str, Any], path: Path) -> Path:
    """The state folder of the configuration, whatever else is wrong in it."""
    service = tables.get("service")
    named = service.get("state") if isinstance(service, dict) else None
    return paths.state_folder(named if isinstance(named, str) else None, path.absolute().parent, os.environ)


@contextmanager
def writing(journal: Path) -> Iterator[Database]:
    """A second writer beside the daemon: short statements, each its own transaction, and no events."""
    address = f"file:{quote(str(journal))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=10, isolation_level=None)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA:
            raise JournalError(f"the journal {journal} has version {version} and this Roomtone knows {SCHEMA}")
        yield Database(connection, connection, None)


def _put(database: Database, mark: Mark) -> None:
    database.put([mark])


def _unknown(name: str, cursors: Mapping[str, int], tables: Mapping[str, Any], path: Path) -> str:
    plugins = load_plugins(loader.plugin_paths(tables, path))
    if name in loader.each_sink(tables, plugins) or name in plugins.modules:
        return f"{path}: [sinks.{name}] has not run yet; start the daemon first"
    fault = unknown(f'sink "{name}"', name, cursors)
    return f"{path}: {fault}"


def _first(database: Database, since: str) -> int:
    """The seq of the first event that is meant."""
    try:
        if since.isdecimal():
            return min(max(1, int(since)), 2**63 - 1)
        return database.first_since(datetime.fromisoformat(since).astimezone(UTC))
    except (ValueError, OverflowError):
        text = f"{since!r} is no event's number and no time; write --from 1200 or --from 2025-03-01T12:00"
        raise click.BadParameter(text, param_hint="--from") from None


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count} events"
