"""The daemon dies: by SIGKILL at any moment, between any two steps, and with the power. What was heard stays heard."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from roomtone.testing.encoded_speech import quiet, speak
from roomtone.testing.fake_service import open_service
from support.crash import STEPS, cut_power
from support.crash_checks import RATE, Aftermath, covers_of
from support.daemon import SINKS, Run, events, recordings, run, write_wav

CI = 20
KILLS = int(os.environ.get("ROOMTONE_KILLS", CI))
"""`make crash` asks for 200."""
HERE = Path(__file__).parent
SPEAKER = HERE / "support" / "endless_speaker.py"
SECOND = 2 * RATE
"""Bytes of a second of audio."""

pytestmark = pytest.mark.timeout(600)
"""Each starts the daemon dozens of times, which takes as long as the machine is busy."""


def talk_of(words: int) -> bytes:
    """This many words, numbered from 1, in short turns."""
    return quiet(0.2, RATE) + speak(range(1, words + 1), RATE, turn=3, break_=1.0)


def talk_room(url: str, pace: str) -> str:
    return f"""
[rooms.talk]
rate = {RATE}
source = {{ kind = "file", path = "talk.wav", pace = "{pace}" }}
streaming = {{ endpoint = "{url}" }}
"""


def desk_room(url: str) -> str:
    return f"""
