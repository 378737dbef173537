"""The recorder: one loop that keeps a room recorded until it is cancelled or its source ends.

It opens the source and records its blocks. When the source fails it leaves the source's context, waits, and opens it
again, at the position where the room stands. `sample_accounting`, which is pure, decides about each block, silence and
failure; this module carries the decisions out. A decision is carried out as a whole: cancellation is possible only
while waiting for samples.

Contained here, by name: SourceEnded and SourceFailed; an OSError of starting the source's process; an OSError of
writing audio, which is a loss with the cause `disk full`. All else propagates.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.capture.clock import Instant, NominalClock, RoomClock
from roomtone.capture.level import Loudness, measure_loudness
from roomtone.capture.records import Stop, audio_records, loss_records, mute_records, step_records, stop_records
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
from roomtone.events import Cause, Level, RecordingStarted, RecordingStopped, notice
from roomtone.journal.journal import Journal
from roomtone.journal.keys import room_key
from roomtone.journal.records import Mark, Record
from roomtone.legible import well_formed
from roomtone.live import Live
from roomtone.spool.segment import SAMPLE_BYTES
from roomtone.spool.spool import Spool

__all__ = ["CaptureContext", "Clocks", "HealthObserver", "Opener", "RateChanged", "read_clocks", "record", "recover"]

WAIT_TICK_S = 0.25
"""Seconds of waiting for a block that count as silence if none came. A standstill of our own loop counts once."""
FINISH_TIMEOUT_S = 3.0
"""Seconds that the last records of a run may take. Later, the next run or the next start commits them."""
COMMIT_TIMEOUT_S = 1.0
"""Seconds that a commit may wait for a journal on a full disk before audio goes first."""
CROWDED_COMMIT_TIMEOUT_S = 10.0
"""The same when too many records are pending: the source's ring fills meanwhile, and counts what it drops."""
MAX_PENDING_RECORDS = 1000
"""Pending records above which a commit may wait longer."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Opener(Protocol):
    """Opens a source: `open_source`, or what a test puts in its place."""

    def __call__(
        self, source: Source, *, rate: int, frame: int, folder: Path, skip: int = 0
    ) -> AbstractAsyncContextManager[SourceProcess]: ...


class HealthObserver(Protocol):
    """Is notified of the room's health. Times are in seconds of the loop's clock."""

    def tried(self, room: str, now: float) -> None:
        """The source is being opened."""

    def samples(self, room: str, now: float) -> None:
        """Samples are written."""

    def gap(self, room: str, cause: Cause, now: float, reason: str = "") -> None:
        """No samples come, because of `cause`; `reason` is for the operator."""

    def ended(self, room: str, now: float) -> None:
        """The source has ended as it should."""

    def drifts(self, room: str, ppm: float) -> None:
        """The source runs this much faster than the machine's clock, in parts per million."""


class NullObserver:
    """Ignores everything."""

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


class CaptureContext(NamedTuple):
    """Where a room is recorded from and into: `rate` in Hz, blocks of `frame` samples.

    Relative paths of the source begin in `folder`.
    """

    room: str
    source: Source
    rate: int
    frame: int
    folder: Path
    spool: Spool
    journal: Journal
    live: Live
    observer: HealthObserver = NULL_OBSERVER
    opener: Opener = open_source
    clocks: Clocks = read_clocks


async def record(context: CaptureContext, control: RunControl) -> Reason:
    """Record the room until its source has ended: a file, or a command with exit status 0. Returns why it stopped.

    Ended by `control` or cancelled, it closes the source and the segment and journals the reason, within a few seconds;
    so does the end of the source. Errors: RateChanged before anything is recorded; JournalError.
    """
    room, journal = context.room, context.journal
    if control.outbox:
        context.observer.gap(room, "disk full", trio.current_time())
        await control.outbox.drain(journal)  # the journal knows where the room goes on
    resume = await recover(
        room, context.source, rate=context.rate, folder=context.folder, spool=context.spool, journal=journal
    )
    recorder = _Recorder(context, control, _open_accounting(context, resume), resume.file)
    reason: Reason = "stopping"
    try:
        with control.scope as scope:
            await _keep_open(recorder, context)
        reason = control.reason if scope.cancelled_caught else "ended"
    finally:
        await recorder.finish(reason)
    return reason


