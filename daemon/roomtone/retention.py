"""Retention: which audio and which events leave the disk, and what is said when it runs full.

Audio goes, the oldest first, when all of it is *settled*: transcribed, and acknowledged by every configured sink that
takes audio. It goes at its age, when the spools are over their quota, and when the disk has little room left. The quota
outranks all: where nothing settled is left, the oldest goes whatever waits for it, and a notice says who missed how
many hours. Little room on the disk does not: then a person is told, the recorder counts what the disk refuses, and
both go on by themselves when there is room again.

Events go when they are old, or the journal is over its quota, and every configured sink has acknowledged them. For one
whose plugin does not load both wait as for one that is paused. A sink that is configured no more holds nothing back.

Deciding is pure (`choose`, `Gauge`, `Toll`); `keep_room` looks, removes and tells.
"""

import heapq
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

from roomtone.calendar import Calendar, uptime
from roomtone.capture.segment import WIDTH, Segment, parse_segment
from roomtone.capture.spool import Spool
from roomtone.config import Storage
from roomtone.events import Notice
from roomtone.facts import Cover, Fact, Mark
from roomtone.journal import Journal
from roomtone.pins import is_pinned, pins_key, pins_of
from roomtone.sinks import Sink
from roomtone.speech.coverage import Spans

SPOOL = "spool"
"""The folder of the spools in the state folder."""
INTERVAL = 10.0
"""Seconds between two looks."""
SOON = 1.0
"""Seconds between two looks while the disk is low: what is settled makes room at once."""
PRUNING = 3600.0
"""Seconds between two prunings of the journal."""
PATIENCE = 2.0
"""Seconds that a fact or a pruning may wait for a journal on a full disk; it is tried again at the next look."""
MARGIN = 60
"""Seconds of audio behind what is settled that stay: a session that begins again hears the last ones twice."""
AGAIN = timedelta(hours=1)
"""Between two notices of audio that the quota takes from the same sink."""
RELIEF = 1.1
"""So many times the low water mark must be free until the disk has recovered: no notice at every segment."""
SLACK = 0.95
"""The share of its quota that the journal is pruned to."""
RESERVE = 4 << 20
"""Bytes that are kept for the next start. On a disk without any room SQLite opens no journal, and a daemon that cannot
start cannot make room either.
"""