[rooms.desk]
rate = {RATE}
source = {{ kind = "command", argv = ["{sys.executable}", "{SPEAKER}", "{RATE}"], restart = "always" }}
streaming = {{ endpoint = "{url}" }}
"""


def assert_talk(aftermath: Aftermath, audio: bytes, words: list[int]) -> None:
    """The file's recording is the file, bit for bit; its account is whole, and every word is there exactly once."""
    recorded = [data for path, _, data in recordings(aftermath.folder) if path.name.startswith("talk_")]
    assert b"".join(recorded) == audio
    summary = aftermath.summary("talk")
    assert (summary.captured, summary.pending) == (len(audio) // 2, 0)
    assert not sum(loss.samples for loss in summary.lost)
    assert aftermath.transcript("talk") == words


async def test_a_daemon_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """Killed at random moments, started again each time: what was acknowledged was delivered, what was journalled is
    delivered in the end; every file is valid whenever it dies; no position is given twice; the time between is a gap;
    and of all that was recorded every word is in the transcript exactly once.
    """
    async with open_service() as service:
        figures = await trio.to_thread.run_sync(kill_again_and_again, tmp_path, service.url, KILLS)
    print(json.dumps(figures))


def kill_again_and_again(folder: Path, url: str, kills: int) -> dict[str, float]:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    print(f"seed {seed}")
    words = 18 + 3 * (kills - CI) // 2  # enough for the file to outlast the kills
    audio = talk_of(words)
    write_wav(folder / "talk.wav", audio, RATE)
    aftermath = Aftermath(folder)
    config = talk_room(url, "realtime") + desk_room(url) + SINKS
    died = []
    for number in range(kills):
        with run(folder, config) as daemon:
            # Every other one at any moment since its start, the rest when it has got somewhere, however slow this is.
            if number % 2:
                wait_for_start(daemon)
            time.sleep(chance.uniform(0.0, 0.8) if number % 2 else chance.uniform(0.3, 1.6))
            daemon.signal(signal.SIGKILL)
            died.append(time.time())
            daemon.finish()
        aftermath.look()
    with run(folder, config) as daemon:
        wait_for_start(daemon)
        daemon.wait_for(lambda: is_over(aftermath, words), timeout=60 + words)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    aftermath.settle()
    assert_talk(aftermath, audio, list(range(1, words + 1)))
    return desk_figures(aftermath, died)


def wait_for_start(daemon: Run) -> None:
    """Wait until the desk has begun to record in this run."""

    def starts() -> int:
        return sum(event["room"] == "desk" for event in events(daemon.folder, "recording_started"))

    before = starts()
    daemon.wait_for(lambda: starts() > before)


def is_over(aftermath: Aftermath, words: int) -> bool:
    """True if the file has been recorded and transcribed to its end."""
    stops = [event for event in events(aftermath.folder, "recording_stopped") if event["room"] == "talk"]
    return bool(stops) and len(aftermath.transcript("talk")) == words


def desk_figures(aftermath: Aftermath, died: list[float]) -> dict[str, float]:
    """Assert what must be true of a room that goes on by itself, and say what the crashes have cost it."""
    summary = aftermath.summary("desk")
    assert aftermath.transcript("desk") == aftermath.heard("desk")
    with aftermath.reading() as database:
        ends = [cover.until.timestamp() for cover in covers_of(database, "desk", "captured")]
        down = [cover for cover in covers_of(database, "desk", "lost") if cover.cause == "daemon down"]
    assert 0 < len(ends) - 1 <= len(down)
    # What was on its way to the disk when it died is all that is lost of a run that had recorded anything.
    behind = [min(later) - end for end in ends if (later := [at for at in died if at >= end])]
    assert max(behind) < 10
    return {
        "kills": len(died),
        "runs that had recorded": len(ends),
        "captured": round(summary.ratio, 3),
        "lost at a kill at most (s)": round(max(behind), 3),
        "on average (s)": round(sum(behind) / len(behind), 3),
    }


class Mortal:
    """The program `support/crash.py`, which has imported all there is to import, with its orders."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def live(self, folder: Path, config: str, **order: Any) -> tuple[str, str]:
        """Run the daemon in the folder until it has died or ended; how, and at which step."""
        path = folder / "roomtone.toml"
        path.write_text(f'[service]\nstate = "state"\n{config}')
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"config": str(path), **order}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["how"], answer["where"]

    def finish(self, folder: Path, config: str) -> None:
        """Run the daemon until it ends by itself, in order."""
        how, _ = self.live(folder, config)
        assert how == "ended 0", (folder / "log").read_text()


@contextmanager
def open_mortal() -> Iterator[Mortal]:
    environ = {key: value for key, value in os.environ.items() if key != "ASSEMBLYAI_API_KEY"}
    command = [sys.executable, str(HERE / "support" / "crash.py")]
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Mortal(process)
    finally:
        process.communicate(timeout=60)


async def test_a_daemon_that_dies_between_two_steps(tmp_path: Path) -> None:
    """Wherever in a transaction it dies, before it, within it, and behind its commit: the next start makes it whole.

    `make crash` takes every step of a recording, CI one of each kind.
    """
    async with open_service() as service:
        died = await trio.to_thread.run_sync(die_at_every_step, tmp_path, service.url)
    assert {name.split()[0] for name in died} == set(STEPS)
    print(f"died at {len(died)} steps: {', '.join(sorted(set(died)))}")


def die_at_every_step(folder: Path, url: str) -> list[str]:
    words = 4
    audio = talk_of(words)
    config = talk_room(url, "fast") + SINKS
    died: list[str] = []
    with open_mortal() as mortal:
        whole = prepare(folder / "whole", audio)
        how, _ = mortal.live(whole.folder, config, step=0)
        assert how == "ended 0", (whole.folder / "log").read_text()
        names = (whole.folder / "passed").read_text().splitlines()
        for step, name in enumerate(names, start=1):
            kinds = [other.split("+")[0] for other in names[: step - 1]]
            if name.split("+")[0] in kinds and KILLS <= CI:
                continue
            aftermath = prepare(folder / str(step), audio)
            how, where = mortal.live(aftermath.folder, config, step=step)
            if how == "killed":
                died.append(where)
                aftermath.look()
                mortal.finish(aftermath.folder, config)
                aftermath.settle()
                assert_talk(aftermath, audio, list(range(1, words + 1)))
    return died


def prepare(folder: Path, audio: bytes) -> Aftermath:
    folder.mkdir()
    write_wav(folder / "talk.wav", audio, RATE)
    return Aftermath(folder)


async def test_the_power_goes(tmp_path: Path) -> None:
    """Audio that was not synced is gone with the power. The laws hold for the rest: no file is torn, what a sink has
    acknowledged is in its file, positions that were in use stay so, and every word of what is there is said once.
    """
    async with open_service() as service:
        figures = await trio.to_thread.run_sync(cut_power_again_and_again, tmp_path, service.url)
    print(json.dumps(figures))


def cut_power_again_and_again(folder: Path, url: str) -> dict[str, float]:
    words = 10
    audio = talk_of(words)
    write_wav(folder / "talk.wav", audio, RATE)
    aftermath = Aftermath(folder)
    config = talk_room(url, "realtime") + desk_room(url) + SINKS
    lost = []
    with open_mortal() as mortal:
        for _ in range(max(3, KILLS // 5)):
            how, _ = mortal.live(folder, config, seconds=random.uniform(0.8, 2.6))
            assert how == "killed", (folder / "log").read_text()
            aftermath.look()  # what is lost now may have been heard, and its words be known
            lost.append(cut_power(folder))
            aftermath.look()
    with run(folder, config) as daemon:
        wait_for_start(daemon)
        daemon.wait_for(lambda: is_over(aftermath, words))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    aftermath.settle()
    assert_talk(aftermath, audio, list(range(1, words + 1)))
    summary = aftermath.summary("desk")
    assert max(lost) < 10 * 2 * RATE
    return {"cuts": len(lost), "lost at most (s)": max(lost) / 2 / RATE, "captured": round(summary.ratio, 3)}


async def test_damaged_files(tmp_path: Path) -> None:
    """A recording whose header is torn is a valid file again; then a torn journal is moved aside and said to be, and
    files in the spool that are not audio do no harm: the daemon starts, records, delivers, and explains everything.
    """
    async with open_service() as service:
        await trio.to_thread.run_sync(damage_files, tmp_path, service.url)


def damage_files(folder: Path, url: str) -> None:
    config = talk_room(url, "realtime") + SINKS
    audio = talk_of(6)
    write_wav(folder / "talk.wav", audio, RATE)
    aftermath = Aftermath(folder)
    with open_mortal() as mortal:
        mortal.live(folder, config, sizes={"state/spool": SECOND // 2})
        mortal.live(folder, config, sizes={"state/spool": SECOND, "recordings": SECOND // 2})
        aftermath.look()
        ((recording, _, _),) = recordings(folder)
        os.truncate(recording, 20)
        mortal.live(folder, config, sizes={"state/spool": 3 * SECOND // 2})
        mortal.live(folder, config, sizes={"state/spool": 2 * SECOND})
        aftermath.look()
        spool = folder / "state" / "spool" / "talk"
        (last,) = sorted(spool.glob("*.pcm"))[-1:]
        last.write_bytes(last.read_bytes() + b"\x7f")
        (spool / "0000000000900000_20260101T000000.000000Z.pcm").write_bytes(b"")
        (spool / "0000000000900000_20269999T999999.000000Z.pcm").write_bytes(b"no time")
        (spool / "notes.txt").write_text("not ours")
        tear(folder / "state" / "journal.sqlite")
        mortal.finish(folder, config)
    assert list((folder / "state").glob("journal.sqlite.corrupt-*"))
    assert "journal.corrupt" in {event["code"] for event in events(folder, "notice")}
    assert aftermath.summary("talk").captured >= len(audio) // 2
    assert (spool / "notes.txt").read_text() == "not ours"
    assert b"".join(data for _, _, data in recordings(folder)).endswith(audio)


def tear(path: Path) -> None:
    """The fear: half of each page in the middle of the file is what was there before."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for page in range(4096, max(size, 8192), 4096):
            file.seek(page)
            file.write(bytes(2048))
