"""FLAC and Opus: a WAV file becomes a smaller one, and the smaller one a WAV again.

A compressed file cannot be written by position, so a recording grows as WAV and is compressed when it is complete. The
WAV is removed when the other file is durable, has been read back (FLAC: every sample; Opus: their number) and is in the
catalog. libsndfile works by path or descriptor: Python's file objects would need callbacks, and so memory that is both
writable and executable, which the hardened service forbids.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roomtone.durable import create_file, named, put_in_place, remove
from roomtone_wav.recording import HEADER_BYTES, SAMPLE_BYTES, Format, Recording, header

SUFFIXES: tuple[str, ...] = (".wav", ".flac", ".opus")

_SHAPES = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_READ_FRAMES = 2**15
"""Samples in one step: some tenths of a second of work for Opus on a small computer."""


class CompressionError(Exception):
    """The audio cannot be compressed. The text has the file and the reason; the WAV stays."""


def check(form: Format, rates: dict[str, int]) -> None:
    """Raise ValueError, with a text for the user, if the format is not available here or for a room's rate."""
    if form == "wav":
        return
    try:
        import soundfile  # noqa: F401, PLC0415 - late: it brings NumPy, and only this needs it
    except (ImportError, OSError) as error:
        raise ValueError(f'format: "{form}" needs libsndfile, which cannot be loaded: {error}') from None
    wrong = {room: rate for room, rate in rates.items() if form == "opus" and rate not in _OPUS_RATES}
    for room, rate in wrong.items():
        raise ValueError(
            f"format: Opus does not support {rate} Hz, the rate of room {room}; use flac, or remove it from rooms"
        )


def compress(recording: Recording) -> Generator[None, None, int]:
    """Write the compressed form beside the recording's WAV, under a temporary name, part by part.

    Returns its bytes. If closed before its end, it leaves no file. Errors: OSError, CompressionError.
    """
    import soundfile  # noqa: PLC0415 - late, as above

    new = _new(recording)
    try:
        # Created here and filled by the library, so that it is private from the first byte on.
        with named(new), os.fdopen(create_file(new), "r+b", buffering=0) as file:
            with Path(recording.path).open("rb") as source, _explained(new):
                source.seek(HEADER_BYTES)
                with _encoding(soundfile, file.fileno(), recording) as target:
                    left = recording.samples * SAMPLE_BYTES
                    while audio := source.read(min(left, _READ_FRAMES * SAMPLE_BYTES)):
                        target.buffer_write(audio, "int16")
                        left -= len(audio)
                        yield
                yield from _read_back(soundfile, new, recording)
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def put_compressed(recording: Recording) -> Path:
    """Give the finished file its final name, and return that."""
    path = Path(recording.path).with_suffix(f".{recording.format}")
    put_in_place(_new(recording), path)
    return path


def discard(recording: Recording) -> None:
    """Discard the finished file."""
    _new(recording).unlink(missing_ok=True)


def decompress(recording: Recording) -> Path:
    """Restore the WAV of a compressed recording, durably, and return its path. Errors: OSError, CompressionError."""
    import soundfile  # noqa: PLC0415 - late, as above

    path = Path(recording.path).with_suffix(".wav")
    new = path.with_name(path.name + ".new")
    with named(new), os.fdopen(create_file(new), "wb") as target:
        target.write(header(recording.samples, recording.rate))
        with _explained(Path(recording.path)), soundfile.SoundFile(recording.path) as source:
            while len(audio := source.buffer_read(_READ_FRAMES, "int16")):
                target.write(audio)
        target.truncate(HEADER_BYTES + recording.samples * SAMPLE_BYTES)
        target.flush()
        os.fsync(target.fileno())
    put_in_place(new, path)
    return path


def remove_others(recording: Recording) -> int:
    """Remove the recording's other forms, which a crash may have left. Returns their bytes."""
    path = Path(recording.path)
    return sum(remove(path.with_suffix(suffix)) for suffix in SUFFIXES if suffix != path.suffix)


def _encoding(soundfile: Any, descriptor: int, recording: Recording) -> Any:
    """The library's file on this descriptor, which stays open: its name might lead to another file."""
    form, subtype = _SHAPES[recording.format]
    return soundfile.SoundFile(descriptor, "w", recording.rate, 1, subtype=subtype, format=form, closefd=False)


def _read_back(soundfile: Any, path: Path, recording: Recording) -> Generator[None, None, None]:
    with soundfile.SoundFile(path) as written, Path(recording.path).open("rb") as source:
        if written.frames != recording.samples:
            raise CompressionError(f"{path} has {written.frames} samples instead of {recording.samples}")
        source.seek(HEADER_BYTES)
        while recording.format == "flac" and len(audio := written.buffer_read(_READ_FRAMES, "int16")):
            if bytes(audio) != source.read(len(audio)):
                raise CompressionError(f"{path} does not have the samples of {recording.path}")
            yield


def _new(recording: Recording) -> Path:
    path = Path(recording.path)
    return path.with_name(f"{path.stem}.{recording.format}.new")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the library into one that names the file."""
    import soundfile  # noqa: PLC0415 - late, as above

    try:
        yield
    except soundfile.SoundFileError as error:
        raise CompressionError(f"{path}: {error}") from error
