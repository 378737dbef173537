"""START HERE. The whole daemon: what runs inside what, and so what ends before what.

The indentation of `run` is the order of shutdown. A first SIGTERM stops the rooms' capture alone (`rooms.py` has the
innermost levels): the spools end, streaming drains what they hold and ends its sessions, the journal grows no more, and
the sinks get what is left. Streaming has a share of the grace period, so that a dead network cannot use up the sinks'.
A second signal, or the end of the grace period, leaves at once, which the spool and the journal make harmless.
"""

import signal
from collections.abc import Mapping

import structlog
import trio

from roomtone import places
from roomtone.capture.recovery import check_rate
from roomtone.config import Config, find_key
from roomtone.journal import Journal, open_journal
from roomtone.live import Live
from roomtone.outlets import Grounds, Outlets
from roomtone.retention import SPOOL, Rules, keep_room
from roomtone.rooms import Plan, Rooms, Surroundings
from roomtone.speech.endpoint import open_endpoints

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

STREAMING_SHARE = 1 / 3


async def run(config: Config, environ: Mapping[str, str]) -> None:
    """Record, transcribe and deliver, until a signal comes or until every source has ended and all is settled.

    Errors: a state folder that is in use or not writable, a room whose rate has changed, a broken journal: these are
    for a person, and nothing is recorded yet. Whatever comes later is contained where it happens.
    """
    state, key = config.state(environ), find_key(config, environ)
    grounds = Grounds(config.sinks_folder(environ), state / "sinks")
    with trio.CancelScope() as hard, places.lock(state):
        async with trio.open_nursery() as watching, open_journal(state / "journal.sqlite") as journal:
            await _check_rates(config, journal)
            live = Live()
            async with trio.open_nursery() as delivery:
                outlets = Outlets(delivery, journal, live, grounds)
                for name, sink in config.sinks.items():
                    outlets.begin(name, sink, _rates(config))
                async with open_endpoints() as endpoints, trio.open_nursery() as upkeep:
                    surroundings = Surroundings(state / SPOOL, {}, journal, live, endpoints)
                    rules = Rules(lambda: config.storage, lambda: surroundings.spools, lambda: config.sinks)
                    upkeep.start_soon(keep_room, state, rules, journal)
                    async with trio.open_nursery() as streaming_and_capture:
                        rooms = Rooms(streaming_and_capture, surroundings)
                        for name, table in config.rooms.items():
                            rooms.begin(name, Plan(table, config.folder, config.service.sync_interval, key))
                        watching.start_soon(_obey_signals, config.service.grace, hard, rooms)
                    upkeep.cancel_scope.cancel()
                outlets.finish()
            watching.cancel_scope.cancel()


async def _obey_signals(grace: float, hard: trio.CancelScope, rooms: Rooms) -> None:
    """The first signal ends capture and gives the rest its time; the second one ends everything."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        number = await anext(signals)
        log.info("service.stopping", signal=signal.Signals(number).name, grace=grace)
        hard.deadline = trio.current_time() + grace
        rooms.stop(grace * STREAMING_SHARE)
        await anext(signals)
        log.warning("service.leaving", reason="a second signal")
        hard.cancel()


async def _check_rates(config: Config, journal: Journal) -> None:
    """All of them before the first room records: what is for a person must not wait behind what works."""
    for name, table in config.rooms.items():
        await check_rate(name, table.rate, journal)


def _rates(config: Config) -> dict[str, int]:
    return {name: table.rate for name, table in config.rooms.items()}
