"""Laws of delivery: every event reaches every sink, at least once and in order, whatever a sink does.

Time is virtual where hooks are asynchronous. Where they are synchronous there is a thread, and real time, kept short.
"""

import asyncio
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog
import trio
import trio.lowlevel
import trio.testing

from journal.test_journal import crash
from roomtone.concurrency import RunSync
from roomtone.delivery.health import SinkStatus
from roomtone.delivery.runner import SinkRunner
from roomtone.events import Audio, Durable, Interim, Level, Notice, Turn
from roomtone.journal.journal import Journal, JournalError, open_journal
from roomtone.journal.records import Mark
from roomtone.live import Live
from roomtone.sinks import LONGEST_WAIT, Context, Sink, Unprocessable, hookimpl
from roomtone.testing.inline import run_inline

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def turn(number: int = 0, room: str = "desk") -> Turn:
    return Turn(room=room, position=number, at=NOW, session_id="s", turn_order=number, text=str(number))


def sink(opening: Callable[[Context], Any], **settings: Any) -> Sink:
    """A sink that opens with that function."""

    class Made(Sink, frozen=True, tag="made"):
        def open(self, context: Context) -> AbstractAsyncContextManager[object]:
            opened: AbstractAsyncContextManager[object] = opening(context)
            return opened

    return Made(**{"start": "oldest", **settings})


def opens(plugin: object) -> Callable[[Context], AbstractAsyncContextManager[object]]:
    """Open to that object, with nothing to own."""

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        yield plugin

    return opening


class House:
    """The surroundings of runners: a journal, the live feed, and the end."""

    def __init__(self, journal: Journal, folder: Path, nursery: trio.Nursery) -> None:
        self.journal = journal
        self.live = Live()
        self._folder = folder
        self._nursery = nursery
        self._runners: list[SinkRunner] = []

    def make(self, sink: Sink, name: str = "made") -> SinkRunner:
        """A delivery that does not run yet."""
        context = Context(name=name, folder=self._folder, state=self._folder, rates={"desk": 16_000})
        runner = SinkRunner(sink, context, journal=self.journal, live=self.live)
        self._runners.append(runner)
        return runner

    def deliver(self, sink: Sink, name: str = "made") -> SinkRunner:
        runner = self.make(sink, name)
        self._nursery.start_soon(runner.run)
        return runner

    def finish(self) -> None:
        for runner in self._runners:
            runner.finish()

    async def commit(self, count: int, room: str = "desk") -> None:
        first = self.journal.tip
        await self.journal.commit(*[turn(first + number, room) for number in range(1, count + 1)])

    async def acknowledged(self, seq: int, name: str = "made") -> None:
        """Return when the sink has acknowledged that event."""
        while ((await self.journal.cursor(name)) or 0) < seq:  # noqa: ASYNC110 - a cursor wakes no task
            await trio.sleep(0.01)


def events_of(logs: Sequence[Any]) -> list[str]:
    """The log for the operator: tracebacks are for plugin authors."""
    return [entry["event"] for entry in logs if entry["log_level"] != "debug"]


@asynccontextmanager
async def open_delivery(folder: Path, *, run_sync: RunSync = run_inline) -> AsyncIterator[House]:
    """Everything, until it is left: then the runners finish."""
    async with open_journal(folder / "journal.db", run_sync=run_sync) as journal, trio.open_nursery() as nursery:
        made = House(journal, folder, nursery)
        yield made
        made.finish()