CALENDAR = "calendar"
"""The mark with the time that ages were judged by last."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Shelf(NamedTuple):
    """One room's audio on disk: its segments by position, of `size` bytes, and how far they are settled.

    `segments` gives those that begin at a position or behind it, without the newest one, which tells where the room
    goes on. `heard` are the positions that are transcribed or silent; `delivered` has, of each sink that takes this
    room's audio, the position up to which it has acknowledged all segments.
    """

    room: str
    rate: int
    size: int
    segments: Callable[[int], Iterator[Segment]]
    heard: Spans
    delivered: Mapping[str, int]


class Removal(NamedTuple):
    """A segment that must go. `sinks` did not have it, and `unheard` was not transcribed: both empty if settled."""

    room: str
    rate: int
    segment: Segment
    sinks: tuple[str, ...]
    unheard: Spans


def choose(
    shelves: Sequence[Shelf], *, quota: int, lacking: int, before: datetime
) -> tuple[list[Removal], list[Removal]]:
    """What goes because nobody waits for it, and what goes because it must; both oldest first. Pure.

    `quota` is what the shelves may hold, `lacking` what the disk lacks, in bytes; settled segments that began before
    `before` go in any case.
    """
    # Only what goes is looked at: a year's audio that waits for its sink must not hold the loop up at every look.
    settled: list[Removal] = []
    over = sum(shelf.size for shelf in shelves) - quota
    for removal in heapq.merge(*map(_settled, shelves), key=_age):
        if max(over, lacking) <= 0 and removal.segment.at >= before:
            return settled, []
        settled.append(removal)
        freed = removal.segment.samples * WIDTH
        over, lacking = over - freed, lacking - freed
    forced: list[Removal] = []
    waiting = heapq.merge(*map(_waiting, shelves), key=_age)
    while over > 0 and (next_one := next(waiting, None)):
        forced.append(next_one)
        over -= next_one.segment.samples * WIDTH
    return settled, forced


def _age(removal: Removal) -> datetime:
    return removal.segment.at


def _settled(shelf: Shelf) -> Iterator[Removal]:
    """What all sinks have, and all of it, and `MARGIN` on either side, is heard."""
    margin = MARGIN * shelf.rate
    delivered = min(shelf.delivered.values(), default=None)
    for start, end in shelf.heard:
        last = end - margin if delivered is None else min(end - margin, delivered)
        for segment in shelf.segments(start + margin if start else 0):
            if segment.end > last:
                break
            yield Removal(shelf.room, shelf.rate, segment, (), Spans())


def _waiting(shelf: Shelf) -> Iterator[Removal]:
    """What is not settled."""
    margin = MARGIN * shelf.rate
    for segment in shelf.segments(0):
        sinks = tuple(name for name, position in shelf.delivered.items() if position < segment.end)
        near = Spans([(max(0, segment.position - margin), segment.end + margin)])
        unheard = Spans([(segment.position, segment.end)]) - shelf.heard
        if not unheard and near - shelf.heard:
            # All of it is heard, and a session that has to begin again may want it: it waits as if it were not.
            unheard = Spans([(segment.position, segment.end)])
        if sinks or unheard:
            yield Removal(shelf.room, shelf.rate, segment, sinks, unheard)


class Gauge:
    """Whether a disk is low on space: said once when it becomes so, and once when it is over."""

    def __init__(self) -> None:
        self.is_low = False

    def read(self, free: int, mark: int) -> Literal["disk.low", "disk.recovered"] | None:
        """What is to be said now that so many bytes are free of a disk that should have `mark`."""
        was_low, self.is_low = self.is_low, free < (mark * RELIEF if self.is_low else mark)
        if self.is_low == was_low:
            return None
        return "disk.low" if self.is_low else "disk.recovered"


class Toll:
    """How much audio the quota has taken from somebody: said at the first segment, and then once in an hour."""

    def __init__(self) -> None:
        self._unsaid = timedelta()
        self._silent_until: datetime | None = None

    def take(self, duration: timedelta) -> None:
        """So much more."""
        self._unsaid += duration

    def due(self, now: datetime) -> timedelta | None:
        """What is to be said now: all that was taken since it was said last."""
        if not self._unsaid or (self._silent_until is not None and now < self._silent_until):
            return None
        taken, self._unsaid, self._silent_until = self._unsaid, timedelta(), now + AGAIN
        return taken


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
        if reserve.exists() and measure(state).free < RESERVE:
            reserve.unlink()
            log.warning("disk.reserve_used", folder=str(state))


def keep_reserve(state: Path) -> None:
    """Set room aside for the next start, once. Contained: OSError."""
    reserve = _reserve(state)
    with suppress(OSError):
        if not reserve.exists():
            file = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, RESERVE)
            finally:
                os.close(file)


def _reserve(state: Path) -> Path:
    return state / "reserve"


class Rules(NamedTuple):
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


async def keep_room(state: Path, rules: Rules, journal: Journal, instruments: Instruments = INSTRUMENTS) -> None:
    """Look after the disk of the state folder, for ever.

    Errors: those of the journal, also when its file is gone: a daemon that ends is started again, and finds a new one.
    Contained here: OSError of the file system, which is logged and tried again.
    """
    known = await journal.mark(CALENDAR)
    calendar = Calendar(None if known is None else datetime.fromisoformat(known))
    keeper = _Keeper(state, rules, journal, instruments, calendar)
    pruned = -math.inf
    while True:
        await keeper.look()
        if trio.current_time() >= pruned + PRUNING:
            pruned = trio.current_time()
            await keeper.prune()
        await trio.sleep(SOON if keeper.is_low else INTERVAL)


class _Keeper:
    def __init__(
        self,
        state: Path,
        rules: Rules,
        journal: Journal,
        instruments: Instruments,
        calendar: Calendar,
    ) -> None:
        self._state = state
        self._rules = rules
        self._journal = journal
        self._instruments = instruments
        self._calendar = calendar
        self._is_at_start = True
        self._gauge = Gauge()
        self._tolls: dict[tuple[str, str], Toll] = {}
        self._pending: list[Fact] = []

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
        await self._journal.confirm()
        storage, space = self._rules.storage(), self._space()
        now = self._now()
        mark = _mark(storage, space)
        shelves = await self._shelves()
        settled, forced = choose(
            shelves,
            quota=storage.spool_quota,
            lacking=mark - space.free,
            before=self._today() - timedelta(days=storage.spool_days),
        )
        self._say_forced(forced, storage.spool_quota, now)
        await self._commit()
        for removal in [*settled, *forced]:
            await self._remove(removal)
        space = self._space() if settled or forced else space
        self._watch(space, mark, now)
        if space.free >= mark + RESERVE:
            keep_reserve(self._state)
        await self._commit()

    async def prune(self) -> None:
        """Forget old events and old coverage, and more of the events where the journal is over its quota."""
        storage = self._rules.storage()
        today = self._today()
        before = today - timedelta(days=storage.journal_days)
        seq = await self._journal.first_since(before)
        oldest, size = await self._journal.extent()
        if size > storage.journal_quota:
            share = 1 - SLACK * storage.journal_quota / size
            seq = max(seq, oldest + math.ceil((self._journal.tip - oldest) * share))
        with trio.move_on_after(PATIENCE):
            if removed := await self._journal.prune(seq, await self._waiting()):
                log.info("journal.pruned", events=removed)
            await self._journal.prune_coverage(before)
            await self._journal.commit(Mark(CALENDAR, today.isoformat()))

    async def _waiting(self) -> list[str]:
        """The sinks that events wait for. One that has never run, for its plugin did not load, begins when it does."""
        known = await self._journal.cursors()
        return [*self._rules.sinks(), *(name for name in self._rules.unloaded() if name in known)]

    async def _pins(self) -> dict[str, object]:
        """Which rooms' audio each of them pins, by name: see `pins.py`."""
        sinks, unloaded = self._rules.sinks(), self._rules.unloaded()
        noted = {name: await self._journal.mark(pins_key(name)) for name in unloaded if name not in sinks}
        return {name: pins_of(sink) for name, sink in sinks.items()} | noted

    def _rooms(self) -> list[str]:
        """The rooms that are open, and those that are closed, or configured no more, and have left audio."""
        rooms = set(self._rules.spools())
        with suppress(OSError):
            rooms.update(place.name for place in (self._state / SPOOL).iterdir() if place.is_dir())
        return sorted(rooms)

    async def _shelves(self) -> list[Shelf]:
        standings = [await self._standing(room) for room in self._rooms()]
        # From here on nothing is waited for: what an open room has recorded does not change meanwhile.
        spools = self._rules.spools()
        return [
            one._replace(segments=spool.spare, size=spool.size) if (spool := spools.get(one.room)) else one
            for one in standings
        ]

    async def _standing(self, room: str) -> Shelf:
        """How far the room's audio is settled; and what there is of it, unless the room is open."""
        marks = await self._journal.marks(f"room/{room}/")
        journalled: int = marks.get(f"room/{room}/audio") or 0
        rate: int = marks.get(f"room/{room}/rate") or 1
        holes = Spans((start, end) for start, end in marks.get(f"room/{room}/holes") or [])
        heard = Spans([(0, marks.get(f"room/{room}/acknowledged") or 0)]) - holes
        spool = self._rules.spools().get(room)
        segments = [] if spool else await trio.to_thread.run_sync(list_segments, self._state / SPOOL / room)
        first = spool.first if spool else segments[0].position if segments else journalled
        cursors, delivered = await self._journal.cursors(), dict[str, int]()
        for name in [name for name, pins in (await self._pins()).items() if is_pinned(pins, room)]:
            lacks = await self._journal.undelivered(room, cursors.get(name, 0), first)
            delivered[name] = journalled if lacks is None else min(lacks, journalled)
        size = sum(segment.samples for segment in segments) * WIDTH
        return Shelf(room, rate, size, partial(_spare, segments), heard, delivered)

    async def _remove(self, removal: Removal) -> None:
        spool = self._rules.spools().get(removal.room)
        try:
            if spool:
                await spool.remove(removal.segment)
            else:
                removal.segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("segment.unremovable", file=str(removal.segment.path), error=str(error))  # noqa: TRY400 - the error's text says it all

    def _say_forced(self, forced: Sequence[Removal], quota: int, now: datetime) -> None:
        """Coverage of what was never transcribed, and notices: of each sink, and of the transcript."""
        for removal in forced:
            segment, rate = removal.segment, removal.rate
            for name in removal.sinks:
                self._toll(removal.room, name).take(timedelta(seconds=segment.samples / rate))
            if removal.unheard:
                self._toll(removal.room, "").take(timedelta(seconds=removal.unheard.total / rate))
            self._pending += [
                Cover(removal.room, start, end, "removed", None, segment.when(start, rate), segment.when(end, rate))
                for start, end in removal.unheard
            ]
        for (room, sink), toll in self._tolls.items():
            if taken := toll.due(now):
                first = next((removal.segment for removal in forced if removal.room == room), None)
                self._pending.append(_missed(room, sink, f"({show(quota)}) took {_duration(taken)}", first, now))

    def _toll(self, room: str, sink: str) -> Toll:
        return self._tolls.setdefault((room, sink), Toll())

    def _watch(self, space: Space, mark: int, now: datetime) -> None:
        code = self._gauge.read(space.free, mark)
        if code is None:
            return
        free = f"{show(space.free)} are free on the disk of {self._state}"
        if code == "disk.low":
            text = (
                f"Only {free}, less than {show(mark)}, and no audio is left there that is both transcribed and "
                "delivered. Make room, or recording will stop when it is full."
            )
            log.warning(code, folder=str(self._state), free=space.free, mark=mark)
        else:
            text = f"There is room again: {free}."
            log.info(code, folder=str(self._state), free=space.free)
        severity: Literal["warning", "info"] = "warning" if code == "disk.low" else "info"
        self._pending.append(Notice(room="", position=0, at=now, severity=severity, code=code, text=text))

    async def _commit(self) -> None:
        """Commit what is to be said. While the journal has no room it waits here, and removing goes on without it."""
        if self._pending:
            with trio.move_on_after(PATIENCE) as waiting:
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
    """The quota took audio that a sink never had, or, without a sink, that nobody had transcribed."""
    missed = f"that sink {sink} never had" if sink else "before it was transcribed"
    return Notice(
        room=room,
        position=first.position if first else 0,
        at=first.at if first else now,
        severity="warning",
        code="audio.removed" if sink else "transcript.missing",
        text=f"The quota of the spool {taken} of audio of {room} {missed}.",
    )


def list_segments(folder: Path) -> list[Segment]:
    """The segments of a room that is closed, by position. Changes nothing."""
    found: list[Segment | None] = []
    with suppress(OSError), os.scandir(folder) as entries:
        found = [
            parse_segment(Path(entry.path), entry.stat(follow_symlinks=False).st_size)
            for entry in entries
            if entry.is_file(follow_symlinks=False)
        ]
    return sorted(segment for segment in found if segment)


def _spare(segments: Sequence[Segment], start: int) -> Iterator[Segment]:
    """As `Spool.spare`, of a room that is closed."""
    return (segment for segment in segments[:-1] if segment.position >= start)


def show(size: int) -> str:
    """A size for people."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}"
    return f"{max(size, 0) / 1000:.3g} kB"


def _duration(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds:.0f} s"
