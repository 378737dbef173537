"""The wav sink: the rooms' audio as WAV files, valid at any moment, each with a sidecar that accounts for it."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Annotated, ClassVar

import msgspec
import trio

from roomtone import Context, Sink, hookimpl
from roomtone.durable import make_folder
from roomtone_wav.catalog import open_catalog
from roomtone_wav.recording import Gaps, Recording, Split
from roomtone_wav.writer import Writer

__all__ = ["Wav", "register_sinks"]


class Wav(Sink, frozen=True, kw_only=True, tag="wav"):
    """`[sinks.<name>]` with `kind = "wav"`. The spool keeps a segment until this sink has it, if the quota allows."""

    audio: ClassVar[bool] = True

    directory: Annotated[str, msgspec.Meta(min_length=1)]
    """Where the files go; made where it is missing. Files are for the daemon's user alone (0600, folders 0700)."""
    split: Split = "recording"
    """Where a new file begins: with each recording, or at each clock hour (UTC) too. In any case before 4 GB."""
    gaps: Gaps = "split"
    """Time without a source begins a new file, or becomes silence of its length in the same one."""
    template: str = "{room}/{start:%Y-%m-%d}/{room}_{start:%Y%m%dT%H%M%SZ}.wav"
    """A file's name below the directory, of room, start (UTC), position and rate. One that is taken gets a number."""

    def __post_init__(self) -> None:
        try:
            name = PurePath(_name(self.template, "desk", datetime(2025, 1, 1, tzinfo=UTC), 0, 16_000))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"template: {error} in {self.template!r}; use room, start, position and rate") from None
        if name.is_absolute() or ".." in name.parts or name.suffix != ".wav":
            raise ValueError(f"template: {self.template!r} must stay below the directory and end in .wav")

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError that names the directory where it cannot be written."""
        with ExitStack() as stack:
            yield await trio.to_thread.run_sync(self._writer, context, stack)

    def _writer(self, context: Context, stack: ExitStack) -> Writer:
        directory = context.path(self.directory)
        make_folder(directory)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(
                errno.EACCES,
                "directory must be writable for the daemon (its user, and ReadWritePaths= under systemd)",
                str(directory),
            )

        def path(recording: Recording) -> Path:
            return directory / _name(self.template, recording.room, recording.start, recording.first, recording.rate)

        catalog = stack.enter_context(open_catalog(context.state / "recordings.sqlite"))
        return Writer(catalog, path, self.split, self.gaps)


def _name(template: str, room: str, start: datetime, position: int, rate: int) -> str:
    room = room.replace("/", "_").replace("\0", "_").lstrip(".") or "_"  # a room's name is no path
    return template.format(room=room, start=start.astimezone(UTC), position=position, rate=rate)


@hookimpl
def register_sinks() -> list[type[Sink]]:
    return [Wav]
