"""The output of any program as a source."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from roomtone.capture.source.command import INHERITED, INHERITED_PREFIXES
from roomtone.capture.source_process import RING_S, SourceEnded, SourceFailed, open_source
from roomtone.capture.sources import Command
from roomtone_command import INHERITED as INHERITED_BY_SINKS
from support.sources import FRAME, RATE, drain, listen, noise, write_wav


def python(code: str) -> Command:
    return Command((sys.executable, "-c", f"import os, sys, time\n{code}"))


async def test_what_a_program_writes_is_the_audio(tmp_path: Path) -> None:
    """Bit for bit, whatever the sizes of its writes, and exit status 0 is the end of data."""
    (tmp_path / "raw").write_bytes(noise(50_000))
    heard = await listen(Command(("cat", "raw")), tmp_path)
    assert isinstance(heard.over, SourceEnded)
    assert heard.audio == noise(50_000)


async def test_a_real_converter_can_be_the_source(tmp_path: Path) -> None:
    """sox, like ffmpeg and arecord, writes what a room wants when asked for raw samples."""
    path = write_wav(tmp_path / "a.wav", noise(20_000))
    heard = await listen(Command(("sox", str(path), "-t", "raw", "-")), tmp_path)
    assert heard.audio == noise(20_000)


async def test_what_was_written_before_the_end_is_not_lost(tmp_path: Path) -> None:
    """A program that dies has said what it said: the audio comes first, then the reason with its last words."""
    source = python("os.write(1, bytes(3201)); print('usb: gone', file=sys.stderr); sys.exit(3)")
    heard = await listen(source, tmp_path)
    assert heard.audio == bytes(3200)
    assert isinstance(heard.over, SourceFailed)
    assert heard.over.code == "command.failed"
    assert "ended with status 3: usb: gone" in str(heard.over)


async def test_a_crash_is_told_by_its_signal(tmp_path: Path) -> None:
    """A program that was killed is a failure, even if it had written something."""
    heard = await listen(python("os.write(1, bytes(10)); os.kill(os.getpid(), 11)"), tmp_path)
    assert "was ended by SIGSEGV" in str(heard.over)


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        (Command(("no-such-recorder", "-x")), "command.absent", "no-such-recorder is not there; install it"),
        (Command(("./notes",)), "command.absent", "./notes cannot be run: Permission denied"),
        (Command(("true",)), "command.silent", "true ended without writing audio"),
        (python("time.sleep(60)"), "command.silent", "has written nothing for 0.5 s"),
        (python("os.write(1, bytes(10)); time.sleep(60)"), "command.silent", "has written nothing for 0.5 s"),
    ],
)
async def test_a_program_that_gives_no_audio_is_told_by_name(
    tmp_path: Path, source: Command, code: str, words: str
) -> None:
    """Not there, not allowed, silent: each has its own words."""
    (tmp_path / "notes").write_text("not a program")
    heard = await listen(source, tmp_path, silence=0.5)
    assert isinstance(heard.over, SourceFailed)
    assert (heard.over.code, words in str(heard.over)) == (code, True), str(heard.over)


async def test_a_folder_that_is_not_there_is_not_blamed_on_the_program(tmp_path: Path) -> None:
    """The kernel says the same of both: no such file."""
    heard = await listen(Command(("true",)), tmp_path / "gone")
    assert "gone, where command true would run, is not there" in str(heard.over)


async def test_a_wav_header_is_refused(tmp_path: Path) -> None:
    """Programs write WAV unless told otherwise, and its header would be a click: the text says how to tell them."""
    path = write_wav(tmp_path / "a.wav", noise(20_000))
    heard = await listen(Command(("cat", str(path))), tmp_path)
    assert isinstance(heard.over, SourceFailed)
    assert heard.over.code == "command.format"
    assert "raw samples, 16-bit little-endian mono at 16000 Hz" in str(heard.over)
    assert heard.audio == b""


async def test_arguments_are_never_told(tmp_path: Path) -> None:
    """A camera's password is in the URL, which is an argument, and which the program repeats."""
    code = "print('cannot open', sys.argv[1], file=sys.stderr); sys.exit(1)"
    heard = await listen(Command((sys.executable, "-c", "import sys\n" + code, "rtsp://me:secret@cam/1")), tmp_path)
    assert "cannot open rtsp://cam/1" in str(heard.over)
    assert "secret" not in str(heard.over)


CHATTER = "for n in range(20000): sys.stderr.write(f'frame {n} ' + 'x' * 80 + '\\r')\nos.write(1, bytes(2000))"


async def test_a_chatty_program_is_not_blocked(tmp_path: Path) -> None:
    """Megabytes of progress on standard error stop nothing."""
    heard = await listen(python(CHATTER), tmp_path)
    assert isinstance(heard.over, SourceEnded)
    assert heard.audio == bytes(2000)


