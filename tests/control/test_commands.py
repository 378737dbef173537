"""The running daemon and the commands that ask it: reload, mute, rotate, status and tail, as their users run them."""

import json
import os
import pty
import shlex
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from roomtone.journal.coverage import summarize
from roomtone.journal.database import Database
from support.daemon import COMMAND, Run, events, recordings, run

RATE = 16_000

COUNTER = """
import os, pathlib, sys, time
from array import array
name, begin = sys.argv[1], time.monotonic()
pathlib.Path(name + ".pid").write_text(str(os.getpid()))
count = 0
while True:
    due = int((time.monotonic() - begin) * 16000)
    sys.stdout.buffer.write(array("H", (number & 65535 for number in range(count, due))).tobytes())
    sys.stdout.buffer.flush()
    count = due
    time.sleep(0.02)
"""
"""A live source whose every sample is its number, modulo 65536: none can be missing or come twice unseen."""

OPENED = """
from contextlib import asynccontextmanager
from roomtone import Sink, hookimpl

class Opened(Sink, frozen=True, tag="opened"):
    @asynccontextmanager
    async def open(self, context):
        with open(context.path("opened"), "a") as file:
            file.write(context.name + "\\n")
        yield Nothing()

class Nothing:
    @hookimpl
    async def turn(self, event):
        pass

@hookimpl
def register_sinks():
    return [Opened]
"""


def configure(folder: Path, *, rooms: dict[str, int], extra: str = "") -> str:
    """Each room counts; its number makes its table a different one. Its speech goes to a port that does not answer."""
    tables = "".join(
        f"""
[rooms.{name}]
source = {{ kind = "command", argv = ["{sys.executable}", "{folder}/counter.py", "{folder}/{name}", "{number}"] }}
streaming = {{ endpoint = "ws://127.0.0.1:9" }}
"""
        for name, number in rooms.items()
    )
    return f"""
[service]
state = "state"
grace = 3.0
{tables}
[sinks.archive]
kind = "wav"
directory = "recordings"
[sinks.log]
kind = "jsonl"
path = "events.jsonl"
{extra}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "counter.py").write_text(COUNTER)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "opened.py").write_text(OPENED)
    return tmp_path


def ask(folder: Path, *words: str, code: int = 0) -> str:
    """Run a command against the daemon of this folder. Returns what it says on both streams."""
    command = [*COMMAND, *words, "--config", str(folder / "roomtone.toml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def report(folder: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(folder, "status", "--json"))
    return answer


def room_of(folder: Path, name: str) -> dict[str, Any]:
    return next(room for room in report(folder)["rooms"] if room["name"] == name)


def spooled(folder: Path, room: str) -> list[int]:
    """The room's samples on disk, in the order of their positions."""
    samples = array("H")
    for path in sorted((folder / "state" / "spool" / room).glob("*.pcm")):
        samples.frombytes(path.read_bytes())
    return samples.tolist()


def breaks(samples: list[int]) -> list[int]:
    """Where a sample is not its predecessor's successor."""
    return [place for place in range(1, len(samples)) if samples[place] != (samples[place - 1] + 1) & 65535]


def check_account(folder: Path, room: str) -> dict[str, float]:
    """Every position and second of the room is captured or lost. Returns the seconds lost by cause."""
    with closing(sqlite3.connect(folder / "state" / "journal.sqlite")) as connection:
        summary = summarize(room, RATE, Database(connection, connection, None).covers(room, 0))
    assert summary is not None
    assert summary.is_explained, summary.unexplained
    return {loss.cause: loss.seconds for loss in summary.lost}


def recording(folder: Path, *rooms: str) -> bool:
    return all(
        (folder / "state" / "spool" / room).glob("*.pcm") and len(spooled(folder, room)) > RATE for room in rooms
    )


def is_alive(folder: Path, room: str) -> bool:
    """True if the process with the room's device runs. A killed one may wait until process 1 reaps it."""
    try:
        status = Path("/proc", (folder / f"{room}.pid").read_text(), "stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


@contextmanager
def manager(folder: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """A service manager that records its notifications."""
    told: list[str] = []

    def listen() -> None:
        while message := channel.recv(65_536):
            told.extend(message.decode().split("\n"))

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(folder / "n"))
        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield {"NOTIFY_SOCKET": str(folder / "n")}, told
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(folder / "n"))
            listener.join()


