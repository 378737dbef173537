"""No process opens the file of a database that it has open itself: closing that would drop its own locks.

POSIX drops all locks of a process on a file when the process closes any descriptor of it. Then the next process that
closes the database thinks that it was the last, and deletes the log under the one that goes on writing.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from forget.test_forget import CONFIG, span, talk
from roomtone.durable import open_sqlite
from roomtone.testing.fake_service import open_service
from support.daemon import COMMAND, events, run, write_wav

WITNESS = """
import os, sqlite3, sys, traceback

def watch(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if not any(end in os.path.basename(path) for end in (".sqlite", ".spoiled")):
        return
    held = {os.path.realpath(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")}
    if path in held and not arguments[2] & os.O_EXCL:  # one that must not be there yet is not opened
        with open(os.environ["WITNESS"], "a") as file:
            file.write(path + "\\n" + "".join(traceback.format_stack(limit=8)))

if "WITNESS" in os.environ:
    sys.addaudithook(watch)
"""
"""A `sitecustomize` that notes each opening of a database by hand in a process that has it open. SQLite's own are C."""


@pytest.fixture
def witness(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """The environment in which each Python process watches itself, and the file that has what it saw."""
    folder = tmp_path_factory.mktemp("witness")
    (folder / "sitecustomize.py").write_text(WITNESS)
    return {"PYTHONPATH": str(folder), "WITNESS": str(folder / "seen")}, folder / "seen"


def roomtone(folder: Path, *argv: str, env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    line = [*COMMAND, *argv, "--config", str(folder / "roomtone.toml")]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=120, env=os.environ | dict(env))


def rows(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{folder}/state/journal.sqlite?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


async def test_nothing_is_lost_after_forgetting(tmp_path: Path, witness: tuple[dict[str, str], Path]) -> None:
    """Forgotten, paused, resumed, muted and killed: the next start has every event, gives no number twice, and the room
    is still muted. And no process has opened a database by hand that it had open.
    """
    env, seen = witness
    write_wav(tmp_path / "talk.wav", talk())
    async with open_service() as service:
        await trio.to_thread.run_sync(partial(live, tmp_path, service.url, env))
    assert not seen.exists(), seen.read_text()


def live(folder: Path, url: str, env: dict[str, str]) -> None:
    config = CONFIG.format(url=url)
    with run(folder, config, env=env) as daemon:
        daemon.wait_for(lambda: len(events(folder, "turn")) >= 5)
        (started,) = events(folder, "recording_started")
        command = partial(roomtone, folder, env=env)
        done = command("forget", "--yes", *span(datetime.fromisoformat(started["at"]), 2, 4))
        assert done.returncode == 0, done.stderr + daemon.log
        for action in ("pause", "resume"):
            assert command("sinks", action, "log").returncode == 0
        assert (folder / "state" / "journal.sqlite-wal").exists()
        assert command("mute").returncode == 0
        daemon.wait_for(lambda: events(folder, "muted"))
        tip, muted = rows(folder, "SELECT max(seq) FROM events")[0][0], events(folder, "muted")
        daemon.signal(signal.SIGKILL)
        daemon.finish()
    assert rows(folder, "SELECT max(seq) FROM events")[0][0] >= tip
    recorded = sum(event["kind"] == "recording_started" for event in events(folder))
    with run(folder, config, env=env) as daemon:
        daemon.wait_for(lambda: daemon.log.count("service.started") == 2)
        assert command("rotate").returncode == 0
        status = json.loads(command("status", "--json").stdout)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert [room["state"] for room in status["rooms"]] == ["muted"]
    assert sum(event["kind"] == "recording_started" for event in events(folder)) == recorded
    assert events(folder, "muted")[: len(muted)] == muted
    done = command("forget", "--yes", "--last", "1h")  # without a daemon: here this process has them open
    assert done.returncode == 0, done.stderr
    numbers = [event["seq"] for event in events(folder)]
    assert numbers == sorted(set(numbers))


OPENING = """
import sqlite3
from pathlib import Path
path = Path('a.sqlite')
path.open('xb').close()
database = sqlite3.connect(path)
database.execute('CREATE TABLE a (b)')
sqlite3.connect(path).close()
"""


def test_the_witness_sees(tmp_path: Path, witness: tuple[dict[str, str], Path]) -> None:
    """Code that opens its own database by hand is seen; through SQLite, or making one that is not there, it is not."""
    env, seen = witness
    program = "import sqlite3; from pathlib import Path; path = Path('a.sqlite'); path.open('xb').close();"
    program += (
        "database = sqlite3.connect(path); database.execute('CREATE TABLE a (b)'); sqlite3.connect(path).close();"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=env, cwd=tmp_path)
    assert not seen.exists()
    (tmp_path / "a.sqlite").unlink()
    subprocess.run([sys.executable, "-c", program + "path.read_bytes()"], check=True, env=env, cwd=tmp_path)
    assert str(tmp_path / "a.sqlite") in seen.read_text()


def test_a_database_that_is_open_is_not_touched_when_it_is_opened_again(tmp_path: Path) -> None:
    """A sink that is opened while another connection of the process lasts takes no lock from it."""
    path = tmp_path / "a.sqlite"
    with open_sqlite(path, "CREATE TABLE IF NOT EXISTS a (b)") as first:
        first.execute("INSERT INTO a VALUES (1)")
        assert is_locked(path)
        with open_sqlite(path, ""):
            assert is_locked(path)


def is_locked(path: Path) -> bool:
    """True if the kernel knows of a lock on the database."""
    inode = path.stat().st_ino
    return any(int(line.split()[5].split(":")[2]) == inode for line in Path("/proc/locks").read_text().splitlines())
