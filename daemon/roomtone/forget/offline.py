"""Forgets while no daemon runs: with its state and its sinks, but without rooms."""

from collections.abc import Mapping
from datetime import datetime

import trio

from roomtone import paths
from roomtone.config.active import ActiveConfig
from roomtone.config.model import Config
from roomtone.delivery.manager import SinkManager
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
    state, live = config.state(environ), Live()
    with paths.lock(state):
        async with open_journal(state / "journal.sqlite") as journal, trio.open_nursery() as delivery:
            manager = SinkManager(
                delivery,
                journal=journal,
                live=live,
                folder=config.sinks_folder(environ),
                state=state / "sinks",
                rates=config.rates,
            )
            for name, sink in config.sinks.items():
                manager.begin(name, sink)
            scope = ForgetScope(journal, live, closed(state / SPOOL_FOLDER))
            erasure = Eraser(state, scope, manager, ActiveConfig(config, None))
            answer = await erasure.forget(room, since, until)
            manager.finish()
    return answer
