"""Events as the journal hands them to a sink: numbered from 1, with ids that only grow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pluggy
import trio

from roomtone import Context, Durable, Sink
from roomtone.delivery.runner import SinkRunner
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.records import Refusal
from roomtone.live import Live
from roomtone.sinks import PROJECT, Hooks

Fact = TypeVar("Fact", bound=Durable)


class Numbering:
    """Gives `seq` and `id` as the journal does at commit. `era` tells the ids of one journal from those of a later."""

    def __init__(self, era: int = 1) -> None:
        self._era = era
        self._seq = 0

    def commit(self, fact: Fact) -> Fact:
        self._seq += 1
        return msgspec.structs.replace(fact, seq=self._seq, id=f"{self._era:08x}-0000-7000-8000-{self._seq:012x}")


def context(folder: Path, *, name: str = "archive") -> Context:
    """The context of a sink, with all its paths below `folder`."""
    state = folder / "state" / name
    state.mkdir(parents=True, exist_ok=True)
    return Context(name=name, folder=folder, state=state, rates={"desk": 16_000})


def accept(plugin: object) -> None:
    """Raise what the daemon would raise for a misspelt hook of this object, or one with an unknown argument."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(plugin)
    manager.check_pending()


async def deliver_all(sink: Sink, folder: Path, facts: Sequence[Durable]) -> list[Refusal]:
    """Commit the facts to the journal in `folder` and let the daemon's delivery bring all of it to the sink.

    Returns what the sink refused. A second call goes on from the cursor, as after a restart.
    """
    given = context(folder)
    async with open_journal(folder / "journal.sqlite") as journal, trio.open_nursery() as nursery:
        await journal.commit(*facts)
        runner = SinkRunner(sink, given, journal=journal, live=Live())
        nursery.start_soon(runner.run)
        with trio.fail_after(60):
            while await journal.cursor(given.name) != journal.tip:  # noqa: ASYNC110 - a cursor wakes no task
                await trio.sleep(0.01)
        runner.finish()
        return await journal.refused(given.name)


def fill_disk(journal: Journal) -> Callable[[], None]:
    """A full disk as SQLite itself reports it. Returns what makes room again."""
    writer = journal._database._writer
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}")

    def make_room() -> None:
        writer.execute("PRAGMA max_page_count = 1000000")

    return make_room
