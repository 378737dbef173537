"""START HERE. The whole daemon: its parts, and the order in which they end.

The indentation of `run` is the order of shutdown. A first SIGTERM stops only the rooms' capture (`rooms.py` has the
innermost levels). The spools then get no more data, streaming drains them and ends its sessions, the journal grows no
more, and the sinks get the rest. Streaming has a share of the grace period, so a dead network cannot use up the time of
the sinks. A second signal, or the end of the grace period, ends everything immediately; the spool and the journal make
that harmless. If a disk or a plugin hangs even then, the process ends LEAVING_TIMEOUT_S later.

`control/handlers.py` answers requests, `control/server.py` receives them, and `control/reload.py` applies another
configuration.
"""

import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
import trio

from roomtone import paths
from roomtone.budget.governor import open_governor
from roomtone.config.active import ActiveConfig
from roomtone.config.model import Config, find_key
from roomtone.containment import supervise
from roomtone.control.handlers import RequestHandler
from roomtone.control.reload import Reloader, check_rates, lacking, report_lacking, report_unloaded
from roomtone.control.server import serve
from roomtone.control.status import StatusReporter
from roomtone.delivery.manager import SinkManager
from roomtone.forget.eraser import Eraser
from roomtone.forget.room import ForgetScope, closed, resume
from roomtone.journal.journal import Journal, open_journal
from roomtone.live import Live
from roomtone.llm.analyst import Analyst, open_analyst
from roomtone.monitoring.exit_deadline import open_deadline
from roomtone.monitoring.liveness import Liveness
from roomtone.monitoring.prometheus import expose
from roomtone.monitoring.room_state import RoomStates, watch_events, watch_levels
from roomtone.monitoring.sd_notify import DeliveryProgress, open_supervision
from roomtone.retention.cleanup import run_cleanup
from roomtone.retention.disk_space import use_reserve
from roomtone.rooms import Rooms, RoomServices, RoomSettings
from roomtone.speech.endpoint import open_endpoints
from roomtone.spool.segment import SPOOL_FOLDER
from roomtone.spool.spool import Spool

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

STREAMING_SHARE = 1 / 3
LEAVING_TIMEOUT_S = 10.0
"""Seconds for closing files after the grace period or a second signal. systemd would kill us a little later."""
FULL_TIMEOUT_S = 5.0
"""Seconds that a stopping daemon waits for room on the journal's disk."""
_ENDING = (signal.SIGINT, signal.SIGTERM)


async def run(config: Config, environ: Mapping[str, str], reread: Callable[[], Config]) -> None:
    """Record, transcribe and deliver, until a signal comes or until every source has ended and all is settled.

    `reread` gives the configuration as it is at the time of a reload, or raises ConfigError.
    Errors: a state folder that is in use or not writable, a room whose rate has changed, a broken journal. They come
    before anything is recorded, and the operator must act. Every later error is contained where it happens.
    """
    state, active = config.state(environ), ActiveConfig(config, find_key(config, environ))
    live, room_states = Live(), RoomStates()
    with open_deadline() as end_by, trio.CancelScope() as hard, paths.lock(state):
        use_reserve(state)
        async with (
            open_journal(state / "journal.sqlite") as journal,
            open_supervision(environ, config.rooms) as supervision,
            trio.open_nursery() as watching,
        ):
            await check_rates(config, journal)
            await resume(ForgetScope(journal, live, closed(state / SPOOL_FOLDER)))
            watching.start_soon(watch_events, room_states, journal)
            watching.start_soon(watch_levels, room_states, live)
            async with trio.open_nursery() as delivery:
                sinks = _begin_sinks(delivery, config, environ, journal, live)
                supervision.progress = partial(_measure_progress, sinks, room_states)
                watching.start_soon(sinks.watch_controls)
                await report_unloaded(config.unloaded, journal)
                await report_lacking(lacking(config), journal)
                async with (
                    _open_services(state, active, journal, live, room_states, health=supervision.health) as services,
                    trio.open_nursery() as upkeep,
                ):
                    cleanup = partial(run_cleanup, state, active, services.spools, journal)
                    upkeep.start_soon(supervise, "Housekeeping", cleanup, journal)
                    async with trio.open_nursery() as streaming_and_capture:
                        rooms = Rooms(streaming_and_capture, services)
                        for name, table in config.rooms.items():
                            await rooms.begin(name, RoomSettings.of(active, table))
                        reporter = StatusReporter(
                            state, active, services, rooms=rooms, sinks=sinks, supervision=supervision
                        )
                        reloader = Reloader(active, reread, environ, services, rooms=rooms, sinks=sinks)
                        eraser = Eraser(state, ForgetScope(journal, live, rooms.quiet), sinks, active)
                        handler = RequestHandler(reporter, reloader, eraser, rooms, supervision)
                        shutdown = Shutdown(active, hard, end_by, supervision.stopping, rooms, services.analyst)
                        watching.start_soon(shutdown.on_signals)
                        watching.start_soon(shutdown.on_full_disk, journal)
                        watching.start_soon(_reload_on_sighup, handler)
                        watching.start_soon(serve, paths.control_socket(state, environ), handler, journal, live)
                        metrics = partial(expose, config.service, config.folder, reporter.report)
                        watching.start_soon(supervise, "Serving metrics", metrics, journal)
                        await rooms.wait_closed()
                    supervision.stopping.set()
                    await services.analyst.finish()
                    upkeep.cancel_scope.cancel()
                sinks.finish()
            watching.cancel_scope.cancel()


