"""The rooms at work: each one a spool, the streaming that reads it, and the capture that writes it.

In a room as in the daemon the indentation is the order of shutdown. Stopping cancels capture alone; the spool's data
ends there, streaming drains what is left in its own time, and the spool is closed last. What a new configuration
changes in a room is begun again alone: a new source under the same session, a new session over the same source.
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
from roomtone.capture.records import MuteState, key
from roomtone.capture.run_control import RunControl
from roomtone.capture.sample_accounting import Reason
from roomtone.capture.sources import Source
from roomtone.capture.supervisor import CaptureSupervisor
from roomtone.concurrency import Restartable
from roomtone.config import model
from roomtone.containment import supervise
from roomtone.journal.journal import Journal
from roomtone.live import Live
from roomtone.llm.analyst import Analyst
from roomtone.monitoring.liveness import Liveness
from roomtone.monitoring.room_state import RoomStates
from roomtone.protocol.parameters import LOCAL, US_MODELS, Streaming
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.secret import Secret
from roomtone.speech.endpoint import Endpoint, Endpoints
from roomtone.speech.gate import GateSettings
from roomtone.speech.session_journal import SessionContext
from roomtone.speech.transcriber import transcribe, withhold
from roomtone.speech.vad import lacks_detector, open_detector
from roomtone.spool.spool import Spool, open_closed_spool, open_spool

DRAIN_TIMEOUT_S = 15.0
"""Seconds that a room which is closed, or begun again, has for the transcript of what it has brought."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class RoomServices(NamedTuple):
    """What the rooms of a daemon share. `folder` is that of their spools; `spools` has those that are open."""

    folder: Path
    spools: dict[str, Spool]
    journal: Journal
    live: Live
    endpoints: Endpoints
    health: Liveness
    glance: RoomStates
    governor: Governor
    analyst: Analyst


class RoomSettings(msgspec.Struct, frozen=True):
    """What a room is to do. Relative paths of its source begin in `folder`; `sync_interval` is in seconds."""

    table: model.Room
    folder: Path
    sync_interval: float
    key: Secret | None

    @property
    def source(self) -> tuple[Source, Path, int]:
        """What differs where the capture must begin again."""
        return self.table.source, self.folder, self.table.frame

    @property
    def speech(self) -> tuple[model.GateConfig, Secret | None, int, dict[str, str]]:
        """What differs where the streaming must begin again, apart from the terms of its sessions."""
        return self.table.gate, self.key, self.table.frame, self.table.speakers


class RunningRoom:
    """One room at work. Making it does nothing; `run` works until the source has ended or `stop` is called."""

    def __init__(self, name: str, plan: RoomSettings, mute: MuteState | None, surroundings: RoomServices) -> None:
        self.name = name
        self.plan = plan
        self.over = trio.Event()
        self.capture = CaptureSupervisor(name, mute)
        self._around = surroundings
        self._room = trio.CancelScope()
        self._capture = trio.CancelScope()
        self._leaving = trio.Event()
        self._streaming = Restartable()
        self._terms = SessionParameters(plan.table.streaming)

    async def run(self) -> None:
        """Record and transcribe. Resources: the spool, which is closed when all in it is settled.

        Contained here: what is wrong with one room, such as a spool that cannot be opened, is no other room's. Errors:
        JournalError.
        """
        try:
            with self._room:
                await supervise(
                    f"Room {self.name}", self._work, self._around.journal, room=self.name, until=self._leaving
                )
        finally:
            self.over.set()

    async def _work(self) -> None:
        health, journal = self._around.health, self._around.journal
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
            health.gap(self.name, "daemon down", trio.current_time(), "the room has failed, and is begun again")
            raise

    def stop(self, patience: float) -> None:
        """Close the source; what it brought may be transcribed for so many seconds. `over` says when all is done."""
        self._leaving.set()
        self._capture.cancel()
        self._room.deadline = min(self._room.deadline, trio.current_time() + patience)

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """No session is open as long as this lasts. Recording goes on, and its transcript follows later."""
        async with self._streaming.held():
            yield

    def change(self, plan: RoomSettings) -> str:
        """Do something else from now on, and say what of it begins again. The rate cannot be changed so."""
        before, self.plan = self.plan, plan
        begun = []
        if before.source != plan.source:
            begun.append("source")
            self.capture.restart()
        if before.speech != plan.speech or not self._terms.change(plan.table.streaming):
            begun.append("streaming")
            self._terms = SessionParameters(plan.table.streaming)
            self._streaming.restart()
        return f"{' and '.join(begun)} begins again" if begun else "goes on"

    @asynccontextmanager
    async def _open_spool(self) -> AsyncIterator[Spool]:
        plan, around = self.plan, self._around
        folder = around.folder / self.name
        async with open_spool(folder, rate=plan.table.rate, sync_interval=plan.sync_interval) as spool:
            around.spools[self.name] = spool
            try:
                yield spool
            finally:
                del around.spools[self.name]

    async def _record(self, spool: Spool, control: RunControl) -> Reason:
        plan, around = self.plan, self._around
        spool.sync_interval = plan.sync_interval
        context = CaptureContext(
            room=self.name,
            source=plan.table.source,
            rate=plan.table.rate,
            frame=plan.table.frame,
            folder=plan.folder,
            spool=spool,
            journal=around.journal,
            live=around.live,
            observer=around.health,
        )
        return await record(context, control)

    async def _transcribe(self, spool: Spool) -> None:
        """Turn what is recorded into text, with the endpoint that the configuration and the budget allow."""
        table, around = self.plan.table, self._around
        given = around.endpoints.choose(self._terms, table.rate, self.plan.key)
        if not given.remote:
            await self._transcribe_at(given, spool)
            return

        async def within_the_budget(course: CapAction | None) -> None:
            match course:
                case None:
                    await self._transcribe_at(given, spool)
                case "local":
                    here = around.endpoints.choose(self._terms, table.rate, None, instead=LOCAL)
                    await self._transcribe_at(here, spool)
                case "record":
                    await withhold(self._desk(given, spool))

        await around.governor.run_within_budget(within_the_budget)

    async def _transcribe_at(self, endpoint: Endpoint, spool: Spool) -> None:
        gate, rate = self.plan.table.gate, self.plan.table.rate
        gating = (
            GateSettings(partial(open_detector, rate), gate.preroll, gate.close_after)
            if gate.mode == "speech"
            else None
        )
        if gating and lacks_detector(rate):
            if endpoint.remote:  # always open would cost what the gate is there to save
                await withhold(self._desk(endpoint, spool))
                return
            gating = None
        await transcribe(
            self._desk(endpoint, spool),
            realtime=self.plan.table.realtime,
            gating=gating,
            leaving=self._leaving,
        )

    def _desk(self, endpoint: Endpoint, spool: Spool) -> SessionContext:
        table, around = self.plan.table, self._around
        return SessionContext(
            room=self.name,
            rate=table.rate,
            frame=table.frame,
            spool=spool,
            journal=around.journal,
            live=around.live,
            endpoint=endpoint,
            terms=self._terms,
            speech_model=table.streaming.speech_model,
            two_finals=has_two_finals(table.streaming),
            seam=trio.Lock(),
            failed=partial(around.glance.failed, self.name),
            meter=around.governor.meter(self.name, self._terms) if endpoint.remote else FREE,
            answers=around.analyst.answers(self.name, table.streaming, remote=endpoint.remote),
            speakers=table.speakers,
            gated=table.gate.mode == "speech",
        )


