"""Forgets while no daemon runs: with its state and its sinks, but without rooms."""

from collections.abc import Mapping
from datetime import datetime

import trio

from roomtone import paths
from roomtone.config.model import Config
from roomtone.delivery.manager import SinkManager, SinkPaths
from roomtone.delivery.runner import SinkRunner
from roomtone.forget.eraser import Erased, Eraser
from roomtone.forget.room import ForgetScope, closed
from roomtone.journal.journal import open_journal
from roomtone.live import Live
from roomtone.spool.segment import SPOOL_FOLDER


async def forget(
    config: Config, environ: Mapping[str, str], room: str | None, since: datetime, until: datetime
) -> Erased:
    """Forget, and notify the sinks: they get everything that waits for them.

    Errors: StateError where a daemon has the state, or it cannot be used; those of the journal.
    """
    state, live, at_work = config.state(environ), Live(), dict[str, SinkRunner]()
    folders = SinkPaths(config.sinks_folder(environ), state / "sinks")
    rates = {name: room.rate for name, room in config.rooms.items()}
    with paths.lock(state):
        async with open_journal(state / "journal.sqlite") as journal, trio.open_nursery() as delivery:
            manager = SinkManager(delivery, journal=journal, live=live, paths=folders, rates=rates, at_work=at_work)
            for name, sink in config.sinks.items():
                manager.begin(name, sink)
            scope = ForgetScope(journal, live, closed(state / SPOOL_FOLDER))
            erasure = Eraser(
                state,
                scope,
                manager=manager,
                sinks=lambda: config.sinks | config.disabled,
                unloaded=lambda: config.unloaded,
            )
            answer = await erasure.forget(room, since, until)
            manager.finish()
    return answer
