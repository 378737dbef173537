"""What a daemon would do for a person's wish, while none runs: its state, its sinks, and no rooms."""

from collections.abc import Mapping

import trio

from roomtone import places
from roomtone.capture.segment import SPOOL
from roomtone.config import Config
from roomtone.erasure import Erasure
from roomtone.forgetting import Premises, closed
from roomtone.inquiry import Forget, Forgot, Refused
from roomtone.journal import open_journal
from roomtone.live import Live
from roomtone.outlets import Grounds, Outlet, Outlets


async def forget(config: Config, environ: Mapping[str, str], wish: Forget) -> Forgot | Refused:
    """Forget, and let the sinks hear of it: they get everything that waits for them.

    Errors: StateError where a daemon has the state, or it cannot be used; those of the journal.
    """
    state, live, at_work = config.state(environ), Live(), dict[str, Outlet]()
    grounds = Grounds(config.sinks_folder(environ), state / "sinks")
    rates = {name: room.rate for name, room in config.rooms.items()}
    with places.lock(state):
        async with open_journal(state / "journal.sqlite") as journal, trio.open_nursery() as delivery:
            outlets = Outlets(delivery, journal=journal, live=live, grounds=grounds, rates=rates, at_work=at_work)
            for name, sink in config.sinks.items():
                outlets.begin(name, sink)
            premises = Premises(journal, live, closed(state / SPOOL))
            erasure = Erasure(
                state,
                premises,
                outlets=outlets,
                sinks=lambda: config.sinks | config.disabled,
                unloaded=lambda: config.unloaded,
            )
            answer = await erasure.forget(wish.room, wish.since, wish.until)
            outlets.finish()
    return answer
