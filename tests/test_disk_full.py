"""A disk that runs full while the daemon records, and that has room again later."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from roomtone.testing.fake_service import open_service
from support.crash_checks import RATE, Aftermath, covers_of
from support.daemon import SINKS, events, run

HERE = Path(__file__).parent
SIZE = 16_000_000
"""Bytes of the file system: the journal's own files need two."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root: run this test in a container, as CI does, or with sudo")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[ExitStack]:
    """Somebody fills the file system to the last byte, and makes room again, when the stack is closed at the latest."""
    ballast = disk / "ballast"
    with ExitStack() as full, ballast.open("wb", buffering=0) as file:
        full.callback(ballast.unlink)
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
        file.close()
        yield full


def desk_room(url: str) -> str:
    command = f'["{sys.executable}", "{HERE / "support" / "endless_speaker.py"}", "{RATE}"]'
    return f"""
[rooms.desk]
rate = {RATE}
source = {{ kind = "command", argv = {command}, restart = "always" }}
streaming = {{ endpoint = "{url}" }}
"""


def codes(disk: Path) -> list[str]:
    return [event["code"] for event in events(disk, "notice") if event["code"].startswith("disk.")]


async def test_a_disk_that_fills_up_while_recording(disk: Path) -> None:
    """The daemon lives, drops what the disk does not take and counts it as a gap, says so once, and goes on by itself
    when there is room; no file is torn, every position is explained, and every word that was recorded is said once.
    """
    async with open_service() as service:
        await trio.to_thread.run_sync(fill_and_free, disk, service.url)


def fill_and_free(disk: Path, url: str) -> None:
    aftermath = Aftermath(disk)
    with run(disk, desk_room(url) + SINKS) as daemon:
        daemon.wait_for(lambda: events(disk, "turn"))
        with filled(disk):
            daemon.wait_for(lambda: "disk.low" in daemon.log)
            daemon.wait_for(lambda: "journal.full" in daemon.log)
        turns = len(events(disk, "turn"))
        daemon.wait_for(lambda: "disk.recovered" in codes(disk))
        daemon.wait_for(lambda: len(events(disk, "turn")) > turns + 1)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    aftermath.settle()
    assert sorted(codes(disk)) == ["disk.full", "disk.low", "disk.recovered", "disk.resumed"]
    summary = aftermath.summary("desk")
    (lost,) = summary.lost
    assert lost.cause == "disk full"
    assert lost.samples >= RATE
    assert summary.pending == 0
    assert aftermath.transcript("desk") == aftermath.heard("desk")
    with aftermath.reading() as database:
        (gap,) = covers_of(database, "desk", "lost")
    assert gap.end - gap.start == lost.samples


async def test_a_start_on_a_full_disk(disk: Path) -> None:
    """A daemon that died on a disk that is full starts on it all the same, and goes on when there is room."""
    async with open_service() as service:
        await trio.to_thread.run_sync(start_while_full, disk, service.url)


def start_while_full(disk: Path, url: str) -> None:
    aftermath = Aftermath(disk)
    config = desk_room(url) + SINKS
    with run(disk, config) as daemon:
        daemon.wait_for(lambda: events(disk, "turn"))
        daemon.signal(signal.SIGKILL)
        daemon.finish()
    aftermath.look()
    with filled(disk) as full, run(disk, config) as daemon:
        daemon.wait_for(lambda: "disk.reserve_used" in daemon.log)
        daemon.wait_for(lambda: daemon.log.count("session.started") > 1 or "disk.low" in daemon.log)
        full.close()
        turns = len(events(disk, "turn"))
        daemon.wait_for(lambda: len(events(disk, "turn")) > turns)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    aftermath.settle()
    aftermath.summary("desk")
    assert aftermath.transcript("desk") == aftermath.heard("desk")


async def test_a_stop_on_a_full_disk(disk: Path) -> None:
    """A daemon that is stopped on a disk that is full does not wait for room through its whole grace period, and the
    next one says what was left unsaid.
    """
    async with open_service() as service:
        await trio.to_thread.run_sync(stop_while_full, disk, service.url)


def stop_while_full(disk: Path, url: str) -> None:
    aftermath = Aftermath(disk)
    config = desk_room(url) + SINKS
    with run(disk, config + '\n[service]\nstate = "state"\ngrace = 600\n') as daemon:
        daemon.wait_for(lambda: events(disk, "turn"))
        with filled(disk):
            daemon.wait_for(lambda: "journal.full" in daemon.log)
            daemon.signal(signal.SIGTERM)
            assert daemon.finish() == 0, daemon.log
    assert "the journal has no room" in daemon.log
    with run(disk, config) as daemon:
        turns = len(events(disk, "turn"))
        daemon.wait_for(lambda: len(events(disk, "turn")) > turns + 1)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    aftermath.settle()
    aftermath.summary("desk")
    assert aftermath.transcript("desk") == aftermath.heard("desk")
