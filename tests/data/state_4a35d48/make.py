"""Run by commit 4a35d48's Python in this folder: `python make.py`. Its results are journal.sql and spool.zip."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import trio
from roomtone.facts import Mark
from roomtone.journal import open_journal
from roomtone.testing.service import open_service
from roomtone.testing.spoken import speak

CONFIG = Path("roomtone.toml").read_text()
ROOMTONE = [sys.executable, "-m", "roomtone"]
MADE = Path("made.toml")


def wait_for(text, count=1):
    path = Path("events.jsonl")
    while not path.exists() or path.read_text().count(text) < count:
        time.sleep(0.05)


def record():
    with subprocess.Popen([*ROOMTONE, "run", "--config", str(MADE)]) as daemon:
        wait_for('"recording_started"', 2)
        subprocess.run([*ROOMTONE, "mute", "hall", "--config", str(MADE)], check=True)
        subprocess.run([*ROOMTONE, "sinks", "pause", "waiting", "--config", str(MADE)], check=True)
        wait_for('"session_ended"', 2)
        time.sleep(3)
        daemon.send_signal(signal.SIGTERM)


async def main():
    Path("speech.pcm").write_bytes(speak(range(1, 5), 8000, turn=2, break_=0.8))
    async with open_service() as service:
        MADE.write_text(CONFIG.replace("ws://127.0.0.1:9", service.url))
        await trio.to_thread.run_sync(record)
    async with open_journal(Path("state/journal.sqlite")) as journal:
        # As `Repairs` writes it: this half second was heard by no session.
        await journal.commit(Mark("room/desk/holes", [[0, 4000]]))
    with sqlite3.connect("state/journal.sqlite") as database:
        Path("journal.sql").write_text("\n".join([*database.iterdump(), "PRAGMA user_version = 1;", ""]))
    shutil.make_archive("spool", "zip", "state", "spool")


trio.run(main)
