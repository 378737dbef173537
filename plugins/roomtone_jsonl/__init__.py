"""The jsonl sink: every event as one line of JSON, appended to a file that can be rotated and compressed."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import trio

from roomtone import Audio, Context, Durable, Forgotten, Sink, encode, hookimpl
from roomtone.durable import make_writable_folder
from roomtone_jsonl.forgetting import family
from roomtone_jsonl.line_file import LineFile
from roomtone_jsonl.packer import Packer

__all__ = ["Jsonl", "register_sinks"]


class Jsonl(Sink, frozen=True, kw_only=True, tag="jsonl"):
    """`[sinks.<name>]` with `kind = "jsonl"`.

    Segments of audio are left out unless `kinds` names `audio`: the spool soon removes their files.
    """

    path: Annotated[str, msgspec.Meta(min_length=1)]
    """The file; it and its folders are made if missing. Other programs may rotate it by renaming it at any time."""
    rotate: Literal["never", "daily"] | Annotated[int, msgspec.Meta(ge=1)] = "never"
    """When the file is renamed after its day or time and another begins: each day (UTC), or before it exceeds this many
    megabytes."""
    compress: bool = False
    """True: closed files are compressed with gzip."""
    fsync: Literal["batch", "never"] = "batch"
    """With "batch", acknowledged events are on the disk; with "never", a power cut can lose some of them."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError that names the path if it cannot be written or has no lines of JSON."""
        with closing(Packer()) as packer:
            lines = await trio.to_thread.run_sync(self._lines, context, packer)
            yield JsonlWriter(lines, audio="audio" in self.kinds)

    def holdings(self, context: Context) -> Iterable[Path]:
        """The file and its rotated ones."""
        return family(context.path(self.path))

    def _lines(self, context: Context, packer: Packer) -> LineFile:
        path = context.path(self.path)
        make_writable_folder(path.parent, "the folder of path")
        return LineFile(path, self.rotate, packer=packer if self.compress else None, sync=self.fsync == "batch")


class JsonlWriter:
    """Writes events as lines; the lines of a batch become durable together."""

    def __init__(self, lines: LineFile, *, audio: bool) -> None:
        self._lines = lines
        self._audio = audio

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        """Remove the lines of the forgotten stretch from every file. The event itself becomes a line too."""
        self._lines.forget(event)

    @hookimpl
    def event(self, event: Durable) -> None:
        if self._audio or not isinstance(event, Audio):
            self._lines.add(event.id, encode(event))

    @hookimpl
    def flush(self) -> None:
        self._lines.write()


@hookimpl
def register_sinks() -> list[type[Sink]]:
    return [Jsonl]
