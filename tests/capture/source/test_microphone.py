"""Microphones, on a real sound server: what is heard, and how a loss of any kind is told."""

import json
import math
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from roomtone.capture.source.ring import BLOCK, HEADER, Frames
from roomtone.capture.source_process import Block, SourceFailed, SourceProcess, open_source
from roomtone.capture.sources import Microphone
from support.pulse import PulseServer, open_pulse
from support.sources import FRAME, RATE, noise, write_wav

# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): the law of MemoryDenyWriteExecute=, for one process.
FORBIDDING = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    sys.exit("this kernel has no PR_SET_MDWE: Linux 6.3 is needed for this test")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Iterator[PulseServer]:
    with open_pulse() as server:
        for key, value in server.env.items():
            monkeypatch.setenv(key, value)
        yield server


def microphone(device: str = "default") -> AbstractAsyncContextManager[SourceProcess]:
    return open_source(Microphone(device), rate=RATE, frame=FRAME, folder=Path("/"))


async def hear(feed: SourceProcess, blocks: int) -> list[Block]:
    with trio.fail_after(60):
        return [await feed.receive() for _ in range(blocks)]


async def fail(feed: SourceProcess) -> SourceFailed:
    """The failure that ends this feed."""
    with trio.fail_after(60):
        while True:
            try:
                await feed.receive()
            except SourceFailed as failure:
                return failure


@pytest.mark.parametrize("device", ["default", "pulse", "room.monitor"])
async def test_what_is_said_in_the_room_is_recorded_to_the_sample(
    pulse: PulseServer, tmp_path: Path, device: str
) -> None:
    """Every sample that is played arrives, in order, in blocks of one frame."""
    said = noise(RATE)
    async with microphone(device) as feed:
        assert feed.name == f"microphone {device}"
        await hear(feed, 2)
        pulse.play(write_wav(tmp_path / "a.wav", said))
        blocks = await hear(feed, 20)
    assert {len(block.audio) for block in blocks} == {2 * FRAME}
    assert said in b"".join(block.audio for block in blocks)


async def test_a_daemon_that_stands_still_loses_nothing(pulse: PulseServer, tmp_path: Path) -> None:
    """Nobody receives for three seconds; afterwards every sample is there, stamped with the time of its reading."""
    said = noise(2 * RATE)
    async with microphone() as feed:
        await hear(feed, 2)
        pulse.play(write_wav(tmp_path / "a.wav", said))
        await trio.sleep(3)
        blocks = await hear(feed, 28)
    assert said in b"".join(block.audio for block in blocks)
    assert not any(block.dropped for block in blocks)
    assert blocks[27].boottime - blocks[0].boottime > 2.0


async def test_an_unknown_microphone_is_refused_with_the_names_there_are(pulse: PulseServer) -> None:
    """A wrong name is never taken for another device."""
    async with microphone("kitchen") as feed:
        failure = await fail(feed)
    assert failure.code == "device.absent"
    assert str(failure) == "no microphone is called kitchen; there are: pulse, default, room.monitor"