class Received:
    """A good sink with asynchronous hooks, and what has come to it."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.flushes: list[int] = []

    @hookimpl
    async def event(self, event: Durable) -> None:
        self.seqs.append(event.seq)

    @hookimpl
    async def flush(self) -> None:
        self.flushes.append(len(self.seqs))


def in_order(seqs: Sequence[int]) -> list[int]:
    """Each seq at its first coming. Redelivery begins anew from the cursor, so within an attempt order holds."""
    return list(dict.fromkeys(seqs))


# The good sink


async def test_brings_every_event_in_order(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that takes events gets each of them once, in order, those that were there and those that come."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        await around.commit(2500)
        around.deliver(sink(opens(received)))
        await around.acknowledged(2500)
        for _ in range(5):
            await around.commit(2)
            await trio.sleep(1)

        assert await around.journal.cursor("made") == 2510
    assert received.seqs == list(range(1, 2511))
    assert received.flushes[:4] == [1000, 2000, 2500, 2502]


async def test_synchronous_hooks_run_in_one_thread(tmp_path: Path) -> None:
    """Synchronous hooks run outside the loop, a batch in one call: the specific hook, then `event`; at last flush."""
    calls: list[tuple[str, int, int]] = []

    class Plain:
        @hookimpl
        def turn(self, event: Turn) -> None:
            calls.append(("turn", event.seq, threading.get_ident()))

        @hookimpl
        def event(self, event: Durable) -> None:
            calls.append(("event", event.seq, threading.get_ident()))

        @hookimpl
        def flush(self) -> None:
            calls.append(("flush", 0, threading.get_ident()))

    async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
        await around.commit(2)
        around.deliver(sink(opens(Plain())))

    assert [call[:2] for call in calls] == [("turn", 1), ("event", 1), ("turn", 2), ("event", 2), ("flush", 0)]
    assert {call[2] for call in calls}.isdisjoint({threading.get_ident()})
    assert len({call[2] for call in calls}) == 1


async def test_hooks_of_both_sorts_keep_the_order(tmp_path: Path) -> None:
    """An object may have synchronous and asynchronous hooks; they are called in the same order as ever."""
    calls: list[str] = []

    class Mixed:
        @hookimpl
        def turn(self) -> None:
            calls.append("turn")

        @hookimpl
        async def event(self, event: Durable) -> None:
            calls.append(f"event {event.seq}")

        @hookimpl
        def flush(self) -> None:
            calls.append("flush")

    async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
        await around.commit(2)
        around.deliver(sink(opens(Mixed())))

    assert calls == ["turn", "event 1", "turn", "event 2", "flush"]


async def test_batch_ends_after_a_second_of_hooks(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The events of a slow sink are acknowledged after a second, not after a thousand events."""

    class Slow(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            await trio.sleep(0.3)
            self.seqs.append(event.seq)

    received = Slow()
    async with open_delivery(tmp_path) as around:
        await around.commit(20)
        around.deliver(sink(opens(received)))
        await trio.sleep(1.25)
        assert await around.journal.cursor("made") == 4

    assert received.seqs == list(range(1, 21))
    assert max(after - before for before, after in zip([0, *received.flushes], received.flushes, strict=False)) == 4


# Where it begins, and what it is not asked to take


@pytest.mark.parametrize(("start", "expected"), [("now", [4]), ("oldest", [1, 2, 3, 4])])
async def test_new_sink_begins_where_it_says(
    tmp_path: Path, autojump_clock: trio.abc.Clock, start: str, expected: list[int]
) -> None:
    """A sink that the journal does not know begins now or at the oldest event, and its cursor is durable then."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        await around.commit(3)
        around.deliver(sink(opens(received), start=start))
        await trio.testing.wait_all_tasks_blocked()
        assert await around.journal.cursor("made") is not None
        await around.commit(1)

    assert received.seqs == expected


async def test_known_sink_goes_on_where_it_was(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """After a restart a sink gets what it has not acknowledged, whatever `start` says."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        await around.commit(5)
        await around.journal.advance("made", 3)
        around.deliver(sink(opens(received), start="now"))

    assert received.seqs == [4, 5]


async def test_after_damage_every_sink_gets_all_of_the_new_journal(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """In a journal begun anew after damage no sink is known, and the notice that says so reaches them all."""
    (tmp_path / "journal.db").write_bytes(b"damaged " * 1000)
    received = Received()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(received), start="now"))

    assert received.seqs == [1]


