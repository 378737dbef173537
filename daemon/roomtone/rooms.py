"""The rooms that run: each has a spool, the capture that writes it, and the streaming that reads it.

In a room, as in the daemon, the indentation is the order of shutdown. Stopping cancels only capture; then the spool
gets no more data, streaming drains the rest in its own time, and the spool is closed last. A new configuration restarts
only what it changes: a new source under the same session, or a new session over the same source.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import trio

from roomtone.budget.governor import FREE, Governor
from roomtone.budget.limits import CapAction
from roomtone.capture.recorder import CaptureContext, record
from roomtone.capture.records import MuteState
from roomtone.capture.run_control import RunControl
from roomtone.capture.sample_accounting import Reason
from roomtone.capture.sources import Source
from roomtone.capture.supervisor import CaptureSupervisor
from roomtone.concurrency import Restartable
from roomtone.config import model
from roomtone.config.active import ActiveConfig
from roomtone.containment import supervise
from roomtone.journal.journal import Journal
from roomtone.journal.keys import room_key
from roomtone.live import Live
from roomtone.llm.analyst import Analyst
from roomtone.monitoring.liveness import Liveness
from roomtone.monitoring.room_state import RoomStates
from roomtone.protocol.parameters import LOCAL, US_MODELS, Streaming
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.secret import Secret
from roomtone.speech.endpoint import Endpoint, Endpoints
from roomtone.speech.gate import GateSettings
from roomtone.speech.session_context import SessionContext
from roomtone.speech.transcriber import transcribe, withhold
from roomtone.speech.vad import lacks_detector, open_detector
from roomtone.spool.spool import Spool, open_closed_spool, open_spool

DRAIN_TIMEOUT_S = 15.0
"""Seconds that a room has for its transcript when it is closed or restarted."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class RoomServices(NamedTuple):
    """Shared by the rooms of a daemon. `folder` holds their spools; `spools` has those that are open."""

    folder: Path
    spools: dict[str, Spool]
    journal: Journal
    live: Live
    endpoints: Endpoints
    health: Liveness
    room_states: RoomStates
    governor: Governor
    analyst: Analyst


class RoomSettings(msgspec.Struct, frozen=True):
    """The settings of a room. Relative paths of its source begin in `folder`; `sync_interval` is in seconds."""

    table: model.Room
    folder: Path
    sync_interval: float
    key: Secret | None

    @classmethod
    def of(cls, active: ActiveConfig, table: model.Room) -> "RoomSettings":
        """The settings of the room with this table."""
        return cls(table, active.config.folder, active.config.service.sync_interval, active.key)

    @property
    def source(self) -> tuple[Source, Path, int]:
        """Capture must be restarted when this changes."""
        return self.table.source, self.folder, self.table.frame

    @property
    def speech(self) -> tuple[model.GateConfig, Secret | None, int, dict[str, str]]:
        """Streaming must be restarted when this changes, and for some parameters of its sessions."""
        return self.table.gate, self.key, self.table.frame, self.table.speakers


