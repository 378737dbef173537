"""WAV files and their sidecars on the disk, readable at any moment and after any crash.

The order of writing ensures that: first the samples, then, when they are on the disk, the header that counts them. In
between the file is valid, and shorter.
"""

import errno
import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from roomtone import Turn
from roomtone.captions import Captions, cues, render
from roomtone.durable import make_folder, named, open_file, remove, replace
from roomtone_wav.recording import HEADER_BYTES, SAMPLE_BYTES, Recording, header

_CHUNK = 2**20


class WavFile:
    """One open WAV file. Offsets and lengths are in samples."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, offset: int, audio: bytes) -> None:
        """Write these samples at this offset; writing them again changes nothing. Samples in between stay zero."""
        rest, place = memoryview(audio), HEADER_BYTES + offset * SAMPLE_BYTES
        while rest:
            written = os.pwrite(self._descriptor, rest, place)
            rest, place = rest[written:], place + written

    def erase(self, offset: int, end: int) -> None:
        """Make these samples zero. Zeros are only read, so that a long stretch gets done over several attempts."""
        for place in range(HEADER_BYTES + offset * SAMPLE_BYTES, HEADER_BYTES + end * SAMPLE_BYTES, _CHUNK):
            audio = os.pread(self._descriptor, min(_CHUNK, HEADER_BYTES + end * SAMPLE_BYTES - place), place)
            if audio.strip(b"\0"):
                os.pwrite(self._descriptor, bytes(len(audio)), place)
        os.fdatasync(self._descriptor)

    def settle(self, samples: int, rate: int) -> None:
        """Make the samples durable, then the header that counts them. Samples that were not written are zeros."""
        size = HEADER_BYTES + samples * SAMPLE_BYTES
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)
        os.fdatasync(self._descriptor)
        os.pwrite(self._descriptor, header(samples, rate), 0)
        os.fdatasync(self._descriptor)


@contextmanager
def open_wav(path: str) -> Iterator[WavFile]:
    """The existing file, for writing at any place. An OSError inside gets its name."""
    descriptor = open_file(Path(path))
    try:
        with named(Path(path)):
            yield WavFile(descriptor)
    finally:
        os.close(descriptor)


def has_all(recording: Recording) -> bool:
    """True if the recording's file can be read, and its header counts every sample."""
    try:
        with Path(recording.path).open("rb") as file:
            return recording.is_sealed or file.read(HEADER_BYTES) == header(recording.samples, recording.rate)
    except OSError:
        return False


def described(directory: Path) -> Iterator[Recording]:
    """The recordings by the sidecars below the directory; a sidecar without its file is left out."""
    for sidecar in sorted(directory.rglob("*.json")):
        try:
            facts = msgspec.json.decode(sidecar.read_bytes(), type=dict[str, Any])
            path = sidecar.with_name(Path(str(facts["file"])).name)
            form = path.suffix[1:]
            size = None if form == "wav" else path.stat().st_size
            own = {"path": str(path), "last": "", "format": form, "compressed": size}
            recording = msgspec.convert(facts | own, Recording)
        except (OSError, KeyError, msgspec.DecodeError, msgspec.ValidationError):  # a foreign file, or a torn one
            continue
        if path.exists():
            yield recording


def create(recording: Recording) -> None:
    """Make the recording's files, without samples, durably. Never replaces a file."""
    path = Path(recording.path)
    make_folder(path.parent)
    write_sidecar(recording)
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    # Not made in its place: otherwise a reader, or a crash, could find a file there without its header.
    replace(path, header(0, recording.rate))


def remove_unfinished(path: Path) -> None:
    """Remove the half-written files that a crash has left for this file and its sidecars."""
    for each in path.parent.glob(f"{glob.escape(path.stem)}.*.new"):
        remove(each)


def write_sidecar(recording: Recording, turns: Sequence[Turn] | None = None, captions: Sequence[Captions] = ()) -> None:
    """Replace the recording's sidecar as a whole, and its captions, which are timed for the file."""
    path = Path(recording.path)
    replace(path.with_suffix(".json"), recording.sidecar(turns))
    found = [cue for turn in turns or () for cue in cues(turn, recording.second, {})] if captions else []
    for form in captions:
        replace(path.with_suffix(f".{form}"), render(found, form))
