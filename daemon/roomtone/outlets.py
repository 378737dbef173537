"""The sinks at work: each one a delivery of its own, begun and left one by one."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trio

from roomtone import places
from roomtone.delivery import Delivery, SinkStatus
from roomtone.journal import Journal
from roomtone.live import Live
from roomtone.sinks import Context, Sink


class Outlet:
    """One sink at work: `over` is set when its context is left and nothing of it runs any more."""

    def __init__(self, name: str, sink: Sink, context: Context, journal: Journal, live: Live) -> None:
        self.name = name
        self.sink = sink
        self.context = context
        self.over = trio.Event()
        self._closing = trio.Event()
        self._delivery = Delivery(name, sink, journal=journal, live=live, context=context, closing=self._closing)

    async def run(self) -> None:
        """Deliver until `finish` or `leave` is called and done. Errors: those of the journal."""
        try:
            await self._delivery.run()
        finally:
            self.over.set()

    def status(self) -> SinkStatus:
        """How it stands at this moment."""
        return self._delivery.status()

    def finish(self) -> None:
        """No more events will be committed: deliver what there is, then end."""
        self._closing.set()

    def leave(self) -> None:
        """End after the batch that is under way: another goes on from the cursor."""
        self._delivery.leave()


class Grounds(NamedTuple):
    """Where sinks keep things: relative paths begin in `folder`, each one's own state lies in `state`."""

    folder: Path
    state: Path


class Outlets:
    """The sinks at work, by name. Their tasks belong to the nursery."""

    def __init__(self, nursery: trio.Nursery, journal: Journal, live: Live, grounds: Grounds) -> None:
        self._nursery = nursery
        self._journal = journal
        self._live = live
        self._grounds = grounds
        self._outlets: dict[str, Outlet] = {}

    def __iter__(self) -> Iterator[Outlet]:
        return iter(self._outlets.values())

    def begin(self, name: str, sink: Sink, rates: dict[str, int]) -> None:
        """Deliver to a sink, from its cursor on. `rates` has each room's rate in Hz."""
        state = places.private_folder(self._grounds.state / name)
        context = Context(name=name, folder=self._grounds.folder, state=state, rates=rates)
        outlet = self._outlets[name] = Outlet(name, sink, context, self._journal, self._live)
        self._nursery.start_soon(outlet.run)

    def finish(self) -> None:
        """No more events will be committed: let them all deliver what there is, and end."""
        for outlet in self:
            outlet.finish()
