"""The transcript sink: speech as pages to read and as captions, one for each room and day or session."""

from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
import trio

from roomtone import Context, Sink, hookimpl
from roomtone.captions import Captions
from roomtone.durable import make_writable_folder
from roomtone_transcript.page import Format, Style
from roomtone_transcript.store import open_store
from roomtone_transcript.writer import PageWriter, Split

__all__ = ["TranscriptSink", "register_sinks"]


class TranscriptSink(Sink, frozen=True, kw_only=True, tag="transcript"):
    """`[sinks.<name>]` with `kind = "transcript"`.

    A page is always whole. New speech is appended; the page is written anew for late events: text that was repaired
    after an outage goes to its position, a corrected turn replaces the first one, and an answer goes below its turn.
    """

    directory: Annotated[str, msgspec.Meta(min_length=1)]
    """The folder of the pages, with a folder for each room; made if missing. Only the daemon's user can read them."""
    split: Split = "day"
    """A page for each day, or for each session at the speech service."""
    format: Format = "markdown"
    captions: tuple[Captions, ...] = ()
    """Files of captions beside each page, "srt" or "vtt" or both, timed from the day's or the session's beginning. (The
    wav sink writes captions that are timed for its recordings.)"""
    timezone: str = "UTC"
    """The time zone of the pages, and of the beginning of a day: a name such as "Europe/Berlin"."""
    speakers: dict[str, str] = msgspec.field(default_factory=dict)
    """Names for the labels of speakers."""

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):  # KeyError: ZoneInfoNotFoundError
            raise ValueError(
                f"timezone: {self.timezone!r} is not known here; use a name such as Europe/Berlin (package tzdata)"
            ) from None

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError that names a directory that cannot be written."""
        with ExitStack() as stack:
            yield await trio.to_thread.run_sync(self._writer, context, stack)

    def holdings(self, context: Context) -> Iterable[Path]:
        """The pages."""
        return (context.path(self.directory),)

    def _writer(self, context: Context, stack: ExitStack) -> PageWriter:
        directory = context.path(self.directory)
        make_writable_folder(directory, "directory")
        store = stack.enter_context(open_store(context.state / "transcript.sqlite"))
        style = Style(self.format, ZoneInfo(self.timezone), self.speakers)
        return PageWriter(
            store, directory, style, split=self.split, captions=self.captions, rates=context.rates, warn=context.warn
        )


@hookimpl
def register_sinks() -> list[type[Sink]]:
    return [TranscriptSink]
