"""The live feed: interim text and levels, best effort, for subscribers of the moment.

Nothing here is durable or acknowledged. Publishing never waits: a slow subscriber loses its oldest events, which are
counted, and no other subscriber is affected.
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
    """The live events since it began, for one reader: `async for event in subscription`, until cancelled.

    It holds at most `bound` events; beyond that the oldest is dropped, and `dropped` counts it.
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
        """Drop the waiting events of this room, uncounted: they are to be forgotten."""
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
    """Capture and streaming publish live events here; sinks and the control socket subscribe to them."""

    def __init__(self) -> None:
        # A dict for its order: the first subscription is served first.
        self._subscriptions: dict[Subscription, None] = {}

    def publish(self, event: LiveEvent) -> None:
        """Offer the event to every subscription. Never waits."""
        for subscription in self._subscriptions:
            subscription.offer(event)

    def clear(self, room: str) -> None:
        """Drop the events of this room that any subscription still holds."""
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
