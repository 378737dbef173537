"""The account of a room's samples: what to record, what is lost, and why. Pure: no trio, no disk, no clock is read.

Each method reports what has happened (a block, a silence, a failure, a refusal of the disk, the end) and returns the
instructions for the recorder, in their order. The law of all of it:

- every position is recorded or in exactly one loss;
- every second since the first sample is recorded or in a loss.

Lost samples that the source counted (`dropped`), or that are missing by the clock, move the position on. Time without
a source does not: then `start` and `end` of the loss are equal, and only its times show its length.
"""

import errno
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from roomtone.capture.clock import Instant, NominalClock, RoomClock
from roomtone.events import Cause, Severity

SILENT_AFTER_S = 1.0
"""Seconds without a sample, beyond the length of a block, that are a fault and are reported."""
DEAD_AFTER_S = 5.0
"""Seconds without a sample after which the source is replaced."""
FIRST_SAMPLE_TIMEOUT_S = 30.0
"""Seconds that a command or a file may take until the first sample: a camera connects and waits for a key frame."""
LATENESS_TOLERANCE_S = 0.2
"""Seconds behind the clock below which nothing is held to be lost: a sound server's burst, a busy machine."""
CATCH_UP_TIMEOUT_S = 2.0
"""Seconds of flow in which a stall may catch up before what is still missing counts as lost."""
MIN_SUSPEND_S = 0.5
"""Seconds of sleep of the machine that count as a loss of their own."""
STUCK_SIGNAL_AFTER_S = 60.0
"""Seconds without any change of the samples that are a fault: every room has noise, so the microphone is cut off."""
MICROPHONE_FIRST_SAMPLE_TIMEOUT_S = 15.0
"""Seconds that a microphone may take until the first sample: a small computer that is busy with its own start needs ten
to start the process, load PortAudio and look at all devices.
"""
DISK_RETRY_S = 1.0
"""Seconds between two attempts to write to a disk that refuses."""


Reason: TypeAlias = Literal["stopping", "ended", "muted", "rotated"]


class Away(msgspec.Struct, frozen=True):
    """Time without a source. `start`: the position where it began; `since`: UTC, None before the first recording."""

    start: int
    cause: Cause
    since: datetime | None


class CutSegment(msgspec.Struct, frozen=True):
    """Close the open segment and skip `skip` lost samples; the next segment is `fresh` after time without a source."""

    skip: int = 0
    fresh: bool = False


class Keep(msgspec.Struct, frozen=True):
    """Record the block, whose first sample has this position and time. Then call `kept` or `refused`."""

    position: int
    at: datetime


class Lost(msgspec.Struct, frozen=True):
    """Positions and times that are missing, and the cause."""

    start: int
    end: int
    from_: datetime
    until: datetime
    cause: Cause


class Stepped(msgspec.Struct, frozen=True):
    """The clock was set forward: at this position UTC jumps, and no sample is missing."""

    position: int
    from_: datetime
    until: datetime


class Started(msgspec.Struct, frozen=True):
    """The first samples of this run have come."""

    position: int
    at: datetime


class Stopped(msgspec.Struct, frozen=True):
    """No more samples come. `position` and `at` are where the next run goes on; `started`: there was a beginning."""

    position: int
    at: datetime
    reason: Reason
    started: bool


class Note(msgspec.Struct, frozen=True):
    """A notice for the operator, once per fault."""

    severity: Severity
    code: str
    text: str
    position: int
    at: datetime


class Leave(msgspec.Struct, frozen=True):
    """Give up this source process: close it, back off, open it again."""


Instruction: TypeAlias = CutSegment | Keep | Lost | Stepped | Started | Stopped | Note | Leave


class BlockReceived(NamedTuple):
    """One block of a source: its length and what was lost directly before it, in samples; when its last sample was
    read (CLOCK_BOOTTIME, seconds); `still`: all of its samples are equal.
    """

    samples: int
    dropped: int
    boottime: float
    still: bool


class _Late(NamedTuple):
    since: float
    least: float


class _Full(NamedTuple):
    start: int
    retry: float


