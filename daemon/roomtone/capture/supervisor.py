"""A room's listening: run after run of its recorder, with the device closed in between where the room is muted.

A muted room's device is closed: its process is gone, and nothing that anybody could do in this daemon hears the room.
That is durable (a mark of the journal) and ends by itself when it was for a time, also when the daemon was down then.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog
import trio

from roomtone.capture.outbox import Outbox
from roomtone.capture.recorder import HealthObserver
from roomtone.capture.records import MuteState, mute_records, unmute_records
from roomtone.capture.recovery import last_stop
from roomtone.capture.run_control import RunControl
from roomtone.capture.sample_accounting import Reason
from roomtone.events import Cause
from roomtone.journal.journal import Journal
from roomtone.journal.records import Record
from roomtone.spool.spool import Spool

CLOCK_CHECK_INTERVAL_S = 15.0
"""Seconds between two looks at the clock: neither its steps nor the machine's sleep keep a room muted for longer."""
JOURNAL_TIMEOUT_S = 5.0
"""Seconds that the journal may take before the room listens again without it: audio is worth more than a fact."""

FINAL_COMMIT_TIMEOUT_S = 1.0
"""Seconds that the journal may take for what is still to be said when the room is left."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class CaptureSupervisor:
    """One room's. Making it does nothing; `run` works until the source has ended. `utc` gives Unix seconds.

    `mute` is what holds, None where the room listens; `ended`: the source has no more.
    """

    def __init__(self, room: str, mute: MuteState | None, utc: Callable[[], float] = time.time) -> None:
        self.mute = mute
        self.ended = False
        self._requested = mute
        self._room = room
        self._utc = utc
        self._outbox = Outbox(room)
        self._control = RunControl(self._outbox)
        self._is_taken_out = False
        self._changed = trio.lowlevel.ParkingLot()

    async def run(
        self,
        record: Callable[[RunControl], Awaitable[Reason]],
        *,
        spool: Spool,
        journal: Journal,
        observer: HealthObserver,
    ) -> None:
        """Record, one run after the other, until the source has ended. Errors: those of `record` and of the journal."""
        try:
            await self._run(record, spool, journal, observer)
        finally:
            self._outbox.hurry()
            with trio.CancelScope(shield=True):
                await self._outbox.commit(journal, [], FINAL_COMMIT_TIMEOUT_S)

    async def _run(
        self,
        record: Callable[[RunControl], Awaitable[Reason]],
        spool: Spool,
        journal: Journal,
        observer: HealthObserver,
    ) -> None:
        while True:
            if self.mute is not None:
                observer.gap(self._room, "muted", trio.current_time())
                await self._stay_muted(spool, journal)
            self._control = RunControl(self._outbox)
            if self._is_taken_out:
                self._control.take_out()
            match await record(self._control):
                case "ended":
                    self.ended = True
                    return
                case "muted":
                    log.info("room.muted", room=self._room)
                    self._take(self._control.mute)

    async def close(self, mute: MuteState) -> None:
        """Mute the room. Returns when its source is gone and that is in the journal."""
        self._request(mute)
        if self.mute is None:
            self._control.close(mute)
        await self._wait_settled()

    async def open(self) -> None:
        """Unmute the room. Returns when it is about to open its source."""
        self._request(None)
        await self._wait_settled()

    def take_out(self) -> None:
        """The room is configured no more, and about to be stopped: its absence is not the daemon's."""
        self._is_taken_out = True
        self._control.take_out()

    def restart(self) -> None:
        """Leave the source, and open what `record` opens now."""
        if self.mute is None:
            self._control.replace()

    async def rotate(self) -> bool:
        """Have a new recording begin, without the loss of a sample. False where none is going on."""
        return self.mute is None and await self._control.rotate()

    def _request(self, mute: MuteState | None) -> None:
        self._requested = mute
        self._changed.unpark_all()

    def _take(self, mute: MuteState | None) -> None:
        self.mute = mute
        self._changed.unpark_all()

    async def _wait_settled(self) -> None:
        while self.mute != self._requested and not self.ended:
            await self._changed.park()

    async def _stay_muted(self, spool: Spool, journal: Journal) -> None:
        """Until its time has come, or somebody wishes it."""
        spool.rest()
        up, over = self._now(), None
        while (wish := self._requested) is not None:
            if wish != self.mute:
                await self._commit(journal, mute_records(self._room, wish, spool.end, self._now()))
                self._take(wish)
            if wish.until is not None and wish.until <= self._now():
                over = wish.until
                break
            with trio.move_on_after(self._until_next_look(wish)):
                await self._changed.park()
            await self._commit(journal, [])
        await self._outbox.drain(journal)  # the end of the last run may wait there
        stop = await last_stop(self._room, journal)
        position = spool.end if stop is None else stop.position
        cause: Cause = "daemon down" if over is not None and over < up else "device"
        await self._commit(journal, unmute_records(self._room, stop, position, over or self._now(), cause))
        log.info("room.unmuted", room=self._room)
        self._requested = None
        self._take(None)

    def _until_next_look(self, mute: MuteState) -> float:
        return (
            CLOCK_CHECK_INTERVAL_S
            if mute.until is None
            else min(CLOCK_CHECK_INTERVAL_S, (mute.until - self._now()).total_seconds())
        )

    async def _commit(self, journal: Journal, records: Sequence[Record]) -> None:
        await self._outbox.commit(journal, records, JOURNAL_TIMEOUT_S)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._utc(), UTC)
