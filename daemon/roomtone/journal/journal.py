"""The journal: every durable event, each sink's cursor, coverage, and marks, in one file.

All facts of one moment go into one transaction, and what `commit` has returned survives a power cut. Delivery reads
committed rows only. Tasks that write concurrently share a transaction, for the fsync is what costs.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.concurrency import RunSync
from roomtone.events import Audio, Durable, Forgotten, Notice, notice
from roomtone.journal.database import Database, Rejected, open_database
from roomtone.journal.records import CoverageSpan, Mark, Record, Refusal, Unwritable
from roomtone.journal.schema import JournalError, is_corrupt

__all__ = ["Journal", "JournalError", "open_journal"]

_MAX_PRUNED_EVENTS = 5000
"""Events removed in one transaction: a commit waits for it, some 20 ms on a small computer."""

_PASSING = {sqlite3.SQLITE_FULL: "journal.full", sqlite3.SQLITE_BUSY: "journal.busy"}
"""Failures that pass: a full disk, and a user's own SQLite shell that holds the file locked."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

T = TypeVar("T")


class _Write:
    """One task's part of a transaction. `scope` shields it from cancellation while the transaction is under way."""

    def __init__(self, work: Callable[[], Any], *, shield: bool) -> None:
        self.work = work
        self.scope = trio.CancelScope(shield=shield)
        self.is_done = False
        self.result: Any = None


