"""The sinks at work: each one a delivery of its own, begun and left one by one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog
import trio

from roomtone.delivery.errors import describe
from roomtone.delivery.health import SinkStatus
from roomtone.delivery.runner import SinkRunner
from roomtone.journal.journal import Journal
from roomtone.live import Live
from roomtone.sinks import Context, Sink

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

CONTROLS_CHECK_INTERVAL_S = 1.0
"""Seconds from an order to its effect, at most; then the batch that is under way ends first."""


class Outlet:
    """One sink at work: `over` is set when its context is left and nothing of it runs any more."""

    def __init__(self, name: str, sink: Sink, context: Context, journal: Journal, live: Live) -> None:
        self.name = name
        self.over = trio.Event()
        self._closing = trio.Event()
        self._delivery = SinkRunner(name, sink, journal=journal, live=live, context=context, closing=self._closing)

    async def run(self) -> None:
        """Deliver until `finish` or `leave` is called and done. Errors: those of the journal."""
        try:
            await self._delivery.run()
        finally:
            self.over.set()

    def status(self) -> SinkStatus:
        """How it stands at this moment."""
        return self._delivery.status()

    def has(self, seq: int) -> bool:
        """Whether the sink has acknowledged everything up to this event."""
        return self._delivery.has(seq)

    def is_deaf(self) -> bool:
        """True if it gets what is said, and does not hear that it is to be forgotten: it has no hook for that."""
        return self._delivery.is_deaf()

    def look(self) -> None:
        """Look for orders: see `delivery/controls.py`."""
        self._delivery.look()

    def finish(self) -> None:
        """No more events will be committed: deliver what there is, then end."""
        self._closing.set()

    def leave(self) -> None:
        """End after the batch that is under way: another goes on from the cursor."""
        self._delivery.leave()


class SinkManager:
    """The sinks at work, by name. Their tasks belong to the nursery.

    Relative paths of sinks begin in `folder`, each one's own state lies in `state`; `rates` has each room's rate in Hz.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        journal: Journal,
        live: Live,
        folder: Path,
        state: Path,
        rates: dict[str, int],
    ) -> None:
        self.rates = rates
        self._nursery = nursery
        self._journal = journal
        self._live = live
        self._folder = folder
        self._state = state
        self._outlets: dict[str, Outlet] = {}
        self._last: dict[str, Outlet] = {}

    def __iter__(self) -> Iterator[Outlet]:
        return iter(self._outlets.values())

    def begin(self, name: str, sink: Sink) -> None:
        """Deliver to a sink, from its cursor on. One of that name is left first, and its successor waits for its end:
        two never write to one place.
        """
        context = self._context(name)
        outlet = Outlet(name, sink, context, self._journal, self._live)
        self._nursery.start_soon(_run_after, self._last.get(name), outlet)
        self._last[name] = self._outlets[name] = outlet

    def end(self, name: str) -> None:
        """Deliver no more to this sink. Its cursor stays: it may come back."""
        self._outlets.pop(name).leave()

    async def watch_controls(self) -> None:
        """Have every sink look for orders whenever another process has written the journal; until cancelled.

        Asked once a second, which costs microseconds: a command needs no daemon to answer it, and so none to hang.
        """
        seen = -1  # so that everybody looks once: an order may have come while they began
        while True:
            await trio.sleep(CONTROLS_CHECK_INTERVAL_S)
            if (now := await self._journal.data_version()) != seen:
                seen = now
                for outlet in self:
                    outlet.look()

    def holdings(self, sinks: Mapping[str, Sink]) -> dict[str, Sequence[Path]]:
        """By name, where these sinks, at work or not, keep what they got. One that cannot say it has nothing."""
        found: dict[str, Sequence[Path]] = {}
        for name, sink in sinks.items():
            try:
                found[name] = [Path(path) for path in sink.holdings(self._context(name))]
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                log.warning("sink.unknown_holdings", sink=name, error=describe(error, of=type(sink)))
        return found

    def _context(self, name: str) -> Context:
        return Context(name=name, folder=self._folder, state=self._state / name, rates=self.rates)

    def finish(self) -> None:
        """No more events will be committed: let them all deliver what there is, and end."""
        for outlet in self:
            outlet.finish()


async def _run_after(before: Outlet | None, outlet: Outlet) -> None:
    if before is not None:
        before.leave()
        await before.over.wait()
    await outlet.run()
