"""A configurable sink in one file, as users of that commit wrote them: it keeps the number of the last event."""

from contextlib import asynccontextmanager
from pathlib import Path

from roomtone import hookimpl
from roomtone.durable import make_folder, replace
from roomtone.sinks import Sink


class Counted(Sink, frozen=True, kw_only=True, tag="counted"):
    path: Path

    @asynccontextmanager
    async def open(self, context):
        yield Count(context.folder / self.path)


@hookimpl
def register_sinks():
    return [Counted]


class Count:
    def __init__(self, path):
        make_folder(path.parent)
        self._path = path
        self._last = 0

    @hookimpl
    def event(self, event):
        self._last = event.seq

    @hookimpl
    def flush(self):
        replace(self._path, str(self._last).encode())
