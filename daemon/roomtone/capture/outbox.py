"""The records that a journal on a full disk has not taken yet. They stay in order, and none is dropped while the daemon
runs, over all runs of the room's recorder.
"""

from collections.abc import Sequence

import structlog
import trio

from roomtone.journal.journal import Journal
from roomtone.journal.records import Record

COMMIT_RETRY_S = 5.0
"""Seconds between two attempts to commit where no new records come."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Outbox:
    """The pending records of one room. If the daemon ends first, `recovery.recover` makes them again from the spool."""

    def __init__(self, room: str) -> None:
        self._room = room
        self._records: list[Record] = []
        self._retry = 0.0

    def __len__(self) -> int:
        return len(self._records)

    async def commit(self, journal: Journal, records: Sequence[Record], timeout_s: float) -> None:
        """Commit what is pending and then `records`, within `timeout_s` seconds; else they are pending too.

        Audio goes first, so a record may be committed after the audio that follows it: after a crash, `recover` sorts
        that out.
        """
        self._records += records
        if not self._records or (not records and trio.current_time() < self._retry):
            return
        with trio.move_on_after(timeout_s) as attempt:
            await self.drain(journal)
        if attempt.cancelled_caught:
            self._retry = trio.current_time() + COMMIT_RETRY_S
            log.error("journal.waiting", room=self._room, facts=len(self._records))

    def hurry(self) -> None:
        """Have the next `commit` try the journal, however short ago the last attempt was."""
        self._retry = 0.0

    async def drain(self, journal: Journal) -> None:
        """Commit what is pending, however long it takes."""
        if pending := tuple(self._records):
            await journal.commit(*pending)
            del self._records[: len(pending)]
