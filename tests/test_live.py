"""Laws of the live feed."""

from datetime import UTC, datetime

import trio
import trio.testing

from roomtone.events import Interim, Level
from roomtone.live import Live

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def level(position: int) -> Level:
    return Level(room="desk", position=position, at=NOW, rms=-40.0, peak=-20.0)


async def test_everybody_gets_what_comes_after_they_came() -> None:
    """A subscription has the events between its beginning and its end, in order."""
    live = Live()
    live.publish(level(1))
    with live.subscribe() as early:
        live.publish(level(2))
        with live.subscribe() as late:
            live.publish(level(3))

            assert (await anext(early)).position == 2
            assert (await anext(early)).position == 3
            assert (await anext(late)).position == 3
    live.publish(level(4))


async def test_slow_reader_loses_the_oldest_and_knows_how_many() -> None:
    """Publishing never waits: a full subscription drops its oldest events and counts them; others lose nothing."""
    live = Live()
    with live.subscribe(bound=3) as slow, live.subscribe(bound=100) as quick:
        for position in range(10):
            live.publish(level(position))

        assert slow.dropped == 7
        assert [(await anext(slow)).position for _ in range(3)] == [7, 8, 9]
        assert quick.dropped == 0


async def test_waits_for_the_next_event() -> None:
    """A reader with nothing to read sleeps until something is published."""
    live = Live()
    seen: list[int] = []

    with live.subscribe() as subscription:

        async def read() -> None:
            while True:
                seen.append((await anext(subscription)).position)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert seen == []

            live.publish(level(5))
            await trio.testing.wait_all_tasks_blocked()
            assert seen == [5]

            nursery.cancel_scope.cancel()


async def test_cancelled_reader_loses_nothing() -> None:
    """A reader that is cancelled while it waits has taken no event with it."""
    live = Live()
    with live.subscribe() as subscription:
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(subscription)
        live.publish(level(1))
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(subscription)

        assert (await anext(subscription)).position == 1


async def test_unwanted_events_take_no_room() -> None:
    """What a subscription does not want neither wakes its reader nor pushes out what it wants."""
    live = Live()
    text = Interim(room="desk", position=0, at=NOW, session_id="s", turn_order=0, text="hello")
    with live.subscribe(bound=1, wanted=lambda event: isinstance(event, Interim)) as subscription:
        live.publish(text)
        for position in range(5):
            live.publish(level(position))

        assert await anext(subscription) == text
        assert subscription.dropped == 0


async def test_what_waits_of_one_room_can_be_dropped() -> None:
    """Clearing takes what waits of that room from every subscription, and nothing of another one."""
    live = Live()
    other = Level(room="hall", position=9, at=NOW, rms=-40.0, peak=-20.0)
    with live.subscribe(bound=3) as reader:
        for event in (level(1), other, level(2)):
            live.publish(event)
        live.clear("desk")
        for position in range(3, 7):
            live.publish(level(position))

        assert [(await anext(reader)).position for _ in range(3)] == [4, 5, 6]
        assert reader.dropped == 2
