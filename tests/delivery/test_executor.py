"""Laws of the calls into a sink: each is watched by itself, and what a hook of the live feed does is seen too."""

import threading
from pathlib import Path

import structlog
import trio
import trio.testing

from delivery.test_runner import NOW, events_of, open_delivery, opens, sink
from roomtone.events import Durable, Level, Turn
from roomtone.sinks import hookimpl

LEVEL = Level(room="desk", position=0, at=NOW, rms=-20, peak=-10)


class Passing:
    """Synchronous hooks during which virtual seconds pass: by the event's seq, and by 0 for the flush."""

    def __init__(self, clock: trio.testing.MockClock, seconds: dict[int, float], *, in_steps: bool = False) -> None:
        self.seqs: list[int] = []
        self.finished = trio.Event()
        self._clock = clock
        self._seconds = seconds
        self._in_steps = in_steps

    @hookimpl
    def event(self, event: Durable) -> None:
        trio.from_thread.run(self._pass, self._seconds.get(event.seq, 0.0))
        self.seqs.append(event.seq)

    @hookimpl
    def flush(self) -> None:
        trio.from_thread.run(self._pass, self._seconds.get(0, 0.0))
        trio.from_thread.run_sync(self.finished.set)

    async def _pass(self, seconds: float) -> None:
        """Two steps, so that it is looked at near the beginning too."""
        for step in (seconds / 5, seconds * 4 / 5) if self._in_steps else (seconds,):
            self._clock.jump(step)
            await trio.testing.wait_all_tasks_blocked()


async def test_the_timeout_is_for_one_call(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    """A batch whose calls together take longer than the timeout, but none of them alone, does not hang."""
    passing = Passing(mock_clock, dict.fromkeys(range(6), 20.0), in_steps=True)
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            await around.commit(5)
            around.deliver(sink(opens(passing), timeout=30.0))
            await passing.finished.wait()

    assert passing.seqs == [1, 2, 3, 4, 5]
    assert events_of(logs) == []


async def test_a_loop_that_stood_still_makes_no_hang(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    """If the loop was blocked for longer than the timeout, but calls returned meanwhile, the sink does not hang."""
    passing = Passing(mock_clock, {2: 40.0})
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            await around.commit(3)
            around.deliver(sink(opens(passing), timeout=30.0))
            await passing.finished.wait()

    assert passing.seqs == [1, 2, 3]
    assert events_of(logs) == []


async def test_a_live_hook_that_hangs_shows(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink whose live hook hangs in its thread is stuck, and active again when the call has returned."""
    go = threading.Event()

    class Lamp:
        @hookimpl
        def level(self, event: Level) -> None:
            go.wait(20)

        @hookimpl
        def turn(self, event: Turn) -> None: ...

    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opens(Lamp())))
            await trio.sleep(1)
            around.live.publish(LEVEL)
            await trio.sleep(100)
            # The notice of it has come by meanwhile, which this sink does not want.
            assert (delivery.status().state, delivery.status().behind) == ("stuck", 0)
            go.set()
            while delivery.status().state == "stuck":  # noqa: ASYNC110 - a thread has no event of trio
                await trio.sleep(1)
            assert delivery.status().state == "active"
            await trio.sleep(30)
            assert around.journal.tip == 1
            await trio.sleep(100)
            assert around.journal.tip == 2

    assert events_of(logs) == ["sink.stuck", "sink.live_failed", "sink.recovered"]


async def test_cancelled_in_a_thread_it_calls_nothing_more(tmp_path: Path) -> None:
    """At the very end of the daemon a batch with hooks of both sorts ends with the call that is under way."""
    calls: list[int] = []
    cancelling = trio.CancelScope()

    class Mixed:
        @hookimpl
        def event(self, event: Durable) -> None:
            calls.append(event.seq)
            trio.from_thread.run_sync(cancelling.cancel)

        @hookimpl
        async def flush(self) -> None:
            calls.append(0)

    async with open_delivery(tmp_path) as around:
        await around.commit(3)
        with cancelling:
            await around.make(sink(opens(Mixed()))).run()
        assert await around.journal.cursor("made") == 0

    assert (cancelling.cancelled_caught, calls) == (True, [1])
