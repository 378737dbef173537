"""Recovery: where a room goes on after a stop, a crash or a power cut, and the account of the time between.

The journal and the spool fail separately: the journal is durable at each commit, the spool once per `sync_interval`. So
the spool can have audio that the journal does not know, and the journal can know positions that the spool has lost.
A position that either of them knows is never given to other audio.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from roomtone.capture.records import Stop, audio_records, loss_records, step_records
from roomtone.capture.sample_accounting import Away, Lost
from roomtone.capture.sources import File, Source
from roomtone.events import KINDS, Analysis, Audio, Durable, Forgotten, Gap, Turn
from roomtone.journal.journal import Journal
from roomtone.journal.keys import room_key
from roomtone.journal.records import CoverageSpan, Record
from roomtone.legible import well_formed
from roomtone.spool.segment import Segment
from roomtone.spool.spool import Spool

_MAX_RECORDS_PER_COMMIT = 300
"""Records in one transaction, for a journal that does not know many segments."""
_MAX_TURN_S = 600
"""Seconds before the end of the spool in which an event may begin that ends after it."""


class RateChanged(Exception):  # noqa: N818 - it says what is true of the room
    """The room was recorded at another rate before: its positions would mean two things. The text is for the user."""


class FileProgress(msgspec.Struct, frozen=True):
    """A file that is being recorded: the position and time (UTC) of its first sample. `size` is in bytes.

    `ended`: it was recorded to its end.
    """

    path: str
    size: int
    mtime: int
    start: int
    at: datetime
    ended: bool = False


class Resume(msgspec.Struct, frozen=True):
    """The point where a room goes on: the next sample's position, the time without a source before it, a file that is
    recorded in part.
    """

    position: int
    away: Away
    file: FileProgress | None = None


async def recover(room: str, source: Source, *, rate: int, folder: Path, spool: Spool, journal: Journal) -> Resume:
    """Journal the segments and losses that the journal does not know, and return where the room goes on.

    Doing it twice changes nothing. Raises RateChanged.
    """
    known_before = await check_rate(room, rate, journal)
    await _journal_segments(room, spool, journal)
    progress = await _progress(room, source, folder, journal)
    if progress:
        position = max(spool.end, progress.start)
        await spool.cut(skip=position - spool.end)
        return Resume(position, Away(position, "device", None), progress)
    stopped = await last_stop(room, journal)
    known = await _known(room, spool, journal)
    if not known and not known_before:
        return Resume(0, Away(0, "daemon down", None))
    torn = await _journal_torn(room, spool, journal, known)
    if not torn and stopped is not None and stopped.position == known:
        return Resume(known, Away(known, stopped.cause, stopped.at))
    since = await _last_heard(room, spool, journal, known)
    # Audio that was written after the last sync may be lost, while a sink has its words already.
    jump = int(2 * spool.sync_interval * rate)
    return Resume(known + jump, Away(known, "daemon down", since))


async def last_stop(room: str, journal: Journal) -> Stop | None:
    """The end of the last run; None if there was none, or if the daemon crashed since."""
    mark = await journal.mark(room_key(room, "stopped"))
    return None if mark is None else msgspec.convert(mark, Stop)


async def check_rate(room: str, rate: int, journal: Journal) -> bool:
    """True if the room was ever recorded. Raises RateChanged if that was at another rate."""
    before = await journal.mark(room_key(room, "rate"))
    refuse_other_rate(room, rate, before)
    return before is not None


def refuse_other_rate(room: str, rate: int, before: object) -> None:
    """Raise RateChanged if the room was recorded at another rate `before`; None: it was never recorded. Pure."""
    if before not in {None, rate}:
        raise RateChanged(
            f"[rooms.{room}] rate = {rate}: this room was recorded at {before} Hz before, and a room keeps its rate. "
            f"Set rate = {before}, or give the table another name for a new room at {rate} Hz."
        )


def locate(source: File, folder: Path) -> Path:
    """The file that the configuration in `folder` means."""
    return folder / Path(source.path).expanduser()


def identify(source: File, folder: Path, start: int, at: datetime) -> FileProgress | None:
    """The file as it is now, recorded from `start` on. None if it cannot be examined."""
    path = locate(source, folder)
    try:
        status = path.stat()
    except OSError:
        return None
    return FileProgress(well_formed(str(path)), status.st_size, status.st_mtime_ns, start, at)


async def _progress(room: str, source: Source, folder: Path, journal: Journal) -> FileProgress | None:
    """The file that the last run was recording, if it is this source and has not changed.

    A file that cannot be examined now counts as the same: its share may not be mounted yet. A file that was recorded to
    its end begins again with the next run, but not if that run only makes up for a crash.
    """
    mark = await journal.mark(room_key(room, "file"))
    if mark is None or not isinstance(source, File):
        return None
    before = msgspec.convert(mark, FileProgress)
    if before.ended and not journal.interrupted:
        return None
    now = identify(source, folder, before.start, before.at)
    if now is None:
        return before if before.path == well_formed(str(locate(source, folder))) else None
    return before if now == msgspec.structs.replace(before, ended=False) else None


async def _journal_segments(room: str, spool: Spool, journal: Journal) -> None:
    """Events for the segments that were written after the last commit, and for losses between them."""
    end = await journal.mark(room_key(room, "audio")) or 0
    lost = [cover for cover in await journal.covered(room, max(0, end - 1)) if cover.state == "lost"]
    records: list[Record] = []
    before: Segment | None = None
    for segment in spool.segments():
        if segment.end > end:
            if end:
                heard = before.when(before.end, spool.rate) if before else segment.at
                for one in _unexplained(end, heard, segment, lost, spool.rate):
                    records += loss_records(room, one)
                if segment.position == end and not segment.fresh and segment.at > heard:
                    records += step_records(room, end, heard, segment.at)
            records += audio_records(room, spool.rate, segment)
            end = segment.end
        before = segment
        if len(records) >= _MAX_RECORDS_PER_COMMIT:
            await journal.commit(*records)
            records.clear()
    if records:
        await journal.commit(*records)


def _unexplained(end: int, heard: datetime, segment: Segment, lost: list[CoverageSpan], rate: int) -> list[Lost]:
    """The losses between `end`, at `heard`, and the segment that are not in the journal.

    The daemon went down before it could journal their causes.
    """
    if segment.position == end:
        is_known = not segment.fresh or any(one.start <= end <= one.end for one in lost)
        return [] if is_known else [Lost(end, end, heard, max(heard, segment.at), "daemon down")]
    holes = []
    for start, stop in uncovered(end, segment.position, lost):
        from_ = heard + timedelta(seconds=(start - end) / rate)
        holes.append(Lost(start, stop, from_, max(from_, segment.when(stop, rate)), "daemon down"))
    return holes


async def _journal_torn(room: str, spool: Spool, journal: Journal, known: int) -> bool:
    """Journal the loss of positions that were in use and are not on disk, and move the spool past them."""
    covers = [cover for cover in await journal.covered(room, spool.end) if cover.state in {"captured", "lost"}]
    records: list[Record] = []
    for start, end in uncovered(spool.end, known, covers):
        from_ = spool.at(start) if len(spool.segments()) else await _last_heard(room, spool, journal, start)
        until = max(from_ + timedelta(seconds=(end - start) / spool.rate), await _last_heard(room, spool, journal, end))
        records += loss_records(room, Lost(start, end, from_, until, "daemon down"))
    if records:
        await journal.commit(*records)
    await spool.cut(skip=known - spool.end)
    return bool(records)


async def _known(room: str, spool: Spool, journal: Journal) -> int:
    """The position after everything that the spool or the journal knows of this room."""
    keys = room_key(room, "audio"), room_key(room, "acknowledged")
    marks = [await journal.mark(key) for key in keys]
    stopped = await last_stop(room, journal)
    covers = await journal.covered(room, spool.end)
    recent = await journal.select(room, KINDS, max(0, spool.end - _MAX_TURN_S * spool.rate), 2**63 - 1)
    return max(
        spool.end,
        stopped.position if stopped else 0,
        *(mark for mark in marks if isinstance(mark, int)),
        *(cover.end for cover in covers),
        *(_end(event) for event in recent),
    )


def _end(event: Durable) -> int:
    """The position after everything that the event covers."""
    match event:
        case Turn(words=words):
            return max([event.position, *(word.end for word in words)])
        case Audio(position=position, samples=samples):
            return position + samples
        case Gap(end=end) | Analysis(end=end) | Forgotten(end=end):
            return end
        case _:
            return event.position


async def _last_heard(room: str, spool: Spool, journal: Journal, position: int) -> datetime:
    """The latest time that is known to be accounted for, up to `position`."""
    covers = await journal.covered(room, max(0, position - 1))
    times = [cover.until for cover in covers if cover.end <= position and cover.state in {"captured", "lost"}]
    if segments := spool.segments():
        # The spool knows nothing beyond its audio: positions that were skipped took another time than their length.
        times.append(segments[-1].when(min(position, segments[-1].end), spool.rate))
    else:
        started = await journal.select(room, ("recording_started",), 0, 2**63 - 1)
        times += [event.at for event in started[-1:]]
    return max(times, default=datetime.now(UTC))


def uncovered(start: int, end: int, covers: list[CoverageSpan]) -> list[tuple[int, int]]:
    """The stretches of [start, end) that none of the covers contains. The covers are ordered by start."""
    holes = []
    for cover in covers:
        if start < min(cover.start, end):
            holes.append((start, min(cover.start, end)))
        start = max(start, cover.end)
    if start < end:
        holes.append((start, end))
    return holes
