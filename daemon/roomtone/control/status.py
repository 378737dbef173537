"""The state of the running daemon, collected from its parts into one report: for `status`, `health` and the metrics."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import trio

from roomtone.capture.sources import name_of
from roomtone.config.active import ActiveConfig
from roomtone.delivery.manager import SinkManager
from roomtone.journal.coverage import summarize
from roomtone.monitoring.liveness import RoomHealth
from roomtone.monitoring.report import CostReport, DayCoverage, DiskUsage, OpenGap, Report, RoomReport, SessionReport
from roomtone.monitoring.sd_notify import Supervision
from roomtone.rooms import Rooms, RoomServices, RunningRoom
from roomtone.spool.spool import Spool

DAY = timedelta(days=1)


class StatusReporter:
    """Reports the state of the daemon. `state` is the folder of its journal and spools."""

    def __init__(
        self,
        state: Path,
        active: ActiveConfig,
        services: RoomServices,
        *,
        rooms: Rooms,
        sinks: SinkManager,
        supervision: Supervision,
    ) -> None:
        self._state = state
        self._active = active
        self._services = services
        self._rooms = rooms
        self._sinks = sinks
        self._supervision = supervision
        self._since = datetime.now(UTC)
        # Of this process: an upgrade replaces what is installed under it.
        self._version = version("roomtone")

    async def report(self) -> Report:
        """The state at this moment."""
        config = self._active.config
        health = {room.name: room for room in self._services.health.rooms(trio.current_time())}
        rooms = [await self._report_room(room, health.get(room.name)) for room in self._rooms]
        return Report(
            version=self._version,
            pid=os.getpid(),
            since=self._since,
            configuration=str(config.path.absolute()),
            state=str(self._state.absolute()),
            rooms=tuple(rooms),
            sinks=tuple(sink.status() for sink in self._sinks),
            disk=self._measure_disk(),
            cost=self._report_cost(),
            stopping=self._supervision.stopping.is_set(),
        )

    def _report_cost(self) -> CostReport:
        governor, budget = self._services.governor, self._active.config.budget
        return CostReport(
            currency=budget.currency,
            bill=governor.spent(),
            daily=budget.daily,
            monthly=budget.monthly,
            spent=governor.cap_action,
        )

    async def _report_room(self, room: RunningRoom, health: RoomHealth | None) -> RoomReport:
        seen, table = self._services.room_states.at(room.name), room.settings.table
        spool = self._services.spools.get(room.name)
        ended = room.capture.ended or room.closed.is_set()
        cause = None if health is None or ended else health.cause
        session = seen.sessions[-1] if seen.sessions else None
        return RoomReport(
            name=room.name,
            state="ended" if ended else "muted" if room.capture.mute else "waiting" if cause else "recording",
            source=name_of(table.source),
            rate=table.rate,
            position=0 if spool is None else spool.end,
            since=seen.recording,
            muted_until=room.capture.mute.until if room.capture.mute else None,
            gap=OpenGap(cause, round(health.lasting, 1), health.reason) if health and cause else None,
            rms=seen.level.rms if seen.level and not cause else None,
            peak=seen.level.peak if seen.level and not cause else None,
            session=SessionReport(session.session_id, session.at, session.endpoint) if session else None,
            session_error=seen.session_error,
            quiet=None if health is None or ended else round(health.quiet, 3),
            drift=None if health is None or health.drift is None else round(health.drift, 1),
            figures=self._services.room_states.counters.of(room.name, datetime.now(UTC)),
            coverage=None if spool is None else await self._measure_coverage(room, spool),
            cost=self._services.governor.spent(room.name),
        )

    async def _measure_coverage(self, room: RunningRoom, spool: Spool) -> DayCoverage | None:
        """Measure the last day. Positions stand still while there is no source, so a day has at most a day of them."""
        rate = room.settings.table.rate
        first = max(0, spool.end - round(DAY.total_seconds()) * rate)
        spans = await self._services.journal.covered(room.name, first)
        summary = summarize(room.name, rate, spans, since=datetime.now(UTC) - DAY)
        if summary is None:
            return None
        return DayCoverage(round(summary.ratio, 6), {loss.cause: loss.seconds for loss in summary.lost})

    def _measure_disk(self) -> DiskUsage:
        journal = sum(path.stat().st_size for path in self._state.glob("journal.sqlite*"))
        spool = sum(spool.size for spool in self._services.spools.values())
        return DiskUsage(spool=spool, journal=journal, free=shutil.disk_usage(self._state).free)
