"""A sound file as a source: WAV, FLAC, Ogg, MP3, at any rate, with any number of channels, as the room's mono."""

import stat
import wave
from collections.abc import Iterator
from pathlib import Path

from roomtone.capture.source.resampling import Resampler
from roomtone.capture.source.ring import SAMPLE_BYTES, CaptureFailure

_READ_FRAMES = 8192
"""Frames of a file that are read at a time."""


def read_file(path: str, *, rate: int, skip: int) -> Iterator[bytes]:
    """The file's audio from the sample `skip` (at the room's rate) on, in pieces of any length.

    A 16-bit mono WAV at the room's rate comes bit for bit, with the standard library alone. Errors: CaptureFailure.
    """
    found = skip > 0
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise CaptureFailure(
                "file.unreadable", f"{path} is not a regular file; for a pipe or a device use kind = command"
            )
        for piece in _pieces(path, rate, skip):
            found = found or bool(piece)
            yield piece
    except FileNotFoundError as error:
        raise CaptureFailure("file.absent", f"file {path} is not there") from error
    except OSError as error:
        raise CaptureFailure("file.unreadable", f"file {path} cannot be read: {error.strerror or error}") from error
    if not found:
        raise CaptureFailure("file.empty", f"file {path} has no audio in it")


def _pieces(path: str, rate: int, skip: int) -> Iterator[bytes]:
    try:
        sound = wave.open(path, "rb")  # noqa: SIM115 - entered below, only if it can be read at all
    except (wave.Error, EOFError):  # not PCM in RIFF
        yield from _decoded(path, rate, skip)
        return
    with sound:
        if (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) != (1, SAMPLE_BYTES, rate):
            yield from _decoded(path, rate, skip)
            return
        sound.setpos(min(skip, sound.getnframes()))
        while piece := sound.readframes(_READ_FRAMES):
            yield piece


def _decoded(path: str, rate: int, skip: int) -> Iterator[bytes]:
    import soundfile  # noqa: PLC0415 - libsndfile is for the files that need it

    try:
        with soundfile.SoundFile(path) as sound:
            resampler = Resampler(sound.samplerate, rate)
            left = skip * SAMPLE_BYTES
            while True:
                frames = sound.read(_READ_FRAMES, dtype="float32", always_2d=True)
                # Audio that is recorded already is converted again and left out: seeking would change the filter.
                piece = resampler.convert(frames, last=not len(frames))
                yield piece[left:]
                left -= min(left, len(piece))
                if not len(frames):
                    return
    except soundfile.LibsndfileError as error:
        raise CaptureFailure(
            "file.unreadable",
            f"file {path} cannot be played ({error.error_string.rstrip('.')}); WAV, FLAC, Ogg and MP3 can",
        ) from error