def _begin_sinks(
    nursery: trio.Nursery, config: Config, environ: Mapping[str, str], journal: Journal, live: Live
) -> SinkManager:
    folder, state = config.sinks_folder(environ), config.state(environ) / "sinks"
    sinks = SinkManager(nursery, journal=journal, live=live, folder=folder, state=state, rates=config.rates)
    for name, sink in config.sinks.items():
        sinks.begin(name, sink)
    return sinks


@asynccontextmanager
async def _open_services(
    state: Path, active: ActiveConfig, journal: Journal, live: Live, room_states: RoomStates, *, health: Liveness
) -> AsyncIterator[RoomServices]:
    """The parts that all rooms share."""
    spools = dict[str, Spool]()
    async with (
        open_governor(journal, active.budget, held=active.held_tasks) as governor,
        open_analyst(journal, active.llm_settings(), partial(_head, spools), governor) as analyst,
        open_endpoints(active.config.recognizer_settings(), journal) as endpoints,
    ):
        folder = state / SPOOL_FOLDER
        yield RoomServices(folder, spools, journal, live, endpoints, health, room_states, governor, analyst)


class Shutdown(NamedTuple):
    """The ways in which the daemon is stopped. `hard` ends everything; `end_by` sets when the process ends anyway."""

    active: ActiveConfig
    hard: trio.CancelScope
    end_by: Callable[[float], None]
    stopping: trio.Event
    rooms: Rooms
    analyst: Analyst

    async def on_signals(self) -> None:
        """The first signal ends capture and gives the rest its time; a second SIGINT or SIGTERM ends everything."""
        with trio.open_signal_receiver(*_ENDING, *([signal.SIGHUP] if _is_in_terminal() else [])) as signals:
            number = await anext(signals)
            grace = self.active.config.service.grace
            log.info("service.stopping", signal=signal.Signals(number).name, grace=grace)
            self.stopping.set()
            self.hard.deadline = trio.current_time() + grace
            self.end_by(grace + LEAVING_TIMEOUT_S)
            self.rooms.stop(grace * STREAMING_SHARE)
            self.analyst.stop(grace * STREAMING_SHARE)
            # A terminal that is closed sends SIGHUP several times: its shell does, and the kernel. There is no hurry.
            while await anext(signals) == signal.SIGHUP:
                pass
            self._leave("a second signal")

    async def on_full_disk(self, journal: Journal) -> None:
        """While the daemon stops, do not wait the whole grace period for a journal that takes nothing: the next start
        makes up for what was not committed, and delivers what was not delivered.
        """
        while self.hard.deadline == math.inf or journal.waiting < FULL_TIMEOUT_S:  # noqa: ASYNC110 - a deadline wakes no task
            await trio.sleep(0.5)
        self._leave("the journal has no room, or is locked")

    def _leave(self, reason: str) -> None:
        log.warning("service.leaving", reason=reason)
        self.end_by(LEAVING_TIMEOUT_S)
        self.hard.cancel()


async def _reload_on_sighup(handler: RequestHandler) -> None:
    """SIGHUP is `roomtone reload` with its answer in the log. It stays ignored where `nohup` has asked for that."""
    if _is_in_terminal() or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                await handler.reload()
            except* Exception:
                log.exception("request.failed", request="reload")


def _is_in_terminal() -> bool:
    """True if SIGHUP means that the window was closed: the user does not expect the microphone to stay open.

    `roomtone run < /dev/null` has a window too, and shows its log there. A program under `nohup` outlives its window.
    """
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return not is_ignored and any(os.isatty(number) for number in (0, 1, 2))


def _head(spools: Mapping[str, Spool], room: str) -> int | None:
    return spools[room].end if room in spools else None


def _measure_progress(sinks: SinkManager, room_states: RoomStates) -> DeliveryProgress:
    return DeliveryProgress({sink.name: sink.status().behind for sink in sinks}, room_states.unheard())
