"""Removes audio and events by the rules of `retention/policy.py`, and reports what users should know of it.

Events go when they are old, or the journal is over its quota, and every configured sink has acknowledged them. Audio
and events wait for a sink whose plugin does not load as they do for one that is paused. A sink that is not configured
any more holds nothing back.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
import trio

from roomtone.config.active import ActiveConfig
from roomtone.delivery.controls import is_pinned, pins_of
from roomtone.events import Notice, notice
from roomtone.journal.journal import Journal
from roomtone.journal.keys import CLOCK_KEY, progress_of, room_prefix, sink_key
from roomtone.journal.records import CoverageSpan, Mark, Record
from roomtone.journal.schema import find_asides
from roomtone.retention.disk_space import DiskWatch, Space, measure, show_bytes
from roomtone.retention.policy import DroppedAudio, Removal, RoomAudio, choose, first_lacking, lacking
from roomtone.spans import Spans
from roomtone.spool.segment import SAMPLE_BYTES, SPOOL_FOLDER, Segment, list_segments
from roomtone.spool.spool import Spool
from roomtone.trusted_clock import TrustedClock, reading_of, shifted, uptime

CHECK_INTERVAL_S = 10.0
LOW_DISK_CHECK_INTERVAL_S = 1.0
"""While the disk is low, audio that is settled makes room immediately."""
PRUNE_INTERVAL_S = 3600.0
COMMIT_TIMEOUT_S = 2.0
"""Seconds that a record or a pruning may wait for a journal on a full disk; the next check tries again."""
MAX_CHECKED_SEGMENTS = 100
"""Segments of a room whose files are checked each time: those that are wanted next."""
PRUNED_QUOTA_SHARE = 0.95
"""The share of its quota that the journal is pruned to."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Instruments(NamedTuple):
    """Readings of the machine: the space of a folder's disk, the time in Unix seconds, and the seconds of a clock that
    cannot be set.
    """

    measure: Callable[[Path], Space] = measure
    utc: Callable[[], float] = time.time
    uptime: Callable[[], float] = uptime


INSTRUMENTS = Instruments()


async def run_cleanup(
    state: Path,
    active: ActiveConfig,
    spools: Mapping[str, Spool],
    journal: Journal,
    instruments: Instruments = INSTRUMENTS,
) -> None:
    """Clean up the state folder until cancelled. `spools` has the spool of each open room.

    Errors: those of the journal, also when its file is gone: a daemon that ends is started again, and finds a new one.
    Contained here: OSError of the file system, which is logged and tried again.
    """
    outbox = _Outbox(journal)
    clock = _AgeClock(TrustedClock(reading_of(await journal.mark(CLOCK_KEY))), instruments, outbox)
    disk = DiskWatch(state, instruments.measure)
    cleaner = SpoolCleaner(_Spools(state, active, spools, journal), outbox)
    pruner = JournalPruner(state, active, journal, clock)
    pruned = -math.inf
    while True:
        await journal.check_file()
        storage, now = active.config.storage, clock.now()
        before = shifted(clock.today(), -timedelta(days=storage.spool_days))
        await cleaner.clean(now, before=before, quota=storage.spool_quota, lacking=disk.lacking(storage.free_space))
        outbox.add(*disk.check(storage.free_space, now))
        await outbox.commit()
        if trio.current_time() >= pruned + PRUNE_INTERVAL_S:
            pruned = trio.current_time()
            await pruner.prune()
        await trio.sleep(LOW_DISK_CHECK_INTERVAL_S if disk.is_low else CHECK_INTERVAL_S)


