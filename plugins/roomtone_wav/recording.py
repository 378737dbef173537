"""The content of one file of audio, and the places of positions in it. Pure: no disk, no clock.

A sample's place in a file is its position minus the file's first, plus the silence that was put in before it. Lost
samples need nothing of their own: the position moved on by them, so their place stays zero.
"""

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from roomtone import Audio, Gap, Turn

HEADER_BYTES = 44
"""Bytes of a RIFF header with one `fmt ` chunk of 16 bytes, up to the first sample."""
SAMPLE_BYTES = 2
"""Bytes of a sample: 16-bit little-endian, mono."""
MAX_SAMPLES = (2**32 - 1 - (HEADER_BYTES - 8)) // SAMPLE_BYTES
"""Samples that one file can hold: RIFF counts its bytes, without the first eight, in 32 bits."""

MAX_TURN_S = 600
"""Seconds of the longest turn that may begin in one file and go on in another."""

Split: TypeAlias = Literal["recording", "hour"] | Annotated[int, msgspec.Meta(ge=1, le=1440)]
"""Further ends of files besides those of recordings: none, or each N minutes from midnight on (UTC)."""
Format: TypeAlias = Literal["wav", "flac", "opus"]
Gaps: TypeAlias = Literal["split", "silence"]


class PositionSpan(msgspec.Struct, frozen=True):
    """Positions from `start` up to `end`."""

    start: int
    end: int


class Hole(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """A gap that touches the file, with the fields of its event."""

    start: int
    end: int
    from_: datetime
    until: datetime
    cause: str

    @classmethod
    def of(cls, gap: Gap) -> "Hole":
        return cls(gap.start, gap.end, gap.from_, gap.until, gap.cause)


class FilledSilence(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Zeros in the file that have no positions: `samples` of them, before the sample at `position`."""

    position: int
    samples: int
    from_: datetime
    until: datetime


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One file: positions `first` to `end` of a room, heard from `start` until `until` (UTC).

    It grows as WAV, and becomes its `format` when it is complete; then `path` names that file, and `compressed` is its
    size in bytes.

    `last` is the id of the newest event in it. The spool's quota removed `missing` before it could be written, and the
    user removed `forgotten`; both are zeros in the file. From the position `limit` on another file begins, because the
    user wanted one.
    """

    room: str
    rate: int
    first: int
    start: datetime
    path: str
    end: int
    until: datetime
    last: str
    gaps: tuple[Hole, ...] = ()
    silences: tuple[FilledSilence, ...] = ()
    missing: tuple[PositionSpan, ...] = ()
    forgotten: tuple[PositionSpan, ...] = ()
    format: Format = "wav"
    compressed: int | None = None
    limit: int | None = None

    @property
    def samples(self) -> int:
        """The number of samples in the file."""
        return self.offset(self.end)

    @property
    def is_sealed(self) -> bool:
        """True if it is compressed, so that it cannot be written to any more."""
        return self.compressed is not None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return HEADER_BYTES + self.samples * SAMPLE_BYTES if self.compressed is None else self.compressed

    def offset(self, position: int) -> int:
        """The index in the file of the sample at this position."""
        return position - self.first + sum(each.samples for each in self.silences if each.position <= position)

    def second(self, position: int) -> float:
        """The second of the file at which a position is heard."""
        return self.offset(position) / self.rate

    def boundary(self, position: int, at: datetime, split: Split) -> int:
        """The first position that this file cannot hold, given that the sample at `position` was heard `at`."""
        full = position + MAX_SAMPLES - self.offset(position)
        if self.limit is not None:
            full = min(full, self.limit)
        if split == "recording":
            return full
        end = _next_on_the_clock(self.start.astimezone(UTC), 60 if split == "hour" else split)
        return min(full, position - (-microseconds(end - at) * self.rate // 1_000_000))  # rounded up: no earlier

    def sidecar(self, turns: Sequence[Turn] | None = None) -> bytes:
        """The sidecar for readers of the file, human or not; with `turns`, also the transcript."""
        facts: dict[str, Any] = msgspec.to_builtins(self)
        facts = {"file": Path(self.path).name} | facts
        del facts["path"], facts["last"], facts["limit"]
        del facts["format"], facts["compressed"]
        facts["samples"] = self.samples
        if turns is not None:
            facts["transcript"] = [_said(turn) for turn in turns]
        return msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n"


def _said(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "position": turn.position,
        "at": turn.at,
        "speaker": turn.speaker,
        "language": turn.language,
        "text": turn.text,
    }


def _next_on_the_clock(at: datetime, minutes: int) -> datetime:
    """The end of the stretch of this many minutes in which `at` lies. The last one of a day ends with the day."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    passed = (at - midnight) // timedelta(minutes=minutes)
    return midnight + min(timedelta(minutes=(passed + 1) * minutes), timedelta(days=1))


def continued(
    recording: Recording, event: Audio, position: int, at: datetime, *, split: Split, gaps: Gaps
) -> Recording | None:
    """The recording that goes on with the event's sample at `position`, heard `at`, after any silence.

    None if it does not go on, and another file begins.
    """
    if event.rate != recording.rate or (recording.is_sealed and position >= recording.end):
        return None
    if event.fresh and position == event.position >= recording.end and position != recording.first:
        if gaps == "split":
            return None
        if samples := _silence(recording, position, at):
            silence = FilledSilence(position, samples, recording.until, at)
            recording = msgspec.structs.replace(recording, silences=(*recording.silences, silence))
    return recording if position < recording.boundary(position, at, split) else None


def _silence(recording: Recording, position: int, at: datetime) -> int:
    """Samples of the time since the recording's end that are not counted as lost already.

    By the clock, not by the gaps: one absence can have several (muted, then daemon down), and a sink with `kinds` may
    see none of them.
    """
    elapsed = (microseconds(at - recording.until) * recording.rate + 500_000) // 1_000_000
    return max(0, elapsed - (position - recording.end))


def part_of(turn: Turn, start: int, end: int | None, rate: int) -> Turn | None:
    """The part of the turn from `start` up to `end`, or without end; a word counts where it begins. None if empty."""
    words = tuple(word for word in turn.words if start <= word.start and (end is None or word.start < end))
    if not turn.words:
        return turn if start <= turn.position and (end is None or turn.position < end) else None
    if not words or len(words) == len(turn.words):
        return turn if words else None
    position = words[0].start
    at = turn.at + duration(position - turn.position, rate)
    text = " ".join(word.text for word in words)
    return msgspec.structs.replace(turn, position=position, at=at, words=words, text=text)


def united(stretches: Iterable[PositionSpan], start: int, end: int) -> tuple[PositionSpan, ...]:
    """The stretches and one more, in order; those that touch are joined."""
    apart = []
    for each in stretches:
        if each.end < start or each.start > end:
            apart.append(each)
        else:
            start, end = min(start, each.start), max(end, each.end)
    return tuple(sorted((*apart, PositionSpan(start, end)), key=lambda each: each.start))


def header(samples: int, rate: int) -> bytes:
    """The RIFF header of a file with this many samples."""
    size = samples * SAMPLE_BYTES
    shape = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * SAMPLE_BYTES, SAMPLE_BYTES, 8 * SAMPLE_BYTES)
    return struct.pack("<4sI4s", b"RIFF", HEADER_BYTES - 8 + size, b"WAVE") + shape + struct.pack("<4sI", b"data", size)


def duration(samples: int, rate: int) -> timedelta:
    """The duration of the samples, rounded down to microseconds: exact, while floats would drift over years."""
    return timedelta(microseconds=samples * 1_000_000 // rate)


def microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