class Rooms:
    """The rooms at work, by name. Their tasks belong to the nursery."""

    def __init__(self, nursery: trio.Nursery, surroundings: RoomServices) -> None:
        self.closed = False
        """Whether no room can be begun any more."""
        self._nursery = nursery
        self._around = surroundings
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

    async def begin(self, name: str, plan: RoomSettings) -> None:
        """Open a room; one that was muted stays so. One of that name is stopped first, and its successor waits for it:
        a spool has one writer.
        """
        mark = await self._around.journal.mark(key(name, "muted"))
        mute = None if mark is None else msgspec.convert(mark, MuteState)
        room = RunningRoom(name, plan, mute, self._around)
        self._nursery.start_soon(self._run_after, self._last.get(name), room)
        self._last[name] = self._open[name] = room

    async def change(self, name: str, plan: RoomSettings) -> str | None:
        """Have a room do something else, and say what of it begins again; None where it is the same."""
        room = self._open[name]
        if room.plan == plan:
            return None
        is_other_source = room.plan.source != plan.source
        if room.plan.table.rate != plan.table.rate or (room.capture.ended and is_other_source):
            await self.begin(name, plan)
            return "begins again"
        return room.change(plan)

    @asynccontextmanager
    async def quiet(self, name: str, rate: int) -> AsyncIterator[Spool]:
        """The spool of a room, open or closed. As long as this lasts no session is on it, and no model is asked."""
        spool = self._around.spools.get(name)
        if spool is None or name not in self:
            async with self._around.analyst.held(), open_closed_spool(self._around.folder / name, rate) as left:
                yield left
            return
        async with self[name].quiet(), self._around.analyst.held():
            yield spool

    def end(self, name: str) -> None:
        """Close a room that is no more. What it brought may still be transcribed for a while."""
        room = self._open.pop(name)
        room.capture.take_out()
        room.stop(DRAIN_TIMEOUT_S)

    def stop(self, patience: float) -> None:
        """Stop them all, as `OpenRoom.stop` does."""
        for room in self._last.values():
            room.stop(patience)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Rooms are being changed: that none is at work meanwhile is not the end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self._changed.unpark_all()

    async def wait_closed(self) -> None:
        """Return when no room is at work any more; then none can be begun."""
        while self._holds or any(not room.over.is_set() for room in self._last.values()):
            await self._changed.park()
        self.closed = True

    async def _run_after(self, before: RunningRoom | None, room: RunningRoom) -> None:
        if before is not None:
            before.capture.take_out()
            before.stop(DRAIN_TIMEOUT_S)
            await before.over.wait()
        with self._around.health.watch(room.name, trio.current_time()):
            try:
                await room.run()
            finally:
                self._changed.unpark_all()


def has_two_finals(streaming: Streaming) -> bool:
    """Whether the model can send an unformatted and then a formatted final of one turn: see `protocol/turns.py`."""
    return bool(streaming.format_turns) and streaming.speech_model in US_MODELS
