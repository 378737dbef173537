"""START HERE. The whole daemon: what runs inside what, and so what ends before what.

The indentation of `run` is the order of shutdown. A first SIGTERM stops the rooms' capture alone (`rooms.py` has the
innermost levels): the spools end, streaming drains what they hold and ends its sessions, the journal grows no more, and
the sinks get what is left. Streaming has a share of the grace period, so that a dead network cannot use up the sinks'.
A second signal, or the end of the grace period, leaves at once, which the spool and the journal make harmless. Where
even leaving takes long, for a disk or a plugin that hangs, the process ends all the same after LEAVING_TIMEOUT_S.

`control/handlers.py` has what can be asked of the running daemon, `control/server.py` how it is asked, and
`control/reload.py` what another configuration changes.
"""

import math
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial

import structlog
import trio

from roomtone import paths
from roomtone.budget.governor import open_governor
from roomtone.capture.recovery import check_rate
from roomtone.config.model import Config, find_key
from roomtone.containment import supervise
from roomtone.control.handlers import RequestHandler
from roomtone.control.reload import ActiveConfig, Reloader, lacking, tell_lacking, tell_unloaded
from roomtone.control.server import serve
from roomtone.delivery.manager import Outlet, SinkManager, SinkPaths
from roomtone.forget.eraser import Eraser
from roomtone.forget.room import ForgetScope, closed, resume
from roomtone.journal.journal import Journal, open_journal
from roomtone.live import Live
from roomtone.llm.analyst import Analyst, open_analyst
from roomtone.monitoring.counters import Counters
from roomtone.monitoring.exit_deadline import open_deadline
from roomtone.monitoring.prometheus import expose
from roomtone.monitoring.room_state import RoomStates, watch_events, watch_levels
from roomtone.monitoring.sd_notify import DeliveryProgress, open_supervision
from roomtone.retention.cleanup import CleanupPolicy, run_cleanup, use_reserve
from roomtone.rooms import Rooms, RoomServices
from roomtone.speech.endpoint import open_endpoints
from roomtone.spool.segment import SPOOL_FOLDER
from roomtone.spool.spool import Spool

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

STREAMING_SHARE = 1 / 3
LEAVING_TIMEOUT_S = 10.0
"""Seconds after the grace period, or a second signal, in which files are closed. systemd would kill us soon after."""
FULL_TIMEOUT_S = 5.0
"""Seconds that a daemon that stops waits for room on the journal's disk."""
_ENDING = (signal.SIGINT, signal.SIGTERM)


async def run(config: Config, environ: Mapping[str, str], reread: Callable[[], Config]) -> None:
    """Record, transcribe and deliver, until a signal comes or until every source has ended and all is settled.

    `reread` gives the configuration as it is at the time of a reload, or raises ConfigError.
    Errors: a state folder that is in use or not writable, a room whose rate has changed, a broken journal: these are
    for a person, and nothing is recorded yet. Whatever comes later is contained where it happens.
    """
    state, key = config.state(environ), find_key(config, environ)
    force = ActiveConfig(config, key)
    grounds = SinkPaths(config.sinks_folder(environ), state / "sinks")
    live, glance, figures, sinks = Live(), RoomStates(), Counters(), dict[str, Outlet]()
    with open_deadline() as end_by, trio.CancelScope() as hard, paths.lock(state):
        use_reserve(state)
        async with (
            open_journal(state / "journal.sqlite") as journal,
            open_supervision(environ, config.rooms, partial(_measure_progress, sinks, glance)) as supervision,
            trio.open_nursery() as watching,
        ):
            await _check_rates(config, journal)
            await resume(ForgetScope(journal, live, closed(state / SPOOL_FOLDER)))
            watching.start_soon(watch_events, glance, journal)
            watching.start_soon(watch_levels, glance, live)
            watching.start_soon(watch_events, figures, journal)
            async with trio.open_nursery() as delivery:
                outlets = SinkManager(
                    delivery, journal=journal, live=live, grounds=grounds, rates=_rates(config), at_work=sinks
                )
                for name, sink in config.sinks.items():
                    outlets.begin(name, sink)
                watching.start_soon(outlets.watch_controls)
                await tell_unloaded(config.unloaded, journal)
                await tell_lacking(lacking(config), journal)
                spools = dict[str, Spool]()
                async with (
                    open_governor(
                        journal, lambda: force.config.budget, held=lambda: list(force.setting().held())
                    ) as governor,
                    open_analyst(journal, force.setting(), partial(_head, spools), governor) as analyst,
                    open_endpoints(config.recognizer_settings(), journal) as endpoints,
                    trio.open_nursery() as upkeep,
                ):
                    surroundings = RoomServices(
                        state / SPOOL_FOLDER,
                        spools,
                        journal,
                        live,
                        endpoints,
                        supervision.health,
                        glance,
                        governor,
                        analyst,
                    )
                    rules = CleanupPolicy(
                        lambda: force.config.storage,
                        lambda: surroundings.spools,
                        lambda: force.config.sinks,
                        lambda: force.config.unloaded,
                    )
                    upkeep.start_soon(supervise, "Housekeeping", partial(run_cleanup, state, rules, journal), journal)
                    async with trio.open_nursery() as streaming_and_capture:
                        rooms = Rooms(streaming_and_capture, surroundings)
                        for name, table in config.rooms.items():
                            await rooms.begin(name, force.plan(table))
                        reloading = Reloader(
                            force, reread, environ, journal=journal, rooms=rooms, outlets=outlets, analyst=analyst
                        )
                        erasure = Eraser(
                            state,
                            ForgetScope(journal, live, rooms.quiet),
                            outlets=outlets,
                            sinks=lambda: force.config.sinks | force.config.disabled,
                            unloaded=lambda: force.config.unloaded,
                        )
                        commands = RequestHandler(
                            state,
                            force,
                            reloading=reloading,
                            erasure=erasure,
                            rooms=rooms,
                            spools=surroundings.spools,
                            outlets=outlets,
                            glance=glance,
                            figures=figures,
                            journal=journal,
                            supervision=supervision,
                            governor=governor,
                        )
                        watching.start_soon(
                            partial(_obey_signals, force, hard, supervision.stopping, rooms, analyst, end_by=end_by)
                        )
                        watching.start_soon(_obey_reloads, commands)
                        watching.start_soon(_leave_a_full_disk, journal, hard, end_by)
                        control = paths.control_socket(state, environ)
                        watching.start_soon(partial(serve, control, commands, journal=journal, live=live))
                        metrics = partial(expose, config.service, config.folder, commands.report)
                        watching.start_soon(supervise, "Serving metrics", metrics, journal)
                        await rooms.wait_closed()
                    supervision.stopping.set()
                    await analyst.finish()
                    upkeep.cancel_scope.cancel()
                outlets.finish()
            watching.cancel_scope.cancel()


