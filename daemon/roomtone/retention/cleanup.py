"""Keeps room on the disk: audio and events go by the rules of `retention/policy.py`, and what runs full is told.

Events go when they are old, or the journal is over its quota, and every configured sink has acknowledged them. For one
whose plugin does not load both audio and events wait as for one that is paused. A sink that is configured no more holds
nothing back.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import structlog
import trio

from roomtone.config.model import Storage
from roomtone.delivery.audio_pins import is_pinned, pins_key, pins_of
from roomtone.events import Notice
from roomtone.journal.journal import Journal
from roomtone.journal.records import CoverageSpan, Mark, Record
from roomtone.journal.schema import find_asides
from roomtone.retention.policy import DroppedAudio, LowWatermark, Removal, RoomAudio, choose, first_lacking, lacking
from roomtone.sinks import Sink
from roomtone.spans import Spans
from roomtone.spool.segment import SAMPLE_BYTES, SPOOL_FOLDER, Segment, list_segments
from roomtone.spool.spool import Spool
from roomtone.trusted_clock import TrustedClock, reading_of, shifted, uptime

CHECK_INTERVAL_S = 10.0
"""Seconds between two looks."""
LOW_DISK_CHECK_INTERVAL_S = 1.0
"""Seconds between two looks while the disk is low: what is settled makes room at once."""
PRUNE_INTERVAL_S = 3600.0
"""Seconds between two prunings of the journal."""
COMMIT_TIMEOUT_S = 2.0
"""Seconds that a fact or a pruning may wait for a journal on a full disk; it is tried again at the next look."""
LOOKED_AT = 100
"""Segments of a room whose files are looked for at each look: those that are wanted next."""
PRUNED_QUOTA_SHARE = 0.95
"""The share of its quota that the journal is pruned to."""
RESERVE_BYTES = 4 << 20
"""Bytes that are kept for the next start. On a disk without any room SQLite opens no journal, and a daemon that cannot
start cannot make room either.
"""

CLOCK_MARK = "calendar"
"""The mark with the last reading of the calendar, noted once an hour."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Space(NamedTuple):
    """Bytes of a file system: free for this user, and in all."""

    free: int
    total: int


def measure(folder: Path) -> Space:
    """The space of the file system that the folder lies in. Raises OSError."""
    status = os.statvfs(folder)
    return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def use_reserve(state: Path) -> None:
    """Before the journal is opened: give it the reserve, where the disk has no room. Contained: OSError."""
    reserve = _reserve(state)
    with suppress(OSError):
        if reserve.exists() and measure(state).free < RESERVE_BYTES:
            reserve.unlink()
            log.warning("disk.reserve_used", folder=str(state))


def keep_reserve(state: Path) -> None:
    """Set room aside for the next start, once. Contained: OSError."""
    reserve = _reserve(state)
    with suppress(OSError):
        if not reserve.exists():
            file = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, RESERVE_BYTES)
            finally:
                os.close(file)


def _reserve(state: Path) -> Path:
    return state / "reserve"


class CleanupPolicy(NamedTuple):
    """What to go by, as it is at the moment of asking: a new configuration may have changed it.

    `spools` has the spool of each open room; `sinks` are those that are configured, `unloaded` the names of those whose
    plugin does not load: where they were, and whether they take audio, is in the journal.
    """

    storage: Callable[[], Storage]
    spools: Callable[[], Mapping[str, Spool]]
    sinks: Callable[[], Mapping[str, Sink]]
    unloaded: Callable[[], Collection[str]] = tuple


class Instruments(NamedTuple):
    """What is read of the machine: the space of a folder's disk, the time in Unix seconds, and the seconds of a clock
    that nobody sets.
    """

    measure: Callable[[Path], Space] = measure
    utc: Callable[[], float] = time.time
    uptime: Callable[[], float] = uptime


INSTRUMENTS = Instruments()


async def run_cleanup(
    state: Path, rules: CleanupPolicy, journal: Journal, instruments: Instruments = INSTRUMENTS
) -> None:
    """Look after the disk of the state folder, for ever.

    Errors: those of the journal, also when its file is gone: a daemon that ends is started again, and finds a new one.
    Contained here: OSError of the file system, which is logged and tried again.
    """
    calendar = TrustedClock(reading_of(await journal.mark(CLOCK_MARK)))
    keeper = _Cleaner(state, rules, journal, instruments, calendar)
    pruned = -math.inf
    while True:
        await keeper.look()
        if trio.current_time() >= pruned + PRUNE_INTERVAL_S:
            pruned = trio.current_time()
            await keeper.prune()
        await trio.sleep(LOW_DISK_CHECK_INTERVAL_S if keeper.is_low else CHECK_INTERVAL_S)


