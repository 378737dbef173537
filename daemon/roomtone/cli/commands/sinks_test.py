"""`roomtone sinks test NAME`: one marked event to one sink, and what came of it."""

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import click
import trio

from roomtone import paths
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure
from roomtone.cli.output import say
from roomtone.cli.unit import enter
from roomtone.config.model import Config
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.hooks import SinkHooks
from roomtone.delivery.probe import ProbeResult, probe_sink
from roomtone.events import TEST, Notice, Turn, kind_of
from roomtone.journal.records import next_id
from roomtone.sinks import Context, Sink, wants
from roomtone.suggestions import unknown

TEXT = "This is a test. `roomtone sinks test` has sent it; nothing has happened."


@click.command(short_help="Send one marked test event to a sink.")
@click.argument("name")
@config_option
def test(name: str, given: Path | None) -> None:
    """Send one marked test event to the sink NAME, and say whether it acknowledges it.

    The sink is opened here, on its own, beside the daemon if that runs; nothing is journalled. The event is a notice
    with the code sink.test; for a sink that takes no notices it is a turn of a session called sink.test.
    """
    parent = click.get_current_context().parent
    given = given or (parent.obj if parent else None)
    enter(given)
    config, _ = load(given)
    sink = (config.sinks | config.disabled).get(name)
    if sink is None:
        reason = config.unloaded.get(name) or unknown(f'sink "{name}"', name, config.sinks | config.disabled)
        raise ConfigError(f"{config.path}: {reason}")
    context = Context(
        name=name,
        folder=config.sinks_folder(os.environ),
        state=paths.private_folder(config.state(os.environ) / "sinks" / name),
        rates={room: table.rate for room, table in config.rooms.items()},
    )
    outcome = trio.run(probe_sink, sink, context, lambda hooks: test_event(sink, hooks, config))
    if outcome.error is not None:
        raise CommandFailure(f"sink {name} failed: {outcome.error}")
    say(f"sink {name} {_told(outcome)}")


def test_event(sink: Sink, hooks: SinkHooks, config: Config) -> Notice | Turn | None:
    """The event for this sink: of a kind that its table and its hooks let through. None: there is none.

    Never audio: what is no sound of the room does not belong into its recording.
    """
    now, room = datetime.now(UTC), next(iter(sink.rooms or config.rooms))
    id_ = str(next_id(uuid.UUID(int=0), int(now.timestamp() * 1000)))
    notice = Notice(id=id_, room="", position=0, at=now, severity="info", code=TEST, text=TEXT)
    turn = Turn(id=id_, room=room, position=0, at=now, session_id=TEST, turn_order=0, text=TEXT)
    return next((event for event in (notice, turn) if wants(sink, event) and hooks.hooks_for(event)), None)


def _told(outcome: ProbeResult) -> str:
    if outcome.event is None:
        return "opens and closes; it takes neither notices nor turns, so nothing was sent"
    if outcome.refused is not None:
        return f"works, and has refused the test ({kind_of(outcome.event)} {outcome.event.id}): {outcome.refused}"
    return f"has acknowledged the test: {kind_of(outcome.event)} {outcome.event.id}"
