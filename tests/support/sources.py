"""Listen to a source until it is over, and make sound files to listen to."""

import random
import wave
from pathlib import Path
from typing import NamedTuple

from roomtone.capture.source_process import Block, SourceEnded, SourceFailed, SourceProcess, open_source
from roomtone.capture.sources import Source

RATE = 16_000
FRAME = 1_600


class Heard(NamedTuple):
    """All blocks of a source, and how it was over."""

    blocks: list[Block]
    over: SourceEnded | SourceFailed

    @property
    def audio(self) -> bytes:
        return b"".join(block.audio for block in self.blocks)

    @property
    def dropped(self) -> int:
        return sum(block.dropped for block in self.blocks)


async def listen(source: Source, folder: Path, *, rate: int = RATE, skip: int = 0, silence: float = 30.0) -> Heard:
    """The whole output of the source, to its end."""
    async with open_source(source, rate=rate, frame=FRAME, folder=folder, skip=skip, silence=silence) as process:
        return await drain(process)


async def drain(process: SourceProcess) -> Heard:
    """The rest of an open source, to its end."""
    blocks: list[Block] = []
    while True:
        try:
            blocks.append(await process.receive())
        except (SourceEnded, SourceFailed) as over:
            return Heard(blocks, over)


def noise(samples: int, seed: int = 1) -> bytes:
    """16-bit noise in which every stretch is unlike every other."""
    return random.Random(seed).randbytes(samples * 2)


def write_wav(path: Path, audio: bytes, *, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    """A PCM WAV file with these bytes as its data."""
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(audio)
    return path