class _Cleaner:
    def __init__(
        self,
        state: Path,
        rules: CleanupPolicy,
        journal: Journal,
        instruments: Instruments,
        calendar: TrustedClock,
    ) -> None:
        self._state = state
        self._rules = rules
        self._journal = journal
        self._instruments = instruments
        self._calendar = calendar
        self._is_at_start = True
        self._gauge = LowWatermark()
        self._tolls: dict[tuple[str, str, str], DroppedAudio] = {}
        self._pending: list[Record] = []

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._instruments.utc(), UTC)

    def _today(self) -> datetime:
        """The time to judge ages by. A clock that has jumped ahead is told of, and makes nothing old for a day."""
        now, was_doubting = self._now(), self._calendar.is_doubting
        today = self._calendar.read(now, self._instruments.uptime())
        # At the start it may as well be the machine that was off.
        was_doubting, self._is_at_start = was_doubting or self._is_at_start, False
        if self._calendar.is_doubting and not was_doubting:
            days = (now - today).days
            text = (
                f"The clock has jumped ahead by {days} days. Nothing is removed for its age until it has gone on like "
                "that for a day. Set it, if it is wrong."
            )
            log.warning("clock.jumped", days=days)
            self._pending.append(
                Notice(room="", position=0, at=now, severity="warning", code="clock.jumped", text=text)
            )
        return today

    @property
    def is_low(self) -> bool:
        """Whether the disk has less room than it should."""
        return self._gauge.is_low

    async def look(self) -> None:
        """Remove what may and what must go, and say what a person should know."""
        await self._journal.check_file()
        storage, space = self._rules.storage(), self._space()
        now = self._now()
        mark = _mark(storage, space)
        await self._look_for_missing(now)
        shelves = await self._shelves()
        settled, forced = choose(
            shelves,
            quota=storage.spool_quota,
            lacking=mark - space.free,
            before=shifted(self._today(), -timedelta(days=storage.spool_days)),
        )
        self._say_taken(forced, f"The quota of the spool ({show_bytes(storage.spool_quota)}) took", now)
        await self._commit()
        for removal in [*settled, *forced]:
            await self._remove(removal)
        space = self._space() if settled or forced else space
        self._watch(space, mark, now)
        if space.free >= mark + RESERVE_BYTES:
            keep_reserve(self._state)
        await self._commit()

    async def prune(self) -> None:
        """Forget old events and old coverage, and more of the events where the journal is over its quota."""
        storage = self._rules.storage()
        today = self._today()
        before = shifted(today, -timedelta(days=storage.journal_days))
        self._remove_asides(before)
        seq = await self._journal.first_since(before)
        oldest, size = await self._journal.extent()
        if size > storage.journal_quota:
            share = 1 - PRUNED_QUOTA_SHARE * storage.journal_quota / size
            seq = max(seq, oldest + math.ceil((self._journal.tip - oldest) * share))
        with trio.move_on_after(COMMIT_TIMEOUT_S):
            if removed := await self._journal.prune(seq, await self._waiting()):
                log.info("journal.pruned", events=removed)
            await self._journal.prune_coverage(before)
            if self._calendar.last is not None:
                await self._journal.commit(Mark(CLOCK_MARK, self._calendar.last.to_builtins()))

    async def _waiting(self) -> list[str]:
        """The sinks that events wait for. One that has never run, for its plugin did not load, begins when it does."""
        known = await self._journal.cursors()
        return [*self._rules.sinks(), *(name for name in self._rules.unloaded() if name in known)]

    async def _pins(self) -> dict[str, object]:
        """Which rooms' audio each of them pins, by name: see `delivery/controls.py`."""
        sinks, unloaded = self._rules.sinks(), self._rules.unloaded()
        noted = {name: await self._journal.mark(pins_key(name)) for name in unloaded if name not in sinks}
        return {name: pins_of(sink) for name, sink in sinks.items()} | noted

    def _rooms(self) -> list[str]:
        """The rooms that are open, and those that are closed, or configured no more, and have left audio."""
        rooms = set(self._rules.spools())
        with suppress(OSError):
            rooms.update(place.name for place in (self._state / SPOOL_FOLDER).iterdir() if place.is_dir())
        return sorted(rooms)

    async def _shelves(self) -> list[RoomAudio]:
        standings = [await self._standing(room) for room in self._rooms()]
        # From here on nothing is waited for: what an open room has recorded does not change meanwhile.
        spools = self._rules.spools()
        return [
            one._replace(segments=spool.removable, size=spool.size) if (spool := spools.get(one.room)) else one
            for one in standings
        ]

    async def _standing(self, room: str) -> RoomAudio:
        """How far the room's audio is settled; and what there is of it, unless the room is open."""
        marks = await self._journal.marks(f"room/{room}/")
        journalled: int = marks.get(f"room/{room}/audio") or 0
        rate: int = marks.get(f"room/{room}/rate") or 1
        holes = Spans((start, end) for start, end in marks.get(f"room/{room}/holes") or [])
        heard = Spans([(0, marks.get(f"room/{room}/acknowledged") or 0)]) - holes
        spool = self._rules.spools().get(room)
        segments = [] if spool else await trio.to_thread.run_sync(list_segments, self._state / SPOOL_FOLDER / room)
        first = spool.first if spool else segments[0].position if segments else journalled
        cursors, delivered = await self._journal.cursors(), dict[str, int]()
        for name in [name for name, pins in (await self._pins()).items() if is_pinned(pins, room)]:
            lacks = await self._journal.undelivered(room, cursors.get(name, 0), first)
            delivered[name] = journalled if lacks is None else min(lacks, journalled)
        size = sum(segment.samples for segment in segments) * SAMPLE_BYTES
        return RoomAudio(room, rate, size, partial(_spare, segments), heard, delivered)

    async def _remove(self, removal: Removal) -> None:
        spool = self._rules.spools().get(removal.room)
        try:
            if spool:
                await spool.remove(removal.segment)
            else:
                removal.segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("segment.unremovable", file=str(removal.segment.path), error=str(error))  # noqa: TRY400 - the error's text says it all

    async def _look_for_missing(self, now: datetime) -> None:
        """Say what somebody has removed from the spool, or the disk has lost, before all had it."""
        missing: list[Removal] = []
        for shelf in await self._shelves():
            if spool := self._rules.spools().get(shelf.room):
                gone = await spool.missing(first_lacking(shelf), LOOKED_AT)
                missing += [lacking(shelf, segment) for segment in gone]
        self._say_taken(missing, "Files are gone from the spool, or cannot be read, and with them", now)

    def _say_taken(self, removals: Sequence[Removal], by: str, now: datetime) -> None:
        """Coverage of what was never transcribed, and notices: of each sink, and of the transcript."""
        for removal in removals:
            segment, rate = removal.segment, removal.rate
            for name in removal.sinks:
                self._toll(removal.room, name, by).take(timedelta(seconds=segment.samples / rate))
            if removal.unheard:
                self._toll(removal.room, "", by).take(timedelta(seconds=removal.unheard.total / rate))
            self._pending += [
                CoverageSpan(
                    removal.room, start, end, "removed", None, segment.when(start, rate), segment.when(end, rate)
                )
                for start, end in removal.unheard
            ]
        for (room, sink, taker), toll in self._tolls.items():
            if taker == by and (taken := toll.due(now)):
                first = next((removal.segment for removal in removals if removal.room == room), None)
                self._pending.append(_missed(room, sink, f"{by} {_duration(taken)}", first, now))

    def _toll(self, room: str, sink: str, by: str) -> DroppedAudio:
        return self._tolls.setdefault((room, sink, by), DroppedAudio())

    def _watch(self, space: Space, mark: int, now: datetime) -> None:
        code = self._gauge.read(space.free, mark)
        if code is None:
            return
        free = f"{show_bytes(space.free)} are free on the disk of {self._state}"
        if code == "disk.low":
            text = (
                f"Only {free}, less than {show_bytes(mark)}, and no audio is left there that is both transcribed and "
                "delivered. Make room, or recording will stop when it is full."
            )
            log.warning(code, folder=str(self._state), free=space.free, mark=mark)
        else:
            text = f"There is room again: {free}."
            log.info(code, folder=str(self._state), free=space.free)
        severity: Literal["warning", "info"] = "warning" if code == "disk.low" else "info"
        self._pending.append(Notice(room="", position=0, at=now, severity=severity, code=code, text=text))

    def _remove_asides(self, before: datetime) -> None:
        """Damaged databases that were moved aside are kept as long as events are."""
        for path, at in find_asides(self._state):
            if at < before:
                with suppress(OSError):
                    path.unlink()
                    log.info("aside.removed", file=str(path))

    async def _commit(self) -> None:
        """Commit what is to be said. While the journal has no room it waits here, and removing goes on without it."""
        if self._pending:
            with trio.move_on_after(COMMIT_TIMEOUT_S) as waiting:
                await self._journal.commit(*self._pending)
            if not waiting.cancelled_caught:
                self._pending.clear()

    def _space(self) -> Space:
        try:
            return self._instruments.measure(self._state)
        except OSError as error:
            log.error("disk.unmeasurable", folder=str(self._state), error=str(error))  # noqa: TRY400 - the error's text says it all
            return Space(1 << 62, 1 << 62)


def _mark(storage: Storage, space: Space) -> int:
    # A mark above what a small disk can have free would remove everything, for ever.
    return min(storage.free_space, space.total // 10)


def _missed(room: str, sink: str, taken: str, first: Segment | None, now: datetime) -> Notice:
    """Audio went that a sink never had, or, without a sink, that nobody had transcribed."""
    missed = f"that sink {sink} never had" if sink else "before it was transcribed"
    return Notice(
        room=room,
        position=first.position if first else 0,
        at=first.at if first else now,
        severity="warning",
        code="audio.removed" if sink else "transcript.missing",
        text=f"{taken} of audio of {room} {missed}.",
    )


def _spare(segments: Sequence[Segment], start: int) -> Iterator[Segment]:
    """As `Spool.removable`, of a room that is closed."""
    return (segment for segment in segments[:-1] if segment.position >= start)


def show_bytes(size: int) -> str:
    """A size for people."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}"
    return f"{max(size, 0) / 1000:.3g} kB"


def _duration(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds:.0f} s"
