"""The recorder: one loop that keeps a room recorded for ever.

Open the source, record its blocks, and when it fails leave its context, wait, and open it again, from the position
where the room stands. What a block, a silence or a failure means is decided in `account`, which is pure; here it is
done. A decision once taken is done as a whole: cancellation comes while waiting for samples, and nowhere else.

Contained here, by name: SourceEnded and SourceFailed, an OSError of starting the source's process, and an OSError of
writing audio, which is a loss with the cause `disk full`. All else propagates.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec
import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.capture.clock import Instant, NominalClock, RoomClock
from roomtone.capture.level import Loudness, measure_loudness
from roomtone.capture.outbox import Outbox
from roomtone.capture.records import Stop, audio_records, key, loss_records, mute_records, step_records, stop_records
from roomtone.capture.recovery import FileProgress, RateChanged, Resume, identify, recover
from roomtone.capture.run_control import RunControl
from roomtone.capture.sample_accounting import (
    DISK_RETRY_S,
    FIRST_SAMPLE_TIMEOUT_S,
    MICROPHONE_FIRST_SAMPLE_TIMEOUT_S,
    BlockReceived,
    CutSegment,
    Instruction,
    Keep,
    Leave,
    Lost,
    Note,
    Reason,
    SampleAccounting,
    Started,
    Stepped,
    Stopped,
)
from roomtone.capture.source_process import Block, SourceEnded, SourceFailed, SourceProcess, open_source
from roomtone.capture.sources import Command, File, Microphone, Source, name_of
from roomtone.events import Cause, Level, Notice, RecordingStarted, RecordingStopped
from roomtone.journal.journal import Journal
from roomtone.journal.records import Mark, Record
from roomtone.legible import well_formed
from roomtone.live import Live
from roomtone.spool.segment import SAMPLE_BYTES
from roomtone.spool.spool import Spool

__all__ = ["Clocks", "HealthObserver", "Opener", "RateChanged", "read_clocks", "record", "recover"]

WAIT_TICK_S = 0.25
"""Seconds of waiting for a block that count as silence when none came. A standstill of our own loop counts once."""
FINISH_TIMEOUT_S = 3.0
"""Seconds that the last facts of a run may take: room that comes later comes to the next run, or the next start."""
COMMIT_TIMEOUT_S = 1.0
"""Seconds that facts may wait for a journal on a full disk before audio goes first."""
CROWDED = 10.0
MAX_PENDING_RECORDS = 1000
"""Facts above which each waits as long as `CROWDED`: the source's ring fills meanwhile, and counts what it drops."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Opener(Protocol):
    """How a source is opened: `open_source`, or what a test puts in its place."""

    def __call__(
        self, source: Source, *, rate: int, frame: int, folder: Path, skip: int = 0
    ) -> AbstractAsyncContextManager[SourceProcess]: ...


class HealthObserver(Protocol):
    """Who is told how the room stands, in seconds of the loop's clock."""

    def tried(self, room: str, now: float) -> None:
        """The source is being opened."""

    def samples(self, room: str, now: float) -> None:
        """Samples are written."""

    def gap(self, room: str, cause: Cause, now: float, reason: str = "") -> None:
        """There are none, and why; `reason` is for a person."""

    def ended(self, room: str, now: float) -> None:
        """There will be no more, and that is right."""

    def drifts(self, room: str, ppm: float) -> None:
        """So much faster than this machine's clock the source runs, in parts per million."""


class NullObserver:
    """Nobody wants to know."""

    def tried(self, room: str, now: float) -> None: ...
    def samples(self, room: str, now: float) -> None: ...
    def gap(self, room: str, cause: Cause, now: float, reason: str = "") -> None: ...
    def ended(self, room: str, now: float) -> None: ...
    def drifts(self, room: str, ppm: float) -> None: ...


NULL_OBSERVER: Final = NullObserver()

Clocks: TypeAlias = Callable[[], Instant]

E = TypeVar("E", bound=BaseException)


def read_clocks() -> Instant:
    """The machine's clocks now."""
    return Instant(time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC), time.time())


async def record(
    room: str,
    source: Source,
    *,
    rate: int,
    frame: int,
    folder: Path,
    spool: Spool,
    journal: Journal,
    live: Live,
    reins: RunControl | None = None,
    witness: HealthObserver = NULL_OBSERVER,
    opener: Opener = open_source,
    clocks: Clocks = read_clocks,
) -> Reason:
    """Record the room at `rate` Hz in blocks of `frame` samples until the source has ended: a file, a command's exit 0.

    Ended by `reins` or cancelled, it closes the source and the segment and says why it stopped, within a few seconds;
    so does the end of the source. Returns why. `witness` is told how it stands.
    Relative paths begin in `folder`. Errors: RateChanged before anything is recorded; JournalError.
    """
    reins = reins or RunControl(Outbox(room))
    if reins.outbox:
        witness.gap(room, "disk full", trio.current_time())
        await reins.outbox.drain(journal)  # where the room stands is told by the journal
    resume = await recover(room, source, rate=rate, folder=folder, spool=spool, journal=journal)
    account = _account(source, rate, frame, resume, clocks())
    recorder = _Recorder(
        room,
        source,
        folder=folder,
        file=resume.file,
        account=account,
        spool=spool,
        journal=journal,
        live=live,
        reins=reins,
        witness=witness,
        clocks=clocks,
    )
    reason: Reason = "stopping"
    try:
        with reins.scope as scope:
            await _follow(recorder, opener, rate, frame, folder)
        reason = reins.reason if scope.cancelled_caught else "ended"
    finally:
        await recorder.finish(reason)
    return reason