async def test_calls_only_for_what_is_wanted(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The filters of the table and the hooks of the object decide; unwanted events pass without a call."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        await around.commit(2, room="desk")
        await around.commit(2, room="lab")
        await around.journal.commit(
            Notice(room="", position=0, at=NOW, severity="info", code="all.rooms", text=""),
            Notice(room="lab", position=0, at=NOW, severity="info", code="one.room", text=""),
        )
        around.deliver(sink(opens(received), rooms=("lab",), kinds=("turn", "notice")))
        status = around.deliver(sink(opens(Received()), rooms=("attic",)), "other")
        await trio.testing.wait_all_tasks_blocked()
        assert status.status().behind == 0

    assert received.seqs == [3, 4, 5, 6]


async def test_uninteresting_events_cost_no_commit(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The cursor passes unwanted events in memory, and is made durable once per thousand events and at the end."""

    class Turns:
        @hookimpl
        async def notice(self, event: Notice) -> None:
            pass

    async with open_delivery(tmp_path) as around:
        delivery = around.deliver(sink(opens(Turns())))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            await around.commit(1)
            await trio.sleep(1)
        assert (delivery.status().behind, await around.journal.cursor("made")) == (0, 0)
        await around.commit(1000)
        await trio.sleep(1)
        assert await around.journal.cursor("made") == 1010
        await around.commit(5)
    async with open_delivery(tmp_path) as around:
        assert await around.journal.cursor("made") == 1015


async def test_audio_that_the_quota_took_comes_without_a_file(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """An event of audio names its file while it is there, and no file once it is gone."""
    files: list[str | None] = []

    class Wav:
        @hookimpl
        async def audio(self, event: Audio) -> None:
            files.append(event.file)

    there = tmp_path / "there.pcm"
    there.write_bytes(b"")
    async with open_delivery(tmp_path) as around:
        for file in (there, tmp_path / "gone.pcm"):
            await around.journal.commit(Audio(room="desk", position=0, at=NOW, samples=1, rate=16_000, file=str(file)))
        around.deliver(sink(opens(Wav())))

    assert files == [str(there), None]


# Bad sinks: each fails in its own way at first, and must harm only itself


class Fault(Exception):  # noqa: N818 - it is not an error here
    """The exception of a bad sink."""


class Bad(Received):
    """Does `misdeed` in one place, three times, and is good afterwards."""

    def __init__(self, place: str, misdeed: Callable[[], Any]) -> None:
        super().__init__()
        self._place = place
        self._misdeed = misdeed
        self._left = 3
        self.open = 0

    async def _perhaps(self, place: str) -> None:
        if place == self._place and self._left:
            self._left -= 1
            await self._misdeed()

    @asynccontextmanager
    async def opening(self, context: Context) -> AsyncIterator[object]:
        await self._perhaps("open")
        assert not self.open, "it was opened twice"
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1
            await self._perhaps("leave")

    @hookimpl
    async def event(self, event: Durable) -> None:
        if event.seq > 4:
            await self._perhaps("hook")
        await super().event(event)

    @hookimpl
    async def flush(self) -> None:
        await self._perhaps("flush")
        await super().flush()


async def raise_fault() -> None:
    raise Fault("on purpose")


async def raise_group() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_fault)


async def exit_program() -> None:
    raise SystemExit(1)


async def leak_task() -> None:
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery
    nursery.start_soon(trio.sleep_forever)
    raise Fault("with a task left behind")


@pytest.mark.parametrize("misdeed", [raise_fault, raise_group, exit_program, trio.sleep_forever, leak_task])
@pytest.mark.parametrize("place", ["open", "hook", "flush", "leave"])
async def test_bad_sink_gets_everything_and_harms_nobody(
    tmp_path: Path, autojump_clock: trio.abc.Clock, place: str, misdeed: Callable[[], Any]
) -> None:
    """A sink that raises, exits, hangs or leaks, anywhere, gets every event in order; a neighbour notices nothing."""
    bad, good = Bad(place, misdeed), Received()
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(bad.opening), "bad")
            around.deliver(sink(opens(good)), "good")
            for _ in range(3):
                await around.commit(3)
                await trio.sleep(0.5)
                assert good.seqs == list(range(1, around.journal.tip + 1))
            await around.acknowledged(9, "bad")
            if place == "leave":  # it is left only after a failure
                assert delivery.status().state == "active"
            else:
                assert len([entry for entry in logs if entry["event"] == "sink.failed"]) == 2  # of three
            assert delivery.status() == SinkStatus("bad", "made", "active", 0, 0, None)

    assert in_order(bad.seqs)[:9] == list(range(1, 10))
    assert bad.open == 0


async def test_task_of_a_sink_that_crashes_reopens_it(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A background task that a sink has put beside its hooks fails the sink, not the daemon."""
    received, openings = Received(), 0

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        nonlocal openings
        openings += 1
        async with trio.open_nursery() as nursery:
            if openings == 1:
                nursery.start_soon(raise_fault)
            yield received
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opening))
            await around.commit(3)
            await around.acknowledged(3)

    assert openings == 2
    assert in_order(received.seqs) == [1, 2, 3]


async def test_task_left_behind_does_not_hold_the_end(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A task that a sink has put into a nursery of ours ends with the sink, and the daemon can stop."""
    received = Received()

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        with suppress(Fault):
            await leak_task()
        yield received

    with trio.fail_after(100):
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opening))
            await around.commit(1)
    assert received.seqs == [1]


async def test_nursery_left_open_is_contained(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that opens a nursery and never leaves it fails like any other."""
    received, openings = Received(), 0

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        nonlocal openings
        openings += 1
        if openings == 1:
            nursery = await trio.open_nursery().__aenter__()
            nursery.start_soon(trio.sleep_forever)
        yield received
        if openings == 1:
            raise Fault

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opening))
            await around.commit(3)
            await around.acknowledged(3)

    assert in_order(received.seqs) == [1, 2, 3]


