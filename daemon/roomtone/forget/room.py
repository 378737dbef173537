"""Forget: what was recorded and said in a stretch of time goes from the spool and the journal.

The order is what makes it hold. First the room's sessions end, so that nothing of the stretch is on its way. Then a
mark says what is being forgotten, and nothing of its content: from there on a crash at any moment leaves work that the
next start finishes, before any room is open. Then the audio goes, then in one transaction the events, with the
tombstone that notifies every sink; then the journal's files are made to hold nothing of it, and the mark is removed.

It is the one place where a promise yields: events of the stretch that a sink has not had yet never come to it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import trio

from roomtone.events import Audio, Durable, Forgotten
from roomtone.journal.journal import Journal
from roomtone.journal.keys import ROOM_PREFIX, RoomMarks, holes_mark, progress_of, rates_of, room_key, room_prefix
from roomtone.journal.records import CoverageSpan, Mark, Record
from roomtone.journal.words import program_words
from roomtone.live import Live
from roomtone.spans import Spans
from roomtone.spool.spool import Spool, open_closed_spool

MAX_TURN_S = 600
"""Seconds of the longest turn that is looked for across an edge."""
MAX_SEGMENT = timedelta(hours=1)
"""A segment that reaches into the stretch begins at most this long before it."""
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
"""Before any clock of a recorder: one without a battery begins in 1970."""
ARRIVAL_TIMEOUT_S = 10.0
"""Seconds in which audio that was heard before the command must have come to the spool."""
COMPACT_RETRY_S = 1.0
"""Seconds between two attempts to compact the journal while another program reads it."""
COMPACT_ATTEMPTS = 5

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class ForgetRange(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """The stretch that is being forgotten: positions and times (UTC). `told`: the tombstone has replaced the events."""

    start: int
    end: int
    from_: datetime
    until: datetime
    told: bool = False


class ForgetScope(NamedTuple):
    """Where to forget. `quiet` gives a room's spool, with none of its sessions open as long as the context lasts."""

    journal: Journal
    live: Live
    quiet: Callable[[str, int], AbstractAsyncContextManager[Spool]]


class Removed(NamedTuple):
    """The forgotten part of the room. `events` are those that are gone; `sound` has pieces of the audio that was there.

    `is_late`: audio of the last moments had not come yet. `is_compact`: the journal's files have nothing of it.
    """

    room: str
    stretch: ForgetRange
    events: Sequence[Durable]
    sound: Sequence[bytes]
    is_late: bool
    is_compact: bool


class RecordedSpan(NamedTuple):
    """Recorded audio by position, of which the first sample was taken `at` (UTC)."""

    position: int
    samples: int
    at: datetime


def locate(heard: Sequence[RecordedSpan], rate: int, since: datetime, until: datetime) -> ForgetRange | None:
    """From the first to the last sample heard between these times, rounded outward; None: nothing was heard. Pure."""
    found = []
    for one in heard:
        first = max(0, math.floor((since - one.at).total_seconds() * rate))
        last = min(one.samples, math.ceil((until - one.at).total_seconds() * rate))
        if first < last:
            times = (one.at + timedelta(seconds=place / rate) for place in (first, last))
            found.append((one.position + first, one.position + last, *times))
    if not found:
        return None
    starts, ends, begins, finishes = zip(*found, strict=True)
    return ForgetRange(min(starts), max(ends), min(begins), max(finishes))


def clamp(since: datetime, until: datetime, now: datetime) -> tuple[datetime, datetime]:
    """These times, from EARLIEST to now, so that there are others before and behind them. Pure."""
    return min(max(since, EARLIEST), now), min(max(until, EARLIEST), now)


async def rooms_known(journal: Journal) -> dict[str, int]:
    """The rate in Hz of each room that was ever recorded, configured or not."""
    return rates_of(await journal.marks(ROOM_PREFIX))


def closed(folder: Path) -> Callable[[str, int], AbstractAsyncContextManager[Spool]]:
    """The spools below `folder` of rooms that are not open."""
    return lambda room, rate: open_closed_spool(folder / room, rate)


async def forget(room: str, rate: int, since: datetime, until: datetime, scope: ForgetScope) -> Removed | None:
    """Forget what the room heard between these times (UTC). None where nothing was recorded then.

    Errors: OSError of the spool, after which the mark is there and `resume` goes on; those of the journal.
    """
    async with scope.quiet(room, rate) as spool:
        await _finish(room, rate, spool, scope)  # what was left before
        is_late = not await _wait_for(until, spool)
        heard = [RecordedSpan(one.position, one.samples, one.at) for one in spool.recorded()]
        segments = await scope.journal.audio_between(room, since - MAX_SEGMENT, until)
        stretch = locate([*heard, *map(_heard, segments)], rate, since, until)
        if stretch is None:
            return None
        sound = await _sample(spool, stretch)
        await scope.journal.commit(_mark(room, stretch))
        log.info("room.forgetting", room=room, start=stretch.start, end=stretch.end)
        removed, is_compact = await _finish(room, rate, spool, scope)
    return Removed(room, stretch, removed, sound, is_late, is_compact)