class RunningRoom:
    """One room. Making it does nothing; `run` works until the source has ended or `stop` is called."""

    def __init__(self, name: str, settings: RoomSettings, mute: MuteState | None, services: RoomServices) -> None:
        self.name = name
        self.settings = settings
        self.closed = trio.Event()
        self.capture = CaptureSupervisor(name, mute)
        self._services = services
        self._room = trio.CancelScope()
        self._capture = trio.CancelScope()
        self._leaving = trio.Event()
        self._streaming = Restartable()
        self._parameters = SessionParameters(settings.table.streaming)

    async def run(self) -> None:
        """Record and transcribe. Resources: the spool, which is closed when all in it is settled.

        Contained here: a failure of one room, such as a spool that cannot be opened, is not a failure of the others.
        Errors: JournalError.
        """
        try:
            with self._room:
                await supervise(
                    f"Room {self.name}", self._work, self._services.journal, room=self.name, until=self._leaving
                )
        finally:
            self.closed.set()

    async def _work(self) -> None:
        health, journal = self._services.health, self._services.journal
        self._capture = trio.CancelScope()
        if self._leaving.is_set():
            self._capture.cancel()
        try:
            async with self._open_spool() as spool, trio.open_nursery() as nursery:
                transcribe = partial(self._transcribe, spool)
                streaming = partial(supervise, f"Streaming of {self.name}", transcribe, journal, room=self.name)
                nursery.start_soon(self._streaming.run, streaming)
                try:
                    with self._capture:
                        await self.capture.run(
                            partial(self._record, spool), spool=spool, journal=journal, observer=health
                        )
                finally:
                    spool.end_of_data()
                    health.ended(self.name, trio.current_time())
        except Exception:
            health.gap(self.name, "daemon down", trio.current_time(), "the room has failed, and is restarted")
            raise

    def stop(self, timeout_s: float) -> None:
        """Close the source, and transcribe what it brought for at most `timeout_s` seconds. Then `closed` is set."""
        self._leaving.set()
        self._capture.cancel()
        self._room.deadline = min(self._room.deadline, trio.current_time() + timeout_s)

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """No session is open until the context is left. Recording goes on, and its transcript follows later."""
        async with self._streaming.held():
            yield

    def change(self, settings: RoomSettings) -> str:
        """Apply other settings, all but the rate. Returns which part is restarted, in words."""
        before, self.settings = self.settings, settings
        restarted = []
        if before.source != settings.source:
            restarted.append("source")
            self.capture.restart()
        if before.speech != settings.speech or not self._parameters.change(settings.table.streaming):
            restarted.append("streaming")
            self._parameters = SessionParameters(settings.table.streaming)
            self._streaming.restart()
        return f"{' and '.join(restarted)} begins again" if restarted else "goes on"

    @asynccontextmanager
    async def _open_spool(self) -> AsyncIterator[Spool]:
        settings, services = self.settings, self._services
        folder = services.folder / self.name
        async with open_spool(folder, rate=settings.table.rate, sync_interval=settings.sync_interval) as spool:
            services.spools[self.name] = spool
            try:
                yield spool
            finally:
                del services.spools[self.name]

    async def _record(self, spool: Spool, control: RunControl) -> Reason:
        settings, services = self.settings, self._services
        spool.sync_interval = settings.sync_interval
        context = CaptureContext(
            room=self.name,
            source=settings.table.source,
            rate=settings.table.rate,
            frame=settings.table.frame,
            folder=settings.folder,
            spool=spool,
            journal=services.journal,
            live=services.live,
            observer=services.health,
        )
        return await record(context, control)

    async def _transcribe(self, spool: Spool) -> None:
        """Transcribe what is recorded, with the endpoint that the configuration and the budget allow."""
        rate, services = self.settings.table.rate, self._services
        configured = services.endpoints.choose(self._parameters, rate, self.settings.key)
        if not configured.remote:
            await self._transcribe_at(configured, spool)
            return

        async def within_the_budget(cap_action: CapAction | None) -> None:
            match cap_action:
                case None:
                    await self._transcribe_at(configured, spool)
                case "local":
                    local = services.endpoints.choose(self._parameters, rate, None, instead=LOCAL)
                    await self._transcribe_at(local, spool)
                case "record":
                    await withhold(self._context(configured, spool))

        await services.governor.run_within_budget(within_the_budget)

    async def _transcribe_at(self, endpoint: Endpoint, spool: Spool) -> None:
        gate, rate = self.settings.table.gate, self.settings.table.rate
        gating = (
            GateSettings(partial(open_detector, rate), gate.preroll, gate.close_after)
            if gate.mode == "speech"
            else None
        )
        if gating and lacks_detector(rate):
            if endpoint.remote:  # a session that is always open would cost what the gate is there to save
                await withhold(self._context(endpoint, spool))
                return
            gating = None
        await transcribe(
            self._context(endpoint, spool),
            realtime=self.settings.table.realtime,
            gating=gating,
            leaving=self._leaving,
        )

    def _context(self, endpoint: Endpoint, spool: Spool) -> SessionContext:
        table, services = self.settings.table, self._services
        return SessionContext(
            room=self.name,
            rate=table.rate,
            frame=table.frame,
            spool=spool,
            journal=services.journal,
            live=services.live,
            endpoint=endpoint,
            parameters=self._parameters,
            speech_model=table.streaming.speech_model,
            two_finals=has_two_finals(table.streaming),
            seam=trio.Lock(),
            report_failure=partial(services.room_states.failed, self.name),
            meter=services.governor.meter(self.name, self._parameters) if endpoint.remote else FREE,
            answers=services.analyst.answers(self.name, table.streaming, remote=endpoint.remote),
            speakers=table.speakers,
            gated=table.gate.mode == "speech",
        )


