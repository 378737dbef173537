"""The capture process for itself: what it loads, what ends it, and what does not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from hypothesis import given
from hypothesis import strategies as st

from roomtone.capture.source.main import cut, paced
from roomtone.capture.source.ring import BLOCK, Frame, Frames
from support.sources import FRAME, RATE, noise, write_wav


@contextmanager
def capture(source: dict[str, Any], **options: Any) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes], IO[bytes]]]:
    """A capture process with this source, its standard input and its standard output."""
    config = {"rate": RATE, "frame": FRAME, "ring": RATE, "skip": 0, "silence": 30, "folder": "/", "source": source}
    with subprocess.Popen(
        [sys.executable, "-m", "roomtone.capture.source"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(config | options).encode() + b"\n")
        process.stdin.flush()
        try:
            yield process, process.stdin, process.stdout
        finally:
            process.kill()


def read_frame(stream: IO[bytes]) -> Frame:
    frames = Frames()
    while (frame := frames.pop()) is None:
        byte = stream.read(1)
        assert byte, "the process has ended"
        frames.feed(byte)
    return frame


# The sleeper writes nothing, so that no broken pipe ends it.
ZEROS = {"kind": "command", "argv": ["sh", "-c", "sleep 1000 & exec cat /dev/zero"], "environment": []}


def test_a_capture_process_loads_what_its_source_needs_and_no_more() -> None:
    """It lives for years beside every room, without the daemon's libraries and those of other kinds of source."""
    names = ", ".join(f"roomtone.capture.source.{name}" for name in ("main", "command", "audiofile"))
    code = f"import {names}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    daemon = {"trio", "msgspec", "structlog", "sqlite3", "ssl", "asyncio"}
    others = {"numpy", "soxr", "soundfile", "sounddevice", "cffi"}
    assert not (daemon | others) & set(loaded)


def test_it_ends_with_the_daemon_and_so_does_its_command() -> None:
    """A daemon that is killed leaves nothing behind: the end of standard input ends the process and its command."""
    with capture(ZEROS) as (process, stdin, stdout):
        read_frame(stdout)  # and the test reads no more: pipe and ring are full, and the process waits
        group = process.pid
        stdin.close()
        assert process.wait(20) == 0
    for _ in range(2000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("the command is still there")


def test_it_ends_when_nobody_can_read_it_any_more() -> None:
    """A daemon that closed the pipe is as good as gone."""
    with capture(ZEROS) as (process, _, stdout):
        read_frame(stdout)
        stdout.close()
        assert process.wait(20) == 0


def test_a_service_managers_sigterm_is_left_to_the_daemon(tmp_path: Path) -> None:
    """At stop the whole group may get SIGTERM: audio flows until the daemon has decided."""
    path = write_wav(tmp_path / "a.wav", noise(RATE))
    with capture({"kind": "file", "path": str(path), "pace": "realtime"}) as (process, _, stdout):
        read_frame(stdout)
        process.terminate()
        assert [read_frame(stdout).kind for _ in range(9)] == [BLOCK] * 9


def test_a_command_can_be_terminated() -> None:
    """Ignoring SIGTERM is not inherited: programs end as they always do."""
    script = "kill -TERM $$; sleep 60"
    with capture({"kind": "command", "argv": ["sh", "-c", script], "environment": []}) as (_, _, stdout):
        assert b"was ended by SIGTERM" in read_frame(stdout).body


@given(pieces=st.lists(st.binary(max_size=50), max_size=20), frame=st.integers(1, 10))
def test_blocks_are_the_audio_in_frames(pieces: list[bytes], frame: int) -> None:
    """However a source cuts its audio, blocks are one frame each; only the last may be shorter; no sample is torn."""
    blocks = list(cut(iter(pieces), frame))
    audio = b"".join(pieces)
    assert b"".join(blocks) == audio[: len(audio) // 2 * 2]
    assert all(len(block) == 2 * frame for block in blocks[:-1])
    assert all(2 <= len(block) <= 2 * frame for block in blocks[-1:])


def test_pace_is_kept_over_a_stall() -> None:
    """A delayed reader catches up: the pace is of the clock, not of the pauses."""
    start, times = time.monotonic(), []
    for number, _ in enumerate(paced(iter([bytes(2 * 50)] * 10), 1000)):
        times.append(time.monotonic() - start)
        if number == 2:
            time.sleep(0.2)
    assert times[9] >= 0.5
    assert all(moment >= 0.05 * (number + 1) for number, moment in enumerate(times))
    assert all(later >= earlier for earlier, later in pairwise(times))