def test_a_reload_touches_only_what_has_changed(folder: Path) -> None:
    """Five reloads change one room and one sink, and one adds and one removes some. In the room that did not change
    every sample is recorded once; the sink that did not change is opened once; all that is lost has a cause.
    """
    extra = '[sinks.opened]\nkind = "opened"\n[sinks.more]\nkind = "jsonl"\npath = "more{}.jsonl"\nstart = "oldest"\n'
    with (
        manager(folder) as (env, told),
        run(folder, configure(folder, rooms={"desk": 0, "door": 0}), env=env) as daemon,
    ):
        daemon.wait_for(lambda: recording(folder, "desk", "door"))
        for number in range(1, 6):
            rooms = {"desk": 0, "door": number} | ({"attic": 0} if number == 3 else {})
            (folder / "roomtone.toml").write_text(configure(folder, rooms=rooms, extra=extra.format(number)))
            said = ask(folder, "reload")
            assert "room door: source begins again" in said
            assert ("attic" in said) == (number in {3, 4})
            assert "desk" not in said
            daemon.wait_for(lambda: room_of(folder, "door")["state"] == "recording")
        daemon.wait_for((folder / "more5.jsonl").exists)
        assert "nothing has changed" in ask(folder, "reload")
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log

    assert [line for line in daemon.log.splitlines() if "configuration.reloaded" in line][-1].endswith('"changes":0}')
    samples = spooled(folder, "desk")
    assert len(samples) > RATE
    assert breaks(samples) == []
    assert samples[0] == 0
    assert not [event for event in events(folder, "gap") if event["room"] == "desk"]
    assert check_account(folder, "desk") == {}
    assert len([event for event in events(folder, "recording_started") if event["room"] == "desk"]) == 1
    assert len([event for event in events(folder, "recording_started") if event["room"] == "door"]) == 6
    assert len(breaks(spooled(folder, "door"))) == 5
    assert set(check_account(folder, "door")) == {"device"}
    assert (folder / "opened").read_text() == "opened\n"
    assert sum(path.stat().st_size > 0 for path in folder.glob("more*.jsonl")) == 5
    assert told.count("RELOADING=1") == 6
    assert told.index("READY=1") < told.index("RELOADING=1") < told.index("STOPPING=1")
    assert "Traceback" not in daemon.log


def test_a_room_that_drains_is_not_missed(folder: Path) -> None:
    """A room whose capture was ended on purpose is not reported any more: not as recording, nor as unaccounted for,
    however long its speech waits for a service that does not answer.
    """
    with (
        manager(folder) as (env, told),
        run(folder, configure(folder, rooms={"desk": 0, "door": 0}), env=env | {"WATCHDOG_USEC": "6000000"}) as daemon,
    ):
        daemon.wait_for(lambda: any(line.startswith("STATUS=Recording desk, door") for line in told))
        (folder / "roomtone.toml").write_text(configure(folder, rooms={"desk": 0}))
        assert "door" in ask(folder, "reload")
        before = len(told)
        daemon.wait_for(lambda: sum(line.startswith("STATUS=") for line in told[before:]) >= 3)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log

    status = [line for line in told[before:] if line.startswith("STATUS=")]
    assert status[1].startswith("STATUS=Recording desk;")
    assert not [line for line in status[1:] if "door" in line]