class Journal:
    """The open journal. Made by `open_journal`; every method may be called by any task of the loop.

    Errors: a full disk is waited out, for as long as it takes; anything else that is wrong with the file raises
    JournalError, and the daemon ends for its supervisor to start it again. A record with values that cannot be
    stored raises Unwritable for its owner alone, though others share the transaction.
    """

    def __init__(self, path: Path, database: Database, run_sync: RunSync) -> None:
        self.tip = database.tip
        """The seq of the last committed event; 0 before the first."""
        self.renewed = database.corrupt is not None
        """True if a damaged journal was moved aside, so that this one begins anew and knows no sink."""
        self.interrupted = not database.was_closed
        """True if the last run did not end in order, also for a new journal."""
        self.sound = True
        """False once the file was found damaged: it is checked, and moved aside, when it is opened again."""
        self._path = path
        self._file = _identify(path)
        self._database = database
        self._run_sync = run_sync
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(1)
        self._turn = trio.Lock()
        self._writes: dict[_Write, None] = {}
        self._has_room = True
        self._full_since: float | None = None
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def waiting(self) -> float:
        """The seconds that writers have been waiting for a journal that is locked, or on a full disk."""
        return trio.current_time() - self._full_since if self._full_since is not None and self._writes else 0.0

    async def commit(self, *facts: Record) -> tuple[Durable, ...]:
        """Make the facts durable together, and return the events among them with their seq and id.

        Once begun it ends: cancellation comes before or after. Only while the disk is full can it be cancelled, and
        then nothing of it was committed.
        """
        return await self._write(partial(self._database.put, facts))

    async def read(self, after: int, limit: int = 1000) -> list[Durable]:
        """The events after that seq, ascending: at most `limit`, fewer where they are large. Empty: there are none."""
        return await self._read(self._database.events, after, limit)

    async def wait_after(self, seq: int) -> None:
        """Return when there is an event after that seq."""
        await trio.lowlevel.checkpoint()
        while self.tip <= seq:
            await self._readers.park()

    async def select(self, room: str, kinds: Sequence[str], start: int, end: int) -> list[Durable]:
        """The room's events of these kinds that begin in the positions [start, end), by position."""
        return await self._read(self._database.select, room, kinds, start, end)

    async def mark(self, key: str) -> Any:
        """The value under the key, or None."""
        return await self._read(self._database.mark, key)

    async def marks(self, prefix: str) -> dict[str, Any]:
        """The values of all keys that begin with the prefix."""
        return await self._read(self._database.marks, prefix)

    async def covered(self, room: str, start: int = 0) -> list[CoverageSpan]:
        """The states of the room's positions from `start` on, by start; a stretch that contains it is whole."""
        return await self._read(self._database.covers, room, start)

    async def cursors(self) -> dict[str, int]:
        """The seq up to which each sink has acknowledged; sinks that are not configured any more are included."""
        return await self._read(self._database.cursors)

    async def cursor(self, sink: str) -> int | None:
        """The seq up to which the sink has acknowledged; None for a sink that the journal does not know."""
        return (await self.cursors()).get(sink)

    async def advance(self, sink: str, seq: int, *marks: Mark) -> None:
        """The sink has acknowledged everything up to `seq`; the marks in the same transaction. It never goes back."""

        def work() -> None:
            self._database.put_cursor(sink, seq)
            self._database.put(marks)

        await self._write(work)

    async def rewind(self, sink: str, seq: int, *marks: Mark) -> None:
        """The sink gets everything after `seq` once more: the only way back for a cursor, by the operator's order."""

        def work() -> None:
            self._database.rewind(sink, seq)
            self._database.put(marks)

        await self._write(work)

    async def refuse(self, sink: str, seq: int, reason: str) -> None:
        """Set the event aside for this sink, and everything up to it is acknowledged: in one transaction."""
        await self._write(partial(self._database.put_refusal, sink, seq, reason))

    async def refused(self, sink: str, after: int = 0, limit: int = -1) -> list[Refusal]:
        """The events that the sink will never accept, by seq: those after `after`, at most `limit` (-1: all)."""
        return await self._read(self._database.refusals, sink, after, limit)

    async def count_refused(self, sink: str) -> int:
        """The number of events that the sink has refused."""
        return await self._read(self._database.count_refusals, sink)

    async def settle_refused(
        self, sink: str, accepted: Sequence[int], refused: Sequence[tuple[int, str]], *marks: Mark
    ) -> None:
        """Some refused events were accepted after all, others refused again: in one transaction."""

        def work() -> None:
            for seq in accepted:
                self._database.drop_refusal(sink, seq)
            for seq, reason in refused:
                self._database.put_refused_again(sink, seq, reason)
            self._database.put(marks)

        await self._write(work)

    async def data_version(self) -> int:
        """A number that changes whenever another process, such as a command, has written the journal."""
        try:
            return await self._run_sync(self._database.data_version, limiter=self._writing)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    async def drop_sink(self, sink: str) -> None:
        """Forget a sink that is configured no more, so that its cursor holds back pruning no longer."""
        await self._write(partial(self._database.drop_sink, sink))

    async def prune(self, before_seq: int, sinks: Collection[str] | None = None) -> int:
        """Remove the events below `before_seq` that every known sink, or every one of `sinks`, has acknowledged.

        Returns how many.
        """
        total = 0
        while removed := await self._write(partial(self._database.prune, before_seq, _MAX_PRUNED_EVENTS, sinks)):
            total += removed
        return total

    async def prune_coverage(self, before: datetime) -> int:
        """Forget the stretches of coverage that were over before that time. Returns how many."""
        total = 0
        while removed := await self._write(partial(self._database.prune_coverage, before, _MAX_PRUNED_EVENTS)):
            total += removed
        return total

    async def forget(
        self, forgotten: Forgotten, longest: int, *facts: Record, known: Collection[bytes] = ()
    ) -> list[Durable]:
        """Remove the speech there, see `Database.forget`, and commit the records, in one transaction.

        Returns what was removed. Until `compact` it is still in the files.
        """

        def work() -> list[Durable]:
            removed = self._database.forget(forgotten, longest, known)
            self._database.put(facts)
            return removed

        return await self._write(work)

    async def compact(self) -> bool:
        """Leave nothing in the files of what was removed. False where that is to be tried again; see the log for why.

        Writers wait meanwhile: some ten seconds for a gigabyte on a small computer.
        """
        async with self._turn:
            try:
                return await self._run_sync(self._database.compact, limiter=self._writing)
            except sqlite3.Error as error:
                raise self._failure(error) from error

    async def audio_between(self, room: str, since: datetime, until: datetime) -> list[Audio]:
        """The room's segments of audio that began between these times."""
        return await self._read(self._database.audio_between, room, since, until)

    async def undelivered(self, room: str, seq: int, position: int) -> int | None:
        """The first position, from `position` on, of a segment whose event comes after `seq`; None: there is none."""
        return await self._read(self._database.undelivered, room, seq, position)

    async def first_since(self, at: datetime) -> int:
        """The seq of the first event that was committed at that time or later; beyond the tip where there is none."""
        return await self._read(self._database.first_since, at)

    async def extent(self) -> tuple[int, int]:
        """The oldest seq there is, and the bytes in use in the file."""
        return await self._read(self._database.extent)

    async def _read(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self._run_sync(work, *arguments, limiter=self._reading)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    async def check_file(self) -> None:
        """Check that the file is still the one that was opened. Raises JournalError when it was removed or replaced.

        SQLite would go on writing to a file without a name, and all of it would be gone with this process.
        """
        if await self._run_sync(_identify, self._path, limiter=self._reading) != self._file:
            raise JournalError(
                f"the journal {self._path} is gone: its file was removed or replaced while it was in use; nothing that "
                "is written to it now would last"
            )

    async def _write(self, work: Callable[[], T]) -> T:
        """Do the work in a transaction that it may share with others that wait for their turn."""
        await trio.lowlevel.checkpoint_if_cancelled()
        write = _Write(work, shield=self._has_room)
        self._writes[write] = None
        try:
            with write.scope:
                async with self._turn:
                    if not write.is_done:
                        await self._write_all()
        finally:
            self._writes.pop(write, None)
        if isinstance(write.result, Rejected):
            error = write.result.error
            raise Unwritable(f"this cannot be written to the journal: {type(error).__name__}: {error}") from error
        result: T = write.result
        return result

    async def _write_all(self) -> None:
        """One transaction for all writers that wait. A full disk is waited out: nothing is lost, callers wait."""
        backoff = Backoff(first=0.5, longest=30.0)
        while True:
            writes = list(self._writes)
            try:
                results = await self._run_sync(
                    self._database.transact, [write.work for write in writes], limiter=self._writing
                )
            except sqlite3.Error as error:
                await self._wait_out(error, backoff)
            else:
                self._full_since = None
                break
        if backoff.failures:
            log.info("journal.resumed", file=str(self._path), attempts=backoff.failures)
        for write, result in zip(writes, results, strict=True):
            write.result = result
            write.is_done = True
            self._writes.pop(write, None)
        self.tip = self._database.tip
        self._readers.unpark_all()

    async def _wait_out(self, error: sqlite3.Error, backoff: Backoff) -> None:
        event = _PASSING.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if event is None:
            raise self._failure(error) from error
        if self._full_since is None:
            self._full_since = trio.current_time()
        delay = backoff.next()
        if is_worth_saying(backoff.failures):
            log.error(event, file=str(self._path), attempts=backoff.failures, waiting=len(self._writes))
        self._shield(on=False)
        try:
            await trio.sleep(delay)
        finally:
            self._shield(on=True)

    def _shield(self, *, on: bool) -> None:
        """The daemon must be able to stop, whatever the disk: only a transaction itself is shielded."""
        self._has_room = on
        for write in self._writes:
            write.scope.shield = on

    def _failure(self, error: sqlite3.Error) -> JournalError:
        if is_corrupt(error):
            self.sound = False
            return JournalError(f"the journal {self._path} is damaged: {error}; the next start moves it aside")
        return JournalError(f"cannot use the journal {self._path}: {error}; see that its disk works and is writable")


@asynccontextmanager
async def open_journal(path: Path, *, run_sync: RunSync = trio.to_thread.run_sync) -> AsyncIterator[Journal]:
    """The journal in that file, made when it is absent. The caller holds the folder (`paths.lock`).

    `run_sync` gives SQLite two threads, one that writes and one that reads.
    A damaged file is moved aside, and the new journal begins with a notice. Errors: JournalError, for a file of a
    newer version, one that is not a journal, and one that cannot be opened.
    """
    with open_database(path) as database:
        journal = Journal(path, database, run_sync)
        if database.corrupt is not None:
            await journal.commit(_notice_of_damage(path, database.corrupt))
        try:
            yield journal
        finally:
            database.say_clean(is_clean=journal.sound)


def _identify(path: Path) -> tuple[int, int] | None:
    """Which file that is; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _notice_of_damage(path: Path, corrupt: Path) -> Notice:
    text = (
        f"The journal {path} was damaged and was moved to {corrupt}; a new one begins here. "
        "Events that no sink had acknowledged are in the old file only."
    )
    return notice("journal.corrupt", text, at=datetime.now(UTC), severity="error")