async def _obey_signals(
    force: ActiveConfig,
    hard: trio.CancelScope,
    stopping: trio.Event,
    rooms: Rooms,
    analyst: Analyst,
    *,
    end_by: Callable[[float], None],
) -> None:
    """The first signal ends capture and gives the rest its time; a second SIGINT or SIGTERM ends everything."""
    with trio.open_signal_receiver(*_ENDING, *([signal.SIGHUP] if _is_in_terminal() else [])) as signals:
        number = await anext(signals)
        grace = force.config.service.grace
        log.info("service.stopping", signal=signal.Signals(number).name, grace=grace)
        stopping.set()
        hard.deadline = trio.current_time() + grace
        end_by(grace + LEAVING_TIMEOUT_S)
        rooms.stop(grace * STREAMING_SHARE)
        analyst.stop(grace * STREAMING_SHARE)
        # A window that is closed says so several times: its shell does, and the kernel. Nobody is in a hurry there.
        while await anext(signals) == signal.SIGHUP:
            pass
        log.warning("service.leaving", reason="a second signal")
        end_by(LEAVING_TIMEOUT_S)
        hard.cancel()


async def _leave_a_full_disk(journal: Journal, hard: trio.CancelScope, end_by: Callable[[float], None]) -> None:
    """While the daemon stops, a journal that takes nothing is not waited for through the whole grace period: what is
    still to be said is made up for at the next start, and everything that was to be delivered is delivered then.
    """
    while hard.deadline == math.inf or journal.waiting < FULL_TIMEOUT_S:  # noqa: ASYNC110 - a deadline wakes nobody
        await trio.sleep(0.5)
    log.warning("service.leaving", reason="the journal has no room, or is locked")
    end_by(LEAVING_TIMEOUT_S)
    hard.cancel()


async def _obey_reloads(commands: RequestHandler) -> None:
    """SIGHUP is `roomtone reload` whose answer is in the log. It stays ignored where `nohup` has asked for that."""
    if _is_in_terminal() or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                await commands.reload()
            except* Exception:
                log.exception("request.failed", request="reload")


def _is_in_terminal() -> bool:
    """There SIGHUP says that the window was closed: nobody expects the microphone to stay open behind it.

    `roomtone run < /dev/null` has a window too, and shows its log there. What `nohup` has started outlives its window.
    """
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return not is_ignored and any(os.isatty(number) for number in (0, 1, 2))


async def _check_rates(config: Config, journal: Journal) -> None:
    """All of them before the first room records: what is for a person must not wait behind what works."""
    for name, table in config.rooms.items():
        await check_rate(name, table.rate, journal)


def _rates(config: Config) -> dict[str, int]:
    return {name: table.rate for name, table in config.rooms.items()}


def _head(spools: Mapping[str, Spool], room: str) -> int | None:
    return spools[room].end if room in spools else None


def _measure_progress(sinks: Mapping[str, Outlet], glance: RoomStates) -> DeliveryProgress:
    return DeliveryProgress({name: outlet.status().behind for name, outlet in sinks.items()}, glance.unheard())