async def test_context_that_swallows_the_failure_changes_nothing(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A context that catches what went through it does not make a failure a success."""
    bad = Bad("hook", raise_fault)

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        with suppress(Exception):
            yield bad

    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opening))
            await around.commit(6)
            await around.acknowledged(6)

    assert in_order(bad.seqs) == [1, 2, 3, 4, 5, 6]
    assert logs[0]["error"].startswith("Fault (")
    assert "test_runner.py:" in logs[0]["error"]


def done_after_a_minute(received: Received) -> Callable[[Context], AbstractAsyncContextManager[object]]:
    """A context with a time limit around its `yield`: cancelled by itself, it ends without an error."""

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        with trio.move_on_after(60):
            yield received

    return opening


def crashes_quietly(received: Received) -> Callable[[Context], AbstractAsyncContextManager[object]]:
    """A context that swallows what a task of its own has raised."""

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        async def crash() -> None:
            await trio.sleep(60)
            raise Fault

        with suppress(BaseExceptionGroup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crash)
                yield received

    return opening


def raises_cancelled(received: Received) -> Callable[[Context], AbstractAsyncContextManager[object]]:
    """A hook that raises, out of its scope, what cancelled it there."""

    class Confused:
        @hookimpl
        async def event(self, event: Durable) -> None:
            await received.event(event)
            if event.seq == 3 and received.seqs.count(3) == 1:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    try:
                        await trio.lowlevel.checkpoint()
                    except trio.Cancelled as error:
                        kept = error
                raise kept

    return opens(Confused())


@pytest.mark.parametrize("wrong", [done_after_a_minute, crashes_quietly, raises_cancelled])
async def test_cancellation_of_the_sinks_own_is_not_the_end(
    tmp_path: Path,
    autojump_clock: trio.abc.Clock,
    wrong: Callable[[Received], Callable[[Context], AbstractAsyncContextManager[object]]],
) -> None:
    """A sink whose own code has cancelled it is opened again; it does not count as one that has everything."""
    received = Received()
    with structlog.testing.capture_logs() as logs, trio.fail_after(1000):
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(wrong(received)))
            await around.commit(3)
            await trio.sleep(100)
            await around.commit(3)
            await around.acknowledged(6)

    assert in_order(received.seqs) == [1, 2, 3, 4, 5, 6]
    assert "sink.failed" in events_of(logs)


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BaseException])
@pytest.mark.parametrize("where", ["open", "hook", "flush", "leave"])
async def test_whatever_is_raised_is_contained(
    tmp_path: Path, autojump_clock: trio.abc.Clock, where: str, error: type[BaseException]
) -> None:
    """A BaseException that is not an Exception does not end the daemon, wherever it is raised."""
    received, left = Received(), [error()]

    def fail(here: str) -> None:
        if here == where and left:
            raise left.pop()

    class Wild:
        @hookimpl
        async def event(self, event: Durable) -> None:
            fail("hook")
            await received.event(event)

        @hookimpl
        async def flush(self) -> None:
            fail("flush")

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        fail("open")
        yield Wild()
        fail("leave")

    with structlog.testing.capture_logs() as logs, trio.fail_after(1000):
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opening))
            await around.commit(3)
            await around.acknowledged(3)

    assert in_order(received.seqs) == [1, 2, 3]
    assert error.__name__ in logs[0]["error"]


async def test_what_returned_is_acknowledged_before_the_failure(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """When a hook raises, the events before it do not come again if flush succeeds; if flush fails too, they do."""
    for flush_fails, expected in ((False, [1, 2, 3, 4, 5, 6]), (True, [1, 2, 3, 4, 1, 2, 3, 4, 5, 6])):

        class Once(Received):
            failed = False
            fails: ClassVar[bool] = flush_fails

            @hookimpl
            async def event(self, event: Durable) -> None:
                if event.seq == 5 and not self.failed:
                    self.failed = True
                    raise Fault
                await super().event(event)

            @hookimpl
            async def flush(self) -> None:
                if self.failed and self.fails:
                    self.fails = False  # type: ignore[misc]  # of this object
                    raise Fault

        once = Once()
        with structlog.testing.capture_logs():
            async with open_delivery(tmp_path / str(flush_fails)) as around:
                await around.commit(6)
                around.deliver(sink(opens(once)))
                await around.acknowledged(6)
        assert once.seqs == expected


@pytest.mark.parametrize("grouped", [False, True])
async def test_unprocessable_event_is_set_aside(
    tmp_path: Path, autojump_clock: trio.abc.Clock, *, grouped: bool
) -> None:
    """An event that a sink will never accept is refused with its reason, and the others go on without a pause."""

    class Picky(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            if event.seq % 3 == 0:
                refusal = Unprocessable(f"no {event.seq}")
                raise ExceptionGroup("of a nursery", [refusal]) if grouped else refusal
            await super().event(event)

    picky = Picky()
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            await around.commit(7)
            delivery = around.deliver(sink(opens(picky)))
            await around.acknowledged(7)

            assert [(each.seq, each.reason) for each in await around.journal.refused("made")] == [
                (3, "no 3"),
                (6, "no 6"),
            ]
            assert delivery.status() == SinkStatus("made", "made", "active", 0, 2, None)
    assert picky.seqs == [1, 2, 4, 5, 7]
    assert events_of(logs) == ["event.refused"] * 2


async def test_an_unprocessable_event_whose_reason_cannot_be_encoded_is_set_aside(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """The reason is kept as far as it can be, in a bounded length: otherwise the event would come again and again."""

    class Picky(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            raise Unprocessable("bad \ud800" + "x" * 10_000)

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            await around.commit(1)
            around.deliver(sink(opens(Picky())))
            await around.acknowledged(1)
            ((_, reason),) = [(each.seq, each.reason) for each in await around.journal.refused("made")]

    assert reason.startswith("bad \\ud800xx")
    assert len(reason) == 2000


async def test_unprocessable_of_a_flush_is_found_one_by_one(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that sends in `flush` and is told that something is unprocessable gets events singly until it is found."""

    class Sender:
        def __init__(self) -> None:
            self.batch: list[int] = []
            self.sent: list[int] = []

        @hookimpl
        async def event(self, event: Durable) -> None:
            self.batch.append(event.seq)

        @hookimpl
        async def flush(self) -> None:
            batch, self.batch = self.batch, []
            if 7 in batch:
                raise Unprocessable("seven")
            self.sent += batch

    sender = Sender()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            await around.commit(20)
            around.deliver(sink(opens(sender)))
            await around.acknowledged(20)
            assert [(each.seq, each.reason) for each in await around.journal.refused("made")] == [(7, "seven")]

    assert sender.sent == [number for number in range(1, 21) if number != 7]


# Threads


class Blocking:
    """A sink whose hook blocks its thread until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seqs: list[int] = []
        self.in_hook = 0
        self.opened = 0

    @asynccontextmanager
    async def opening(self, context: Context) -> AsyncIterator[object]:
        self.opened += 1
        yield self
        assert not self.in_hook, "its context was left while a thread was in it"

    @hookimpl
    def turn(self, event: Turn) -> None:
        self.in_hook += 1
        self.go.wait(20)
        self.seqs.append(event.seq)
        self.in_hook -= 1


async def test_hanging_thread_is_left_alone_and_waited_for(tmp_path: Path) -> None:
    """A call that takes longer than the timeout is reported, delays no other sink, and counts when it has returned."""
    blocking, good = Blocking(), Received()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
            delivery = around.deliver(sink(blocking.opening, timeout=0.2), "blocking")
            around.deliver(sink(opens(good)), "good")
            await around.commit(3)
            await around.acknowledged(4, "good")  # the three, and the notice
            assert delivery.status().state == "stuck"
            assert (blocking.in_hook, blocking.opened, blocking.seqs) == (1, 1, [])
            (notice,) = await around.journal.select("", ["notice"], 0, 1)
            assert isinstance(notice, Notice)
            assert (notice.code, notice.severity) == ("sink.stuck", "error")

            blocking.go.set()
            await around.acknowledged(3, "blocking")
    assert blocking.seqs == [1, 2, 3]
    assert blocking.opened == 2


async def test_sink_that_is_always_too_slow_makes_progress(tmp_path: Path) -> None:
    """A sink whose every call outlives the timeout gets each event once and one notice, not an endless stream."""

    class Slow:
        def __init__(self) -> None:
            self.seqs: list[int] = []

        @hookimpl
        def event(self, event: Durable) -> None:
            time.sleep(0.2)
            self.seqs.append(event.seq)

    slow = Slow()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
            await around.commit(4)
            around.deliver(sink(opens(slow), timeout=0.05))
            await around.acknowledged(5)
            assert around.journal.tip == 5

    assert slow.seqs == [1, 2, 3, 4, 5]


async def test_the_context_is_left_after_the_thread(tmp_path: Path) -> None:
    """Cancelled at the very end, a hook that takes longer than any patience is waited for: its files stay open."""
    blocking, left = Blocking(), list[int]()

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        try:
            yield blocking
        finally:
            left.append(blocking.in_hook)

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
            await around.commit(1)
            async with trio.open_nursery() as nursery:
                around._nursery = nursery
                runner = around.deliver(sink(opening, timeout=0.1))
                while not blocking.in_hook:  # noqa: ASYNC110 - a thread has no event of trio
                    await trio.sleep(0.01)
                threading.Timer(5, blocking.go.set).start()
                nursery.cancel_scope.cancel()
    assert (left, blocking.seqs, runner.over.is_set()) == ([0], [1], True)


async def test_crash_beside_a_thread_waits_for_the_thread(tmp_path: Path) -> None:
    """When a task of the sink crashes while a thread is in a hook, the context is left only after the thread."""
    blocking = Blocking()
    crash = trio.Event()

    async def crash_later() -> None:
        await crash.wait()
        raise Fault

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        async with blocking.opening(context), trio.open_nursery() as nursery:
            if blocking.opened == 1:
                nursery.start_soon(crash_later)
            yield blocking
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
            await around.commit(1)
            around.deliver(sink(opening))
            while not blocking.in_hook:  # noqa: ASYNC110 - a thread has no event of trio
                await trio.sleep(0.01)
            crash.set()
            await trio.sleep(0.1)
            assert (blocking.in_hook, blocking.opened) == (1, 1)
            blocking.go.set()
            await around.acknowledged(1)

    assert in_order(blocking.seqs) == [1]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Fault, StopIteration])
async def test_exit_in_a_thread_is_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    """sys.exit() in a hook does not end the daemon."""

    class Exiting:
        def __init__(self) -> None:
            self.calls: list[str] = []

        @hookimpl
        def event(self, event: Durable) -> None:
            self.calls.append(f"event {event.seq}")
            if self.calls == ["event 1", "event 2"]:
                raise error

        @hookimpl
        def flush(self) -> None:
            self.calls.append("flush")

    exiting = Exiting()
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
            await around.commit(2)
            around.deliver(sink(opens(exiting)))
            await around.acknowledged(2)

    assert exiting.calls == ["event 1", "event 2", "flush", "event 2", "flush"]
    assert error.__name__ in logs[0]["error"]


# Configuration errors


class Misspelt:
    @hookimpl
    def trun(self, event: Turn) -> None:
        pass


class WrongArgument:
    @hookimpl
    def turn(self, evnt: Turn) -> None:
        pass


class Unmarked:
    def turn(self, event: Turn) -> None:
        pass


class Yielding:
    @hookimpl
    def turn(self, event: Turn) -> Iterator[None]:
        yield


class Awaiting:
    @hookimpl
    def turn(self, event: Turn) -> Any:
        return raise_fault()


class Wrapping:
    @hookimpl(wrapper=True)
    def turn(self, event: Turn) -> Any:
        return (yield)


@pytest.mark.parametrize(
    ("opening", "text"),
    [
        (opens(Misspelt()), "there is no hook trun; did you mean turn?"),
        (opens(WrongArgument()), "turn has the argument evnt"),
        (opens(Unmarked()), "has no method marked with @hookimpl"),
        (opens(None), "has no method marked with @hookimpl"),
        (opens(Yielding()), "turn contains `yield`"),
        (opens(Awaiting()), "turn returned an awaitable; write it as `async def`"),
        (opens(Wrapping()), "turn is a hook wrapper"),
        (lambda _: None, "put @asynccontextmanager above it"),
        (lambda _: raise_fault(), "put @asynccontextmanager above it"),
    ],
)
async def test_misfit_is_explained_and_loses_nothing(
    tmp_path: Path, opening: Callable[[Context], Any], text: str
) -> None:
    """A sink whose hooks are wrong is a configuration error that says what to do; its events wait in the journal."""
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
            delivery = around.deliver(sink(opening))
            await around.commit(1)
            while delivery.status().behind < 2:  # noqa: ASYNC110 - the event, and the notice
                await trio.sleep(0.01)
            await trio.sleep(0.05)
            assert delivery.status().state == "configuration error"
            assert text in (delivery.status().error or "")
            (notice,) = await around.journal.select("", ["notice"], 0, 1)
            assert isinstance(notice, Notice)
            assert (notice.code, text in notice.text) == ("sink.misfit", True)
            assert await around.journal.cursor("made") == 0


async def test_misfit_is_tried_again_slowly(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A configuration error does not mend itself: in a day it costs some dozens of attempts and one notice."""
    openings = 0

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        nonlocal openings
        openings += 1
        yield Misspelt()

    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opening))
            await trio.sleep(86_400)
            assert around.journal.tip == 1
    assert 20 < openings < 120
    assert len([entry for entry in logs if entry["event"] == "sink.failed"]) < 9