async def test_unplugging_is_told_at_once_and_plugging_in_heals(
    pulse: PulseServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The failure names the microphone; a new process sees the new list; and PortAudio's own lines do no harm."""
    module = pulse.plug("desk")
    async with microphone("desk.monitor") as feed:
        await hear(feed, 3)
        pulse.unplug(module)
        failure = await fail(feed)
    assert failure.code == "device.lost"
    assert "desk.monitor is gone" in str(failure)
    async with microphone("desk.monitor") as feed:
        assert (await fail(feed)).code == "device.absent"
    pulse.plug("desk")
    async with microphone("desk.monitor") as feed:
        await hear(feed, 3)
    assert capfd.readouterr() == ("", "")


async def test_a_stream_that_the_server_moved_elsewhere_is_a_loss(pulse: PulseServer) -> None:
    """Desktop servers feed the stream from another microphone when its own goes. That is never recorded for long."""
    pulse.control("load-module", "module-rescue-streams")
    module = pulse.plug("desk")
    async with microphone("desk.monitor") as feed:
        await hear(feed, 5)
        pulse.unplug(module)
        failure = await fail(feed)
    assert failure.code == "device.lost"
    assert str(failure) == "source desk.monitor is gone, and the sound server went on with room.monitor"


async def test_the_end_of_the_server_is_told_and_so_is_its_absence(pulse: PulseServer) -> None:
    """A server that crashes takes the stream with it; while it is away, opening says why."""
    async with microphone() as feed:
        await hear(feed, 3)
        pulse.kill()
        assert (await fail(feed)).code == "device.lost"
    async with microphone() as feed:
        failure = await fail(feed)
    assert failure.code == "device.absent"
    assert "PULSE_SERVER" in str(failure)
    assert "refused" in str(failure)


async def test_a_frozen_server_gives_nothing_and_holds_nobody(pulse: PulseServer) -> None:
    """No data, no error, and the process cannot be asked to end; the context ends nevertheless."""
    async with microphone() as feed:
        await hear(feed, 3)
        pulse.freeze()
        with trio.move_on_after(1.5) as silence:
            while True:
                await feed.receive()
        assert silence.cancelled_caught
        with trio.fail_after(10):
            await feed._child.kill()
        assert feed._child._process.returncode == -9
    async with microphone() as feed:  # one that never gets as far as opening
        with trio.move_on_after(0.5) as silence:
            await feed.receive()
        assert silence.cancelled_caught


async def test_a_suspended_microphone_goes_on_by_itself(pulse: PulseServer) -> None:
    """Suspension is silence without an end: when it is over, audio flows again in the same process."""
    async with microphone() as feed:
        await hear(feed, 3)
        pulse.suspend()
        with trio.move_on_after(1.5) as silence:
            while True:
                await feed.receive()
        assert silence.cancelled_caught
        pulse.suspend(on=False)
        await hear(feed, 3)


STUBBORN_CARD = '''
"""A card that knows 48 kHz only: the real module, whose streams refuse every other rate as PortAudio does."""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sounddevice", {path!r})
real = importlib.util.module_from_spec(spec)
sys.modules["sounddevice"] = real
spec.loader.exec_module(real)
genuine = real.RawInputStream
def open_stream(*, samplerate, **options):
    if samplerate != 48000:
        raise real.PortAudioError("Error opening RawInputStream: Invalid sample rate", -9997)
    return genuine(samplerate=samplerate, **options)
real.RawInputStream = open_stream
'''


async def test_a_card_that_refuses_the_rooms_rate_is_converted(
    pulse: PulseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards that know 48 kHz only are common: the room's rate just works, and a tone stays that tone."""
    import sounddevice

    (tmp_path / "sounddevice.py").write_text(STUBBORN_CARD.format(path=sounddevice.__file__))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    tone = array("h", (round(20_000 * math.sin(2 * math.pi * 500 * n / RATE)) for n in range(2 * RATE)))
    async with microphone() as feed:
        await hear(feed, 2)
        player = pulse.play(write_wav(tmp_path / "a.wav", tone.tobytes()))
        blocks = await hear(feed, 15)
        assert player.poll() is None
    heard = array("h", b"".join(block.audio for block in blocks[8:15]))
    assert max(heard) == pytest.approx(20_000, rel=0.02)
    rising = sum(1 for before, after in pairwise(heard) if before < 0 <= after)
    assert rising / (len(heard) / RATE) == pytest.approx(500, abs=3)


def test_it_runs_where_memory_is_never_both_written_and_executed(pulse: PulseServer) -> None:
    """The hardened service forbids write+execute memory: PortAudio opens and reads under that law all the same."""
    launch = [sys.executable, "-c", FORBIDDING]
    probe = "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)"
    refused = subprocess.run([*launch, "-c", probe], capture_output=True, text=True, check=False)
    assert "PermissionError" in refused.stderr
    config = {"source": {"kind": "microphone", "device": "room.monitor"}, "rate": RATE, "frame": FRAME, "ring": RATE}
    with subprocess.Popen(
        [*launch, "-m", "roomtone.capture.source"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
        frames = Frames()
        frames.feed(process.stdout.read(3 * (2 * FRAME + HEADER.size)))
        assert [frame.kind for frame in iter(frames.pop, None)] == [BLOCK] * 3
        os.killpg(process.pid, signal.SIGKILL)
