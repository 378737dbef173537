"""The facts that a room has to say and that a journal on a full disk has not taken yet: in order, and none is dropped
while the daemon runs, over all runs of the room's recorder.
"""

from collections.abc import Sequence

import structlog
import trio

from roomtone.journal.journal import Journal
from roomtone.journal.records import Record

COMMIT_RETRY_S = 5.0
"""Seconds until the journal is asked again by somebody who has nothing new to say."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Outbox:
    """One room's. What waits when the daemon ends is made up for by `recovery.recover`, from the spool."""

    def __init__(self, room: str) -> None:
        self._room = room
        self._records: list[Record] = []
        self._retry = 0.0

    def __len__(self) -> int:
        return len(self._records)

    async def commit(self, journal: Journal, records: Sequence[Record], timeout_s: float) -> None:
        """Commit what waits, and then the facts, within so many seconds; else they wait too.

        Audio is worth more than the order of a fact and the audio after it: what a crash makes of that, `recover` sees.
        """
        self._records += records
        if not self._records or (not records and trio.current_time() < self._retry):
            return
        with trio.move_on_after(timeout_s) as waiting:
            await self.drain(journal)
        if waiting.cancelled_caught:
            self._retry = trio.current_time() + COMMIT_RETRY_S
            log.error("journal.waiting", room=self._room, facts=len(self._records))

    def hurry(self) -> None:
        """Have the next `commit` ask the journal, whenever it was asked last."""
        self._retry = 0.0

    async def drain(self, journal: Journal) -> None:
        """Commit what waits, however long it takes."""
        if waiting := tuple(self._records):
            await journal.commit(*waiting)
            del self._records[: len(waiting)]
