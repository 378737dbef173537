"""What a daemon would do for a person's wish, while none runs: its state, its sinks, and no rooms."""

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
    """Forget, and let the sinks hear of it: they get everything that waits for them.

    Errors: StateError where a daemon has the state, or it cannot be used; those of the journal.
    """
    state, live = config.state(environ), Live()
    with paths.lock(state):
        async with open_journal(state / "journal.sqlite") as journal, trio.open_nursery() as delivery:
            outlets = SinkManager(
                delivery,
                journal=journal,
                live=live,
                folder=config.sinks_folder(environ),
                state=state / "sinks",
                rates=config.rates,
            )
            for name, sink in config.sinks.items():
                outlets.begin(name, sink)
            premises = ForgetScope(journal, live, closed(state / SPOOL_FOLDER))
            erasure = Eraser(state, premises, outlets, ActiveConfig(config, None))
            answer = await erasure.forget(room, since, until)
            outlets.finish()
    return answer