# Telling people


@pytest.mark.parametrize(
    ("wish", "waited"),
    [(90.0, 90.0), (1e9, LONGEST_WAIT), (float("inf"), LONGEST_WAIT), (float("nan"), 0.0), ("soon", 0.0), (-5, 0.0)],
)
async def test_a_wish_to_be_left_alone_is_granted(
    tmp_path: Path, autojump_clock: trio.abc.Clock, wish: object, waited: float
) -> None:
    """`retry_after` of an exception delays the next attempt, by an hour at most; invalid values are ignored."""
    calls: list[float] = []

    class BusyError(Exception):
        retry_after = wish

    class Grumpy:
        @hookimpl
        async def event(self, event: Durable) -> None:
            calls.append(trio.current_time())
            if len(calls) == 1:
                raise BusyError

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(Grumpy())))
            await around.commit(1)
            await trio.sleep(2 * LONGEST_WAIT)
    # Without a wish the first delay is at most half a second.
    assert waited <= calls[1] - calls[0] <= waited + 1


async def test_a_wish_does_not_hold_the_end(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """At the end a sink that asked for an hour is tried once more, immediately, and then left."""
    calls: list[float] = []

    class BusyError(Exception):
        retry_after = 3600.0

    class Grumpy:
        @hookimpl
        async def event(self, event: Durable) -> None:
            calls.append(trio.current_time())
            raise BusyError

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(Grumpy())))
            await around.commit(1)
            await trio.sleep(10)
    assert len(calls) == 2
    assert calls[1] - calls[0] < 11


