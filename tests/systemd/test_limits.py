"""Laws of the unit's limits, in a guest whose systemd can enforce them: what takes too much costs a gap at most."""

import time
from collections.abc import Iterator

import pytest

from conftest import Report
from support.systemd_guest import LOG, PREFIX, ROOM, Installed, booted, installed

pytestmark = pytest.mark.timeout(300)

TASKS_MAX, MEMORY_MAX = 256, 2**30
GREEDY_ONCE = """
import time
from pathlib import Path
from roomtone import hookimpl

@hookimpl
def recording_started(event):
    taken = Path("/var/lib/roomtone/taken")
    if not taken.exists():
        taken.touch()
        held = [bytearray(b"x" * 2**20) for _ in range(1000)]
        time.sleep(3600)
"""
MANY = "".join(ROOM.replace("desk", f"room{number}") for number in range(6))
SINKS = (
    LOG
    + """
[sinks.archive]
kind = "wav"
directory = "recordings"
format = "flac"
[sinks.pages]
kind = "transcript"
directory = "pages"
[sinks.program]
kind = "command"
argv = ["/bin/cat"]
[sinks.hook]
kind = "webhook"
url = "http://127.0.0.1:9/"
"""
)


@pytest.fixture(scope="module")
def roomtone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with booted(tmp_path_factory.mktemp("guest"), {PREFIX: installed()}, limits=True) as guest:
        yield Installed(guest)


def test_a_plugin_that_takes_all_memory_costs_a_gap(roomtone: Installed, report: Report) -> None:
    """Beyond MemoryMax= the kernel ends the daemon; it is started again, and recording goes on behind one gap."""
    roomtone.configure(ROOM + LOG)
    roomtone.guest.write("/etc/roomtone/plugins/greedy.py", GREEDY_ONCE)
    roomtone.install("--no-start")
    roomtone.drop_in("MemoryMax=300M")
    roomtone.guest.run("systemctl", "start", "roomtone", check=False)
    [gap] = roomtone.wait(lambda: roomtone.events("gap"), "a gap")
    roomtone.wait(lambda: roomtone.show("StatusText")["StatusText"] == "Recording desk", "recording again")
    recorded = roomtone.recorded()
    roomtone.wait(lambda: roomtone.recorded() > recorded, "more samples")

    assert gap["cause"] == "daemon down"
    assert roomtone.show("NRestarts")["NRestarts"] == "1"
    assert "code=killed, status=9/KILL" in roomtone.log()
    report(f"memory with one room: {int(roomtone.show('MemoryCurrent')['MemoryCurrent']) / 2**20:.0f} MiB")
    roomtone.remove()


def test_the_limits_are_far_from_what_a_large_configuration_takes(roomtone: Installed, report: Report) -> None:
    """Six rooms with a session each, and every bundled sink: a third of the tasks and of the memory at most."""
    roomtone.configure(MANY + SINKS)
    roomtone.install()
    roomtone.wait(lambda: len(roomtone.events("session_started")) == 6, "six sessions")
    most = 0
    for _ in range(30):
        most = max(most, int(roomtone.show("TasksCurrent")["TasksCurrent"]))
        time.sleep(0.1)
    memory = int(roomtone.show("MemoryCurrent")["MemoryCurrent"])

    assert roomtone.show("MemoryMax", "TasksMax") == {"MemoryMax": str(MEMORY_MAX), "TasksMax": str(TASKS_MAX)}
    report(f"tasks with six rooms and five sinks: {most}, memory: {memory / 2**20:.0f} MiB")
    assert 10 < most < TASKS_MAX / 3
    assert memory < MEMORY_MAX * 2 / 3
    assert roomtone.events("gap") == []
    roomtone.remove()