async def test_a_program_faster_than_real_time_is_waited_for(tmp_path: Path) -> None:
    """A file that is played by a program loses nothing, although the daemon stands still for longer than the ring."""
    audio = noise(3_000_000)
    (tmp_path / "raw").write_bytes(audio)
    async with open_source(Command(("cat", "raw")), rate=RATE, frame=FRAME, folder=tmp_path, ring_seconds=1.0) as feed:
        await feed.receive()
        await trio.sleep(1.5)
        heard = await drain(feed)
    assert heard.dropped == 0
    assert heard.audio == audio[2 * FRAME :]


LIVE = """
import time
block, due = 20_000, time.monotonic()
for first in range(0, 1_200_000, block):
    for n in range(first, first + block, 5000):
        out = b"".join((m % 65536).to_bytes(2, "little") for m in range(n, n + 5000))
        os.write(1, out)
    due += block / 1_000_000
    time.sleep(max(0.0, due - time.monotonic()))
"""


async def test_a_live_program_is_dropped_from_and_every_sample_is_counted(tmp_path: Path) -> None:
    """Nobody receives for longer than pipe and ring hold: the oldest blocks of the ring go, and the count of each loss
    is exact: every block that comes is the one that belongs to its position. (At 1 MHz, so that it takes seconds.)
    """
    async with open_source(python(LIVE), rate=1_000_000, frame=10_000, folder=tmp_path, ring_seconds=0.1) as feed:
        await feed.receive()
        await trio.sleep(1.7)
        heard = await drain(feed)
    assert isinstance(heard.over, SourceEnded)
    assert heard.dropped > 0
    position = 10_000
    for block in heard.blocks:
        position += block.dropped
        assert int.from_bytes(block.audio[:2], "little") == position % 65536
        position += len(block.audio) // 2
    assert position == 1_200_000


async def test_a_daemon_that_stands_still_has_a_minute(tmp_path: Path) -> None:
    """By default 60 s of a live source wait in the process: nothing is dropped of what comes meanwhile."""
    assert RING_S == 60
    async with open_source(python(LIVE), rate=1_000_000, frame=10_000, folder=tmp_path) as feed:
        await feed.receive()
        await trio.sleep(1.7)
        heard = await drain(feed)
    assert isinstance(heard.over, SourceEnded)
    assert heard.dropped == 0
    assert len(heard.audio) == 2 * 1_190_000


async def test_the_program_ends_with_the_context_and_so_does_what_it_started(tmp_path: Path) -> None:
    """A pipeline's parts do not outlive the source: the group is killed, also when its first process is gone."""
    mark = f"86399.{abs(hash(str(tmp_path))) % 10**9}"
    source = Command(("sh", "-c", f"sleep {mark} & head -c 4000 /dev/zero; sleep {mark}"))
    async with open_source(source, rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        assert len(find_processes(mark)) >= 1
    with trio.fail_after(10):
        while find_processes(mark):  # noqa: ASYNC110 - the kernel has no event for this
            await trio.sleep(0.01)


def find_processes(mark: str) -> list[str]:
    """The numbers of the `sleep` processes with this argument."""
    found = subprocess.run(["pgrep", "-f", f"^sleep {mark}$"], capture_output=True, text=True, check=False)
    return found.stdout.split()


SECRETS = {
    "ASSEMBLYAI_API_KEY": "k1",
    "CREDENTIALS_DIRECTORY": "/run/credentials/roomtone.service",
    "NOTIFY_SOCKET": "/run/notify",
    "HTTPS_PROXY": "http://me:secret@proxy",
    "AWS_SECRET_ACCESS_KEY": "k2",
    "CAMERA_PASSWORD": "k3",
}
SOUND = {
    "XDG_RUNTIME_DIR": "/run/user/1000",
    "PULSE_SERVER": "unix:/run/pulse",
    "PIPEWIRE_REMOTE": "pipewire-0",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus",
    "ALSA_CONFIG_PATH": "/etc/asound.conf",
}


async def environment_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> Mapping[str, str]:
    """The environment of a command source of a daemon that has secrets in its own."""
    for name, value in (SECRETS | SOUND).items():
        monkeypatch.setenv(name, value)
    code = "import os; open('environ', 'wb').write(open('/proc/self/environ', 'rb').read()); os.write(1, bytes(9))"
    await listen(Command((sys.executable, "-c", code), environment=names), tmp_path)
    parts = (tmp_path / "environ").read_bytes().decode().split("\0")
    return dict(part.split("=", 1) for part in parts if part)


async def test_a_command_gets_no_secret_of_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets what a command sink gets, the way to the sound server, and nothing else."""
    found = await environment_in(tmp_path, monkeypatch, ())
    assert not SECRETS.keys() & found.keys()
    assert found.items() >= SOUND.items()
    assert [name for name in found if name not in INHERITED and not name.startswith(INHERITED_PREFIXES)] == []
    assert set(INHERITED_BY_SINKS) <= set(INHERITED)


async def test_a_command_gets_the_variables_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's choice, by name."""
    found = await environment_in(tmp_path, monkeypatch, ("CAMERA_PASSWORD", "NOT_SET"))
    assert SECRETS.keys() & found.keys() == {"CAMERA_PASSWORD"}
    assert "NOT_SET" not in found