def test_a_wrong_file_changes_nothing(folder: Path) -> None:
    """It is refused as a whole, to the caller and in the log, and what runs goes on."""
    right = configure(folder, rooms={"desk": 0})
    with run(folder, right) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk"))
        daemon.wait_for((folder / "state" / "control").exists)
        wrong = {
            "rat = 16000": "unknown",
            "rate = 8000": "a room keeps its rate",
            "= =": "a line is a [table], or key = value",
            '[sinks.new]\nkind = "nonsense"': "nonsense",
        }
        for change, explained in wrong.items():
            lines = right.replace(
                "[sinks.archive]", f"[rooms.new]\nsource = {{ kind = 'microphone' }}\n{change}\n[sinks.archive]"
            )
            text = lines if change != "rate = 8000" else right.replace("streaming =", "rate = 8000\nstreaming =")
            (folder / "roomtone.toml").write_text(text)
            said = ask(folder, "reload", code=69)
            assert explained in said
            assert "the old configuration stays active" in said
        assert [room["name"] for room in report(folder)["rooms"]] == ["desk"]
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(lambda: daemon.log.count("configuration.refused") == len(wrong) + 1)
        (folder / "roomtone.toml").write_text(right + '[sinks.new]\nkind = "opened"\n')
        daemon.signal(signal.SIGHUP)
        daemon.wait_for((folder / "opened").exists)
        (folder / "roomtone.toml").write_text(right.replace("127.0.0.1:9", "127.0.0.1:19"))
        assert "room desk: streaming begins again" in ask(folder, "reload")
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert breaks(spooled(folder, "desk")) == []
    assert check_account(folder, "desk") == {}


def test_a_muted_room_has_no_process(folder: Path) -> None:
    """When the command returns the device is closed. It stays so through a crash, and one room is not another."""
    config = configure(folder, rooms={"desk": 0, "door": 0})
    with run(folder, config) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk", "door"))
        assert "desk: muted" in ask(folder, "mute", "desk")
        daemon.wait_for(lambda: not is_alive(folder, "desk"), timeout=2)  # it was killed; the kernel is still at it
        assert is_alive(folder, "door")
        kept = spooled(folder, "desk")
        assert [event["kind"] for event in events(folder) if event["room"] == "desk"][-2:] == [
            "recording_stopped",
            "muted",
        ]
        daemon.signal(signal.SIGKILL)
        daemon.finish()
    (folder / "desk.pid").unlink()
    (folder / "state" / "control").rename(folder / "left")  # else it would not be known when the next one listens
    with run(folder, config) as daemon:
        daemon.wait_for(lambda: is_alive(folder, "door") and (folder / "state" / "control").exists())
        daemon.wait_for(lambda: room_of(folder, "door")["state"] == "recording")
        room = room_of(folder, "desk")
        assert (room["state"], room["gap"]["cause"], room["position"]) == ("muted", "muted", len(kept))
        assert not (folder / "desk.pid").exists()
        assert spooled(folder, "desk") == kept
        assert "listens again" in ask(folder, "unmute")
        daemon.wait_for(lambda: len(spooled(folder, "desk")) > len(kept) + RATE)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log

    gap = next(event for event in events(folder, "gap") if event["room"] == "desk")
    assert (gap["cause"], gap["start"], gap["end"]) == ("muted", len(kept), len(kept))
    assert check_account(folder, "desk").keys() <= {"muted", "device"}
    assert breaks(spooled(folder, "desk")) == [len(kept)]


def test_a_timed_mute_ends_by_itself(folder: Path) -> None:
    """To the second; also when the daemon was down at that time, and then the time after it is the daemon's."""
    config = configure(folder, rooms={"desk": 0})
    with run(folder, config) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk"))
        assert "muted until" in ask(folder, "mute", "--for", "2s")
        daemon.wait_for(lambda: events(folder, "unmuted"))
        daemon.wait_for(lambda: len(events(folder, "recording_started")) == 2)
        ask(folder, "mute", "--for", "1s")
        daemon.signal(signal.SIGKILL)
        daemon.finish()
    until = datetime.fromisoformat(events(folder, "muted")[1]["until"])
    while datetime.now(until.tzinfo) < until + timedelta(seconds=1):
        time.sleep(0.1)
    with run(folder, config) as daemon:
        daemon.wait_for(lambda: len(events(folder, "recording_started")) == 3)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log

    muted, unmuted = events(folder, "muted"), events(folder, "unmuted")
    assert [event["until"] for event in muted] == [event["at"] for event in unmuted]
    causes = [event["cause"] for event in events(folder, "gap")]
    assert causes[0] == "muted"
    assert causes[-2:] == ["muted", "daemon down"]
    check_account(folder, "desk")