def _open_accounting(context: CaptureContext, resume: Resume) -> SampleAccounting:
    rate, source = context.rate, context.source
    clock: RoomClock | NominalClock = RoomClock(rate)
    if resume.file:
        clock = NominalClock(rate, resume.file.start, began=resume.file.at)
    elif isinstance(source, File):
        clock = NominalClock(rate, resume.position, earliest=resume.away.since)
    timeout = MICROPHONE_FIRST_SAMPLE_TIMEOUT_S if isinstance(source, Microphone) else FIRST_SAMPLE_TIMEOUT_S
    return SampleAccounting(
        rate,
        context.frame,
        resume.position,
        resume.away,
        context.clocks(),
        clock=clock,
        first_sample_timeout=timeout,
    )


async def _keep_open(recorder: "_Recorder", context: CaptureContext) -> None:
    """Open the source again whenever it fails. Returns when it has ended for good."""
    room, source, observer = context.room, context.source, context.observer
    backoff = Backoff(first=0.5, longest=30.0)
    while True:
        opened = trio.current_time()
        observer.tried(room, opened)
        outcome: SourceEnded | SourceFailed | None = None
        try:
            async with context.opener(
                source, rate=context.rate, frame=context.frame, folder=context.folder, skip=recorder.skip
            ) as process:
                await recorder.take_blocks(process)
        except* (SourceEnded, SourceFailed) as group:
            outcome = _first(group)
        except* OSError as group:
            outcome = SourceFailed("source.unstartable", f"the capture process cannot be started: {_first(group)}")
        if isinstance(outcome, SourceEnded) and _is_final(source):
            observer.ended(room, trio.current_time())
            return
        reason = str(outcome or "silent")
        observer.gap(room, "device", trio.current_time(), reason)
        if outcome is not None:
            await recorder.fail(outcome)
        backoff.healthy_for(trio.current_time() - opened)
        delay = backoff.next()
        if is_worth_saying(backoff.failures):
            log.warning("source.left", room=room, reason=reason, retry_in=round(delay, 1))
        await trio.sleep(delay)


def _first(group: BaseExceptionGroup[E]) -> E:
    """The first exception in nested groups."""
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def _is_final(source: Source) -> bool:
    return isinstance(source, File) or (isinstance(source, Command) and source.restart == "on-failure")