async def resume(scope: ForgetScope) -> None:
    """Finish what a crash has interrupted. Errors: those of the journal.

    Contained here: OSError of a spool, for recording goes on whatever else fails; it is tried again at the next start.
    """
    for room, rate in (await rooms_known(scope.journal)).items():
        if await scope.journal.mark(room_key(room, "forgetting")) is None:
            continue
        try:
            async with scope.quiet(room, rate) as spool:
                await _finish(room, rate, spool, scope)
        except* OSError as group:
            log.error("room.unforgotten", room=room, error=str(group.exceptions[0]))  # noqa: TRY400 - it says it all


async def _finish(room: str, rate: int, spool: Spool, scope: ForgetScope) -> tuple[Sequence[Durable], bool]:
    """Do what the room's mark says, if there is one: the events that went, and whether it is all done."""
    mark = await scope.journal.mark(room_key(room, "forgetting"))
    if mark is None:
        return (), True
    stretch = msgspec.convert(mark, ForgetRange)
    removed = await _carry_out(room, rate, stretch, spool, scope)
    is_done = await _compact(room, scope.journal)
    log.info("room.forgotten", room=room, start=stretch.start, end=stretch.end, events=len(removed), done=is_done)
    return removed, is_done


def _heard(event: Audio) -> RecordedSpan:
    return RecordedSpan(event.position, event.samples, event.at)


async def _wait_for(until: datetime, spool: Spool) -> bool:
    """Wait for audio that was heard by then, and is still on its way from the source. False: it has not come."""
    with trio.move_on_after(ARRIVAL_TIMEOUT_S):
        while spool.recorded() and spool.at(spool.end) < until:
            if not await spool.wait_past(spool.end, through_rest=False):
                return True
        return True
    return False


async def _sample(spool: Spool, stretch: ForgetRange, pieces: int = 12, seconds: float = 0.1) -> list[bytes]:
    """Some of the audio that is about to go, by which it would be known again: nothing silent, and no tone."""
    found = []
    for place in range(stretch.start, stretch.end, max(1, (stretch.end - stretch.start) // pieces)):
        piece = await spool.read(place, round(seconds * spool.rate))
        if (
            piece is not None
            and piece.end <= stretch.end
            and len(set(zip(*[iter(piece.audio)] * 2, strict=False))) > 64
        ):
            found.append(piece.audio)
    return found


async def _carry_out(room: str, rate: int, stretch: ForgetRange, spool: Spool, scope: ForgetScope) -> Sequence[Durable]:
    journal = scope.journal
    progress = progress_of(room, await journal.marks(room_prefix(room)))
    await spool.erase(stretch.start, stretch.end, journalled=progress.audio)
    scope.live.clear(room)
    forgotten = Forgotten(
        room=room,
        position=stretch.start,
        at=stretch.from_,
        start=stretch.start,
        end=stretch.end,
        from_=stretch.from_,
        until=stretch.until,
    )
    facts: list[Record] = [] if stretch.told else [forgotten]
    cover = CoverageSpan(room, stretch.start, stretch.end, "forgotten", None, stretch.from_, stretch.until)
    facts += [cover, *_settled(room, stretch, progress), _mark(room, msgspec.structs.replace(stretch, told=True))]
    known = await trio.to_thread.run_sync(program_words)
    return await journal.forget(forgotten, MAX_TURN_S * rate, *facts, known=known)


def _settled(room: str, stretch: ForgetRange, progress: RoomMarks) -> list[Mark]:
    """Audio that is gone is not transcribed: the marks of the transcript's position and of its holes."""
    left = progress.holes - Spans([(stretch.start, stretch.end)])
    found = [] if left == progress.holes else [holes_mark(room, left)]
    if stretch.start <= progress.acknowledged < stretch.end:
        found.append(Mark(room_key(room, "acknowledged"), stretch.end))
    return found


async def _compact(room: str, journal: Journal) -> bool:
    """Have the journal's files hold nothing of it, and only then say that it is done."""
    for _ in range(COMPACT_ATTEMPTS):
        if await journal.compact():
            await journal.commit(Mark(room_key(room, "forgetting"), None))
            return True
        await trio.sleep(COMPACT_RETRY_S)
    log.error("journal.uncompacted", room=room)
    return False


def _mark(room: str, stretch: ForgetRange) -> Mark:
    return Mark(room_key(room, "forgetting"), msgspec.to_builtins(stretch))