class SampleAccounting:
    """The state of one run of a room's recorder, at `rate` Hz with blocks of `frame` samples.

    `position` is where the next sample goes; `away` is the time without a source that the run begins with. A `live`
    source is one that runs with the clock; a file is not: it waits, so that nothing of it is lost. `opening` is how
    many seconds the source may take until its first sample.
    """

    def __init__(
        self,
        rate: int,
        frame: int,
        position: int,
        away: Away,
        now: Instant,
        *,
        clock: RoomClock | NominalClock,
        first_sample_timeout: float = DEAD_AFTER_S,
    ) -> None:
        self.position = position
        self.clock = clock
        self._rate = rate
        self._grace = frame / rate
        self._first_sample_timeout = first_sample_timeout
        self.live = isinstance(clock, RoomClock)
        self._away: Away | None = away
        self._started = False
        self._full: _Full | None = None
        self._late: _Late | None = None
        self._asleep = now.boottime - now.monotonic
        self._seen = now.boottime
        self._slept: float | None = None
        self._waited = 0.0
        self._reported: set[str] = set()
        self._still = 0
        self._is_still = False

    @property
    def flowing(self) -> bool:
        """True if the last thing that came from the source is samples."""
        return self._away is None

    def block(self, received: BlockReceived, now: Instant) -> list[Instruction]:
        """A block has come. The last instruction is to keep it, unless the disk is known to refuse it."""
        out: list[Instruction] = []
        self._notice_sleep(now, out)
        self._end_flow_of_sleep(received, out)
        away, self._away = self._away, None
        read = self.position + received.dropped + received.samples
        if away:
            self.clock.restart(self.position, received.boottime - (received.dropped + received.samples) / self._rate)
        missing = self._measure(read, received.boottime)
        steps, before = self.clock.steps, None if away else self._at()
        self.clock.observe(read + missing, received.boottime, now.utc - now.boottime + received.boottime)
        if self.clock.steps != steps:  # one segment has one offset, so that its name implies all of its times
            out.append(CutSegment())
            if before is not None and before < (after := self._at()):
                out.append(Stepped(self.position, before, after))
        if away:
            self._come_back(away, out)
        self._lose(received.dropped + missing, out)
        self._check_signal(received, now, out)
        self._keep_or_skip(received.samples, now, out)
        return out

    def kept(self, samples: int) -> list[Instruction]:
        """The block is recorded."""
        out: list[Instruction] = []
        if self._full:
            self._settle_full(out)
            self._full = None
            out.append(self._note("info", "disk.resumed", "audio is written to the disk again", self._at()))
        self.position += samples
        return out

    def refused(self, samples: int, error: OSError, now: Instant) -> list[Instruction]:
        """The disk did not take the block. A live source goes on without it; a file waits, and gives it again."""
        out: list[Instruction] = []
        full, self._full = self._full, _Full(self.position, now.monotonic + DISK_RETRY_S)
        if full:
            self._full = self._full._replace(start=full.start)
        else:
            code = "disk.full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "disk.failed"
            text = f"cannot write audio to the spool: {error}; what is not written is lost until this is fixed"
            out.append(self._note("error", code, text, self._at()))
        if self.live:
            out.append(CutSegment(skip=samples))
            self.position += samples
        return out

    def waited(self, seconds: float, now: Instant) -> list[Instruction]:
        """The open source has given nothing for another `seconds` seconds."""
        out: list[Instruction] = []
        self._notice_sleep(now, out)
        self._waited += seconds
        silent, dead = (
            (SILENT_AFTER_S, DEAD_AFTER_S)
            if self.flowing
            else (self._first_sample_timeout / 2, self._first_sample_timeout)
        )
        if self._waited >= silent + self._grace:
            text = f"no samples for {self._waited:.0f} s, though the source is open"
            self._report("source.silent", text, now, out)
        if self._waited >= dead + self._grace:
            self._go_away(now, out)
            out.append(Leave())
        return out

    def failed(self, code: str, text: str, now: Instant) -> list[Instruction]:
        """The source is gone, or could not be opened."""
        out: list[Instruction] = []
        self._notice_sleep(now, out)
        if "lost" not in self._reported:
            self._reported.add("lost")
            out.append(self._note("warning", code, text, _utc(now)))
        self._go_away(now, out)
        return out

    def rotate(self) -> list[Instruction]:
        """Begin a new recording here, between two blocks. The source goes on, and nothing is lost."""
        if not self._started:
            return []
        out: list[Instruction] = [CutSegment(), Stopped(self.position, self._at(), "rotated", started=True)]
        self._started = self.flowing
        return [*out, Started(self.position, self._at())] if self.flowing else out

    def finish(self, reason: Reason, now: Instant) -> list[Instruction]:
        """The run ends: settle what is open."""
        out: list[Instruction] = []
        self._notice_sleep(now, out)
        if self._slept is not None:
            self._go_away(now, out)
        at = _utc(now) if self._away and self.live else None
        self._settle_full(out)
        self._settle_away(_utc(now), out)
        out.append(CutSegment())
        # A source that gave nothing has changed nothing: a file, or a room without a first recording.
        if self._started or (self.live and self._away and self._away.since):
            out.append(Stopped(self.position, at or self._at(), reason, self._started))
        return out

    def _notice_sleep(self, now: Instant, out: list[Instruction]) -> None:
        """CLOCK_BOOTTIME counts the sleep of the machine, CLOCK_MONOTONIC does not."""
        slept = now.boottime - now.monotonic - self._asleep
        if slept > MIN_SUSPEND_S and self.live:
            if self._away:
                self._settle_away(_utc(now, -slept), out)
                self._away = Away(self.position, "suspended", self._away.since and _utc(now, -slept))
                self._settle_away(_utc(now), out)
                self._away = Away(self.position, "device", self._away.since and _utc(now))
            else:
                # Blocks that were read before the sleep may not have arrived yet.
                self._slept = (self._seen + now.boottime) / 2
        if slept > MIN_SUSPEND_S:
            self._asleep += slept
        self._seen = now.boottime

    def _end_flow_of_sleep(self, received: BlockReceived, out: list[Instruction]) -> None:
        """The first block that was read after a sleep ends it."""
        if self._slept is not None and received.boottime > self._slept:
            self._settle_full(out)
            self._slept = None
            self._away = Away(self.position, "suspended", self._at())

    def _measure(self, read: int, boottime: float) -> int:
        """The samples that are missing by the clock because a stall did not catch up."""
        behind = self.clock.behind(read, boottime)
        if behind <= LATENESS_TOLERANCE_S:
            self._late = None
            return 0
        late = self._late or _Late(boottime, behind)
        self._late = _Late(late.since, min(late.least, behind))
        if boottime - late.since < CATCH_UP_TIMEOUT_S:
            return 0
        missing = int(self._late.least * self._rate)
        self._late = None
        return missing

    def _come_back(self, away: Away, out: list[Instruction]) -> None:
        """Samples flow again: time without a source ends here."""
        at = self._at()
        if self.live or away.cause == "daemon down":
            self._settle(away, at, out)
        if not self._started:
            self._started = True
            out.append(Started(self.position, at))

    def _lose(self, samples: int, out: list[Instruction]) -> None:
        if samples:
            self._settle_full(out)
            start, self.position = self.position, self.position + samples
            times = self.clock.at(start), self.clock.at(self.position)
            out += [CutSegment(skip=samples), Lost(start, self.position, *times, "overrun")]
            if self._full:
                self._full = self._full._replace(start=self.position)

    def _check_signal(self, received: BlockReceived, now: Instant, out: list[Instruction]) -> None:
        """Reset or report faults of the signal. Liveness is samples that advance and change."""
        if self._reported:
            self._reported.clear()
            out.append(self._note("info", "source.back", "samples flow again", _utc(now)))
        self._waited = 0.0
        self._still = self._still + received.samples if received.still else 0
        if self._is_still and not received.still:
            self._is_still = False
            out.append(self._note("info", "source.sound", "the samples change again", self._at()))
        elif self.live and not self._is_still and self._still >= STUCK_SIGNAL_AFTER_S * self._rate:
            self._is_still = True
            text = (
                f"the samples have not changed for {STUCK_SIGNAL_AFTER_S:.0f} s: the microphone is muted by its switch "
                "or in the mixer, or another input is chosen than the one that is connected"
            )
            out.append(self._note("warning", "source.zeros", text, self._at()))

    def _keep_or_skip(self, samples: int, now: Instant, out: list[Instruction]) -> None:
        if self._full and self.live and now.monotonic < self._full.retry:
            out.append(CutSegment(skip=samples))
            self.position += samples
        else:
            out.append(Keep(self.position, self._at()))

    def _go_away(self, now: Instant, out: list[Instruction]) -> None:
        """Begin time without a source at the last sample, or now if the daemon itself was down before."""
        self._waited = 0.0
        if self._away is None:
            self._settle_full(out)
            self._full = None
            self._away = Away(self.position, "device", self._at())
        if self._slept is not None:
            self._slept = None
            self._settle(Away(self.position, "suspended", self._away.since), _utc(now), out)
            self._away = Away(self.position, "device", _utc(now))
        if self.live and self._away.cause == "daemon down" and self._away.since:
            self._settle_away(_utc(now), out)
            self._away = Away(self.position, "device", _utc(now))

    def _settle_away(self, until: datetime, out: list[Instruction]) -> None:
        if self._away and self.live:
            self._settle(self._away, until, out)

    def _settle(self, away: Away, until: datetime, out: list[Instruction]) -> None:
        if away.since is None:
            return
        out.append(CutSegment(skip=self.position - away.start, fresh=True))
        if away.start < self.position or away.since < until:
            out.append(Lost(away.start, self.position, away.since, max(away.since, until), away.cause))

    def _settle_full(self, out: list[Instruction]) -> None:
        """Account for what the disk did not take so far."""
        if self._full and self._full.start < self.position:
            start = self._full.start
            out.append(Lost(start, self.position, self.clock.at(start), self._at(), "disk full"))
            self._full = self._full._replace(start=self.position)

    def _report(self, code: str, text: str, now: Instant, out: list[Instruction]) -> None:
        if not self._reported:
            self._reported.add(code)
            out.append(self._note("warning", code, text, _utc(now)))

    def _note(self, severity: Severity, code: str, text: str, at: datetime) -> Note:
        return Note(severity, code, text, self.position, at)

    def _at(self) -> datetime:
        return self.clock.at(self.position)


def _utc(now: Instant, seconds: float = 0.0) -> datetime:
    return datetime.fromtimestamp(now.utc + seconds, UTC)
