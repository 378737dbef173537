"""The live feed: interim text and levels, best effort, for those who look right now.

Nothing here is durable or acknowledged. Publishing never waits, so a subscriber that is slow loses its oldest events,
counted, and nobody else notices.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import trio

from roomtone.events import Interim, Level

LiveEvent: TypeAlias = Interim | Level


def _everything(event: LiveEvent) -> bool:
    return True


class Subscription:
    """The live events since it began, for one reader: `async for event in subscription`, which ends never by itself.

    It holds at most `bound` events; then the oldest goes for the newest, and `dropped` counts it.
    """

    def __init__(self, bound: int, wanted: Callable[[LiveEvent], bool]) -> None:
        self.dropped = 0
        self._waiting: deque[LiveEvent] = deque(maxlen=bound)
        self._wanted = wanted
        self._reader = trio.lowlevel.ParkingLot()

    def offer(self, event: LiveEvent) -> None:
        """Take the event if it is wanted. Never waits."""
        if not self._wanted(event):
            return
        if len(self._waiting) == self._waiting.maxlen:
            self.dropped += 1
        self._waiting.append(event)
        self._reader.unpark()

    def clear(self, room: str) -> None:
        """Drop what waits of this room, uncounted: somebody wishes it."""
        self._waiting = deque((event for event in self._waiting if event.room != room), self._waiting.maxlen)

    def __aiter__(self) -> AsyncIterator[LiveEvent]:
        return self

    async def __anext__(self) -> LiveEvent:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._waiting:
            await self._reader.park()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self._waiting.popleft()


class Live:
    """Where capture and streaming publish live events, and sinks and the control socket listen."""

    def __init__(self) -> None:
        # A dict for its order: who subscribed first is served first.
        self._subscriptions: dict[Subscription, None] = {}

    def publish(self, event: LiveEvent) -> None:
        """Hand the event to every subscription. Never waits; without a subscription it is gone."""
        for subscription in self._subscriptions:
            subscription.offer(event)

    def clear(self, room: str) -> None:
        """Drop what any subscription still holds of this room."""
        for subscription in self._subscriptions:
            subscription.clear(room)

    @contextmanager
    def subscribe(
        self, bound: int = 64, *, wanted: Callable[[LiveEvent], bool] = _everything
    ) -> Iterator[Subscription]:
        """The live events from now to the end of the context, `wanted` ones only, at most `bound` waiting."""
        subscription = Subscription(bound, wanted)
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription]