class Rooms:
    """The rooms that run, by name. Their tasks belong to the nursery."""

    def __init__(self, nursery: trio.Nursery, services: RoomServices) -> None:
        self.closed = False
        """True if no room can be begun any more."""
        self._nursery = nursery
        self._services = services
        self._open: dict[str, RunningRoom] = {}
        self._last: dict[str, RunningRoom] = {}
        self._holds = 0
        self._changed = trio.lowlevel.ParkingLot()

    def __iter__(self) -> Iterator[RunningRoom]:
        return iter(self._open.values())

    def __getitem__(self, name: str) -> RunningRoom:
        return self._open[name]

    def __contains__(self, name: object) -> bool:
        return name in self._open

    async def begin(self, name: str, settings: RoomSettings) -> None:
        """Open a room. A room that was muted stays muted. If a room of that name runs, it is stopped, and the new one
        waits for its end: a spool has one writer.
        """
        mark = await self._services.journal.mark(room_key(name, "muted"))
        mute = None if mark is None else msgspec.convert(mark, MuteState)
        room = RunningRoom(name, settings, mute, self._services)
        self._nursery.start_soon(self._run_after, self._last.get(name), room)
        self._last[name] = self._open[name] = room

    async def change(self, name: str, settings: RoomSettings) -> str | None:
        """Apply other settings to a room. Returns which part is restarted, in words; None if nothing has changed."""
        room = self._open[name]
        if room.settings == settings:
            return None
        is_other_source = room.settings.source != settings.source
        if room.settings.table.rate != settings.table.rate or (room.capture.ended and is_other_source):
            await self.begin(name, settings)
            return "begins again"
        return room.change(settings)

    @asynccontextmanager
    async def quiet(self, name: str, rate: int) -> AsyncIterator[Spool]:
        """The spool of a room, open or closed. Until the context is left, no session reads it and no model is asked."""
        spool = self._services.spools.get(name)
        if spool is None or name not in self:
            async with self._services.analyst.held(), open_closed_spool(self._services.folder / name, rate) as left:
                yield left
            return
        async with self[name].quiet(), self._services.analyst.held():
            yield spool

    def end(self, name: str) -> None:
        """Close a room that is not configured any more. Its transcript has DRAIN_TIMEOUT_S seconds."""
        room = self._open.pop(name)
        room.capture.take_out()
        room.stop(DRAIN_TIMEOUT_S)

    def stop(self, timeout_s: float) -> None:
        """Stop all rooms, as `RunningRoom.stop` does."""
        for room in self._last.values():
            room.stop(timeout_s)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Rooms are being changed: the daemon does not end while none runs in between."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self._changed.unpark_all()

    async def wait_closed(self) -> None:
        """Return when no room runs any more; then none can be begun."""
        while self._holds or any(not room.closed.is_set() for room in self._last.values()):
            await self._changed.park()
        self.closed = True

    async def _run_after(self, before: RunningRoom | None, room: RunningRoom) -> None:
        if before is not None:
            before.capture.take_out()
            before.stop(DRAIN_TIMEOUT_S)
            await before.closed.wait()
        with self._services.health.watch(room.name, trio.current_time()):
            try:
                await room.run()
            finally:
                self._changed.unpark_all()


def has_two_finals(streaming: Streaming) -> bool:
    """True if the model can send an unformatted and then a formatted final of one turn: see `protocol/turns.py`."""
    return bool(streaming.format_turns) and streaming.speech_model in US_MODELS
