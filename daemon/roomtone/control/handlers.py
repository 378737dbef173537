"""The daemon's answers to the requests that commands send over the control socket."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog
import trio

from roomtone.capture.records import MuteState
from roomtone.capture.recovery import RateChanged
from roomtone.config.toml_file import ConfigError
from roomtone.control import protocol
from roomtone.control.protocol import Answer, Done, Forgot, Refused, Request
from roomtone.control.reload import Reloader
from roomtone.control.status import StatusReporter
from roomtone.forget.eraser import Eraser
from roomtone.monitoring.sd_notify import Supervision
from roomtone.rooms import Rooms, RunningRoom

DEVICE_TIMEOUT_S = 30.0
"""Seconds that a device may take to close, with its facts in the journal, before the answer says that it still does."""
MAX_MUTE_S = 366 * 86_400

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class RequestHandler:
    """Answers requests; `control/server.py` receives them."""

    def __init__(
        self, reporter: StatusReporter, reloader: Reloader, eraser: Eraser, rooms: Rooms, supervision: Supervision
    ) -> None:
        self._reporter = reporter
        self._reloader = reloader
        self._eraser = eraser
        self._rooms = rooms
        self._supervision = supervision

    def has_room(self, name: str) -> bool:
        """True if there is such a room."""
        return name in self._rooms

    async def answer(self, request: Request) -> Answer:  # noqa: PLR0911 - one for each request
        """Carry out the request, and report what was done."""
        match request:
            case protocol.Status():
                return await self._reporter.report()
            case _ if self._supervision.stopping.is_set():
                return Refused(("the daemon is stopping",))
            case protocol.Reload():
                return await self.reload()
            case protocol.Forget(room=room, since=since, until=end):
                erased = await self._eraser.forget(room, since, end)
                return Refused(erased.refused) if erased.refused else Forgot(erased.lines, erased.left)
            case protocol.Mute(room=room, seconds=seconds):
                if seconds is not None and not 0 < seconds <= MAX_MUTE_S:
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
        """Read the configuration again and apply it, or report what is wrong with it."""
        notifier = self._supervision.notifier
        notifier.reloading()
        try:
            return Done(tuple(await self._reloader.reload()))
        except (ConfigError, RateChanged) as error:
            return Refused((*str(error).splitlines(), "nothing has changed: the old configuration stays active"))
        finally:
            notifier.send(READY=1)

    async def _for_each(self, name: str | None, act: Callable[[RunningRoom], Awaitable[str]]) -> Done | Refused:
        """Do it in the room of that name, or in all rooms concurrently."""
        if name is not None and name not in self._rooms:
            known = ", ".join(sorted(room.name for room in self._rooms))
            return Refused((f"there is no room {name!r}; the rooms are {known}",))
        chosen = list(self._rooms) if name is None else [self._rooms[name]]
        lines: dict[str, str] = {}

        async def act_on(room: RunningRoom) -> None:
            lines[room.name] = "not yet: this takes longer than expected, and goes on"
            with trio.move_on_after(DEVICE_TIMEOUT_S):
                lines[room.name] = await act(room)

        async with trio.open_nursery() as nursery:
            for room in chosen:
                nursery.start_soon(act_on, room)
        return Done(tuple(f"{room.name}: {lines[room.name]}" for room in chosen))


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