async def test_short_trouble_is_no_news(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A receiver that is away for a minute costs a line in the log and no notice."""
    bad = Bad("open", raise_fault)
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(bad.opening))
            await around.commit(1)
            await trio.sleep(600)
            assert around.journal.tip == 1
    assert events_of(logs) == ["sink.failed", "sink.failed", "sink.recovered"]


async def test_long_trouble_is_told_once_and_its_end_once(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A receiver that is away for hours is a notice after some minutes and another when it is back; nothing is lost."""
    received, is_away = Received(), True

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        if is_away:
            raise Fault("connection refused")
        yield received

    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opening))
            await around.commit(5)
            await trio.sleep(100)
            assert around.journal.tip == 5
            await trio.sleep(6 * 3600)  # some 700 attempts, with an fsync or two each
            assert around.journal.tip == 6
            assert delivery.status().state == "failing"
            assert delivery.status().behind == 6
            is_away = False
            await trio.sleep(300)
            assert delivery.status() == SinkStatus("made", "made", "active", 0, 0, None)

            notices = await around.journal.select("", ["notice"], 0, 1)
            assert [notice.code for notice in notices if isinstance(notice, Notice)] == [
                "sink.failing",
                "sink.recovered",
            ]
            texts = [notice.text for notice in notices if isinstance(notice, Notice)]
    assert "Fault (" in texts[0]
    assert "connection refused" not in texts[0], "it could be what was said"
    assert received.seqs == [1, 2, 3, 4, 5, 6, 7]
    assert len([entry for entry in logs if entry["event"] == "sink.failed"]) < 12