class _Outbox:
    """Records that wait for the journal. On a full disk removing goes on without them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pending: list[Record] = []

    def add(self, *records: Record) -> None:
        self._pending += records

    async def commit(self) -> None:
        """Commit what is pending, unless the journal has no room."""
        if self._pending:
            with trio.move_on_after(COMMIT_TIMEOUT_S) as waiting:
                await self._journal.commit(*self._pending)
            if not waiting.cancelled_caught:
                self._pending.clear()


class _AgeClock:
    """The time by which ages are judged. A clock that jumps ahead is reported, and makes nothing old for a day."""

    def __init__(self, clock: TrustedClock, instruments: Instruments, outbox: _Outbox) -> None:
        self._clock = clock
        self._instruments = instruments
        self._outbox = outbox
        self._is_at_start = True

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._instruments.utc(), UTC)

    def today(self) -> datetime:
        """The trusted time. A jump at the start is not reported: the machine may have been off."""
        now, was_doubting = self.now(), self._clock.is_doubting or self._is_at_start
        self._is_at_start = False
        today = self._clock.read(now, self._instruments.uptime())
        if self._clock.is_doubting and not was_doubting:
            days = (now - today).days
            log.warning("clock.jumped", days=days)
            text = (
                f"The clock has jumped ahead by {days} days. Nothing is removed because of its age until the clock has "
                "run like that for a day. Set the clock if it is wrong."
            )
            self._outbox.add(notice("clock.jumped", text, at=now))
        return today

    def mark(self) -> list[Mark]:
        """The reading that the next run goes on from."""
        return [] if self._clock.last is None else [Mark(CLOCK_KEY, self._clock.last.to_builtins())]


class JournalPruner:
    """Removes old events and old coverage, and more of the events where the journal is over its quota."""

    def __init__(self, state: Path, active: ActiveConfig, journal: Journal, clock: _AgeClock) -> None:
        self._state = state
        self._active = active
        self._journal = journal
        self._clock = clock

    async def prune(self) -> None:
        storage = self._active.config.storage
        before = shifted(self._clock.today(), -timedelta(days=storage.journal_days))
        self._remove_asides(before)
        seq = await self._journal.first_since(before)
        oldest, size = await self._journal.extent()
        if size > storage.journal_quota:
            share = 1 - PRUNED_QUOTA_SHARE * storage.journal_quota / size
            seq = max(seq, oldest + math.ceil((self._journal.tip - oldest) * share))
        with trio.move_on_after(COMMIT_TIMEOUT_S):
            if removed := await self._journal.prune(seq, await self._waiting_sinks()):
                log.info("journal.pruned", events=removed)
            await self._journal.prune_coverage(before)
            await self._journal.commit(*self._clock.mark())

    async def _waiting_sinks(self) -> list[str]:
        """The sinks that events wait for. One that has never run, for its plugin did not load, begins when it does."""
        known = await self._journal.cursors()
        return [*self._active.config.sinks, *(name for name in self._active.config.unloaded if name in known)]

    def _remove_asides(self, before: datetime) -> None:
        """Damaged databases that were moved aside are kept as long as events are."""
        for path, at in find_asides(self._state):
            if at < before:
                with suppress(OSError):
                    path.unlink()
                    log.info("aside.removed", file=str(path))


class _Spools:
    """The audio of all rooms on disk: open, closed, or not configured any more."""

    def __init__(self, state: Path, active: ActiveConfig, spools: Mapping[str, Spool], journal: Journal) -> None:
        self._folder = state / SPOOL_FOLDER
        self._active = active
        self._spools = spools
        self._journal = journal

    async def audio(self) -> list[RoomAudio]:
        rooms = [await self._settled(room) for room in self._rooms()]
        # From here on nothing is waited for: what an open room has recorded does not change meanwhile.
        spools = self._spools
        return [
            one._replace(segments=spool.removable, size=spool.size) if (spool := spools.get(one.room)) else one
            for one in rooms
        ]

    def _rooms(self) -> list[str]:
        rooms = set(self._spools)
        with suppress(OSError):
            rooms.update(path.name for path in self._folder.iterdir() if path.is_dir())
        return sorted(rooms)

    async def _settled(self, room: str) -> RoomAudio:
        """The room's settled audio; and its segments, unless the room is open."""
        progress = progress_of(room, await self._journal.marks(room_prefix(room)))
        heard = Spans([(0, progress.acknowledged)]) - progress.holes
        spool = self._spools.get(room)
        segments = [] if spool else await trio.to_thread.run_sync(list_segments, self._folder / room)
        first = spool.first if spool else segments[0].position if segments else progress.audio
        cursors, delivered = await self._journal.cursors(), dict[str, int]()
        for name in [name for name, pins in (await self._pins()).items() if is_pinned(pins, room)]:
            lacks = await self._journal.undelivered(room, cursors.get(name, 0), first)
            delivered[name] = progress.audio if lacks is None else min(lacks, progress.audio)
        size = sum(segment.samples for segment in segments) * SAMPLE_BYTES
        return RoomAudio(room, progress.rate, size, partial(_spare, segments), heard, delivered)

    async def _pins(self) -> dict[str, object]:
        """The rooms whose audio each sink pins, by name: see `delivery/controls.py`."""
        sinks, unloaded = self._active.config.sinks, self._active.config.unloaded
        noted = {name: await self._journal.mark(sink_key(name, "audio")) for name in unloaded if name not in sinks}
        return {name: pins_of(sink) for name, sink in sinks.items()} | noted

    async def missing(self) -> list[Removal]:
        """Segments whose files were removed, or cannot be read any more, before all readers had them."""
        missing: list[Removal] = []
        for audio in await self.audio():
            if spool := self._spools.get(audio.room):
                gone = await spool.missing(first_lacking(audio), MAX_CHECKED_SEGMENTS)
                missing += [lacking(audio, segment) for segment in gone]
        return missing

    async def remove(self, removal: Removal) -> None:
        spool = self._spools.get(removal.room)
        try:
            if spool:
                await spool.remove(removal.segment)
            else:
                removal.segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("segment.unremovable", file=str(removal.segment.path), error=str(error))  # noqa: TRY400 - the error's text says it all