def test_rotating_begins_a_file_without_losing_a_sample(folder: Path) -> None:
    """The source does not notice, and the files together are the recording."""
    with run(folder, configure(folder, rooms={"desk": 0})) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk"))
        for _ in range(2):
            assert "a new recording has begun" in ask(folder, "rotate", "desk")
        assert 'unknown room "attic"; known are "desk"' in ask(folder, "rotate", "attic", code=2)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log

    files = sorted(recordings(folder), key=lambda file: position_of(file[0]))
    assert len(files) == 3
    assert array("H", b"".join(audio for _, _, audio in files)).tolist() == spooled(folder, "desk")
    assert breaks(spooled(folder, "desk")) == []
    assert [event["reason"] for event in events(folder, "recording_stopped")] == ["rotated", "rotated", "stopping"]
    assert not events(folder, "gap")


def position_of(path: Path) -> int:
    first: int = json.loads(path.with_suffix(".json").read_text())["first"]
    return first


def test_status_tells_how_everything_stands(folder: Path) -> None:
    """Rooms with position, level and trouble; sinks; the disk; for people and for programs."""
    absent_source = '[rooms.attic]\nsource = { kind = "command", argv = ["/absent/recorder"] }\nstreaming = {}\n'
    with run(folder, configure(folder, rooms={"desk": 0}, extra=absent_source)) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk") and room_of(folder, "attic")["gap"]["reason"])
        assert stat.S_IMODE((folder / "state" / "control").stat().st_mode) == 0o600
        daemon.wait_for(lambda: room_of(folder, "desk").get("session_error"))
        told = report(folder)
        text = ask(folder, "status")
        tail = subprocess.Popen(
            [*COMMAND, "tail", "--json", "--config", str(folder / "roomtone.toml")], stdout=subprocess.PIPE
        )
        with tail:
            assert tail.stdout is not None
            kinds = {json.loads(tail.stdout.readline())["kind"] for _ in range(5)}
            tail.kill()
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
        absent = ask(folder, "status", code=69)

    room, attic = told["rooms"]
    assert (room["state"], room["rate"]) == ("recording", RATE)
    assert (attic["state"], attic["gap"]["cause"]) == ("waiting", "device")
    assert "last error: command /absent/recorder is not there; install it, or give its full path" in text
    assert room["position"] > RATE
    assert room["rms"] < 0
    assert "127.0.0.1" in room["session_error"] or "refused" in room["session_error"].lower()
    assert {sink["name"]: sink["state"] for sink in told["sinks"]} == {"archive": "active", "log": "active"}
    assert told["disk"]["free"] > 0
    assert told["pid"] == daemon.process.pid
    assert "desk: recording since" in text
    assert kinds == {"level"}
    assert "no daemon answers here" in absent
    assert not (folder / "state" / "control").exists()


def test_status_can_be_watched(folder: Path) -> None:
    """With --watch a program gets one report after another, and a terminal shows a screen that is kept up to date."""
    watch = [*COMMAND, "status", "--watch", "--config", str(folder / "roomtone.toml")]
    with run(folder, configure(folder, rooms={"desk": 0})) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk"))
        with subprocess.Popen([*watch, "--json"], stdout=subprocess.PIPE) as lines:
            assert lines.stdout is not None
            first, second = (json.loads(lines.stdout.readline())["rooms"][0]["position"] for _ in range(2))
            lines.kill()
        far, near = pty.openpty()
        shown = b""
        with subprocess.Popen(watch, stdout=near, stderr=near, env=os.environ | {"TERM": "xterm"}) as screen:
            os.close(near)
            while shown.count(b"desk: recording since") < 3:
                shown += os.read(far, 65_536)
            screen.kill()
        os.close(far)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert first < second
    assert b"\x1b[?1049h" in shown  # a screen of its own: what stood in the terminal comes back


