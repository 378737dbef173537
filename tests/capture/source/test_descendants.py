"""The end of all that a command has started: whatever it does to get away, it is gone when the source is closed."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
import trio

from roomtone.capture import source_process
from roomtone.capture.outbox import Outbox
from roomtone.capture.recorder import CaptureContext, record
from roomtone.capture.records import MuteState
from roomtone.capture.run_control import RunControl
from roomtone.capture.source.descendants import has_mark, kill_processes
from roomtone.capture.source_process import SourceEnded, open_source
from roomtone.capture.sources import Command
from roomtone.journal.journal import open_journal
from roomtone.live import Live
from roomtone.spool.spool import open_spool
from support.sources import FRAME, RATE, drain

HELPERS = {
    "child": "{sleep} &",
    "session": "setsid {sleep} &",
    "orphan": "(setsid {sleep} &)",
    "nohup": "(nohup setsid {sleep} >/dev/null 2>&1 &)",
    "deaf": "(trap '' TERM HUP INT; setsid {sleep} &)",
    "daemon": "setsid sh -c 'setsid {sleep} & cd /; exec >/dev/null 2>&1' &",
    "nameless": "(env -i setsid {sleep} &)",
    "family": "(setsid sh -c 'setsid {sleep} & {sleep} & wait' &)",
    "many": "for n in 1 2 3 4 5 6 7 8 9; do (setsid {sleep} &) ; done",
}
"""Shell code that starts a `sleep` in a way that has been seen to survive the program that began it."""


def find(sleep: str) -> list[str]:
    """The numbers of the processes that sleep for just this long."""
    found = subprocess.run(["pgrep", "-f", f"^{sleep}$"], capture_output=True, text=True, check=False)
    return found.stdout.split()


@pytest.fixture
def sleep() -> str:
    """A command that sleeps for hours, and that no other test has."""
    return f"sleep {random.SystemRandom().uniform(80_000, 90_000):.9f}"


def source_with(helper: str, sleep: str) -> Command:
    return Command(("sh", "-c", f"{HELPERS[helper].format(sleep=sleep)}\nexec cat /dev/zero"))


async def wait_for(sleep: str) -> None:
    with trio.fail_after(30):
        while not find(sleep):  # noqa: ASYNC110 - the kernel has no event for this
            await trio.sleep(0.01)


@pytest.mark.parametrize("helper", HELPERS)
async def test_nothing_is_left_when_the_context_ends(tmp_path: Path, helper: str, sleep: str) -> None:
    """The device that a helper holds is free when the source is left, without waiting after that."""
    async with open_source(source_with(helper, sleep), rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        await wait_for(sleep)
    assert not find(sleep)


@pytest.mark.parametrize("helper", ["orphan", "nameless"])
async def test_nothing_is_left_of_a_command_that_has_ended(tmp_path: Path, helper: str, sleep: str) -> None:
    """Exit status 0 is the end of the room, and of what the program has left behind."""
    code = HELPERS[helper].format(sleep=sleep)
    wait = f"until pgrep -f '^{sleep}$' >/dev/null; do sleep 0.01; done"
    source = Command(("sh", "-c", f"{{ {code}\n}} >/dev/null 2>&1\n{wait}; head -c 4000 /dev/zero"))
    async with open_source(source, rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        assert isinstance((await drain(feed)).over, SourceEnded)
    assert not find(sleep)


@pytest.mark.parametrize("helper", sorted(HELPERS.keys() - {"nameless"}))
async def test_nothing_is_left_of_a_capture_process_that_is_killed(tmp_path: Path, helper: str, sleep: str) -> None:
    """The kernel may end the capture process for its memory: then what it has started is found by its mark."""
    async with open_source(source_with(helper, sleep), rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        await wait_for(sleep)
        os.kill(feed._child._process.pid, signal.SIGKILL)
    assert not find(sleep)


async def test_nothing_is_left_of_a_capture_process_that_hangs(tmp_path: Path, sleep: str) -> None:
    """One that does not answer is killed, and what it has started is found by its mark."""
    async with open_source(source_with("orphan", sleep), rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        await wait_for(sleep)
        os.kill(feed._child._process.pid, signal.SIGSTOP)
    assert not find(sleep)


async def test_another_source_is_left_alone(tmp_path: Path, sleep: str) -> None:
    """Each source has a mark of its own: what is searched for is one source's."""
    async with open_source(source_with("orphan", sleep), rate=RATE, frame=FRAME, folder=tmp_path) as first:
        await first.receive()
        await wait_for(sleep)
        async with open_source(Command(("cat", "/dev/zero")), rate=RATE, frame=FRAME, folder=tmp_path) as second:
            await second.receive()
            os.kill(second._child._process.pid, signal.SIGKILL)
        assert len(find(sleep)) == 1


