"""`roomtone sinks pause`, `resume`, `replay` and `forget`: controls of one sink.

Each writes a mark into the journal. A running daemon applies it within a second, a stopped one at its next start:
these commands need no daemon.
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
from roomtone.cli.exit_codes import CommandFailure, check_names
from roomtone.cli.output import say
from roomtone.cli.unit import continue_as_service
from roomtone.config import loader, toml_file
from roomtone.delivery.controls import Pause, Retry, cancel_mark, control_mark, controls_of
from roomtone.delivery.plugins import load_plugins
from roomtone.journal.database import Database
from roomtone.journal.keys import sink_prefix
from roomtone.journal.records import Mark
from roomtone.journal.schema import SCHEMA, JournalError
from roomtone.legible import count_of

Command = TypeVar("Command", bound=Callable[..., Any])


def _sink_command(**settings: Any) -> Callable[[Command], click.Command]:
    """Make a command about one sink: the name is its argument, and --config may stand before or after it."""

    def decorate(function: Command) -> click.Command:
        made: click.Command = click.command(**settings)(click.argument("name")(config_option(function)))
        return made

    return decorate


@_sink_command(short_help="Stop delivering to a sink until it is resumed.")
@click.option("--reason", metavar="TEXT", default="paused by the operator", help="Shown by `roomtone sinks`.")
def pause(name: str, given: Path | None, reason: str) -> None:
    """Stop delivering to the sink NAME until it is resumed. Its events wait in the journal, also across restarts.

    A batch that is in progress is finished first.
    """
    with open_controls(name, given) as (database, _):
        _put(database, control_mark(name, Pause(datetime.now(UTC), "person", reason)))
    say(f"{name} is paused; its events wait in the journal. To resume: roomtone sinks resume {name}")


@_sink_command(short_help="Deliver to a paused sink again.")
def resume(name: str, given: Path | None) -> None:
    """Resume delivery to the sink NAME where it stopped. This also resumes a sink that Roomtone itself has paused."""
    with open_controls(name, given) as (database, cursor):
        if controls_of(name, database.marks(sink_prefix(name))).paused is None:
            say(f"{name} is not paused")
            return
        _put(database, cancel_mark(name, "paused"))
        say(f"{name} resumes after event {cursor}")


@_sink_command(short_help="Deliver events to a sink again.")
@click.option("--from", "since", metavar="TIME|SEQ", help="Everything from this event or this time (ISO 8601) on.")
@click.option("--refused", "is_refused", is_flag=True, help="The events that the sink has refused, before all others.")
def replay(name: str, given: Path | None, since: str | None, *, is_refused: bool) -> None:
    """Deliver events to the sink NAME again, in order; new events wait behind them.

    A time without an offset is in this machine's time zone. Only events that are still in the journal can be replayed.
    """
    if since is None and not is_refused:
        raise click.UsageError("give the events to replay: --from TIME, --from SEQ, or --refused")
    with open_controls(name, given) as (database, cursor):
        if is_refused:
            last, count = database.last_refusal(name), database.count_refusals(name)
            if count:
                _put(database, control_mark(name, Retry(0, last)))
            say(f"{name} gets {count_of(count, 'refused event')} again")
        if since is not None:
            seq = _first(database, since)
            if seq > cursor:
                say(f"{name} has not reached event {seq} yet: it is at event {cursor}")
                return
            _put(database, control_mark(name, seq - 1))
            say(f"{name} gets event {seq} and all later events again")


@_sink_command(short_help="Remove a sink that is no longer configured from the journal.")
def forget(name: str, given: Path | None) -> None:
    """Remove the sink NAME from the journal: its cursor and its refused events. It must not be in the configuration any
    more. A later table of that name is then a new sink.

    This is optional: a sink that is not configured holds nothing back. Until it is forgotten, a table of that name
    continues where it stopped.
    """
    given = _given(given)
    continue_as_service(given)
    config, _ = load(given)
    if name in config.sinks or name in config.unloaded or name in config.disabled:
        raise CommandFailure(
            f"{config.path}: [sinks.{name}] is still configured; remove the table or the plugin {name}.py, then call: "
            f"roomtone reload, and: roomtone sinks forget {name}"
        )
    with open_controls(name, given) as (database, _):
        database.drop_sink(name)
    say(f"{name} is forgotten")


@contextmanager
def open_controls(name: str, given: Path | None) -> Iterator[tuple[Database, int]]:
    """The journal, to write controls of this sink, and the sink's cursor.

    Errors: ConfigError, JournalError, and CommandFailure for a sink that is not in the journal.
    """
    given = _given(given)
    continue_as_service(given)
    path = find(given)
    if path is None:
        load(None)  # raises, with the next step
        raise AssertionError
    tables = toml_file.read(path)
    journal = state_of(tables, path) / "journal.sqlite"
    if not journal.exists():
        raise CommandFailure(f"{journal}: the journal does not exist yet; start the daemon first")
    try:
        with open_for_writing(journal) as database:
            cursors = database.cursors()
            if name not in cursors and _is_configured(name, tables, path):
                raise CommandFailure(f"{path}: [sinks.{name}] has not run yet; start the daemon first")
            check_names("sink", [name], cursors)
            yield database, cursors[name]
    except sqlite3.Error as error:
        raise JournalError(
            f"cannot write the journal {journal}: {error}; run this as the daemon's user, with free space on the disk"
        ) from None


def _given(given: Path | None) -> Path | None:
    """The value of --config, which may also stand before the command's name."""
    parent = click.get_current_context().parent
    return given or (parent.obj if parent else None)


def state_of(tables: Mapping[str, Any], path: Path) -> Path:
    """The state folder of the configuration, regardless of other mistakes in it."""
    service = tables.get("service")
    named = service.get("state") if isinstance(service, dict) else None
    return paths.state_folder(named if isinstance(named, str) else None, path.absolute().parent, os.environ)


@contextmanager
def open_for_writing(journal: Path) -> Iterator[Database]:
    """Open the journal as a second writer beside the daemon, for short transactions without events."""
    address = f"file:{quote(str(journal))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=10, isolation_level=None)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA:
            raise JournalError(f"the journal {journal} has version {version}, and this Roomtone needs version {SCHEMA}")
        yield Database(connection, connection, None)


def _put(database: Database, mark: Mark) -> None:
    database.put([mark])


def _is_configured(name: str, tables: Mapping[str, Any], path: Path) -> bool:
    plugins = load_plugins(loader.plugin_paths(tables, path))
    return name in loader.each_sink(tables, plugins) or name in plugins.modules


def _first(database: Database, since: str) -> int:
    """The seq of the first event to replay."""
    try:
        if since.isdecimal():
            return min(max(1, int(since)), 2**63 - 1)
        return database.first_since(datetime.fromisoformat(since).astimezone(UTC))
    except (ValueError, OverflowError):
        text = f"{since!r} is neither the number of an event nor a time; write --from 1200 or --from 2025-03-01T12:00"
        raise click.BadParameter(text, param_hint="--from") from None