class _Recorder:
    """Carries out the instructions of the accounting: on the spool, the journal and the live feed."""

    def __init__(
        self, context: CaptureContext, control: RunControl, accounting: SampleAccounting, file: FileProgress | None
    ) -> None:
        self._context = context
        self._room = context.room
        self._spool = context.spool
        self._observer = context.observer
        self._clocks = context.clocks
        self._control = control
        self._accounting = accounting
        self._file = file

    @property
    def skip(self) -> int:
        """Samples of the file that are recorded already."""
        return self._accounting.position - self._file.start if self._file else 0

    async def take_blocks(self, process: SourceProcess) -> None:
        """Record blocks until the source has been silent for too long. Errors: SourceEnded, SourceFailed."""
        while True:
            block = None
            with trio.move_on_after(WAIT_TICK_S):
                block = await process.receive()
            if block is not None:
                await self._take(block)
            elif Leave() in await self._carry_out(self._accounting.waited(WAIT_TICK_S, self._clocks())):
                return
            if self._control.is_to_rotate and self._accounting.flowing:
                await self._carry_out(self._accounting.rotate())
                self._control.rotated()

    async def fail(self, outcome: SourceEnded | SourceFailed) -> None:
        """Account for a source that has failed, or has ended though it should not."""
        code = outcome.code if isinstance(outcome, SourceFailed) else "source.ended"
        await self._carry_out(self._accounting.failed(code, str(outcome), self._clocks()))

    async def finish(self, reason: Reason) -> None:
        """Close the segment and journal the stop, and in the same transaction the mute if there is one."""
        now = self._clocks()
        instructions = self._accounting.finish(reason, now)
        records: list[Record] = []
        if reason == "muted" and self._control.mute:
            at = datetime.fromtimestamp(now.utc, UTC)
            records = mute_records(self._room, self._control.mute, self._accounting.position, at)
        await self._carry_out(instructions, then=records)
        await self._settle()

    async def _carry_out(
        self, instructions: Sequence[Instruction], *, then: Sequence[Record] = ()
    ) -> Sequence[Instruction]:
        """Carry out all instructions, also when cancelled, and return them. Their records are committed together."""
        with trio.CancelScope(shield=True):
            records: list[Record] = []
            for instruction in instructions:
                if isinstance(instruction, CutSegment):
                    segment = await self._spool.cut(fresh=instruction.fresh, skip=instruction.skip)
                    records += audio_records(self._room, self._spool.rate, segment) if segment else []
                else:
                    records += self._records(instruction)
            await self._commit([*records, *then])
        return instructions

    async def _settle(self) -> None:
        """Try once more to commit pending records. Else they are committed before those of the room's next run."""
        with trio.CancelScope(shield=True):
            self._control.outbox.hurry()
            await self._control.outbox.commit(self._context.journal, [], FINISH_TIMEOUT_S)

    async def _take(self, block: Block) -> None:
        loudness = measure_loudness(block.audio)
        samples = len(block.audio) // SAMPLE_BYTES
        now = self._clocks()
        with trio.CancelScope(shield=True) as taking:
            instructions = self._accounting.block(
                BlockReceived(samples, block.dropped, block.boottime, loudness.still), now
            )
            await self._carry_out(instructions)
            if isinstance(keep := instructions[-1], Keep):
                while not await self._keep(block.audio, keep):
                    # A file waits for free space on the disk, and can be stopped meanwhile.
                    taking.shield = False
                    await trio.sleep(DISK_RETRY_S)
                    taking.shield = True
            else:
                self._observer.gap(self._room, "disk full", trio.current_time())
            self._publish(self._accounting.position - samples, loudness)

    def _publish(self, position: int, loudness: Loudness) -> None:
        at = self._accounting.clock.at(position)
        level = Level(room=self._room, position=position, at=at, rms=loudness.rms, peak=loudness.peak)
        self._context.live.publish(level)

    async def _keep(self, audio: bytes, keep: Keep) -> bool:
        """Record the block. False if it must be tried again."""
        samples = len(audio) // SAMPLE_BYTES
        try:
            segment = await self._spool.append(audio, keep.at)
        except OSError as error:
            self._observer.gap(self._room, "disk full", trio.current_time())
            await self._carry_out(self._accounting.refused(samples, error, self._clocks()))
            return self._accounting.live
        if segment:
            self._observer.drifts(self._room, self._accounting.clock.ppm)
        await self._commit(audio_records(self._room, self._spool.rate, segment) if segment else [])
        await self._carry_out(self._accounting.kept(samples))
        self._observer.samples(self._room, trio.current_time())
        return True

    def _records(self, instruction: Instruction) -> Sequence[Record]:
        match instruction:
            case Lost():
                log.warning(
                    "audio.lost", room=self._room, samples=instruction.end - instruction.start, **_describe(instruction)
                )
                return loss_records(self._room, instruction)
            case Stepped(position=position, from_=from_, until=until):
                log.info("clock.stepped", room=self._room, seconds=round((until - from_).total_seconds(), 3))
                return step_records(self._room, position, from_, until)
            case Started():
                return self._started(instruction)
            case Stopped():
                return self._stopped(instruction)
            case Note(severity=severity, code=code, text=text, position=position, at=at):
                words = well_formed(text if code.startswith("disk.") else f"{name_of(self._context.source)}: {text}")
                return [notice(code, words, room=self._room, position=position, at=at, severity=severity)]
            case _:
                return []

    def _started(self, started: Started) -> list[Record]:
        position, at, rate, source = started.position, started.at, self._spool.rate, self._context.source
        if isinstance(source, File) and self._file is None:
            self._file = identify(source, self._context.folder, position, at)
        return [
            RecordingStarted(room=self._room, position=position, at=at, rate=rate, source=name_of(source)),
            Mark(room_key(self._room, "rate"), rate),
            Mark(room_key(self._room, "stopped"), None),
            Mark(room_key(self._room, "file"), msgspec.to_builtins(self._file)),
        ]

    def _stopped(self, stopped: Stopped) -> list[Record]:
        position, at = stopped.position, stopped.at
        # A file's own time stands still while its source is away: nothing is lost then.
        cause = self._control.cause if self._accounting.live else "daemon down"
        is_rotated = stopped.reason == "rotated"
        records: list[Record] = [] if is_rotated else stop_records(self._room, Stop(position, at, cause))
        if stopped.started:
            records.append(RecordingStopped(room=self._room, position=position, at=at, reason=stopped.reason))
        if stopped.reason == "ended" and self._file:
            ended = msgspec.structs.replace(self._file, ended=True)
            records.append(Mark(room_key(self._room, "file"), msgspec.to_builtins(ended)))
        return records

    async def _commit(self, records: Sequence[Record]) -> None:
        outbox = self._control.outbox
        timeout = COMMIT_TIMEOUT_S if len(outbox) < MAX_PENDING_RECORDS else CROWDED_COMMIT_TIMEOUT_S
        await outbox.commit(self._context.journal, records, timeout)


def _describe(lost: Lost) -> dict[str, object]:
    seconds = (lost.until - lost.from_).total_seconds()
    return {"start": lost.start, "cause": lost.cause, "seconds": round(seconds, 3)}