class SpoolCleaner:
    """Removes audio that nothing waits for, and what the quota takes. Audio that readers miss by it is reported."""

    def __init__(self, spools: _Spools, outbox: _Outbox) -> None:
        self._spools = spools
        self._outbox = outbox
        self._dropped: dict[tuple[str, str, str], DroppedAudio] = {}

    async def clean(self, now: datetime, *, before: datetime, quota: int, lacking: int) -> None:
        """Remove settled audio from before that time, and more where the spools hold more than `quota` bytes or the
        disk lacks some. A removal is committed before it happens.
        """
        missing = await self._spools.missing()
        self._report(missing, "Files are missing from the spool or unreadable, with", now)
        settled, forced = choose(await self._spools.audio(), quota=quota, lacking=lacking, before=before)
        self._report(forced, f"The quota of the spool ({show_bytes(quota)}) took", now)
        await self._outbox.commit()
        for removal in [*settled, *forced]:
            await self._spools.remove(removal)

    def _report(self, removals: Sequence[Removal], by: str, now: datetime) -> None:
        """Coverage of what was never transcribed, and notices: of each sink, and of the transcript."""
        for removal in removals:
            segment, rate = removal.segment, removal.rate
            for name in removal.sinks:
                self._dropped_of(removal.room, name, by).take(timedelta(seconds=segment.samples / rate))
            if removal.unheard:
                self._dropped_of(removal.room, "", by).take(timedelta(seconds=removal.unheard.total / rate))
            for start, end in removal.unheard:
                from_, until = segment.when(start, rate), segment.when(end, rate)
                self._outbox.add(CoverageSpan(removal.room, start, end, "removed", None, from_, until))
        for (room, sink, taker), dropped in self._dropped.items():
            if taker == by and (taken := dropped.due(now)):
                first = next((removal.segment for removal in removals if removal.room == room), None)
                self._outbox.add(_missed(room, sink, f"{by} {_duration(taken)}", first, now))

    def _dropped_of(self, room: str, sink: str, by: str) -> DroppedAudio:
        return self._dropped.setdefault((room, sink, by), DroppedAudio())


def _missed(room: str, sink: str, taken: str, first: Segment | None, now: datetime) -> Notice:
    """Audio went that a sink never had, or, without a sink, that was never transcribed."""
    code = "audio.removed" if sink else "transcript.missing"
    missed = f"that sink {sink} never had" if sink else "before it was transcribed"
    position, at = (first.position, first.at) if first else (0, now)
    return notice(code, f"{taken} of audio of {room} {missed}.", at=at, room=room, position=position)


def _spare(segments: Sequence[Segment], start: int) -> Iterator[Segment]:
    """As `Spool.removable`, of a room that is closed."""
    return (segment for segment in segments[:-1] if segment.position >= start)


def _duration(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds:.0f} s"
