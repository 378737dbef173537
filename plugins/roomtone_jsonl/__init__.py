"""The jsonl sink: every event as one line of JSON, appended to a file that is closed and packed in its time."""

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

    A segment of audio is no line unless `kinds` names `audio`: it speaks of a file that the spool soon removes.
    """

    path: Annotated[str, msgspec.Meta(min_length=1)]
    """The file, made with its folders where it is missing. Others may rotate it too, by renaming it, at any time."""
    rotate: Literal["never", "daily"] | Annotated[int, msgspec.Meta(ge=1)] = "never"
    """When the file gets a name with its day or time and another begins: each day (UTC), or before it has more than so
    many megabytes."""
    compress: bool = False
    """Whether files that were closed are packed with gzip."""
    fsync: Literal["batch", "never"] = "batch"
    """What is acknowledged is on the disk; with "never", a power cut may cost what the system had not written yet."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError that names the path where it cannot be written or is no file of lines."""
        with closing(Packer()) as packer:
            lines = await trio.to_thread.run_sync(self._lines, context, packer)
            yield JsonlWriter(lines, audio="audio" in self.kinds)

    def holdings(self, context: Context) -> Iterable[Path]:
        """The file, and all that it was before."""
        return family(context.path(self.path))

    def _lines(self, context: Context, packer: Packer) -> LineFile:
        path = context.path(self.path)
        make_writable_folder(path.parent, "the folder of path")
        return LineFile(path, self.rotate, packer=packer if self.compress else None, sync=self.fsync == "batch")


class JsonlWriter:
    """Events become lines, and the lines of a batch become durable together."""

    def __init__(self, lines: LineFile, *, audio: bool) -> None:
        self._lines = lines
        self._audio = audio

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        """Take the lines out of every file that tell of it. That it was forgotten becomes a line."""
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
