"""The spool: a room's audio on disk, and the queue between capture and everything that reads audio.

Its one writer appends; any number of readers ask for a position and get the first recorded audio there: from the
memory of the last 30 s when they keep up, from the files when they lag. So overflow and recovery are the normal path,
one number further behind.

- A block for which `append` has returned is counted once. One that raised OSError is not counted, and nothing of it is
  left in the file.
- Blocks are written immediately and made durable once per `sync_interval`, in the background, and when a segment is
  closed. A power cut loses at most what was appended since.
- A position is given once. What was lost is skipped, and never filled.

The disk is accessed in worker threads of the spool's own, so that a slow disk does not stop the loop and stuck plugins
cannot take its threads.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import structlog
import trio

from roomtone.concurrency import RunSync
from roomtone.spool.disk import Disk, OpenSegment, make_folder
from roomtone.spool.memory import MEMORY_S, Chunk, Memory, Piece
from roomtone.spool.segment import SAMPLE_BYTES, Index, Segment, name_segment, recover_segments

__all__ = ["Disk", "Piece", "Segment", "Spool", "open_spool"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Spool:
    """One room's audio. Made by `open_spool`; one task appends and cuts, any may read.

    `rate` is in Hz; `end` is where the next sample goes; `sync_interval` is in seconds; `unsynced` counts the times
    that the disk did not confirm a sync; `resting`: nothing will be written for a while; `ended`: nothing more will be.
    """

    def __init__(
        self,
        folder: Path,
        rate: int,
        *,
        segment: int,
        sync_interval: float,
        disk: Disk,
        run_sync: RunSync,
        segments: list[Segment],
    ) -> None:
        self.rate = rate
        self.sync_interval = sync_interval
        self.unsynced = 0
        self.ended = False
        self.resting = False
        self._folder = folder
        self._length = segment
        self._disk = disk
        self._run_sync = run_sync
        self._threads = trio.CapacityLimiter(4)
        self._index = Index(folder)
        for one in segments:
            self._index.add(one)
        self._newest = segments[-1] if segments else None
        self._recorded = self._newest.end if self._newest else 0
        self._dated: tuple[int, datetime] | None = None
        self.end = self._recorded
        self._fresh = False
        self._lost: list[Segment] = []
        self._open_segment: OpenSegment | None = None
        self._memory = Memory(max(int(MEMORY_S * rate), segment))
        self._closing = trio.Lock()
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def first(self) -> int:
        """The oldest position on disk; `end` when there is none."""
        if self._index:
            return self._index[0].position
        return self._open_segment.position if self._open_segment else self.end

    async def append(self, audio: bytes, at: datetime) -> Segment | None:
        """Record a block whose first sample was taken `at` (UTC). Returns the segment that this has closed, if any.

        It is recorded whole or not counted, also when cancelled. Raises OSError if the disk refuses it: then nothing of
        it is left, and the next append tries again.
        """
        if not audio or len(audio) % SAMPLE_BYTES:
            raise ValueError(f"{len(audio)} bytes are not a block of whole 16-bit samples")
        segment = None
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            segment_file = await self._write(audio, at)
            if segment_file.samples >= self._length:
                segment = await self._close_segment()
        return segment

    async def cut(self, *, fresh: bool = False, skip: int = 0) -> Segment | None:
        """Close the open segment early and return it, if there is one; move the position on by `skip` lost samples.

        `fresh`: time without a source lies before the next segment.
        """
        if skip < 0:
            raise ValueError("a position never goes back")
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            segment = await self._close_segment()
        self._fresh = self._fresh or fresh
        self.end += skip
        return segment

    def end_of_data(self) -> None:
        """Declare that nothing more will be written: readers come to an end."""
        self.ended = True
        self._readers.unpark_all()

    def rest(self) -> None:
        """Declare that nothing will be written for a while, so that an open session can be ended. A write ends that."""
        self.resting = True
        self._readers.unpark_all()

    async def read(self, position: int, limit: int) -> Piece | None:
        """The first recorded audio at or after `position`: at most `limit` samples, without a break inside.

        None if there is none yet: see `wait_past`. A file that cannot be read is left out, with an error in the log:
        one bad file must not stop the rest.
        """
        await trio.lowlevel.checkpoint()
        while segment := self._on_disk(position):
            start = max(position, segment.position)
            audio = await self._load(segment, start, min(limit, segment.end - start))
            if audio:
                return Piece(start, audio, segment.fresh and start == segment.position)
        return self._memory.read(position, limit)

    async def wait_past(self, position: int, *, through_rest: bool = True) -> bool:
        """Wait until audio at or after `position` is recorded. False if it never will be.

        Without `through_rest`: False also if it will not be for a while.
        """
        await trio.lowlevel.checkpoint()
        while self._recorded <= position and not (self.ended or (self.resting and not through_rest)):
            await self._readers.park()
        return self._recorded > position

    def at(self, position: int) -> datetime:
        """UTC of the sample at `position`, by the time of its segment, or of the nearest one that is known.

        Without audio, by the time that was given to `date`. Raises LookupError if none was.
        """
        segment = self._open_segment.segment() if self._open_segment else self._newest
        if segment is None:
            if self._dated is None:
                raise LookupError("the spool has no audio yet")
            dated, at = self._dated
            return at + timedelta(seconds=(position - dated) / self.rate)
        if position < segment.position and len(self._index):
            segment = self._index.before(position) or self._index[0]
        return segment.when(position, self.rate)

    def date(self, position: int, at: datetime) -> None:
        """Give the time of a position (UTC), which counts while there is no audio: all of it may have been removed."""
        self._dated = (position, at)

    def segments(self) -> tuple[Segment, ...]:
        """The closed segments, ordered by position."""
        return tuple(self._index)

    @property
    def size(self) -> int:
        """Bytes of the closed segments."""
        return self._index.samples * SAMPLE_BYTES

    def removable(self, position: int) -> Iterator[Segment]:
        """The closed segments that begin at `position` or past it. The iterator is valid until the next change.

        Without the newest, which defines where the room goes on.
        """
        return (self._index[place] for place in range(self._index.place(position), len(self._index) - 1))

    async def missing(self, start: int, most: int) -> list[Segment]:
        """The closed segments whose audio is gone without `remove`: each is returned once.

        Those that a reader has found unreadable, and, of the `most` that begin at `start` or past it, those without a
        file. Audio that is still in memory is not examined.
        """
        memory = self._memory.first
        seen = [one for one in islice(self.removable(start), most) if memory is None or one.end <= memory]
        absent = await self._run(lambda: [one for one in seen if not one.path.exists()])
        lost, self._lost = self._lost, []
        return lost + [one for one in absent if self._index.remove(one.position)]

    async def remove(self, segment: Segment) -> None:
        """Delete a closed segment, from memory too. Its file may be gone already. Raises OSError."""
        self._index.remove(segment.position)
        self._memory.forget(segment.position, segment.end)
        await self._run(lambda: segment.path.unlink(missing_ok=True))

    def recorded(self) -> tuple[Segment, ...]:
        """The closed segments and the open one, by position."""
        return (*self._index, *([self._open_segment.segment()] if self._open_segment else []))

    async def erase(self, start: int, end: int, *, journalled: int) -> None:
        """Erase what was recorded at these positions. All other audio stays as it is, at its place.

        Segments inside are deleted. Zeros are written into segments across an edge, into those that the journal does
        not know (from `journalled` on, because recovery would miss them), and into the newest, which defines where the
        room goes on. Durable when this returns; doing it twice changes nothing. Raises OSError.
        """
        async with self._closing:  # the open segment keeps its file and its name meanwhile
            self._memory.erase(start, end)
            closed = tuple(self._index)
            for segment in closed:
                first, last = max(segment.position, start), min(segment.end, end)
                if first >= last:
                    continue
                if last - first == segment.samples and last <= journalled and segment != closed[-1]:
                    await self.remove(segment)
                else:
                    await self._zero(segment, first, last)
            if self._open_segment and max(self._open_segment.position, start) < min(self._open_segment.end, end):
                open_ = self._open_segment.segment()
                await self._zero(open_, max(open_.position, start), min(open_.end, end))
            await self._run(self._disk.sync_folder, self._folder)

    async def _zero(self, segment: Segment, start: int, end: int) -> None:
        # The quota may have removed it.
        with suppress(FileNotFoundError):
            offset = (start - segment.position) * SAMPLE_BYTES
            await self._run(self._disk.erase, segment.path, offset, (end - start) * SAMPLE_BYTES)

    async def sync(self) -> None:
        """Make durable what was appended. A failure is logged and counted, and tried again with the next audio."""
        async with self._closing:
            if self._open_segment:
                with self._unsynced("sync"):
                    await self._run(self._open_segment.sync)

    async def release(self) -> None:
        """Close the file of the open segment, as it is: the next `open_spool` recovers it."""
        await self.sync()
        segment_file, self._open_segment = self._open_segment, None
        if segment_file:
            segment_file.close()

    async def _write(self, audio: bytes, at: datetime) -> OpenSegment:
        segment_file, first = self._open_segment, self._open_segment is None
        if segment_file is None:
            segment_file = self._open_segment = await self._run(self._begin, audio, at)
            self._fresh = False
        else:
            await self._run(segment_file.write, audio)
        segment_file.count(audio, at, self.rate)
        self._memory.add(Chunk(self.end, segment_file.end, first, segment_file.fresh, audio))
        self.end = self._recorded = segment_file.end
        self.resting = False
        self._readers.unpark_all()
        return segment_file

    def _begin(self, audio: bytes, at: datetime) -> OpenSegment:
        path = self._folder / name_segment(self.end, at, fresh=self._fresh)
        make_folder(self._folder)
        segment_file = OpenSegment(self._disk, path, self.end, at, fresh=self._fresh)
        try:
            segment_file.write(audio)
        except OSError:
            segment_file.discard()
            raise
        return segment_file

    async def _close_segment(self) -> Segment | None:
        """Close the open segment and put it into the index."""
        async with self._closing:
            segment_file = self._open_segment
            if segment_file is None:
                return None
            for step in (segment_file.sync, segment_file.rename, segment_file.close):
                with self._unsynced(step.__name__):
                    await self._run(step)
            self._newest = segment_file.segment()
            self._index.add(self._newest)
            self._open_segment = None
            return self._newest

    @contextmanager
    def _unsynced(self, step: str) -> Iterator[None]:
        # The audio is written and readable. Dropping it for a failed fsync would lose audio that is mostly there.
        try:
            yield
        except OSError as error:
            self.unsynced += 1
            log.error("spool.unsynced", folder=str(self._folder), step=step, error=str(error), count=self.unsynced)  # noqa: TRY400 - the error's text says it all

    def _on_disk(self, position: int) -> Segment | None:
        """The segment to read `position` from, unless memory has it. The open segment is always in memory."""
        segment, memory = self._index.after(position), self._memory.first
        if segment is None or (memory is not None and max(position, segment.position) >= memory):
            return None
        return segment

    async def _load(self, segment: Segment, start: int, samples: int) -> bytes:
        offset = (start - segment.position) * SAMPLE_BYTES
        try:
            audio = await self._run(self._disk.load, segment.path, offset, samples * SAMPLE_BYTES)
        except OSError as error:
            audio, reason = b"", str(error)
        else:
            reason = "shorter than it was"
        audio = audio[: len(audio) // SAMPLE_BYTES * SAMPLE_BYTES]
        if not audio and self._index.after(start) == segment:  # else it was removed meanwhile
            log.error("segment.unreadable", file=str(segment.path), error=reason)
            self._index.remove(segment.position)
            self._lost.append(segment)
        return audio

    async def _run(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        return await self._run_sync(call, *args, limiter=self._threads)


@asynccontextmanager
async def open_spool(
    folder: Path,
    *,
    rate: int,
    segment_seconds: float = 30.0,
    sync_interval: float = 1.0,
    run_sync: RunSync = trio.to_thread.run_sync,
    disk: Disk | None = None,
) -> AsyncIterator[Spool]:
    """The room's spool in `folder`, recovered, at `rate` Hz; synced every `sync_interval` seconds, and at the end.

    `run_sync` touches the disk. Raises OSError when the folder cannot be used.
    """
    segments = await run_sync(recover_segments, folder)
    length = max(1, int(segment_seconds * rate))
    spool = Spool(
        folder,
        rate,
        segment=length,
        sync_interval=sync_interval,
        disk=disk or Disk(),
        run_sync=run_sync,
        segments=segments,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sync, spool)
        try:
            yield spool
        finally:
            with trio.CancelScope(shield=True):
                await spool.release()
            nursery.cancel_scope.cancel()


async def _sync(spool: Spool) -> None:
    while True:
        await trio.sleep(spool.sync_interval)
        await spool.sync()


@asynccontextmanager
async def open_closed_spool(folder: Path, rate: int) -> AsyncIterator[Spool]:
    """The spool in this folder, for reading: it has no writer, so that readers do not wait for more."""
    async with open_spool(folder, rate=rate) as spool:
        spool.end_of_data()
        yield spool
