"""The daemon as its users run it: a process of its own, a configuration file, signals, and what it leaves on disk."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "roomtone")
DEMO = Path(__file__).parents[2] / "daemon" / "roomtone" / "demo"

SINKS = """
[sinks.archive]
kind = "wav"
directory = "recordings"
[sinks.log]
kind = "jsonl"
path = "events.jsonl"
"""


class Run:
    """One run of `roomtone run` in `folder`; what it logs goes to the file `log`."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.folder = folder
        self.process = process

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it, and one that the daemon is to obey only when it can: before that, it ends any program."""
        if number is not signal.SIGKILL:
            self.wait_for(lambda: catches(self.process.pid, number))
        self.process.send_signal(number)

    def finish(self, timeout: float = 100) -> int:
        """Wait for the end of the process and return its status."""
        return self.process.wait(timeout)

    def wait_for(self, condition: Callable[[], object], timeout: float = 60) -> None:
        """Wait until the condition holds. Fails when the daemon ends before, or when it never does."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < end, f"waited {timeout} s in vain:\n{self.log}"
            time.sleep(0.02)


def catches(process: int, number: signal.Signals) -> bool:
    """True if the process has a handler for this signal."""
    status = Path(f"/proc/{process}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@contextmanager
def run(folder: Path, config: str, *, env: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Run the daemon on this configuration, whose relative paths lie in `folder`; leaving kills it at the latest."""
    path = folder / "roomtone.toml"
    path.write_text(config if "[service]" in config else f'[service]\nstate = "state"\n{config}')
    environ = {key: value for key, value in os.environ.items() if key != "ASSEMBLYAI_API_KEY"} | dict(env or {})
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*COMMAND, "run", "--config", str(path)], env=environ, stdout=log, stderr=log)
    try:
        yield Run(folder, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The whole lines of the JSON lines sink so far, of one kind or all."""
    path = folder / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    parsed = [json.loads(line) for line in lines]
    return [event for event in parsed if kind in {None, event["kind"]}]


def recordings(folder: Path) -> list[tuple[Path, int, bytes]]:
    """Path, rate and audio of each WAV file, ordered by name."""
    found = []
    for path in sorted((folder / "recordings").rglob("*.wav")):
        with wave.open(str(path)) as file:
            found.append((path, file.getframerate(), file.readframes(file.getnframes())))
    return found


def write_wav(path: Path, audio: bytes, rate: int = 16_000) -> Path:
    """16-bit mono audio as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(audio)
    return path


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def error_rate(said: list[str], heard: list[str]) -> float:
    """Word error rate: insertions, deletions and substitutions for each word that was said."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / max(1, len(said))
