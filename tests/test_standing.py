"""Laws of how a sink stands: who is told of it when, and when it is tried again."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import structlog
import trio

from roomtone.events import Durable
from roomtone.hooks import Misfit
from roomtone.journal import open_journal
from roomtone.orders import cancel, mark_of
from roomtone.sinks import Context, hookimpl
from roomtone.standing import Standing
from test_delivery import Received, house, opens, sink
from test_orders import PAUSE


async def test_no_notice_once_the_journal_is_closing(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """When no more events will come, none is made of a sink: the others would have to wait for it."""
    closing = trio.Event()
    with structlog.testing.capture_logs():
        async with open_journal(tmp_path / "journal.db", inline=True) as journal:
            standing = Standing("made", journal, closing)
            await standing.fail(Misfit("wrong"), 0)
            assert journal.tip == 1
            closing.set()
            await Standing("other", journal, closing).fail(Misfit("wrong"), 0)
            await Standing("third", journal, closing).hang("a hook takes longer", 30.0)
            assert journal.tip == 1


class Failing:
    """Fails at each event, and notes when."""

    def __init__(self, **attributes: Any) -> None:
        self.calls: list[float] = []
        self._attributes = attributes

    @hookimpl
    async def event(self, event: Durable) -> None:
        self.calls.append(trio.current_time())
        error = OSError("away")
        for name, value in self._attributes.items():
            setattr(error, name, value)
        raise error


async def test_a_pause_begins_the_back_off_anew(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that goes on after a pause is tried soon and often at first, however long it has failed before."""
    failing = Failing()
    with structlog.testing.capture_logs():
        async with house(tmp_path) as around:
            delivery = around.deliver(sink(opens(failing)))
            await around.commit(1)
            await trio.sleep(3600)
            await around.journal.commit(PAUSE)
            delivery.look()
            await trio.sleep(1)
            await around.journal.commit(cancel("made", "paused"))
            delivery.look()
            resumed = trio.current_time()
            await trio.sleep(10)
            # At once, and after at most 0.5, 1, 2 and 4 seconds.
            assert len([call for call in failing.calls if call >= resumed]) >= 5
            await around.journal.commit(PAUSE)


async def test_orders_reach_a_sink_that_rests(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that has asked for an hour is paused, and goes on, and is tried again, within the hour."""
    failing = Failing(retry_after=3600.0)
    with structlog.testing.capture_logs():
        async with house(tmp_path) as around:
            delivery = around.deliver(sink(opens(failing)))
            await around.commit(1)
            await trio.sleep(10)
            delivery.look()  # somebody has written the journal: an order for another one
            await trio.sleep(1)
            assert (delivery.status().state, len(failing.calls)) == ("failing", 1)
            await around.journal.commit(PAUSE)
            delivery.look()
            await trio.sleep(1)
            assert delivery.status().state == "paused"
            await around.journal.commit(cancel("made", "paused"))
            delivery.look()
            await trio.sleep(1)
            assert (delivery.status().state, len(failing.calls)) == ("failing", 2)
            await around.journal.commit(mark_of("made", 0))
            delivery.look()
            await trio.sleep(1)
            assert await around.journal.mark("sink/made/rewind") is None


async def test_status_of_a_sink_that_waits_is_what_failed_last(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """What failed stands in the status until the sink is active again, and no longer."""
    failing, received = Failing(), Received()
    plugin: list[object] = [failing]

    def opening(context: Context) -> AbstractAsyncContextManager[object]:
        return opens(plugin[0])(context)

    with structlog.testing.capture_logs():
        async with house(tmp_path) as around:
            delivery = around.deliver(sink(opening))
            await around.commit(1)
            await trio.sleep(10)
            assert (delivery.status().state, "away" in (delivery.status().error or "")) == ("failing", True)
            plugin[0] = received
            await trio.sleep(100)
            assert (delivery.status().state, delivery.status().error) == ("active", None)
