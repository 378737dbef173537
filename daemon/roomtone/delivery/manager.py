"""The sinks at work: each has a runner of its own, begun and left one by one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog
import trio

from roomtone.delivery.errors import describe
from roomtone.delivery.runner import SinkRunner
from roomtone.journal.journal import Journal
from roomtone.live import Live
from roomtone.sinks import Context, Sink

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

CONTROLS_CHECK_INTERVAL_S = 1.0
"""Seconds between two checks for changed controls; they take effect after the current batch."""


class SinkManager:
    """The runners of the sinks at work, by name. Their tasks belong to the nursery.

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
        self._runners: dict[str, SinkRunner] = {}
        self._last: dict[str, SinkRunner] = {}

    def __iter__(self) -> Iterator[SinkRunner]:
        return iter(self._runners.values())

    def begin(self, name: str, sink: Sink) -> None:
        """Deliver to a sink, from its cursor on. A runner of that name is left first, and its successor waits until it
        is over: two never write to one place.
        """
        runner = SinkRunner(sink, self._context(name), journal=self._journal, live=self._live)
        self._nursery.start_soon(_run_after, self._last.get(name), runner)
        self._last[name] = self._runners[name] = runner

    def end(self, name: str) -> None:
        """Stop delivering to this sink. Its cursor stays, for it may come back."""
        self._runners.pop(name).leave()

    async def watch_controls(self) -> None:
        """Have every sink read its controls when another process has written the journal; runs until cancelled.

        A check each second costs microseconds, and the command never waits for a daemon.
        """
        seen = -1  # so that each sink reads them once: a control may have changed while it began
        while True:
            await trio.sleep(CONTROLS_CHECK_INTERVAL_S)
            if (now := await self._journal.data_version()) != seen:
                seen = now
                for runner in self:
                    runner.check_controls()

    def holdings(self, sinks: Mapping[str, Sink]) -> dict[str, Sequence[Path]]:
        """By name, where these sinks, at work or not, keep their data. One whose `holdings` fails has no entry."""
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
        """No more events will be committed: have all sinks deliver the rest and end."""
        for runner in self:
            runner.finish()


async def _run_after(before: SinkRunner | None, runner: SinkRunner) -> None:
    if before is not None:
        before.leave()
        await before.over.wait()
    await runner.run()
