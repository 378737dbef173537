"""Forgotten speech is nowhere, and everything else is as it was: looked for with other eyes than the daemon's own."""

import gzip
import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio

from roomtone.testing.encoded_speech import numbers_in, quiet, speak
from roomtone.testing.fake_service import open_service
from support.daemon import COMMAND, events, recordings, run, write_wav

RATE = 16_000
SPOKEN = [7_000_000 + n for n in range(40)]
"""Words that do not occur by chance, one at regular intervals."""
EVERY = 1.0

CONFIG = """
[rooms.desk]
source = {{ kind = "file", path = "talk.wav" }}
[rooms.desk.streaming]
endpoint = "{url}"
[sinks.archive]
kind = "wav"
directory = "recordings"
transcript = true
captions = ["srt"]
[sinks.log]
kind = "jsonl"
path = "lines/events.jsonl"
kinds = ["turn"]
[sinks.all]
kind = "jsonl"
path = "events.jsonl"
rotate = 1
[sinks.pages]
kind = "transcript"
directory = "pages"
captions = ["vtt"]
"""


def talk() -> bytes:
    """Each number is a turn of its own."""
    return b"".join(
        (word := speak([number], RATE, turn=1, break_=0)) + quiet(EVERY - len(word) / 2 / RATE, RATE)
        for number in SPOKEN
    )


def bytes_of(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file, packed ones unpacked too, but for what the test itself has made."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in {"talk.wav", "roomtone.toml"}:
            data = path.read_bytes()
            yield path, data
            if path.suffix == ".gz":
                yield path, gzip.decompress(data)


def traces(folder: Path, number: int) -> set[str]:
    """The files that have the word of this number, as text or as sound."""
    sound = speak([number], RATE, turn=1, break_=0)
    # The middle of the word has the bits that differ from all others.
    middle = sound[len(sound) // 4 : len(sound) * 3 // 4]
    text = str(number).encode()
    return {str(path.relative_to(folder)) for path, data in bytes_of(folder) if text in data or middle in data}


def forget(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, "forget", "--yes", "--config", str(folder / "roomtone.toml"), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)


def span(began: datetime, first: int, last: int) -> list[str]:
    """The options for the words from one to another, each with the quiet behind it."""
    times = (began + timedelta(seconds=EVERY * number - 0.1) for number in (first, last))
    return [text for name, at in zip(("--from", "--to"), times, strict=True) for text in (name, at.isoformat())]


async def test_a_stretch_is_forgotten_while_the_daemon_runs_and_while_it_does_not(tmp_path: Path) -> None:
    """Of a stretch nothing is left in any file of the state and of the sinks; all that was said before and after it
    stays, in text, in sound and in its place; the account is whole; and every sink has the tombstone.
    """
    write_wav(tmp_path / "talk.wav", talk())
    async with open_service() as service:
        await trio.to_thread.run_sync(partial(live, tmp_path, service.url))

    lines = events(tmp_path)
    gone = [event for event in lines if event["kind"] == "forgotten"]
    assert len(gone) == 2
    heard = [number for event in lines if event["kind"] == "turn" for number in numbers_in(event["text"])]
    gone_words, first = {SPOKEN[n] for n in (2, 3, 8, 9, 10)}, set(SPOKEN[:11])
    assert heard == sorted(set(heard))
    assert first & set(heard) == first - gone_words
    assert len(heard) >= 12
    recorded = b"".join(audio for _, _, audio in recordings(tmp_path))
    expected = bytearray(talk()[: len(recorded)])
    for event in gone:
        expected[2 * event["start"] : 2 * event["end"]] = bytes(2 * (event["end"] - event["start"]))
    assert recorded == expected
    sidecars = [json.loads(path.read_text()) for path in sorted((tmp_path / "recordings").rglob("*.json"))]
    noted = [stretch for sidecar in sidecars for stretch in sidecar["forgotten"]]
    assert noted == [{"start": one["start"], "end": one["end"]} for one in gone]
    coverage = await trio.to_thread.run_sync(account, tmp_path)
    (room,) = coverage["rooms"]
    assert coverage["explained"]
    assert room["forgotten"] == sum(event["end"] - event["start"] for event in gone)
    assert room["pending"] == 0
    assert room["captured"] == len(recorded) // 2


def account(folder: Path) -> Any:
    command = [*COMMAND, "coverage", "--config", str(folder / "roomtone.toml"), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


def live(folder: Path, url: str) -> None:
    with run(folder, CONFIG.format(url=url)) as daemon:
        daemon.wait_for(lambda: len(events(folder, "turn")) >= 6)
        (started,) = events(folder, "recording_started")
        began = datetime.fromisoformat(started["at"])
        assert traces(folder, SPOKEN[2])
        assert traces(folder, SPOKEN[3])

        done = forget(folder, *span(began, 2, 4))

        assert done.returncode == 0, done.stderr + daemon.log
        assert "nothing of it is left" in done.stdout
        check(folder, forgotten={2, 3}, said=range(5))
        daemon.wait_for(lambda: len(events(folder, "turn")) >= 11)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
        check(folder, forgotten={2, 3}, said=range(11))

        done = forget(folder, *span(began, 8, 11))

        assert done.returncode == 0, done.stderr
        assert "nothing of it is left" in done.stdout
        check(folder, forgotten={2, 3, 8, 9, 10}, said=range(11))
    with run(folder, CONFIG.format(url=url)) as daemon:
        daemon.wait_for(lambda: daemon.log.count("service.started") == 2)  # before that SIGTERM ends it immediately
        daemon.wait_for(lambda: len(events(folder, "turn")) >= 12)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    check(folder, forgotten={2, 3, 8, 9, 10}, said=range(11))
    assert "Traceback" not in daemon.log


def check(folder: Path, *, forgotten: set[int], said: range) -> None:
    for n in sorted(forgotten):
        assert traces(folder, SPOKEN[n]) == set(), n
    for n in set(said) - forgotten:
        found = {name.split("/")[0] for name in traces(folder, SPOKEN[n])}
        assert found >= {"state", "events.jsonl", "pages", "lines"}, (n, found)