def _account(source: Source, rate: int, frame: int, resume: Resume, now: Instant) -> SampleAccounting:
    clock: RoomClock | NominalClock = RoomClock(rate)
    if resume.file:
        clock = NominalClock(rate, resume.file.start, began=resume.file.at)
    elif isinstance(source, File):
        clock = NominalClock(rate, resume.position, earliest=resume.away.since)
    opening = MICROPHONE_FIRST_SAMPLE_TIMEOUT_S if isinstance(source, Microphone) else FIRST_SAMPLE_TIMEOUT_S
    return SampleAccounting(rate, frame, resume.position, resume.away, now, clock=clock, first_sample_timeout=opening)


async def _follow(recorder: "_Recorder", opener: Opener, rate: int, frame: int, folder: Path) -> None:
    """Keep the source open, whatever becomes of it. Returns when it has ended for good."""
    backoff = Backoff(first=0.5, longest=30.0)
    while True:
        opened = trio.current_time()
        recorder.witness.tried(recorder.room, opened)
        outcome: SourceEnded | SourceFailed | None = None
        try:
            async with opener(recorder.source, rate=rate, frame=frame, folder=folder, skip=recorder.skip) as feed:
                await recorder.listen(feed)
        except* (SourceEnded, SourceFailed) as group:
            outcome = _first(group)
        except* OSError as group:
            outcome = SourceFailed("source.unstartable", f"the capture process cannot be started: {_first(group)}")
        if isinstance(outcome, SourceEnded) and _is_final(recorder.source):
            recorder.witness.ended(recorder.room, trio.current_time())
            return
        reason = str(outcome or "silent")
        recorder.witness.gap(recorder.room, "device", trio.current_time(), reason)
        if outcome is not None:
            await recorder.fail(outcome)
        backoff.healthy_for(trio.current_time() - opened)
        delay = backoff.next()
        if is_worth_saying(backoff.failures):
            log.warning("source.left", room=recorder.room, reason=reason, retry_in=round(delay, 1))
        await trio.sleep(delay)


def _first(group: BaseExceptionGroup[E]) -> E:
    """The first of the exceptions that a group of groups has."""
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def _is_final(source: Source) -> bool:
    return isinstance(source, File) or (isinstance(source, Command) and source.restart == "on-failure")


