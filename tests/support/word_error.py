"""What the tests of speech to text share: the demo recording, its words, and how far two texts are apart,
and a client.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import as_file, files
from urllib.parse import urlsplit

import numpy as np
import soundfile
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

DEMO = files("roomtone") / "demo"
RATE = 16_000


THREE_LINES = 14.3
"""Seconds after which the first three sentences of the demo recording have been said."""


def demo_audio(seconds: float | None = None) -> bytes:
    """The demo recording, or so many seconds of it: 16-bit little-endian mono at RATE."""
    with as_file(DEMO / "meeting.flac") as path:
        samples, rate = soundfile.read(path, dtype="int16")
    assert (rate, samples.ndim) == (RATE, 1)
    return bytes(samples[: None if seconds is None else round(seconds * RATE)].astype("<i2").tobytes())


def demo_lines() -> list[str]:
    """The sentences of the demo recording as they are spoken, one turn each."""
    return (DEMO / "meeting.txt").read_text("utf-8").splitlines()


def words_of(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def word_error_rate(spoken: str, heard: str) -> float:
    """Words to change, add and remove, as a share of the words that were spoken."""
    reference, hypothesis = words_of(spoken), words_of(heard)
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / len(reference)


def noise(seconds: float, rms: float, seed: int = 1) -> bytes:
    """White noise as 16-bit audio at RATE."""
    samples = np.random.default_rng(seed).normal(0, rms, round(seconds * RATE))
    return bytes(np.clip(samples, -32768, 32767).astype("<i2").tobytes())


def frames(audio: bytes, milliseconds: int = 200, rate: int = RATE) -> list[bytes]:
    """The audio in frames of equal length, the last one padded with silence."""
    size = 2 * rate * milliseconds // 1000
    return [audio[begin : begin + size].ljust(size, b"\0") for begin in range(0, len(audio), size)]


@asynccontextmanager
async def client(url: str, headers: dict[str, str] | None = None) -> AsyncIterator[WebSocketConnection]:
    """A connection whose socket is closed at the end: trio-websocket leaves that open where the server closes first."""
    parts = urlsplit(url)
    extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    async with (
        await trio.open_tcp_stream(parts.hostname or "", parts.port or 0) as stream,
        trio.open_nursery() as nursery,
    ):
        yield await wrap_client_stream(
            nursery, stream, "localhost", f"{parts.path}?{parts.query}", extra_headers=extra, message_queue_size=1024
        )
        nursery.cancel_scope.cancel()