async def test_flapping_sink_makes_no_stream_of_notices(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that fails and recovers all day, its own notices included, is told of a few times."""
    began = trio.current_time()

    class Flapping(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            if (trio.current_time() - began) % 600 < 300:
                raise Fault
            await super().event(event)

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(Flapping())))
            for _ in range(24 * 10):
                await around.commit(1)
                await trio.sleep(360)
            assert around.journal.tip - 24 * 10 < 8
            await trio.sleep(600)


# The live feed


async def test_live_hooks_are_best_effort(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Live hooks get what happens now; one that raises or hangs costs a line in the log and no durable event."""

    class Captions(Received):
        def __init__(self) -> None:
            super().__init__()
            self.texts: list[str] = []

        @hookimpl
        async def interim(self, event: Interim) -> None:
            self.texts.append(event.text)
            if event.text == "raise":
                raise Fault
            if event.text == "hang":
                await trio.sleep_forever()

    captions = Captions()
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opens(captions), rooms=("desk",)))
            await trio.testing.wait_all_tasks_blocked()
            for room, text in (("desk", "hello"), ("lab", "no"), ("desk", "raise"), ("desk", "hang"), ("desk", "end")):
                around.live.publish(Interim(room=room, position=0, at=NOW, session_id="s", turn_order=0, text=text))
                around.live.publish(Level(room=room, position=0, at=NOW, rms=-20, peak=-10))
            await around.commit(3)
            await around.acknowledged(3)
            assert delivery.status().state == "active"
            await trio.sleep(60)

    assert captions.texts == ["hello", "raise", "hang", "end"]
    assert captions.seqs == [1, 2, 3]
    assert events_of(logs) == ["sink.live_failed"] * 2


