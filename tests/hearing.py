"""What the tests of speech to text share: the demo recording, its words, and how far two texts are apart."""

import re
from importlib.resources import as_file, files

import numpy as np
import soundfile

DEMO = files("roomtone") / "demo"
RATE = 16_000


def demo_audio() -> bytes:
    """The demo recording: 16-bit little-endian mono at RATE."""
    with as_file(DEMO / "meeting.flac") as path:
        samples, rate = soundfile.read(path, dtype="int16")
    assert (rate, samples.ndim) == (RATE, 1)
    return bytes(samples.astype("<i2").tobytes())


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
