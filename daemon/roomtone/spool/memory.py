"""The newest audio of a spool, for the readers that keep up. Pure."""

from collections import deque
from typing import NamedTuple

from roomtone.spool.segment import SAMPLE_BYTES

MEMORY_S = 30.0
"""Seconds of audio that readers get without touching the disk; never less than the open segment."""


class Piece(NamedTuple):
    """Recorded audio without a break, 16-bit little-endian mono, from `position`.

    `fresh`: time without a source lies directly before this piece.
    """

    position: int
    audio: bytes
    fresh: bool

    @property
    def end(self) -> int:
        """The position after the last sample."""
        return self.position + len(self.audio) // SAMPLE_BYTES


class Chunk(NamedTuple):
    """One appended block in memory. `first`: it begins a segment; `fresh`: of one after time without a source."""

    position: int
    end: int
    first: bool
    fresh: bool
    audio: bytes


class Memory:
    """The newest chunks, at least 30 s of them if there are that many. Older ones are dropped: they are on disk."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._chunks: deque[Chunk] = deque()

    def add(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        while chunk.end - self._chunks[0].end >= self._samples:
            self._chunks.popleft()

    def forget(self, start: int, end: int) -> None:
        """Drop what overlaps this stretch."""
        self._chunks = deque(chunk for chunk in self._chunks if chunk.end <= start or chunk.position >= end)

    def erase(self, start: int, end: int) -> None:
        """Make this stretch zero. What lies outside of it stays."""
        self._chunks = deque(_erased(chunk, start, end) for chunk in self._chunks)

    @property
    def first(self) -> int | None:
        """The oldest position here."""
        return self._chunks[0].position if self._chunks else None

    def read(self, position: int, limit: int) -> Piece | None:
        """The first audio here at or after `position`; None if all of it is older."""
        chunks: list[Chunk] = []
        for chunk in reversed(self._chunks):
            if chunk.end <= position:
                break
            chunks.append(chunk)
        return _piece(chunks[::-1], position, limit) if chunks else None


def _erased(chunk: Chunk, start: int, end: int) -> Chunk:
    first, last = max(chunk.position, start), min(chunk.end, end)
    if first >= last:
        return chunk
    before, past = ((place - chunk.position) * SAMPLE_BYTES for place in (first, last))
    zeros = bytes((last - first) * SAMPLE_BYTES)
    return chunk._replace(audio=chunk.audio[:before] + zeros + chunk.audio[past:])


def _piece(chunks: list[Chunk], position: int, limit: int) -> Piece:
    begin = chunks[0]
    start = max(position, begin.position)
    audio = bytearray(begin.audio[(start - begin.position) * SAMPLE_BYTES :])
    end = begin.end
    for chunk in chunks[1:]:
        if chunk.position != end or (chunk.first and chunk.fresh) or len(audio) >= limit * SAMPLE_BYTES:
            break
        audio += chunk.audio
        end = chunk.end
    fresh = begin.first and begin.fresh and start == begin.position
    return Piece(start, bytes(audio[: limit * SAMPLE_BYTES]), fresh)
