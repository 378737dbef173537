"""Guests with a real systemd for tests, and Roomtone installed in them as an administrator would: a wheel in a venv
below /opt, made with an interpreter that a service can see.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support.systemd_lab import Guest, Unbootable, boot

REPOSITORY = Path(__file__).parents[2]
PREFIX = "/opt/roomtone"
PROGRAM = f"{PREFIX}/bin/roomtone"

T = TypeVar("T")


@contextmanager
def booted(folder: Path, binds: Mapping[str, Path] | None = None, *, limits: bool = False) -> Iterator[Guest]:
    """A guest, or the test ends here: under CI a machine that cannot boot one is a failure, elsewhere it is told."""
    with ExitStack() as stack:
        try:
            guest = stack.enter_context(boot(folder, binds, limits=limits))
        except Unbootable as error:
            if os.environ.get("CI"):
                pytest.fail(f"no systemd can be booted: {error}")
            pytest.skip(f"needs a systemd of its own: {error}")
        yield guest


@cache
def installed() -> Path:
    """The folder that a guest shows as `PREFIX`: a venv with the wheel of this tree. Made beside our own packages, and
    kept there for the next time; the wheel itself is built and installed by each run, once for all of its workers.
    """
    folder = Path(sys.prefix) / "guest"
    run, made = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"process {os.getpid()}"), folder / "made-by"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not made.exists() or made.read_text() != run:
            _install(folder)
            made.write_text(run)
    return folder


def _install(folder: Path) -> None:
    python = folder / "bin" / "python"
    if not python.exists():
        _pip_free_venv(folder)
    wheels = folder / "wheels"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, REPOSITORY], check=True, timeout=300)
    [wheel] = wheels.glob("roomtone-*.whl")
    into: list[str | Path] = [*pip, "--python", python, "install"]
    subprocess.run([*into, f"roomtone[local] @ file://{wheel}"], check=True, timeout=600)
    subprocess.run([*into, "--no-deps", "--force-reinstall", wheel], check=True, timeout=300)
    _move_scripts(folder)


def _pip_free_venv(folder: Path) -> None:
    """With the machine's own interpreter: ours may lie in a home folder, which a service cannot see."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", folder], check=True, timeout=60)


def _move_scripts(folder: Path) -> None:
    """A script names its interpreter by the path at which it was installed; the guest has it at another."""
    script = folder / "bin" / "roomtone"
    script.write_text(script.read_text().replace(str(folder), PREFIX))


TONE = """
import array, math, sys, time
position, begun = 0, time.monotonic()
while True:
    block = array.array("h", (int(8000 * math.sin((position + i) / 20)) for i in range(1600)))
    sys.stdout.buffer.write(block.tobytes())
    sys.stdout.buffer.flush()
    position += 1600
    time.sleep(max(0, begun + position / 16000 - time.monotonic()))
"""
"""A source for a machine without sound hardware: a tone, in real time, for ever."""

ROOM = """
[rooms.desk]
source = { kind = "command", argv = ["/usr/bin/python3", "/opt/tone.py"], restart = "always" }
[rooms.desk.streaming]
endpoint = "local"
"""
LOG = """
[sinks.log]
kind = "jsonl"
path = "events.jsonl"
"""


class Installed:
    """Roomtone in a guest, as `roomtone service install` leaves it there, with the configuration that a test gives."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.write("/opt/tone.py", TONE)

    def configure(self, text: str) -> None:
        self.guest.write("/etc/roomtone/roomtone.toml", text, 0o600)

    def install(self, *options: str, text: str = "", check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.guest.run(PROGRAM, "service", "install", *options, text=text, check=check)

    def drop_in(self, text: str) -> None:
        """What a test changes in the unit."""
        self.guest.write("/etc/systemd/system/roomtone.service.d/test.conf", f"[Service]\n{text}\n")
        self.guest.run("systemctl", "daemon-reload")

    def show(self, *names: str) -> dict[str, str]:
        return self.guest.show("roomtone", *names)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What the jsonl sink has got, of this kind or of all."""
        path = self.guest.path("/var/lib/private/roomtone/events.jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if kind in ("", event["kind"])]

    def recorded(self) -> int:
        """Bytes of audio in the spool."""
        return sum(path.stat().st_size for path in self.guest.path("/var/lib/private/roomtone/spool").rglob("*.pcm"))

    def wait(self, condition: Callable[[], T], what: str, seconds: float = 60.0) -> T:
        """What the condition gives, as soon as that is something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.1)
        raise AssertionError(f"{what} did not happen; the log:\n{self.log()}")

    def log(self) -> str:
        return self.guest.run("journalctl", "--unit=roomtone", "--no-pager", "--output=short-precise").stdout

    def remove(self) -> None:
        """Leave the guest as it was, for the next test."""
        self.guest.run(PROGRAM, "service", "uninstall", check=False)
        self.guest.run("systemctl", "stop", "roomtone", check=False)
        self.guest.run("systemctl", "reset-failed", "roomtone", check=False)
        left = (
            "/etc/systemd/system/roomtone.service.d",
            "/var/lib/private/roomtone",
            "/etc/roomtone",
            "/etc/credstore",
        )
        self.guest.run("rm", "-rf", *left)
        self.guest.run("systemctl", "daemon-reload")
        self.guest.run("journalctl", "--rotate", "--vacuum-time=1us", check=False)


class Account:
    """A user of the guest, as after `su`: in their home folder, with nothing of a session in the environment."""

    def __init__(self, guest: Guest, name: str) -> None:
        self.guest = guest
        self.name = name

    def run(self, *argv: str, check: bool = True, text: str = "") -> "subprocess.CompletedProcess[str]":
        become = ["setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups"]
        at_home = ["env", f"--chdir=/home/{self.name}", f"HOME=/home/{self.name}"]
        return self.guest.run(*become, *at_home, *argv, check=check, text=text)


class Session:
    """A user with a manager of their own in the guest, as in a desktop session."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.run("useradd", "--create-home", "ana")
        guest.run("systemctl", "unmask", "systemd-logind.service")
        guest.run("systemctl", "start", "systemd-logind.service")
        guest.run("loginctl", "enable-linger", "ana")
        self.number = guest.run("id", "--user", "ana").stdout.strip()
        guest.run("systemctl", "start", f"user@{self.number}.service")

    def configure(self, text: str) -> None:
        self._guest.write("/home/ana/.config/roomtone/roomtone.toml", text)
        self._guest.run("chown", "--recursive", "ana:ana", "/home/ana/.config")

    def run(self, *argv: str, check: bool = True, text: str = "") -> "subprocess.CompletedProcess[str]":
        become = ["setpriv", "--reuid=ana", "--regid=ana", "--init-groups"]
        environment = ["env", "HOME=/home/ana", f"XDG_RUNTIME_DIR=/run/user/{self.number}"]
        return self._guest.run(*become, *environment, *argv, check=check, text=text)
