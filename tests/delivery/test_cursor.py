"""Laws of a sink's cursor: it never passes an event that the sink has not had, and never stands still for nothing."""

from pathlib import Path
from typing import Any

import structlog
import trio

from delivery.test_runner import Received, open_delivery, opens, sink, turn
from roomtone.delivery.controls import control_mark
from roomtone.events import Durable
from roomtone.sinks import hookimpl


async def test_new_sink_begins_where_the_journal_was_when_it_was_made(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A sink that begins now gets what is committed between its making and its first look at the journal."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        await around.commit(3)
        delivery = around.make(sink(opens(received), start="now"))
        await around.commit(1)
        around._nursery.start_soon(delivery.run)

    assert received.seqs == [4]


async def test_durable_cursor_follows_a_replay(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A replayed event is acknowledged durably, though the sink had acknowledged it before."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        delivery = around.deliver(sink(opens(received)))
        await around.commit(5)
        await around.acknowledged(5)
        await around.journal.commit(control_mark("made", 2))
        delivery.check_controls()
        await trio.sleep(1)
        assert received.seqs == [1, 2, 3, 4, 5, 3, 4, 5]
        assert await around.journal.cursor("made") == 5


async def test_replay_of_what_is_still_to_come_changes_nothing(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """An order to go back to a place that lies ahead of the cursor skips no event."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        await around.commit(5)
        await around.journal.advance("made", 1)
        await around.journal.commit(control_mark("made", 4))
        around.deliver(sink(opens(received)))

    assert received.seqs == [2, 3, 4, 5]


async def test_cursor_passes_rows_that_cannot_be_read(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Unreadable rows at the end of the journal are behind the sink, and cost no loop."""
    received = Received()
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            await around.commit(3)
            writer: Any = around.journal._database._writer
            writer.execute("UPDATE events SET body = '{}' WHERE seq > 1")
            writer.commit()
            delivery = around.deliver(sink(opens(received)))
            for _ in range(500):
                await trio.lowlevel.checkpoint()
            assert delivery.status().behind == 0
            assert delivery.has(3)
        assert len([entry for entry in logs if entry["event"] == "journal.unreadable"]) < 10
    async with open_delivery(tmp_path) as around:
        assert await around.journal.cursor("made") == 3
    assert received.seqs == [1]


async def test_event_that_comes_during_a_look_is_not_passed(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Wherever in the sink's look at the journal an event is committed, and the end announced, the sink gets it.

    What wakes the sink is an event that it does not want, so that it reads while no task waits for its commits. Many
    rounds, for the order of the tasks is trio's to choose.
    """
    async with open_delivery(tmp_path) as around:
        for number in range(150):
            received = Received()
            runner = around.deliver(sink(opens(received), start="now", rooms=("desk",)), str(number))
            await trio.sleep(1)
            await around.commit(1, room="lab")
            for _ in range(number % 6):
                await trio.lowlevel.checkpoint()
            await around.commit(1)
            runner.finish()
            await trio.sleep(1)
            assert len(received.seqs) == 1, number


async def test_acknowledged_means_everything_up_to_there(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink has an event when its hook has returned, and not before."""

    class Slow(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            await trio.sleep(10)
            await super().event(event)

    async with open_delivery(tmp_path) as around:
        delivery = around.deliver(sink(opens(Slow())))
        await around.journal.commit(turn(1))
        await trio.sleep(5)
        assert (delivery.has(0), delivery.has(1)) == (True, False)
        await trio.sleep(10)
        assert (delivery.has(1), delivery.has(2)) == (True, False)


async def test_batches_grow_again_after_a_failure(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that has failed gets one event, then twice as many each time: a backlog is not brought one by one."""

    class Once(Received):
        is_away = True

        @hookimpl
        async def flush(self) -> None:
            if self.is_away:
                self.is_away = False
                self.seqs.clear()
                raise OSError("away")
            await super().flush()

    once = Once()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            await around.commit(40)
            around.deliver(sink(opens(once)))
            await around.acknowledged(40)
    assert once.flushes == [1, 3, 7, 15, 31, 40]
