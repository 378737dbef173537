"""A private PulseAudio server with a room to speak in: a real microphone without a sound card.

A null sink is the room, its monitor is the microphone. The server has its own socket, its own folders and no D-Bus, so
that nothing of the person at this computer is touched. `norewinds=1` makes it deliver in 50 ms steps; without it the
null sink runs in lumps of 2 s.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("pulseaudio", "pactl", "paplay")


class PulseServer:
    """One private server. `env` is what a client's environment needs; `device` is the default source's name."""

    device = "room.monitor"

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]", env: dict[str, str], stack: ExitStack) -> None:
        self.folder = folder
        self.process = process
        self.env = env
        self._stack = stack

    def control(self, *words: str) -> str:
        """Run pactl and return what it prints."""
        return subprocess.run(
            ["pactl", *words], env={**os.environ, **self.env}, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    def play(self, path: Path, sink: str = "room") -> "subprocess.Popen[bytes]":
        """Begin to play a sound file in the room; it ends with the server's context at the latest."""
        player = subprocess.Popen(["paplay", f"--device={sink}", str(path)], env={**os.environ, **self.env})
        self._stack.callback(_end, player)
        return player

    def plug(self, name: str, rate: int = 16000) -> str:
        """Plug in another microphone, the source `<name>.monitor`; returns what `unplug` wants."""
        return self.control(
            "load-module",
            "module-null-sink",
            f"sink_name={name}",
            f"rate={rate}",
            "channels=1",
            "format=s16le",
            "norewinds=1",
        )

    def unplug(self, module: str = "module-null-sink") -> None:
        """Take a microphone away: one that `plug` gave, or by default every one."""
        self.control("unload-module", module)

    def suspend(self, *, on: bool = True, sink: str = "room") -> None:
        """Suspend or resume the room, and its microphone with it, which stays open and delivers nothing."""
        self.control("suspend-sink", sink, str(int(on)))

    def freeze(self) -> None:
        """Stop the server with SIGSTOP: connections stay open without an answer."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server as a crash does."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def open_pulse(rate: int = 16000) -> Iterator[PulseServer]:
    """A server of its own with the room `room`. Raises when PulseAudio is not installed: nothing is skipped."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not found; apt-get install pulseaudio pulseaudio-utils")
    with ExitStack() as stack:
        # Below /tmp and short: the name of a UNIX socket has at most 107 bytes, which pytest's own folders can exceed.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="room-", ignore_cleanup_errors=True)))
        address = folder / "native"
        env = {
            "PULSE_SERVER": f"unix:{address}",
            "PULSE_RUNTIME_PATH": str(folder / "runtime"),
            "PULSE_STATE_PATH": str(folder / "state"),
            "PULSE_COOKIE": str(folder / "cookie"),
            "XDG_RUNTIME_DIR": str(folder),
        }
        for name in ("runtime", "state"):
            (folder / name).mkdir(mode=0o700)
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [
                *("pulseaudio", "-n", "--daemonize=no", "--system=no", "--use-pid-file=no", "--exit-idle-time=-1"),
                *("--disable-shm=yes", "--realtime=no", "--high-priority=no", "--log-target=stderr"),
                *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={address}"),
                *("-L", f"module-null-sink sink_name=room rate={rate} channels=1 format=s16le norewinds=1"),
            ],
            env={key: value for key, value in {**os.environ, **env}.items() if key != "PULSE_SERVER"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(_end, process)
        _wait_for(address, process, folder / "log")
        server = PulseServer(folder, process, env, stack)
        server.control("set-default-source", server.device)
        yield server


def _wait_for(address: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(3000):
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(address))
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"pulseaudio ended: {log.read_text()}") from None
                time.sleep(0.01)
            else:
                return
    raise RuntimeError("pulseaudio did not come up within 30 s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # works on a frozen one too
    process.wait(10)
