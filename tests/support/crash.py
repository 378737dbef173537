"""The daemon, run until it dies where a test says: `python dying.py`, one order in JSON on each line of stdin.

The fear: the process is killed between two steps of a transaction, or with it the power goes. An order names the
`config`. `"step": 7` kills the daemon at the seventh step of its journal, `"seconds": 0.8` after that time, `"sizes":
{"state/spool": 9000}` when folders have grown to this many bytes, none of them never; `"step": 0` writes down which
steps there are (`passed`). The answer on stdout says how it ended and where. Each order is a process of its own,
forked, so that none waits for imports, and killed by a real SIGKILL.

What each process has made durable is written down beside the configuration (`synced`): the sizes of files and the names
in folders at the moment when fsync had returned. From that `cut_power` makes what a power cut would have left.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from roomtone import daemon
from roomtone.config import loader
from roomtone.config import model as configuration
from roomtone.config import toml_file as document
from roomtone.delivery.plugins import load_plugins
from roomtone.journal.database import Database
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.monitoring import logs

STEPS = ("asked", "begun", "half", "done", "committed")
"""Of one transaction: before BEGIN; before the first fact; behind a fact; behind the last one; behind COMMIT."""


class Executioner:
    """Kills this process at one step of its journal, or, at step 0, lets all of them pass and writes them down."""

    def __init__(self, step: int, folder: Path) -> None:
        self._step = step
        self._folder = folder
        self._passed = 0

    def pass_(self, name: str) -> None:
        self._passed += 1
        if self._step == 0:
            with (self._folder / "passed").open("a") as file:
                file.write(name + "\n")
        if self._passed == self._step:
            (self._folder / "died").write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)


def arm(executioner: Executioner) -> None:
    """Let every transaction of the journal pass by the executioner."""
    transact, put = Database.transact, Database.put
    facts: list[str] = []

    def name(step: str) -> str:
        return f"{step} {'+'.join(dict.fromkeys(facts)) or 'cursor'}"

    def dying_put(self: Database, several: Sequence[Any]) -> tuple[Any, ...]:
        events: list[Any] = []
        for fact in several:
            facts.append(fact.key.split("/")[-1] if isinstance(fact, Mark) else type(fact).__name__)
            events += put(self, [fact])
            if isinstance(fact, CoverageSpan | Mark) or len(several) > 1:
                executioner.pass_(name("half"))
        return tuple(events)

    def dying_transact(self: Database, works: Sequence[Callable[[], Any]]) -> list[Any]:
        facts.clear()
        executioner.pass_(name("asked"))

        def begin() -> None:
            executioner.pass_(name("begun"))

        def end() -> None:
            executioner.pass_(name("done"))

        results = transact(self, [begin, *works, end])[1:-1]
        executioner.pass_(name("committed"))
        return results

    Database.put = dying_put  # type: ignore[method-assign, assignment]
    Database.transact = dying_transact  # type: ignore[method-assign]


def write_down(synced: Path) -> None:
    """Have it written down whenever something is made durable."""
    log = os.open(synced, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
        def synchronize(file: int) -> None:
            sync(file)
            status = os.fstat(file)
            note: dict[str, Any] = {"inode": status.st_ino, "size": status.st_size}
            if os.path.isdir(f"/proc/self/fd/{file}"):  # noqa: PTH112 - there is no Path of a descriptor
                folder = os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115 - as above
                note = {"folder": folder, "names": {entry.name: entry.inode() for entry in os.scandir(folder)}}
            os.write(log, json.dumps(note).encode() + b"\n")

        return synchronize

    os.fsync, os.fdatasync = noting(os.fsync), noting(os.fdatasync)  # type: ignore[assignment]


def cut_power(folder: Path) -> int:
    """Make of what a killed daemon has left below `folder` what a power cut would have left. Returns the bytes lost.

    Files get the size that was synced last, and names that no folder was synced with are gone. Databases are left
    alone: SQLite has synced what it said was committed, and what it has not, it ignores by its checksums.
    """
    sizes: dict[int, int] = {}
    names: dict[str, dict[str, int]] = {}
    for line in (folder / "synced").read_bytes().splitlines():
        note = json.loads(line)
        if "folder" in note:
            names[note["folder"]] = note["names"]
        else:
            sizes[note["inode"]] = note["size"]
    lost = 0
    for place in ("state/spool", "recordings", "events.jsonl"):
        root = folder / place
        for path in [root] if root.is_file() else list(root.rglob("*")):
            status = path.stat()
            durable = sizes.get(status.st_ino, 0)
            if path.is_dir():
                continue
            if status.st_ino not in names.get(str(path.parent), {}).values():
                path.unlink()
                lost += status.st_size
            elif status.st_size > durable:
                os.truncate(path, durable)
                lost += status.st_size - durable
    return lost


def live(path: Path, order: dict[str, Any]) -> None:
    """One life of the daemon, in this process."""
    write_down(path.with_name("synced"))
    if "step" in order:
        arm(Executioner(order["step"], path.parent))

    def read() -> configuration.Config:
        plugins = load_plugins(loader.plugin_paths(document.read(path), path))
        return loader.load(path, plugins)

    logs.configure("info", sys.stderr)
    trio.run(daemon.run, read(), os.environ, read)


def end_of(child: int, order: dict[str, Any]) -> str:
    """The end of the child: killed here when the order says so, by itself there, or in order."""
    begun, is_due = time.monotonic(), False
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        time.sleep(0.005)
        if not is_due and (is_due := _is_due(order, time.monotonic() - begun)):
            os.kill(child, signal.SIGKILL)
    return "killed" if os.WIFSIGNALED(ended[1]) else f"ended {os.waitstatus_to_exitcode(ended[1])}"


def _is_due(order: dict[str, Any], lived: float) -> bool:
    folder = Path(order["config"]).parent
    if "sizes" in order:
        return all(size_of(folder / name) >= size for name, size in order["sizes"].items())
    return "seconds" in order and lived >= order["seconds"]


def size_of(folder: Path) -> int:
    """Bytes of the files in it, though some go meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        path = Path(order["config"])
        path.with_name("died").unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            with path.with_name("log").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.stdin.close()
            live(path, order)
            sys.exit(0)
        how = end_of(child, order)
        died = path.with_name("died")
        print(json.dumps({"how": how, "where": died.read_text() if died.exists() else ""}), flush=True)


if __name__ == "__main__":
    main()
