"""How many events a second reach a synchronous sink that does nothing: `python tests/bench/delivery.py [events]`.

The whole way is in it: reading the journal, filters, the worker thread, and the durable cursor after each batch.
"""

import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from roomtone import Context, Durable, Notice, Sink, hookimpl
from roomtone.delivery.runner import SinkRunner
from roomtone.journal.journal import Journal, open_journal
from roomtone.live import Live


class Nothing:
    """Counts, and does nothing else."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def event(self, event: Durable) -> None:
        self.count += 1


class Nowhere(Sink, frozen=True, tag="nowhere"):
    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        counter = Nothing()
        yield counter
        print(f"{counter.count} events delivered")


async def fill(journal: Journal, events: int) -> None:
    notice = Notice(room="desk", position=1, at=datetime.now(UTC), severity="info", code="bench.run", text="x" * 80)
    for first in range(0, events, 1000):
        await journal.commit(*[notice] * min(1000, events - first))


async def main(events: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_journal(Path(folder, "journal.db")) as journal:
            began = time.perf_counter()
            await fill(journal, events)
            print(f"{events / (time.perf_counter() - began):,.0f} events/s committed")
            context = Context(name="nowhere", folder=Path(folder), state=Path(folder), rates={})
            began = time.perf_counter()
            runner = SinkRunner(Nowhere(start="oldest"), context, journal=journal, live=Live())
            runner.finish()
            await runner.run()
            print(f"{events / (time.perf_counter() - began):,.0f} events/s delivered")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
