"""Sound files as sources."""

import math
import struct
import sys
import wave
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import trio

from roomtone.capture.source.audiofile import read_file
from roomtone.capture.source.ring import CaptureFailure
from roomtone.capture.source_process import SourceEnded, SourceFailed, open_source
from roomtone.capture.sources import File
from support.sources import FRAME, RATE, drain, listen, noise, write_wav


def tone(seconds: float, rate: int, hertz: float = 440.0) -> "array[int]":
    return array("h", (round(20_000 * math.sin(2 * math.pi * hertz * n / rate)) for n in range(int(seconds * rate))))


def rms(audio: bytes) -> float:
    samples = array("h", audio)
    return math.sqrt(sum(sample * sample for sample in samples) / len(samples))


def distance(heard: bytes, expected: bytes) -> float:
    """The rms of the difference, over the length of both."""
    return rms(array("h", (a - b for a, b in zip(array("h", heard), array("h", expected), strict=True))).tobytes())


async def test_a_wav_at_the_rooms_rate_is_bit_for_bit(tmp_path: Path) -> None:
    """Every sample of a 16-bit mono file arrives as it is, the last block shorter than a frame, and then it is over."""
    audio = noise(10 * 1600 + 77)
    heard = await listen(File(str(write_wav(tmp_path / "a.wav", audio)), pace="fast"), tmp_path)
    assert isinstance(heard.over, SourceEnded)
    assert heard.audio == audio
    assert [len(block.audio) // 2 for block in heard.blocks] == [1600] * 10 + [77]
    assert heard.dropped == 0


async def test_relative_paths_begin_in_the_folder(tmp_path: Path) -> None:
    """The name in the configuration is relative to its folder, and the process is called by the file's own name."""
    (tmp_path / "sub").mkdir()
    write_wav(tmp_path / "sub" / "a.wav", noise(100))
    heard = await listen(File("sub/a.wav", pace="fast"), tmp_path)
    assert heard.audio == noise(100)


def test_the_native_format_needs_the_standard_library_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy, soxr and libsndfile are for files that need them: 16 MB that others never pay."""
    path = write_wav(tmp_path / "a.wav", noise(1000))
    for module in ("numpy", "soxr", "soundfile"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it would raise
    assert b"".join(read_file(str(path), rate=RATE, skip=0)) == noise(1000)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_16_bit_file_at_the_rooms_rate_loses_no_bit_in_any_format(tmp_path: Path, name: str) -> None:
    """FLAC is the same audio in fewer bytes."""
    audio = noise(5000)
    soundfile.write(tmp_path / name, array("h", audio), RATE, subtype="PCM_16")
    assert b"".join(read_file(str(tmp_path / name), rate=RATE, skip=0)) == audio


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_another_rate_is_converted_to_the_rooms(tmp_path: Path, rate: int) -> None:
    """A tone stays the same tone, as long and as loud, at whatever rate the file was made."""
    path = write_wav(tmp_path / "a.wav", tone(1.0, rate).tobytes(), rate=rate)
    heard = b"".join(read_file(str(path), rate=RATE, skip=0))
    expected = tone(1.0, RATE).tobytes()
    assert abs(len(heard) - len(expected)) <= 4
    middle = slice(3200, 28800)
    assert distance(heard[middle], expected[middle]) < 0.01 * rms(expected)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT"])
def test_any_width_is_converted(tmp_path: Path, subtype: str) -> None:
    """Eight bits or floats: the file says how wide its samples are."""
    expected = tone(0.2, RATE)
    soundfile.write(tmp_path / "a.wav", [sample / 32768 for sample in expected], RATE, subtype=subtype)
    heard = b"".join(read_file(str(tmp_path / "a.wav"), rate=RATE, skip=0))
    assert distance(heard, expected.tobytes()) < (300 if subtype == "PCM_U8" else 1)


def test_many_channels_become_their_mean(tmp_path: Path) -> None:
    """A room is mono: what is said on one side only is heard, at half its level."""
    path = write_wav(tmp_path / "a.wav", struct.pack("<4h", 1000, 3000, -200, 200) * 100, channels=2)
    assert b"".join(read_file(str(path), rate=RATE, skip=0)) == struct.pack("<2h", 2000, 0) * 100


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("skip", [1, 5000, 15_999])
def test_a_file_goes_on_where_it_was(tmp_path: Path, rate: int, skip: int) -> None:
    """After a restart the rest is exactly the rest, converted or not."""
    path = write_wav(tmp_path / "a.wav", noise(rate), rate=rate)
    whole = b"".join(read_file(str(path), rate=RATE, skip=0))
    assert b"".join(read_file(str(path), rate=RATE, skip=skip)) == whole[2 * skip :]


@pytest.mark.parametrize("skip", [1000, 1001])
async def test_a_file_that_was_played_to_its_end_is_over(tmp_path: Path, skip: int) -> None:
    """A restart after the last sample is the end of data, no failure."""
    heard = await listen(File(str(write_wav(tmp_path / "a.wav", noise(1000))), pace="fast"), tmp_path, skip=skip)
    assert isinstance(heard.over, SourceEnded)
    assert heard.audio == b""


def test_a_wav_whose_writer_died_is_played_as_far_as_it_goes(tmp_path: Path) -> None:
    """A header that promises more than there is, or a torn last sample, does not lose the rest."""
    path = write_wav(tmp_path / "a.wav", noise(1000))
    path.write_bytes(path.read_bytes()[:-11])
    assert b"".join(read_file(str(path), rate=RATE, skip=0))[:1988] == noise(1000)[:1988]


async def test_a_file_is_never_dropped_from(tmp_path: Path) -> None:
    """Nobody receives, and pipe and ring are full: the file waits, and is whole in the end."""
    audio = noise(2_000_000)
    source = File(str(write_wav(tmp_path / "a.wav", audio)), pace="fast")
    async with open_source(source, rate=RATE, frame=FRAME, folder=tmp_path, ring_seconds=0.5) as process:
        first = await process.receive()
        await trio.sleep(1)
        heard = await drain(process)
    assert first.audio + heard.audio == audio
    assert heard.dropped == 0


async def test_realtime_pace_gives_each_block_when_a_microphone_would(tmp_path: Path) -> None:
    """A second of audio takes a second, block by block."""
    heard = await listen(File(str(write_wav(tmp_path / "a.wav", noise(RATE)))), tmp_path)
    times = [block.boottime for block in heard.blocks]
    assert len(times) == 10
    assert times[-1] - times[0] > 0.85
    assert heard.audio == noise(RATE)


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (Path.exists, "file.absent", "is not there"),
        (lambda path: path.mkdir(), "file.unreadable", "not a regular file"),
        (lambda path: path.write_text("hello"), "file.unreadable", "cannot be played"),
        (lambda path: path.write_bytes(b""), "file.unreadable", "cannot be played"),
        (lambda path: write_wav(path, b""), "file.empty", "no audio"),
        (lambda path: path.symlink_to(path), "file.unreadable", "symbolic links"),
    ],
)
async def test_a_file_that_cannot_be_played_is_told_by_name(
    tmp_path: Path, make: Callable[[Path], object], code: str, words: str
) -> None:
    """The log names the file and its fault."""
    make(tmp_path / "talk.wav")
    heard = await listen(File("talk.wav"), tmp_path)
    assert isinstance(heard.over, SourceFailed)
    assert heard.over.code == code
    assert words in str(heard.over)
    assert str(tmp_path / "talk.wav") in str(heard.over)
    assert "\n" not in str(heard.over)


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own reason reaches the person. (A fake of the refusal: nothing is refused to root.)"""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_wav(tmp_path / "a.wav", noise(10))
    monkeypatch.setattr(wave, "open", refuse)
    with pytest.raises(CaptureFailure, match=r"a\.wav cannot be read: Permission denied"):
        list(read_file(str(path), rate=RATE, skip=0))
