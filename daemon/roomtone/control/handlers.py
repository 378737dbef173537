"""What the commands of this machine can ask of the running daemon, and its answers."""

import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import structlog
import trio

from roomtone.budget.governor import Governor
from roomtone.capture.records import MuteState
from roomtone.capture.recovery import RateChanged
from roomtone.capture.sources import name_of
from roomtone.config.toml_file import ConfigError
from roomtone.control import protocol
from roomtone.control.protocol import Answer, Done, Forgot, Refused, Request
from roomtone.control.reload import ActiveConfig, Reloader
from roomtone.delivery.manager import SinkManager
from roomtone.forget.eraser import Eraser
from roomtone.journal.coverage import summarize
from roomtone.journal.journal import Journal
from roomtone.monitoring.counters import Counters
from roomtone.monitoring.liveness import RoomHealth
from roomtone.monitoring.report import CostReport, DayCoverage, DiskUsage, OpenGap, Report, RoomReport, SessionReport
from roomtone.monitoring.room_state import RoomStates
from roomtone.monitoring.sd_notify import Supervision
from roomtone.rooms import Rooms, RunningRoom
from roomtone.spool.spool import Spool

DEVICE_TIMEOUT_S = 30.0
"""Seconds that a device may take to close, with its facts in the journal, before the answer says that it still does."""
DAY = timedelta(days=1)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class RequestHandler:
    """Answers requests. `state` is the daemon's folder."""

    def __init__(
        self,
        state: Path,
        force: ActiveConfig,
        *,
        reloading: Reloader,
        erasure: Eraser,
        rooms: Rooms,
        spools: Mapping[str, Spool],
        outlets: SinkManager,
        glance: RoomStates,
        figures: Counters,
        journal: Journal,
        supervision: Supervision,
        governor: Governor,
    ) -> None:
        self._state = state
        self._force = force
        self._reloading = reloading
        self._erasure = erasure
        self._rooms = rooms
        self._spools = spools
        self._outlets = outlets
        self._glance = glance
        self._figures = figures
        self._journal = journal
        self._supervision = supervision
        self._governor = governor
        self._since = datetime.now(UTC)
        # Of this process: an upgrade replaces what is installed under it.
        self._version = version("roomtone")

    def has_room(self, name: str) -> bool:
        """Whether there is such a room."""
        return name in self._rooms

    async def answer(self, request: Request) -> Answer:  # noqa: PLR0911 - one for each request
        """Do what is asked, and say what was done."""
        match request:
            case protocol.Status():
                return await self.report()
            case _ if self._supervision.stopping.is_set():
                return Refused(("the daemon is stopping",))
            case protocol.Reload():
                return await self.reload()
            case protocol.Forget(room=room, since=since, until=end):
                erased = await self._erasure.forget(room, since, end)
                return Refused(erased.refused) if erased.refused else Forgot(erased.lines, erased.left)
            case protocol.Mute(room=room, seconds=seconds):
                if seconds is not None and not 0 < seconds <= 366 * 86_400:
                    return Refused((f"{seconds:g} seconds: mute for more than 0 s and at most a year",))
                until = None if seconds is None else datetime.fromtimestamp(time.time() + seconds, UTC)
                return await self._for_each(room, lambda one: _mute(one, until))
            case protocol.Unmute(room=room):
                return await self._for_each(room, _unmute)
            case protocol.Rotate(room=room):
                return await self._for_each(room, _rotate)
            case _:
                return Refused((f"{type(request).__name__} has no single answer",))

    async def reload(self) -> Done | Refused:
        """Put the configuration as it is now into force, or say what is wrong with it."""
        with self._told_to_the_manager():
            try:
                return Done(tuple(await self._reloading.reload()))
            except (ConfigError, RateChanged) as error:
                return Refused((*str(error).splitlines(), "nothing has changed: the old configuration goes on"))

    @contextmanager
    def _told_to_the_manager(self) -> Iterator[None]:
        notifier = self._supervision.notifier
        notifier.reloading()
        try:
            yield
        finally:
            notifier.tell(READY=1)

    async def _for_each(self, name: str | None, act: Callable[[RunningRoom], Awaitable[str]]) -> Done | Refused:
        """Do it in the room of that name, or in all of them at once."""
        if name is not None and name not in self._rooms:
            known = ", ".join(sorted(room.name for room in self._rooms))
            return Refused((f"there is no room {name!r}; there is {known}",))
        chosen = list(self._rooms) if name is None else [self._rooms[name]]
        lines: dict[str, str] = {}

        async def act_on(room: RunningRoom) -> None:
            lines[room.name] = "not yet: it still does what was asked"
            with trio.move_on_after(DEVICE_TIMEOUT_S):
                lines[room.name] = await act(room)

        async with trio.open_nursery() as nursery:
            for room in chosen:
                nursery.start_soon(act_on, room)
        return Done(tuple(f"{room.name}: {lines[room.name]}" for room in chosen))

    async def report(self) -> Report:
        """How everything stands."""
        config = self._force.config
        health = {one.name: one for one in self._supervision.health.rooms(trio.current_time())}
        rooms = [await self._room(room, health.get(room.name)) for room in self._rooms]
        return Report(
            version=self._version,
            pid=os.getpid(),
            since=self._since,
            configuration=str(config.path.absolute()),
            state=str(self._state.absolute()),
            rooms=tuple(rooms),
            sinks=tuple(outlet.status() for outlet in self._outlets),
            disk=self._disk(),
            cost=self._cost(),
            stopping=self._supervision.stopping.is_set(),
        )

    def _cost(self) -> CostReport:
        governor, budget = self._governor, self._force.config.budget
        return CostReport(
            currency=budget.currency,
            bill=governor.spent(),
            daily=budget.daily,
            monthly=budget.monthly,
            spent=governor.cap_action,
        )

    async def _room(self, room: RunningRoom, health: RoomHealth | None) -> RoomReport:
        seen, table = self._glance.at(room.name), room.plan.table
        spool = self._spools.get(room.name)
        ended = room.capture.ended or room.over.is_set()
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
            figures=self._figures.of(room.name, datetime.now(UTC)),
            coverage=None if spool is None else await self._coverage(room, spool),
            cost=self._governor.spent(room.name),
        )

    async def _coverage(self, room: RunningRoom, spool: Spool) -> DayCoverage | None:
        """Of the last day. Positions stand still while there is no source, so a day has at most a day of them."""
        rate = room.plan.table.rate
        covers = await self._journal.covered(room.name, max(0, spool.end - round(DAY.total_seconds()) * rate))
        summary = summarize(room.name, rate, covers, since=datetime.now(UTC) - DAY)
        if summary is None:
            return None
        return DayCoverage(round(summary.ratio, 6), {loss.cause: loss.seconds for loss in summary.lost})

    def _disk(self) -> DiskUsage:
        journal = sum(path.stat().st_size for path in self._state.glob("journal.sqlite*"))
        spool = sum(spool.size for spool in self._spools.values())
        return DiskUsage(spool=spool, journal=journal, free=shutil.disk_usage(self._state).free)


async def _mute(room: RunningRoom, until: datetime | None) -> str:
    if room.capture.ended:
        return "has ended; there is nothing to mute"
    await room.capture.close(MuteState(until))
    return f"muted until {until.astimezone():%Y-%m-%d %H:%M:%S}" if until else "muted"


async def _unmute(room: RunningRoom) -> str:
    if room.capture.mute is None:
        return "is not muted"
    await room.capture.open()
    return "listens again"


async def _rotate(room: RunningRoom) -> str:
    return (
        "a new recording has begun"
        if await room.capture.rotate()
        else "does not record now; the next recording is a new one"
    )
