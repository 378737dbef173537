"""Laws of the quarantine: a sink that ends the process is found by the journal, and no other sink is suspected."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing

from delivery.test_runner import Received, open_delivery, opens, sink
from journal.test_journal import crash
from roomtone.delivery.health import SinkHealth
from roomtone.delivery.quarantine import PROBATION_EVENTS, Attempt, Suspicion, digest_of
from roomtone.events import Durable, Notice
from roomtone.journal.records import Mark
from roomtone.sinks import Context, hookimpl
from support.daemon import events, run

# The law itself


def ended(trial: Attempt) -> Attempt:
    """The process ended, and starts again."""
    return trial.after_start()


def test_twice_running_at_the_same_place() -> None:
    """One end of the process in a sink is chance, a second one at the same place is a strike more."""
    trial = ended(Attempt().begin("an event", 7, 9))
    assert trial.suspicion == Suspicion("an event", 7, 9, 1)
    assert ended(trial.begin("an event", 7, 7)).suspicion == Suspicion("an event", 7, 7, 2)


def test_what_has_come_through_all_is_cleared() -> None:
    """A sink that has got through the whole batch in which the process ended begins anew: that was chance."""
    trial = ended(Attempt().begin("an event", 7, 8)).begin("an event", 7, 7).end()
    assert trial.suspicion == Suspicion("an event", 0, 8, 0)
    assert trial.begin("an event", 8, 8).end() == Attempt()


def test_progress_is_no_strike() -> None:
    """Killed twice at different events, a sink is as suspect as after the first time, and single events go on."""
    trial = ended(Attempt().begin("an event", 7, 9)).begin("an event", 7, 7).end()
    assert ended(trial.begin("an event", 8, 8)).suspicion == Suspicion("an event", 8, 8, 1)


def test_coming_through_elsewhere_clears_nothing() -> None:
    """A sink whose event ends the process opens well each time."""
    trial = ended(Attempt().begin("an event", 7, 7)).begin("opening", 0, 0).end()
    assert ended(trial.begin("an event", 7, 7)).suspicion == Suspicion("an event", 7, 7, 2)


def test_strikes_are_for_one_place() -> None:
    """Two ends of the process in one sink, at another event or in another hook, are chance twice."""
    trial = ended(Attempt().begin("opening", 0, 0))
    assert ended(trial.begin("an event", 0, 0)).suspicion == Suspicion("an event", 0, 0, 1)
    assert ended(trial.begin("opening", 0, 0)).suspicion == Suspicion("opening", 0, 0, 2)


def test_who_had_no_turn_is_neither_cleared_nor_struck() -> None:
    """A suspect that did nothing when the process ended is as suspected as before."""
    trial = ended(Attempt().begin("an event", 7, 7))
    assert ended(trial) == trial


@pytest.mark.parametrize("trial", [Attempt(), Attempt("an event", 7, 9), Attempt(suspicion=Suspicion("opening"))])
def test_a_trial_is_kept_as_it_is(trial: Attempt) -> None:
    """The journal keeps all of an attempt, and records of an earlier version can be read."""
    assert msgspec.convert(msgspec.to_builtins(trial), Attempt) == trial
    assert msgspec.convert(msgspec.to_builtins(trial) | {"boot": "b"}, Attempt) == trial


def test_digest_changes_with_the_table_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink is another one when its table or a file of its plugin has changed, and the same one otherwise."""

    def made(text: str, **settings: Any) -> str:
        (tmp_path / "own.py").write_text(
            f"from pathlib import Path\nfrom roomtone import Sink\n"
            f"class Own(Sink, frozen=True, tag='own'):\n    path: Path = Path('x')\n# {text}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "own", raising=False)
        import own  # type: ignore[import-not-found]  # it was just written

        return digest_of(own.Own(**settings))

    assert made("a") == made("a")
    assert len({made("a"), made("b"), made("a", path=Path("y")), made("a", rooms=("desk",))}) == 4


# In delivery


class Killed(BaseException):
    """The process ends here, as far as the journal can know."""


@asynccontextmanager
async def life(path: Path, copy: Path, *plugins: tuple[str, Any]) -> AsyncIterator[tuple[Any, list[Any]]]:
    """One run with these sinks, which ends as by SIGKILL: the next one finds the journal in `copy`."""
    async with open_delivery(path) as around:
        made = [around.deliver(sink(opening, timeout=1000), name) for name, opening in plugins]
        yield around, made
        crash(path / "journal.db", copy)
        around._nursery.cancel_scope.cancel()


class Killer(Received):
    """Ends the process, for which it stands still here, at the given event."""

    def __init__(self, seq: int) -> None:
        super().__init__()
        self.killing = seq
        self.called = trio.Event()

    @hookimpl
    async def event(self, event: Durable) -> None:
        if event.seq == self.killing:
            self.called.set()
            await trio.sleep_forever()
        await super().event(event)


async def test_guilty_is_paused_at_the_third_start_and_the_innocent_is_not(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Two sinks are at work at each end of the process; only the one that never comes through is paused."""
    path = tmp_path / "0"
    for start in range(3):
        killer, other = Killer(1), Received()
        with structlog.testing.capture_logs():
            async with life(path, tmp_path / str(start + 1), ("killer", opens(killer)), ("other", opens(other))) as (
                around,
                (guilty, innocent),
            ):
                await around.commit(1)
                await trio.sleep(10)  # the process ends in the call
                states = guilty.status().state, innocent.status().state
                notices = await around.journal.select("", ["notice"], 0, 1)
        path = tmp_path / str(start + 1)
    assert states == ("paused", "active")
    (notice,) = notices
    assert isinstance(notice, Notice)
    assert (notice.code, notice.severity) == ("sink.paused", "error")
    assert "killer is paused" in notice.text
    assert "had event 1" in notice.text
    assert "roomtone sinks resume killer" in notice.text
    assert killer.seqs == []


class Deadly(Exception):  # noqa: N818 - it is not an error here
    """Reading what a sink has raised ends the process, as in a daemon that did not expect such a text."""


@pytest.mark.parametrize("where", ["opening", "hook"])
async def test_who_ends_the_process_by_what_it_raises_is_paused(
    tmp_path: Path, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The trial lasts until what the sink has raised is contained: containing it may be what ends the process."""

    class Raising(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            raise Deadly

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        if where == "opening":
            raise Deadly
        yield Raising()

    async def die(self: SinkHealth, failure: BaseException, behind: int) -> float:
        if isinstance(failure, Deadly):
            raise Killed
        return 1.0

    monkeypatch.setattr(SinkHealth, "on_failure", die)
    path = tmp_path / "0"
    for start in range(3):
        copy = tmp_path / str(start + 1)
        with structlog.testing.capture_logs(), suppress(Killed):
            try:
                async with life(path, copy, ("raising", opening)) as (around, (guilty,)):
                    if start == 0:
                        await around.commit(1)
                    await trio.sleep(1)
                    state = guilty.status().state
            except* Killed:
                crash(path / "journal.db", copy)
        path = copy
    assert state == "paused"


async def test_suspect_gets_one_event_at_a_time(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """After an end of the process in a batch it becomes clear which event it was: what is before it is acknowledged."""
    killer = Killer(5)
    async with life(tmp_path, tmp_path / "1", ("killer", opens(killer))) as (around, _):
        await around.commit(9)
        await trio.sleep(5)
        assert await around.journal.cursor("killer") == 0
    async with life(tmp_path / "1", tmp_path / "2", ("killer", opens(killer))) as (around, _):
        await trio.sleep(5)
        assert await around.journal.cursor("killer") == 4


async def test_opening_is_watched_too(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that ends the process where it opens is found like one that does in an event's hook."""

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        await trio.sleep_forever()
        yield

    path = tmp_path / "0"
    for start in range(3):
        with structlog.testing.capture_logs():
            async with life(path, tmp_path / str(start + 1), ("made", opening)) as (around, (delivery,)):
                await trio.sleep(1)
                states = delivery.status().state, (await around.journal.cursor("made"))
        path = tmp_path / str(start + 1)
    assert states == ("paused", 0)


async def test_proven_sink_costs_no_more_commits(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """After its first thousand events a sink is proven, over a restart too, until its table changes."""

    async def left(name: str, **settings: Any) -> int:
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(Received()), **settings), name)
            await trio.sleep(1)
        async with open_delivery(tmp_path) as around:
            return int((await around.journal.mark(f"sink/{name}/proof"))["left"])

    async with open_delivery(tmp_path) as around:
        await around.commit(400)
    assert await left("made") == 600
    async with open_delivery(tmp_path) as around:
        await around.commit(599)
    assert await left("made") == 1
    async with open_delivery(tmp_path) as around:
        await around.commit(1)
    assert await left("made") == 0
    assert await left("made") == 0
    assert await left("made", timeout=3.0) == 1000


async def test_unclean_stop_makes_everybody_unproven(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A proven sink is on probation again after an unclean stop."""
    async with open_delivery(tmp_path) as around:
        await around.commit(PROBATION_EVENTS)
        around.deliver(sink(opens(Received())))
    async with open_delivery(tmp_path) as around:
        assert (await around.journal.mark("sink/made/proof"))["left"] == 0
        await around.journal.commit(Mark("test/dirty", 1))
        crash(tmp_path / "journal.db", tmp_path / "1")
    async with open_delivery(tmp_path / "1") as around:
        around.deliver(sink(opens(Received())))
        await trio.sleep(1)
        assert (await around.journal.mark("sink/made/proof"))["left"] == PROBATION_EVENTS


async def test_what_was_told_to_stop_is_no_suspect(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The end of the grace period in the middle of a hook is an end in order."""
    async with open_delivery(tmp_path) as around:
        await around.commit(1)
        around.deliver(sink(opens(Killer(1))))
        await trio.sleep(1)
        assert (await around.journal.mark("sink/made/trial"))["seq"] == 1
        around._nursery.cancel_scope.cancel()
    async with open_delivery(tmp_path) as around:
        assert await around.journal.mark("sink/made/trial") is None


# With the daemon itself

KILLING = """
import os, signal
from roomtone import hookimpl

@hookimpl
def recording_started(event):
    {misdeed}
"""

SOURCE = """
import sys, time
end = time.monotonic() + {seconds}
block = b"".join((i % 30_000).to_bytes(2, "little") for i in range({rate} // 50))
began, sent = time.monotonic(), 0
while time.monotonic() < end:
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()
    sent += 1
    time.sleep(max(0, began + sent / 50 - time.monotonic()))
"""


def drop_in(folder: Path, name: str, text: str) -> None:
    (folder / "plugins").mkdir(exist_ok=True)
    (folder / "plugins").chmod(0o755)
    (folder / "plugins" / f"{name}.py").write_text(text)
    (folder / "plugins" / f"{name}.py").chmod(0o644)


def config(folder: Path, seconds: float, rate: int = 16_000) -> str:
    (folder / "source.py").write_text(SOURCE.format(seconds=seconds, rate=rate))
    return f"""
[service]
state = "state"
grace = 6.0
[rooms.desk]
source = {{ kind = "command", argv = ["python3", "{folder}/source.py"] }}
streaming = {{ endpoint = "ws://127.0.0.1:9" }}
[sinks.log]
kind = "jsonl"
path = "events.jsonl"
start = "oldest"
[sinks.archive]
kind = "wav"
directory = "recordings"
start = "oldest"
[sinks.killer]
kind = "killer"
start = "oldest"
"""


@pytest.mark.parametrize("misdeed", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_sink_that_kills_the_daemon_is_paused_at_the_third_start(tmp_path: Path, misdeed: str) -> None:
    """The first two starts end in the sink; the third pauses it with a notice, and the other sinks get everything."""
    drop_in(tmp_path, "killer", KILLING.format(misdeed=misdeed))
    for _ in range(2):
        with run(tmp_path, config(tmp_path, 60)) as daemon:
            assert daemon.finish() in {3, -signal.SIGKILL}, daemon.log
    with run(tmp_path, config(tmp_path, 60)) as daemon:
        daemon.wait_for(lambda: [event for event in events(tmp_path, "notice") if event["code"] == "sink.paused"])
        daemon.wait_for(lambda: events(tmp_path, "recording_started")[-1]["seq"] > events(tmp_path, "notice")[0]["seq"])
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    (notice,) = [event for event in events(tmp_path, "notice") if event["code"] == "sink.paused"]
    assert "Sink killer is paused" in notice["text"]
    assert events(tmp_path, "recording_stopped")


BLOCKING = """
import time
from roomtone import hookimpl

@hookimpl
async def audio(event):
    pass

@hookimpl
async def recording_started(event):
    time.sleep(20)
"""


def test_sink_that_blocks_the_loop_costs_no_sample(tmp_path: Path) -> None:
    """Twenty seconds of a loop that stands still: every sample that the source wrote in them is recorded."""
    drop_in(tmp_path, "killer", BLOCKING)
    with run(tmp_path, config(tmp_path, 22)) as daemon:
        daemon.wait_for(lambda: events(tmp_path, "recording_stopped"))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert not events(tmp_path, "gap")
    (stopped,) = events(tmp_path, "recording_stopped")
    audio = b"".join(path.read_bytes()[44:] for path in sorted((tmp_path / "recordings").rglob("*.wav")))
    block = b"".join((i % 30_000).to_bytes(2, "little") for i in range(16_000 // 50))
    assert len(audio) // 2 == stopped["position"] > 20 * 16_000
    assert audio == block * (len(audio) // len(block))
