"""Laws of `roomtone.descriptors`: neither how it is started nor what becomes of its streams ends a program."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from roomtone.cli import COMMANDS
from roomtone.descriptors import MAX_DESCRIPTORS, Lines
from support.daemon import COMMAND, SINKS, events, run

SECOND_OPEN = "import os, sys; from roomtone import descriptors; descriptors.prepare()\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_null(closed: str) -> None:
    """A stream that is closed at the start is /dev/null later: no other file gets its number."""
    program = SECOND_OPEN + (
        "print('out'); print('err', file=sys.stderr); sys.stdin.read()\n"
        "assert min(os.open('/dev/null', os.O_RDONLY) for _ in range(3)) > 2\n"
        "assert all(os.get_inheritable(number) for number in (0, 1, 2))\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program], stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_without_streams(command: str, tmp_path: Path) -> None:
    """Each command's code is the same with its streams closed."""
    environ = os.environ | {"HOME": str(tmp_path)}
    shell = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *COMMAND, command, "--help"]
    assert subprocess.run(shell, check=False, cwd=tmp_path, env=environ).returncode == 0


@pytest.mark.parametrize(("words", "code"), [(("events",), 0), (("no-such",), 2), (("--version",), 0)])
def test_streams_that_take_nothing_change_no_code(words: tuple[str, ...], code: int) -> None:
    """On a full disk stderr costs its line and stdout is an error of its own, which is reported once."""
    with Path("/dev/full").open("wb") as full:
        quiet = subprocess.run([*COMMAND, *words], check=False, stdout=subprocess.DEVNULL, stderr=full)
        loud = subprocess.run([*COMMAND, *words], check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert quiet.returncode == code
    assert loud.returncode == (code or 1)
    assert "Traceback" not in loud.stderr
    assert "Exception ignored" not in loud.stderr


def test_the_soft_limit_is_the_hard_one() -> None:
    """1,024 descriptors are for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = SECOND_OPEN + "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    shell = ["sh", "-c", 'ulimit -S -n 100; exec "$@"', "sh", sys.executable, "-c", program]
    soft, same = map(int, subprocess.run(shell, check=True, capture_output=True, text=True).stdout.split())
    assert same == hard
    assert soft == (MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS))


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    """Lines that a full pipe does not take are dropped, the first after a moment and the rest immediately; when it
    takes some again, the next line stands by itself, and knows how many are missing.
    """
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "w", encoding="ascii") as stream:  # noqa: PTH123 - pipes
        lines = Lines(stream)
        begun = time.monotonic()
        for _ in range(2000):
            lines.msg("x" * 999 + "\ud800é")
        assert time.monotonic() - begun < 20
        assert 1000 < lines.lost < 2000
        missing = lines.add_lost_lines(None, "info", {"event": "x"})["lost_before"]
        assert missing == lines.lost
        held = reader.read(1 << 20)
        lines.msg("whole")
        assert reader.read(100).split(b"\n")[-2] == b"whole"
        assert held.split(b"\n")[0] == b"x" * 999 + b"\\ud800\\xe9"
        assert lines.lost == 0
        assert "lost_before" not in lines.add_lost_lines(None, "info", {"event": "x"})


def test_a_long_line_to_a_slow_reader_arrives_whole() -> None:
    """A traceback is longer than a pipe takes in one piece."""
    reading, writing = os.pipe()
    held = bytearray()

    def read() -> None:
        while piece := os.read(reading, 1000):
            held.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a pipe
        lines = Lines(stream)
        lines.msg("y" * 300_000)
        assert lines.lost == 0
        assert lines._descriptor is not None
        os.close(lines._descriptor)
    reader.join(60)
    os.close(reading)
    assert bytes(held) == b"y" * 300_000 + b"\n"


CLOSER = """
import os, sys
from roomtone import hookimpl

@hookimpl
def recording_started(event):
    sys.stderr.close()
    sys.stdout.close()
    {close}
    raise RuntimeError("now it has to be logged")
"""


@pytest.mark.parametrize("close", ["pass", "os.close(2)"])
def test_a_plugin_that_closes_stderr_ends_nothing(tmp_path: Path, close: str) -> None:
    """The log goes on, and so does the recording."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "closer.py").write_text(CLOSER.format(close=close))
    source = f'source = {{ kind = "command", argv = ["{sys.executable}", "-c", "{TICKING}"] }}'
    streaming = '[rooms.desk.streaming]\nendpoint = "ws://127.0.0.1:9"'
    config = f'[rooms.desk]\n{source}\n{streaming}\n{SINKS}\n[sinks.closer]\nkind = "closer"\nstart = "oldest"\n'
    spool = tmp_path / "state" / "spool" / "desk"
    with run(tmp_path, config, env={"WATCHDOG_USEC": "6000000"}) as daemon:
        daemon.wait_for(lambda: "sink.failed" in daemon.log)
        before = sum(path.stat().st_size for path in spool.glob("*.pcm"))
        daemon.wait_for(lambda: sum(path.stat().st_size for path in spool.glob("*.pcm")) > before + 160_000)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert "service.stopping" in daemon.log
    assert events(tmp_path, "recording_stopped")


FORKER = """
import os, pathlib, time
from roomtone import hookimpl

@hookimpl
def recording_started(event):
    folder = pathlib.Path(__file__).parent.parent
    if (folder / "fork.pid").exists():
        return
    child = os.fork()
    if child == 0:
        time.sleep(120)
        os._exit(0)
    (folder / "fork.pid").write_text(str(child))
"""


def test_what_a_plugin_forks_keeps_nothing_from_the_next_daemon(tmp_path: Path) -> None:
    """The daemon is killed and the fork lives on: the source and the recognizer end all the same, and the next daemon
    has the state, the control socket and the port for metrics.
    """
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "forker.py").write_text(FORKER)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = (
        f'[service]\nstate = "state"\nmetrics = "127.0.0.1:{port}"\n[rooms.desk]\n'
        f'source = {{ kind = "command", argv = ["{sys.executable}", "-c", "{TICKING}"] }}\n'
        f'{SINKS}\n[sinks.forker]\nkind = "forker"\nstart = "oldest"\n'
    )
    env = {"XDG_RUNTIME_DIR": ""}
    with run(tmp_path, config, env=env) as daemon:
        daemon.wait_for((tmp_path / "fork.pid").exists)
        daemon.wait_for(lambda: "recognizer.ready" in daemon.log)
        children = descendants(daemon.process.pid) - {int((tmp_path / "fork.pid").read_text())}
        assert len(children) >= 3  # the source, its command, the recognizer
        daemon.signal(signal.SIGKILL)
        daemon.finish()
    fork = int((tmp_path / "fork.pid").read_text())
    try:
        end = time.monotonic() + 30
        while any(is_running(child) for child in children):
            assert time.monotonic() < end, [Path(f"/proc/{child}/cmdline").read_text() for child in children]
            time.sleep(0.05)
        with run(tmp_path, config, env=env) as daemon:
            daemon.wait_for(lambda: len(events(tmp_path, "recording_started")) == 2)
            daemon.wait_for(lambda: ask(tmp_path, "status") == 0)
            daemon.signal(signal.SIGTERM)
            assert daemon.finish() == 0, daemon.log
        assert is_running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
    assert "control.unavailable" not in daemon.log
    assert "metrics.unavailable" not in daemon.log


def ask(folder: Path, command: str) -> int:
    words = [*COMMAND, command, "--config", str(folder / "roomtone.toml")]
    environ = os.environ | {"XDG_RUNTIME_DIR": ""}
    return subprocess.run(words, check=False, capture_output=True, env=environ).returncode


def descendants(process: int) -> set[int]:
    """The processes below this one."""
    below = Path(f"/proc/{process}/task").glob("*/children")
    found = {int(child) for children in below for child in children.read_text().split()}
    return found.union(*map(descendants, found))


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


TICKING = (
    "import sys, time\\n"
    "while True:\\n"
    "    sys.stdout.buffer.write(bytes(range(128)) * 25)\\n"
    "    sys.stdout.buffer.flush()\\n"
    "    time.sleep(0.1)\\n"
)
