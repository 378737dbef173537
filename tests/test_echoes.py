"""Sound that was forgotten may stand elsewhere with good reason. It is told from what is left by its place."""

import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from roomtone.capture.segment import name_segment
from roomtone.echoes import Passage, Spools, has_any, stands_outside
from running import COMMAND, events, run

AT = datetime(2026, 1, 1, tzinfo=UTC)
PIECE = random.Random(1).randbytes(200)
"""A hundred samples that nobody has by chance."""


def segment(folder: Path, position: int, audio: bytes, room: str = "desk") -> Path:
    path = folder / room / name_segment(position, AT, fresh=False)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(audio)
    return path


def other(samples: int) -> bytes:
    return random.Random(samples).randbytes(2 * samples)


def test_a_piece_outside_of_what_is_forgotten_is_known(tmp_path: Path) -> None:
    """The same sound at another position, in another room, or in a file from before stands there with good reason."""
    gone = {"desk": [(1000, 2000)]}
    segment(tmp_path, 0, other(300) + PIECE + other(600))
    assert stands_outside([PIECE], Spools(tmp_path, gone), (), 10) == {PIECE}

    everything = {"desk": [(0, 2000)]}
    assert stands_outside([PIECE], Spools(tmp_path, everything), (), 10) == set()
    old = tmp_path / "old.wav"
    old.write_bytes(other(22) + PIECE)
    assert stands_outside([PIECE], Spools(tmp_path, everything), [old], 10) == {PIECE}
    segment(tmp_path, 0, other(10) + PIECE, room="kitchen")
    assert stands_outside([PIECE], Spools(tmp_path, everything), (), 10) == {PIECE}


@pytest.mark.parametrize("place", [1000, 1450, 1900, 950, 1950])
def test_what_is_left_is_no_reason_for_itself(tmp_path: Path, place: int) -> None:
    """A piece in the forgotten stretch, or a part of one across its edges, is left over, and no excuse for a file."""
    before = 500
    audio = bytearray(other(2000))
    audio[2 * (place - before) : 2 * (place - before) + len(PIECE)] = PIECE
    path = segment(tmp_path, before, bytes(audio))
    spools = Spools(tmp_path, {"desk": [(1000, 2000)]})

    [passage] = spools.passages(path)
    assert passage == Passage(path, 1000, 3000)
    assert has_any(passage, [PIECE])
    assert stands_outside([PIECE], spools, (), 10) == set()


@pytest.mark.parametrize("place", [900, 2000])
def test_what_touches_an_edge_is_not_left(tmp_path: Path, place: int) -> None:
    """The last sample before the stretch and the first behind it are as they were."""
    audio = bytearray(6000)
    audio[2 * place : 2 * place + len(PIECE)] = PIECE
    path = segment(tmp_path, 0, bytes(audio))
    spools = Spools(tmp_path, {"desk": [(1000, 2000)]})

    assert [has_any(passage, [PIECE]) for passage in spools.passages(path)] == [False]
    assert stands_outside([PIECE], spools, (), 10) == {PIECE}


def test_files_that_have_gone_or_are_empty(tmp_path: Path) -> None:
    """Retention removes files at any moment; neither is a find, nor an error."""
    (tmp_path / "empty.wav").touch()
    before = [tmp_path / "empty.wav", tmp_path / "absent.wav"]
    assert stands_outside([PIECE], Spools(tmp_path / "absent", {}), before, 10) == set()
    assert not has_any(Passage(tmp_path / "absent.wav", 0, 100), [PIECE])


SOURCE = """
import random, sys, time
loop, begun, count = random.Random(7).randbytes(32_000), time.monotonic(), 0
while True:
    block = loop[count % 10 * 3200 :][:3200] if sys.argv[1] == "again" else random.randbytes(3200)
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()
    count += 1
    time.sleep(max(0, begun + count / 10 - time.monotonic()))
"""
HOARDER = """
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from roomtone import Sink, hookimpl

class Hoarder(Sink, frozen=True, kw_only=True, tag="hoarder"):
    audio = True

    @asynccontextmanager
    async def open(self, context):
        yield Hoard(context.path("hoard"))

    def holdings(self, context):
        return [context.path("hoard")]

    def audio_at(self, context, room, start, end):
        for path in context.path("hoard").glob(f"{room}-*"):
            position = int(path.name.split("-")[1])
            size = path.stat().st_size
            yield path, max(0, 2 * (start - position)), max(0, min(size, 2 * (end - position)))

class Hoard:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    @hookimpl
    def audio(self, event):
        shutil.copy(event.file, self.folder / f"{event.room}-{event.position}")

@hookimpl
def register_sinks():
    return [Hoarder]
"""
CONFIG = """
[rooms.again]
source = {{ kind = "command", argv = ["{python}", "source.py", "again"], restart = "always" }}
[rooms.again.streaming]
endpoint = "ws://127.0.0.1:9"
[rooms.noise]
source = {{ kind = "command", argv = ["{python}", "source.py", "noise"], restart = "always" }}
[rooms.noise.streaming]
endpoint = "ws://127.0.0.1:9"
[sinks.archive]
kind = "wav"
directory = "recordings"
[sinks.log]
kind = "jsonl"
path = "events.jsonl"
"""


def test_a_source_that_plays_the_same_again_leaves_a_clean_answer_and_no_blind_one(tmp_path: Path) -> None:
    """One second again and again: what of it stands before and after the stretch is no remainder, and what a sink has
    not removed is one, in that room as in one of noise that is never the same.
    """
    (tmp_path / "source.py").write_text(SOURCE)
    (tmp_path / "plugins").mkdir()
    plugin = tmp_path / "plugins" / "hoarder.py"
    plugin.write_text(HOARDER)
    config = CONFIG.format(python=sys.executable)
    with run(tmp_path, config + '[sinks.hoard]\nkind = "hoarder"\n') as daemon:
        daemon.wait_for(lambda: len(events(tmp_path, "recording_started")) == 2)
        begun = max(datetime.fromisoformat(event["at"]) for event in events(tmp_path, "recording_started"))
        time.sleep(3)
        command(tmp_path, "rotate")
        daemon.wait_for(lambda: len(list((tmp_path / "hoard").glob("*-0"))) == 2)
        blamed = command(tmp_path, "forget", "--from", (begun + timedelta(seconds=1.5)).isoformat())
        plugin.unlink()
        daemon.signal(signal.SIGKILL)
        daemon.finish()

    hoard = [str(path) for path in (tmp_path / "hoard").glob("*-0")]
    assert blamed.returncode == 1
    assert "something is left" in blamed.stdout
    assert sorted(line.strip() for line in blamed.stderr.replace("roomtone:", "").splitlines()) == sorted(
        f"{path} still has some of it" for path in hoard
    )
    with run(tmp_path, config) as daemon:
        daemon.wait_for(lambda: len(events(tmp_path, "recording_started")) >= 6)
        time.sleep(3)
        clean = command(tmp_path, "forget", "--last", "2s")
        assert clean.returncode == 0, clean.stderr
        assert "nothing of it is left" in clean.stdout
        daemon.signal(signal.SIGKILL)
        daemon.finish()
    alone = command(tmp_path, "forget", "--last", "1h")
    assert alone.returncode == 0, alone.stderr
    assert "nothing of it is left" in alone.stdout


def command(folder: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    line = [*COMMAND, argv[0], "--config", str(folder / "roomtone.toml"), *argv[1:]]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=120)
