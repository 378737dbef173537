"""A state folder and drop-in plugins of an earlier commit work on: see tests/data/state_4a35d48/README.md."""

import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import trio

from roomtone.budget.ledger import CostLedger
from roomtone.events import Turn
from roomtone.journal.journal import Journal, open_journal
from roomtone.testing.encoded_speech import numbers_in, speak
from roomtone.testing.fake_service import open_service
from support.daemon import events, run

MADE = Path(__file__).parent / "data" / "state_4a35d48"
RATE = 8000
TIP = 13
"""The last event of the old journal, which all sinks had acknowledged."""
END = 22_400
"""The position at which `desk` had ended."""


def unpack(folder: Path) -> None:
    """The state folder, the plugins and the source of that commit in a folder of the test."""
    shutil.copytree(MADE / "plugins", folder / "plugins")
    shutil.copy(MADE / "play.py", folder)
    (folder / "speech.pcm").write_bytes(speak(range(5, 9), RATE, turn=2, break_=0.8))
    (folder / "state").mkdir(mode=0o700)
    with closing(sqlite3.connect(folder / "state" / "journal.sqlite")) as database:
        database.executescript((MADE / "journal.sql").read_text())
    shutil.unpack_archive(MADE / "spool.zip", folder / "state")


def go_on(folder: Path, endpoint: str) -> None:
    """One run of the daemon, until `desk` has ended once more and the hole of the last run is mended."""
    config = (MADE / "roomtone.toml").read_text()
    config = config.replace("ws://127.0.0.1:9", endpoint).replace('"python3"', f'"{sys.executable}"')
    with run(folder, config) as daemon:
        daemon.wait_for(lambda: len(events(folder, "session_ended")) >= 2)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0


@asynccontextmanager
async def gone_on(folder: Path) -> AsyncIterator[Journal]:
    """The journal after that run."""
    unpack(folder)
    async with open_service() as service:
        await trio.to_thread.run_sync(partial(go_on, folder, service.url))
    async with open_journal(folder / "state" / "journal.sqlite") as journal:
        yield journal


async def test_the_daemon_goes_on_from_a_state_folder_of_an_earlier_commit(tmp_path: Path) -> None:
    async with gone_on(tmp_path) as journal:
        fresh = events(tmp_path)
        assert fresh[0]["seq"] > TIP  # the cursor
        (gap,) = events(tmp_path, "gap")
        assert (gap["room"], gap["start"], gap["end"], gap["cause"]) == ("desk", END, END, "daemon down")
        assert gap["from"] == "2026-11-29T22:23:28.053701Z"
        (started,) = events(tmp_path, "recording_started")  # `hall` is muted
        assert (started["room"], started["position"]) == ("desk", END)
        said = [turn["text"] for turn in events(tmp_path, "turn") if turn["position"] >= END]
        assert numbers_in(" ".join(said)) == [5, 6, 7, 8]
        marks = await journal.marks("")
        assert marks["room/hall/muted"] == {"until": None}
        assert marks["room/desk/acknowledged"] == marks["room/desk/audio"] == 2 * END
        assert "room/desk/holes" not in marks

        cursors = await journal.cursors()
        assert cursors["waiting"] == TIP
        assert marks["sink/waiting/paused"]["by"] == "person"
        assert not (tmp_path / "waiting.jsonl").exists()
        spent = CostLedger(await journal.marks("spent/")).spent("2026-11-29")
        assert spent.seconds >= 6
        assert spent.money >= 0.00075
        captured = [cover for cover in await journal.covered("desk") if cover.state == "captured"]
        assert [(cover.start, cover.end) for cover in captured] == [(0, END), (END, 2 * END)]


async def test_drop_in_plugins_of_an_earlier_commit_load_and_go_on(tmp_path: Path) -> None:
    async with gone_on(tmp_path) as journal:
        refused = await journal.refused("picky")
        assert refused[0].seq == 5
        assert refused[0].reason == "the first turn is never wanted"
        assert isinstance(refused[0].event, Turn)
        assert refused[0].event.text == "W1 w2."
        assert [one for one in refused if one.seq > TIP]
        assert numbers_in((tmp_path / "plugins" / "picky.txt").read_text().split(" ", 1)[1])
        assert int((tmp_path / "last").read_text()) == (await journal.cursors())["count"] > TIP
