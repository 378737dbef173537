"""The rooms at work: each one a spool, the streaming that reads it, and the capture that writes it.

In a room as in the daemon the indentation is the order of shutdown. Stopping cancels capture alone; the spool's data
ends there, streaming drains what is left in its own time, and the spool is closed last. What a new configuration
changes in a room is begun again alone: a new source under the same session, a new session over the same source.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import trio

from roomtone import config
from roomtone.capture.recorder import record
from roomtone.capture.spool import Spool, open_spool
from roomtone.journal import Journal
from roomtone.live import Live
from roomtone.secret import Secret
from roomtone.speech.endpoint import Endpoints
from roomtone.speech.minutes import Desk
from roomtone.speech.parameters import US_MODELS, Streaming
from roomtone.speech.transcriber import transcribe

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Surroundings(NamedTuple):
    """What the rooms of a daemon share. `folder` is that of their spools; `spools` has those that are open."""

    folder: Path
    spools: dict[str, Spool]
    journal: Journal
    live: Live
    endpoints: Endpoints


class Plan(msgspec.Struct, frozen=True):
    """What a room is to do. Relative paths of its source begin in `folder`; `sync_interval` is in seconds."""

    table: config.Room
    folder: Path
    sync_interval: float
    key: Secret | None


class Again:
    """Work that can be begun again from outside: it is cancelled, and called anew."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()

    def begin_again(self) -> None:
        self._scope.cancel()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work until it returns by itself."""
        while True:
            with self._scope as scope:
                await work()
            if not scope.cancelled_caught:
                return
            self._scope = trio.CancelScope()


class OpenRoom:
    """One room at work. Making it does nothing; `run` works until the source has ended or `stop` is called."""

    def __init__(self, name: str, plan: Plan, surroundings: Surroundings) -> None:
        self.name = name
        self.plan = plan
        self.over = trio.Event()
        self._around = surroundings
        self._room = trio.CancelScope()
        self._capture = trio.CancelScope()
        self._recording = Again()
        self._streaming = Again()

    async def run(self) -> None:
        """Record and transcribe. Resources: the spool, which is closed when all in it is settled.

        Errors: RateChanged, and those of the journal and of the spool's folder.
        """
        try:
            with self._room:
                async with self._open_spool() as spool, trio.open_nursery() as streaming:
                    streaming.start_soon(self._streaming.run, lambda: self._transcribe(spool))
                    try:
                        with self._capture:
                            await self._recording.run(lambda: self._record(spool))
                    finally:
                        spool.end_of_data()
        finally:
            self.over.set()

    def stop(self, patience: float) -> None:
        """Close the source; what it brought may be transcribed for so many seconds. `over` says when all is done."""
        self._capture.cancel()
        self._room.deadline = min(self._room.deadline, trio.current_time() + patience)

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

    async def _record(self, spool: Spool) -> None:
        plan, around = self.plan, self._around
        await record(
            self.name,
            plan.table.source,
            rate=plan.table.rate,
            frame=plan.table.frame,
            folder=plan.folder,
            spool=spool,
            journal=around.journal,
            live=around.live,
        )

    async def _transcribe(self, spool: Spool) -> None:
        table, around = self.plan.table, self._around
        desk = Desk(
            room=self.name,
            rate=table.rate,
            frame=table.frame,
            spool=spool,
            journal=around.journal,
            live=around.live,
            endpoint=around.endpoints.choose(table.streaming, table.rate, self.plan.key),
            speech_model=table.streaming.speech_model,
            two_finals=_has_two_finals(table.streaming),
        )
        await transcribe(desk, realtime=table.realtime)


class Rooms:
    """The rooms that are open, by name. Their tasks belong to the nursery."""

    def __init__(self, nursery: trio.Nursery, surroundings: Surroundings) -> None:
        self._nursery = nursery
        self._surroundings = surroundings
        self._open: dict[str, OpenRoom] = {}

    def __iter__(self) -> Iterator[OpenRoom]:
        return iter(self._open.values())

    def begin(self, name: str, plan: Plan) -> None:
        """Open a room."""
        room = self._open[name] = OpenRoom(name, plan, self._surroundings)
        self._nursery.start_soon(room.run)

    def stop(self, patience: float) -> None:
        """Stop them all, as `OpenRoom.stop` does."""
        for room in self:
            room.stop(patience)


def _has_two_finals(streaming: Streaming) -> bool:
    """Whether the model can send an unformatted and then a formatted final of one turn: see `speech/turns.py`."""
    return bool(streaming.format_turns) and streaming.speech_model in US_MODELS
