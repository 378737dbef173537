"""The capture of a room: run after run of its recorder, with the device closed in between while the room is muted.

A muted room has no source process, so that nothing in this daemon can hear the room. Mute is durable (a mark of the
journal). A mute for some time ends by itself, also if the daemon is down at that moment.
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
"""Seconds between two looks at the clock: neither its steps nor the machine's sleep keep a room muted longer."""
JOURNAL_TIMEOUT_S = 5.0
"""Seconds that the journal may take before the room is recorded again without it: audio is worth more than a record."""

FINAL_COMMIT_TIMEOUT_S = 1.0
"""Seconds that the journal may take for pending records when the room is left."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class CaptureSupervisor:
    """One room's capture. Making it does nothing; `run` works until the source has ended. `utc` gives Unix seconds.

    `mute` is the state that is in force, None if the room is recorded; `ended`: the source has ended for good.
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
            if self._requested is not None:  # while no run could be told: in a back-off, or while one was finishing
                self._control.close(self._requested)
            match await record(self._control):
                case "ended":
                    self.ended = True
                    self._changed.unpark_all()
                    return
                case "muted":
                    log.info("room.muted", room=self._room)
                    self._take(self._control.mute)

    async def close(self, mute: MuteState) -> None:
        """Mute the room. Returns when its source, with all that it has started, is gone and the mute is journaled."""
        self._request(mute)
        if self.mute is None:
            self._control.close(mute)
        await self._wait_settled()

    async def open(self) -> None:
        """Unmute the room. Returns when it is about to open its source."""
        self._request(None)
        await self._wait_settled()

    def take_out(self) -> None:
        """Prepare to stop because the room is no longer configured: the time after that is not "daemon down"."""
        self._is_taken_out = True
        self._control.take_out()

    def restart(self) -> None:
        """Close the source, and open the one that `record` opens now."""
        if self.mute is None:
            self._control.replace()

    async def rotate(self) -> bool:
        """Begin a new recording without losing a sample. False if nothing is being recorded."""
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
        """Return when the time of the mute is over, or the user unmutes the room."""
        spool.rest()
        up, over = self._now(), None
        while (requested := self._requested) is not None:
            if requested != self.mute:
                await self._commit(journal, mute_records(self._room, requested, spool.end, self._now()))
                self._take(requested)
            if requested.until is not None and requested.until <= self._now():
                over = requested.until
                break
            with trio.move_on_after(self._until_next_look(requested)):
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