async def test_hooks_of_a_sink_never_overlap(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Calls of one sink never overlap: live hooks wait for the batch, and the batch for them."""

    class Counting(Received):
        inside = 0

        async def _alone(self) -> None:
            self.inside += 1
            assert self.inside == 1
            await trio.sleep(0.05)
            self.inside -= 1

        @hookimpl
        async def event(self, event: Durable) -> None:
            await self._alone()
            await super().event(event)

        @hookimpl
        async def level(self, event: Level) -> None:
            await self._alone()

    counting = Counting()
    async with open_delivery(tmp_path) as around:
        around.deliver(sink(opens(counting)))
        for position in range(20):
            around.live.publish(Level(room="desk", position=position, at=NOW, rms=-20, peak=-10))
            await around.commit(1)
            await trio.sleep(0.04)
        await around.acknowledged(20)
    assert counting.seqs == list(range(1, 21))


# The end


async def test_closing_drains_and_leaves(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """When no more will come, a sink gets what is left, is flushed and left, and its task ends."""

    class Slow(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            await trio.sleep(0.5)
            await super().event(event)

    slow, left = Slow(), []

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        yield slow
        left.append(list(slow.flushes))

    async with open_delivery(tmp_path) as around:
        around.deliver(sink(opening))
        await around.commit(10)
    async with open_delivery(tmp_path) as around:
        assert await around.journal.cursor("made") == 10
    assert slow.seqs == list(range(1, 11))
    assert left[0][-1] == 10


async def test_closing_tries_a_failing_sink_once_more(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink in its back-off is tried immediately when the daemon stops; the remaining events wait in the journal."""
    openings = 0

    @asynccontextmanager
    async def opening(context: Context) -> AsyncIterator[object]:
        nonlocal openings
        openings += 1
        raise Fault
        yield

    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            await around.commit(4)
            around.deliver(sink(opening))
            await trio.sleep(50)
            before, stopped = openings, trio.current_time()
            around.finish()
        assert trio.current_time() - stopped < 1
    assert openings == before + 1
    assert logs[-1] == {"event": "sink.behind", "log_level": "warning", "sink": "made", "events": 4}


async def test_journal_errors_are_not_the_sinks(tmp_path: Path) -> None:
    """An error of the journal ends the daemon, and does not count as a failure of every sink."""
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - it is raised at some time within
        async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
            around.deliver(sink(opens(Received())))
            await around.commit(1)
            await around.acknowledged(1)
            around.journal._database._writer.execute("DROP TABLE sinks")
            await around.commit(1)
            await trio.sleep(5)

    assert caught.group_contains(JournalError)


async def test_at_least_once_over_a_crash(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Killed at any moment and started again, a sink has every event, in order; what was acknowledged stays so."""
    received = Received()
    path = tmp_path
    for life in range(8):
        async with open_delivery(path) as around:
            acknowledged = await around.journal.cursor("made") or 0
            assert in_order(received.seqs)[:acknowledged] == list(range(1, acknowledged + 1))
            received.seqs = received.seqs[:acknowledged]  # the receiver may have lost the rest, and gets it again
            # The machine went down, and no sink is suspected: see `test_quarantine.py`.
            await around.journal.commit(Mark("sink/made/trial", None))
            around.deliver(sink(opens(received)))
            await around.commit(7)
            for _ in range(life * 3):
                await trio.lowlevel.checkpoint()
            path = crash(path / "journal.db", tmp_path / str(life)).parent
            around._nursery.cancel_scope.cancel()
    async with open_delivery(path) as around:
        received.seqs = received.seqs[: await around.journal.cursor("made") or 0]
        await around.journal.commit(Mark("sink/made/trial", None))
        around.deliver(sink(opens(received)))

    assert received.seqs == list(range(1, 57))


async def test_backlog_is_delivered_in_bounded_memory(tmp_path: Path) -> None:
    """A sink that is 100,000 events behind is brought up to date without having them in memory."""

    class Counting:
        count = 0

        @hookimpl
        def event(self, event: Durable) -> None:
            self.count += 1
            assert event.seq == self.count

    counting = Counting()
    async with open_journal(tmp_path / "journal.db") as journal:
        for _ in range(100):
            await journal.commit(*[turn()] * 1000)
    async with open_delivery(tmp_path, run_sync=trio.to_thread.run_sync) as around:
        tracemalloc.start()
        try:
            around.deliver(sink(opens(counting)))
            await around.acknowledged(100_000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert counting.count == 100_000
    assert peak < 10_000_000