async def test_a_muted_room_has_no_process(tmp_path: Path, sleep: str) -> None:
    """Mute waits for the end of the run: nothing of the command is left by then."""
    control = RunControl(Outbox("desk"))
    async with (
        open_journal(tmp_path / "journal.sqlite") as journal,
        open_spool(tmp_path / "spool", rate=RATE) as spool,
        trio.open_nursery() as nursery,
    ):

        async def mute() -> None:
            await wait_for(sleep)
            await spool.wait_past(0)
            control.close(MuteState())

        nursery.start_soon(mute)
        source = source_with("orphan", sleep)
        context = CaptureContext("desk", source, RATE, FRAME, tmp_path, spool, journal, Live())
        reason = await record(context, control)
        assert (reason, find(sleep)) == ("muted", [])


async def test_orphans_that_end_are_reaped(tmp_path: Path) -> None:
    """A program that starts others for years does not fill the table of processes with those that have ended."""
    busy = "for n in 1 2 3 4 5 6 7 8; do (setsid true &) ; done; sleep 0.5; head -c 8000 /dev/zero; exec sleep 1000"
    async with open_source(Command(("sh", "-c", busy)), rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        with trio.fail_after(20):
            while zombies_of(feed._child._process.pid):  # noqa: ASYNC110 - the kernel has no event for this
                await trio.sleep(0.01)


def zombies_of(parent: int) -> list[Path]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, owner, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if (state, owner) == ("Z", str(parent)):
            found.append(folder)
    return found


def test_a_process_that_may_not_be_looked_at_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of another user's process cannot be read: it is none of ours, and stops no search."""

    def refuse(folder: Path) -> bool:
        raise PermissionError

    assert kill_processes(refuse) == 0
    monkeypatch.setattr(os, "pidfd_open", lambda _: (_ for _ in ()).throw(ProcessLookupError()))
    assert kill_processes(lambda _: True) == 0


async def test_what_cannot_be_ended_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may hold a helper in the kernel: the source is left after some seconds, and the operator can know of it.

    The fake: a capture process that hangs, and a kernel that delivers no SIGKILL to what it has started.
    """
    monkeypatch.setattr(source_process, "kill_processes", lambda _: 1)
    with structlog.testing.capture_logs() as logs:
        async with open_source(Command(("cat", "/dev/zero")), rate=RATE, frame=FRAME, folder=tmp_path) as feed:
            await feed.receive()
            os.kill(feed._child._process.pid, signal.SIGSTOP)
    assert [line["event"] for line in logs] == ["source.unkillable"]


STUBBORN = """
import signal, subprocess
from roomtone.capture.source.descendants import end_descendants
child = subprocess.Popen(["sleep", "1000"])
kill, signal.pidfd_send_signal = signal.pidfd_send_signal, lambda *_: None
print(end_descendants())
signal.pidfd_send_signal = kill
print(end_descendants(), end_descendants())
"""


def test_what_does_not_end_is_not_waited_for_without_limit() -> None:
    """The capture process says that something is left, and the daemon knows it by its exit status."""
    done = subprocess.run([sys.executable, "-c", STUBBORN], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True", "True"]


def test_a_mark_is_a_whole_variable(tmp_path: Path) -> None:
    """A mark that begins another one, or that another variable holds, is none."""
    (tmp_path / "environ").write_bytes(b"PATH=/bin\0ROOMTONE_SOURCE=abc\0X=ROOMTONE_SOURCE=def\0")
    assert has_mark(tmp_path, "abc")
    assert not has_mark(tmp_path, "ab")
    assert not has_mark(tmp_path, "def")