class _Recorder:
    """Does what the account says: to the spool, the journal and the live feed."""

    def __init__(
        self,
        room: str,
        source: Source,
        *,
        folder: Path,
        file: FileProgress | None,
        account: SampleAccounting,
        spool: Spool,
        journal: Journal,
        live: Live,
        reins: RunControl,
        witness: HealthObserver,
        clocks: Clocks,
    ) -> None:
        self.room = room
        self.witness = witness
        self.source = source
        self._folder = folder
        self._file = file
        self._account = account
        self._spool = spool
        self._journal = journal
        self._live = live
        self._reins = reins
        self._clocks = clocks

    @property
    def skip(self) -> int:
        """Samples of the file that are recorded already."""
        return self._account.position - self._file.start if self._file else 0

    async def listen(self, feed: SourceProcess) -> None:
        """Take blocks until the source has been silent for too long. Raises what the feed raises."""
        while True:
            block = None
            with trio.move_on_after(WAIT_TICK_S):
                block = await feed.receive()
            if block is not None:
                await self._take(block)
            elif Leave() in await self.do(self._account.waited(WAIT_TICK_S, self._clocks())):
                return
            if self._reins.is_to_rotate and self._account.flowing:
                await self.do(self._account.rotate())
                self._reins.rotated()

    async def fail(self, outcome: SourceEnded | SourceFailed) -> None:
        """The source has failed, or ended though it should not."""
        code = outcome.code if isinstance(outcome, SourceFailed) else "source.ended"
        await self.do(self._account.failed(code, str(outcome), self._clocks()))

    async def finish(self, reason: Reason) -> None:
        """Close the segment and say that the recording stopped, and in the same moment that the room is muted."""
        now = self._clocks()
        instructions = self._account.finish(reason, now)
        facts: list[Record] = []
        if reason == "muted" and self._reins.mute:
            at = datetime.fromtimestamp(now.utc, UTC)
            facts = mute_records(self.room, self._reins.mute, self._account.position, at)
        await self.do(instructions, then=facts)
        await self.settle()

    async def do(self, instructions: Sequence[Instruction], *, then: Sequence[Record] = ()) -> Sequence[Instruction]:
        """Do all of it, also when cancelled, and return it. Facts that belong to one moment are committed together."""
        with trio.CancelScope(shield=True):
            facts: list[Record] = []
            for instruction in instructions:
                if isinstance(instruction, CutSegment):
                    segment = await self._spool.cut(fresh=instruction.fresh, skip=instruction.skip)
                    facts += audio_records(self.room, self._spool.rate, segment) if segment else []
                else:
                    facts += self._facts(instruction)
            await self._commit([*facts, *then])
        return instructions

    async def settle(self) -> None:
        """Give facts that still wait for the journal a last time. What the room does next says them before its own."""
        with trio.CancelScope(shield=True):
            self._reins.outbox.hurry()
            await self._reins.outbox.commit(self._journal, [], FINISH_TIMEOUT_S)

    async def _take(self, block: Block) -> None:
        loudness = measure_loudness(block.audio)
        samples = len(block.audio) // SAMPLE_BYTES
        now = self._clocks()
        with trio.CancelScope(shield=True) as taking:
            instructions = self._account.block(
                BlockReceived(samples, block.dropped, block.boottime, loudness.still), now
            )
            await self.do(instructions)
            if isinstance(keep := instructions[-1], Keep):
                while not await self._keep(block.audio, keep):
                    # A file waits for room on the disk, and while it waits it may be told to stop.
                    taking.shield = False
                    await trio.sleep(DISK_RETRY_S)
                    taking.shield = True
            else:
                self.witness.gap(self.room, "disk full", trio.current_time())
            self._publish(self._account.position - samples, loudness)

    def _publish(self, position: int, loudness: Loudness) -> None:
        at = self._account.clock.at(position)
        level = Level(room=self.room, position=position, at=at, rms=loudness.rms, peak=loudness.peak)
        self._live.publish(level)

    async def _keep(self, audio: bytes, keep: Keep) -> bool:
        """Record the block. False when it must be tried again."""
        samples = len(audio) // SAMPLE_BYTES
        try:
            segment = await self._spool.append(audio, keep.at)
        except OSError as error:
            self.witness.gap(self.room, "disk full", trio.current_time())
            await self.do(self._account.refused(samples, error, self._clocks()))
            return self._account.live
        if segment:
            self.witness.drifts(self.room, self._account.clock.ppm)
        await self._commit(audio_records(self.room, self._spool.rate, segment) if segment else [])
        await self.do(self._account.kept(samples))
        self.witness.samples(self.room, trio.current_time())
        return True

    def _facts(self, instruction: Instruction) -> Sequence[Record]:
        match instruction:
            case Lost():
                log.warning(
                    "audio.lost", room=self.room, samples=instruction.end - instruction.start, **_told(instruction)
                )
                return loss_records(self.room, instruction)
            case Stepped(position=position, from_=from_, until=until):
                log.info("clock.stepped", room=self.room, seconds=round((until - from_).total_seconds(), 3))
                return step_records(self.room, position, from_, until)
            case Started():
                return self._started(instruction)
            case Stopped():
                return self._stopped(instruction)
            case Note(severity=severity, code=code, text=text, position=position, at=at):
                words = well_formed(text if code.startswith("disk.") else f"{name_of(self.source)}: {text}")
                return [Notice(room=self.room, position=position, at=at, severity=severity, code=code, text=words)]
            case _:
                return []

    def _started(self, started: Started) -> list[Record]:
        position, at, rate = started.position, started.at, self._spool.rate
        if isinstance(self.source, File) and self._file is None:
            self._file = identify(self.source, self._folder, position, at)
        return [
            RecordingStarted(room=self.room, position=position, at=at, rate=rate, source=name_of(self.source)),
            Mark(key(self.room, "rate"), rate),
            Mark(key(self.room, "stopped"), None),
            Mark(key(self.room, "file"), msgspec.to_builtins(self._file)),
        ]

    def _stopped(self, stopped: Stopped) -> list[Record]:
        position, at = stopped.position, stopped.at
        # A file stands still with its own time while it is away: that time is nobody's.
        cause = self._reins.cause if self._account.live else "daemon down"
        facts: list[Record] = [] if stopped.reason == "rotated" else stop_records(self.room, Stop(position, at, cause))
        if stopped.started:
            facts.append(RecordingStopped(room=self.room, position=position, at=at, reason=stopped.reason))
        if stopped.reason == "ended" and self._file:
            ended = msgspec.structs.replace(self._file, ended=True)
            facts.append(Mark(key(self.room, "file"), msgspec.to_builtins(ended)))
        return facts

    async def _commit(self, facts: Sequence[Record]) -> None:
        outbox = self._reins.outbox
        await outbox.commit(self._journal, facts, COMMIT_TIMEOUT_S if len(outbox) < MAX_PENDING_RECORDS else CROWDED)


def _told(lost: Lost) -> dict[str, object]:
    seconds = (lost.until - lost.from_).total_seconds()
    return {"start": lost.start, "cause": lost.cause, "seconds": round(seconds, 3)}
