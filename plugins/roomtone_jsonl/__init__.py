"""The jsonl sink: every event as one line of JSON, appended to one file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
import trio

from roomtone import Audio, Context, Durable, Sink, encode, hookimpl
from roomtone_jsonl.lines import Lines

__all__ = ["Jsonl", "register_sinks"]


class Jsonl(Sink, frozen=True, kw_only=True, tag="jsonl"):
    """`[sinks.<name>]` with `kind = "jsonl"`.

    A segment of audio is no line unless `kinds` names `audio`: it speaks of a file that the spool soon removes.
    """

    path: Annotated[str, msgspec.Meta(min_length=1)]
    """The file, made with its folders where it is missing. It may be rotated by renaming it, at any time."""

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError that names the path where it cannot be written or is no file of lines."""
        lines = await trio.to_thread.run_sync(Lines, context.path(self.path))
        yield Writer(lines, audio="audio" in self.kinds)


class Writer:
    """Events become lines, and the lines of a batch become durable together."""

    def __init__(self, lines: Lines, *, audio: bool) -> None:
        self._lines = lines
        self._audio = audio

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
