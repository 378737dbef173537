"""The frames on the pipe between the capture process and the daemon, and the ring behind the pipe.

Standard library only, because the capture process imports it.

A frame is a header and the bytes that it announces. A frame of the kind `BLOCK` is audio, 16-bit little-endian mono at
the room's rate; `ENDED` or `FAILED` is the last frame of a process and carries JSON: the reason of the end.
"""

import json
import struct
import threading
from collections import deque
from typing import NamedTuple

HEADER = struct.Struct("<BxxxIQd")
"""Kind; bytes that follow; samples lost directly before them; CLOCK_BOOTTIME in seconds when the last one was read."""

BLOCK, ENDED, FAILED = 0, 1, 2

SAMPLE_BYTES = 2
"""Bytes of a sample."""

_MAX_LIVE_SPEED = 1.01
"""A stream that runs faster than our clock by more than this factor is not live: no crystal is 1 % off."""


class CaptureFailure(Exception):  # noqa: N818 - it is how a source ends, and its text is the whole message
    """The source can give no more audio. `code` is a stable `noun.state` for programs; the text says what to do."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Frame(NamedTuple):
    """One frame as it came: `dropped` in samples, `boottime` in seconds."""

    kind: int
    dropped: int
    boottime: float
    body: bytes


class Frames:
    """Bytes in any portions go in, whole frames come out. Pure."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, portion: bytes) -> None:
        self._bytes += portion

    def pop(self) -> Frame | None:
        """The next whole frame, or None until more bytes are fed."""
        if len(self._bytes) < HEADER.size:
            return None
        kind, length, dropped, boottime = HEADER.unpack_from(self._bytes)
        end = HEADER.size + length
        if len(self._bytes) < end:
            return None
        body = bytes(memoryview(self._bytes)[HEADER.size : end])
        del self._bytes[:end]
        return Frame(kind, dropped, boottime, body)


class Ring:
    """The blocks that the daemon has not taken yet, at most `limit` samples: filled by the source's reader, emptied
    by the pipe's writer. Full: the oldest block goes, and the next header counts its samples.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._blocks: deque[tuple[bytes, float]] = deque()
        self._held = 0
        self._lost = 0
        self._message: bytes | None = None
        self._closed = False

    def put(self, audio: bytes, boottime: float, timeout_s: float | None = 0.0) -> None:
        """Keep a block. Full: wait at most `timeout_s` seconds (None: without limit) for room, then drop the oldest."""
        samples = len(audio) // SAMPLE_BYTES
        with self._changed:
            # An empty ring takes any block, however small the ring is.
            self._changed.wait_for(
                lambda: self._closed or not self._blocks or self._held + samples <= self._limit, timeout_s
            )
            if self._closed:
                return
            while self._blocks and self._held + samples > self._limit:
                self._lost += self._release()
            self._blocks.append((audio, boottime))
            self._held += samples
            self._changed.notify_all()

    def close(self, kind: int, code: str, text: str, boottime: float) -> None:
        """Append the reason of the end. The message is never dropped, and only the first counts."""
        with self._changed:
            if not self._closed:
                self._closed = True
                self._message = _frame(kind, json.dumps({"code": code, "text": text}).encode(), 0, boottime)
                self._changed.notify_all()

    def take(self, limit: int) -> bytes:
        """Wait for blocks; take as many as fit into `limit` bytes, at least one, as frames. Empty: nothing follows."""
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._closed)
            portion = bytearray()
            while self._blocks and (not portion or len(portion) + HEADER.size + len(self._blocks[0][0]) <= limit):
                audio, boottime = self._blocks[0]
                self._release()
                portion += _frame(BLOCK, audio, self._lost, boottime)
                self._lost = 0
            if not self._blocks and self._message is not None:
                portion += self._message
                self._message = None
            self._changed.notify_all()
            return bytes(portion)

    def _release(self) -> int:
        samples = len(self._blocks.popleft()[0]) // SAMPLE_BYTES
        self._held -= samples
        return samples


class Lead:
    """The lead of a stream over real time. Pure: times in seconds of any clock that stands still in suspension.

    A stream that was late starts again from zero, so that the backlog of a network stream after a stall counts as
    ahead for as long as it lasts.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._ahead = 0.0
        self._at: float | None = None

    def seconds(self, samples: int, now: float) -> float:
        """The seconds by which these samples are early: zero for a live stream, growing for a file."""
        passed = 0.0 if self._at is None else now - self._at
        early = max(0.0, self._ahead - passed * _MAX_LIVE_SPEED)
        self._ahead = early + samples / self._rate
        self._at = now
        return early


def _frame(kind: int, body: bytes, dropped: int, boottime: float) -> bytes:
    return HEADER.pack(kind, len(body), dropped, boottime) + body
