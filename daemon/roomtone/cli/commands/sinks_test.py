"""`roomtone sinks test NAME`: send one marked event to one sink, and report the result."""

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import click
import trio

from roomtone import paths
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure, check_names
from roomtone.cli.output import say
from roomtone.cli.unit import continue_as_service
from roomtone.config.model import Config
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.hooks import SinkHooks
from roomtone.delivery.probe import ProbeResult, probe_sink
from roomtone.events import TEST, Notice, Turn, kind_of
from roomtone.journal.records import next_id
from roomtone.sinks import Context, Sink, wants

TEXT = "This is a test, sent by `roomtone sinks test`. Nothing has happened."


@click.command(short_help="Send one marked test event to a sink.")
@click.argument("name")
@config_option
def test(name: str, given: Path | None) -> None:
    """Send one marked test event to the sink NAME, and report if it is acknowledged.

    The sink is opened in this process, also beside a running daemon; the journal does not get the event. The event is a
    notice with the code sink.test; for a sink without notices it is a turn of the session sink.test.
    """
    parent = click.get_current_context().parent
    given = given or (parent.obj if parent else None)
    continue_as_service(given)
    config, _ = load(given)
    sinks = config.sinks | config.disabled
    if reason := config.unloaded.get(name):
        raise ConfigError(f"{config.path}: {reason}")
    check_names("sink", [name], sinks)
    sink = sinks[name]
    context = Context(
        name=name,
        folder=config.sinks_folder(os.environ),
        state=paths.private_folder(config.state(os.environ) / "sinks" / name),
        rates={room: table.rate for room, table in config.rooms.items()},
    )
    result = trio.run(probe_sink, sink, context, lambda hooks: test_event(sink, hooks, config))
    if result.error is not None:
        raise CommandFailure(f"sink {name} failed: {result.error}")
    say(f"sink {name} {_describe_result(result)}")


def test_event(sink: Sink, hooks: SinkHooks, config: Config) -> Notice | Turn | None:
    """An event of a kind that the sink's table and hooks accept, or None if there is none.

    Never audio: a recording must not have sound that is not from the room.
    """
    now, room = datetime.now(UTC), next(iter(sink.rooms or config.rooms))
    id_ = str(next_id(uuid.UUID(int=0), int(now.timestamp() * 1000)))
    notice = Notice(id=id_, room="", position=0, at=now, severity="info", code=TEST, text=TEXT)
    turn = Turn(id=id_, room=room, position=0, at=now, session_id=TEST, turn_order=0, text=TEXT)
    return next((event for event in (notice, turn) if wants(sink, event) and hooks.hooks_for(event)), None)


def _describe_result(result: ProbeResult) -> str:
    if result.event is None:
        return "opens and closes; it accepts neither notices nor turns, so nothing was sent"
    if result.refused is not None:
        return f"works, but has refused the test ({kind_of(result.event)} {result.event.id}): {result.refused}"
    return f"has acknowledged the test: {kind_of(result.event)} {result.event.id}"
