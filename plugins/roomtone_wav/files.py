"""WAV files and their sidecars on the disk, readable at any moment and after any crash.

The order makes it so: first the samples, then, when they are on the disk, the header that counts them. In between the
file is a shorter one, and valid.
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
        """Put these samples there: again, when they are there already. What lies between stays zero."""
        rest, place = memoryview(audio), HEADER_BYTES + offset * SAMPLE_BYTES
        while rest:
            written = os.pwrite(self._descriptor, rest, place)
            rest, place = rest[written:], place + written

    def erase(self, offset: int, end: int) -> None:
        """Make these samples zero. What is zero already is only read: an hour that takes several tries gets done."""
        for place in range(HEADER_BYTES + offset * SAMPLE_BYTES, HEADER_BYTES + end * SAMPLE_BYTES, _CHUNK):
            audio = os.pread(self._descriptor, min(_CHUNK, HEADER_BYTES + end * SAMPLE_BYTES - place), place)
            if audio.strip(b"\0"):
                os.pwrite(self._descriptor, bytes(len(audio)), place)
        os.fdatasync(self._descriptor)

    def settle(self, samples: int, rate: int) -> None:
        """Make durable what was written, then the header that counts it. What nobody wrote is zeros."""
        size = HEADER_BYTES + samples * SAMPLE_BYTES
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)
        os.fdatasync(self._descriptor)
        os.pwrite(self._descriptor, header(samples, rate), 0)
        os.fdatasync(self._descriptor)


@contextmanager
def open_wav(path: str) -> Iterator[WavFile]:
    """The file, to be written at any place. An OSError inside gets its name; it is not made where it is missing."""
    descriptor = open_file(Path(path))
    try:
        with named(Path(path)):
            yield WavFile(descriptor)
    finally:
        os.close(descriptor)


def has_all(recording: Recording) -> bool:
    """True if the recording's file can be read, and shows every sample that is known to be in it."""
    try:
        with Path(recording.path).open("rb") as file:
            return recording.is_sealed or file.read(HEADER_BYTES) == header(recording.samples, recording.rate)
    except OSError:
        return False


def described(directory: Path) -> Iterator[Recording]:
    """What the sidecars below the directory say of the files beside them; those without a file are left out."""
    for sidecar in sorted(directory.rglob("*.json")):
        try:
            facts = msgspec.json.decode(sidecar.read_bytes(), type=dict[str, Any])
            path = sidecar.with_name(Path(str(facts["file"])).name)
            form = path.suffix[1:]
            size = None if form == "wav" else path.stat().st_size
            own = {"path": str(path), "last": "", "format": form, "compressed": size}
            recording = msgspec.convert(facts | own, Recording)
        except (OSError, KeyError, msgspec.DecodeError, msgspec.ValidationError):  # somebody else's file, or a torn one
            continue
        if path.exists():
            yield recording


def create(recording: Recording) -> None:
    """Make the recording's files, with no samples yet, and their names durable. Never takes the place of a file."""
    path = Path(recording.path)
    make_folder(path.parent)
    write_sidecar(recording)
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    # Not made in its place: who looks, or dies, between the making and the header finds no WAV file there.
    replace(path, header(0, recording.rate))


def remove_unfinished(path: Path) -> None:
    """Remove what a crash has left half written for this file, and for those that lie beside it."""
    for each in path.parent.glob(f"{glob.escape(path.stem)}.*.new"):
        remove(each)


def write_sidecar(recording: Recording, turns: Sequence[Turn] | None = None, captions: Sequence[Captions] = ()) -> None:
    """Replace the recording's sidecar as a whole, and its captions, which are timed for the file."""
    path = Path(recording.path)
    replace(path.with_suffix(".json"), recording.sidecar(turns))
    found = [cue for turn in turns or () for cue in cues(turn, recording.second, {})] if captions else []
    for form in captions:
        replace(path.with_suffix(f".{form}"), render(found, form))