def test_who_watches_and_never_reads_harms_nobody(folder: Path) -> None:
    """A command that is stopped in the middle of its output, and a client that sends nothing, are left behind."""
    with run(folder, configure(folder, rooms={"desk": 0})) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk"))
        with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as mute:
            for client in (deaf, mute):
                client.connect(os.path.relpath(folder / "state" / "control"))
            deaf.sendall(b'{"ask": "tail"}\n')
            before = room_of(folder, "desk")["position"]
            daemon.wait_for(lambda: room_of(folder, "desk")["position"] > before + RATE)
            daemon.signal(signal.SIGTERM)
            assert daemon.finish(timeout=30) == 0, daemon.log
    assert breaks(spooled(folder, "desk")) == []
    assert not events(folder, "gap")


def test_closing_the_terminal_ends_the_daemon(folder: Path) -> None:
    """Closing the window leaves no open microphone behind; without a terminal the same signal reloads."""
    (folder / "roomtone.toml").write_text(configure(folder, rooms={"desk": 0}))
    master, slave = os.openpty()
    command = [*COMMAND, "run", "--config", str(folder / "roomtone.toml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=slave, stdout=log, stderr=log, start_new_session=True)
    try:
        Run(folder, process).wait_for(lambda: recording(folder, "desk"))
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
    assert [event["reason"] for event in events(folder, "recording_stopped")] == ["stopping"]


SLOW = """
import pathlib, time
from roomtone import hookimpl

@hookimpl
def recording_stopped(event):
    time.sleep(3)
    (pathlib.Path(__file__).parents[1] / "delivered").touch()
"""


@pytest.mark.parametrize("shown", ["2> log", "< /dev/null 2> log", "--print 2> log"])
def test_a_closed_window_lets_the_daemon_finish(folder: Path, shown: str) -> None:
    """A window says several times that it is closed: its shell does, and the kernel. None of them is a second signal:
    what was recorded has its time to reach a slow sink.
    """
    (folder / "plugins" / "slow.py").write_text(SLOW)
    config = configure(folder, rooms={"desk": 0}, extra='[sinks.slow]\nkind = "slow"\n')
    (folder / "roomtone.toml").write_text(config.replace("grace = 3.0", "grace = 60.0"))
    run = shlex.join([*COMMAND, "run", "--config", str(folder / "roomtone.toml")])
    shell, window = pty.fork()
    if shell == 0:
        os.chdir(folder)
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        os.set_blocking(window, False)
        os.write(window, f"sh -c 'printf $$ > daemon.pid; exec {run} {shown}'\n".encode())
        shown_until(window, lambda: recording(folder, "desk"))
    finally:
        os.close(window)
    os.waitpid(shell, 0)
    daemon = int((folder / "daemon.pid").read_text())
    try:
        until(lambda: events(folder, "recording_stopped"))
        os.kill(daemon, signal.SIGHUP)  # two that come in one moment may be one: here is one more for certain
        until(lambda: not is_alive(folder, "daemon"))
    finally:
        with suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGKILL)

    log = (folder / "log").read_text()
    assert "service.leaving" not in log
    assert "Traceback" not in log
    assert (folder / "delivered").exists()
    assert [event["reason"] for event in events(folder, "recording_stopped")] == ["stopping"]


def until(condition: Callable[[], object], timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout} s in vain"
        time.sleep(0.02)


def shown_until(window: int, condition: Callable[[], object]) -> None:
    """Read what is shown in the window, as any terminal does, until the condition holds."""

    def look() -> object:
        with suppress(BlockingIOError):
            os.read(window, 65_536)
        return condition()

    until(look)


def test_another_rate_is_one_clear_line(folder: Path) -> None:
    """A room that was recorded at another rate is refused at the start, before any room records."""
    config = configure(folder, rooms={"attic": 0, "desk": 0})
    with run(folder, configure(folder, rooms={"desk": 0})) as daemon:
        daemon.wait_for(lambda: recording(folder, "desk"))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    kept: Run
    with run(folder, config.replace("[rooms.desk]", "[rooms.desk]\nrate = 8000")) as kept:
        assert kept.finish() == 78
    last = kept.log.splitlines()[-1]
    assert "[rooms.desk] rate = 8000: this room was recorded at 16000 Hz before" in last
    assert not (folder / "state" / "spool" / "attic").exists()
    assert "Traceback" not in kept.log
