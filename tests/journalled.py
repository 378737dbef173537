"""Events as the journal hands them to a sink: numbered from 1, with ids that only grow."""

from pathlib import Path
from typing import TypeVar

import msgspec
import pluggy

from roomtone import Context, Durable
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
    """What a sink is told, with all its paths below `folder`."""
    state = folder / "state" / name
    state.mkdir(parents=True, exist_ok=True)
    return Context(name=name, folder=folder, state=state, rates={"desk": 16_000})


def accept(plugin: object) -> None:
    """Raise what the daemon would raise for a misspelt hook of this object, or one with an unknown argument."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(plugin)
    manager.check_pending()
