"""The wav sink: the rooms' audio as files that are valid at any moment, each with a sidecar that accounts for it."""

from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Annotated, ClassVar

import msgspec
import structlog
import trio

from roomtone import Context, Sink, hookimpl
from roomtone.captions import Captions
from roomtone.durable import SPOILED, alone, make_writable_folder
from roomtone_wav import compression
from roomtone_wav.catalog import CATALOG, open_catalog, read_catalog
from roomtone_wav.files import described, open_wav, write_sidecar
from roomtone_wav.folder import RecordingFolder, file_name
from roomtone_wav.recording import HEADER_BYTES, SAMPLE_BYTES, Format, Gaps, Recording, Split
from roomtone_wav.retention import RecordingJanitor
from roomtone_wav.writer import TranscribingWriter, WavWriter

__all__ = ["Wav", "register_sinks"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_MAINTENANCE_INTERVAL_S = 15.0
"""Seconds between two checks for work on finished files."""
_CLOSE_TIMEOUT_S = 5.0
"""Seconds for this work when the sink is left."""


class Wav(Sink, frozen=True, kw_only=True, tag="wav"):
    """`[sinks.<name>]` with `kind = "wav"`. The spool keeps a segment until this sink has it, if the quota allows."""

    audio: ClassVar[bool] = True

    directory: Annotated[str, msgspec.Meta(min_length=1)]
    """Where the files go; made where it is missing. Files are for the daemon's user alone (0600, folders 0700)."""
    split: Split = "recording"
    """A new file begins with each recording; with "hour" also at each clock hour (UTC), with a number every N minutes
    from midnight on. In any case before 4 GB."""
    gaps: Gaps = "split"
    """Time without a source begins a new file, or becomes silence of that length in the same one."""
    template: str = "{room}/{start:%Y-%m-%d}/{room}_{start:%Y%m%dT%H%M%SZ}.wav"
    """A file's name below the directory, made of room, start (UTC), position and rate. A taken name gets a number. The
    suffix of a compressed file becomes .flac or .opus."""
    format: Format = "wav"
    """The format of a complete file. It always grows as WAV."""
    transcript: bool = False
    """True: the sidecar has the turns that are said in the file, with their corrections."""
    captions: tuple[Captions, ...] = ()
    """Files of captions beside each recording, "srt" or "vtt" or both, timed for it."""
    keep_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] | None = None
    """Files that ended longer ago are removed with their sidecars and captions, except the newest of each room."""
    keep_gb: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    """The oldest files are removed while all together exceed this size in GB, except the newest of each room."""

    def __post_init__(self) -> None:
        try:
            name = PurePath(file_name(self.template, "desk", datetime(2025, 1, 1, tzinfo=UTC), 0, 16_000))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"template: {error} in {self.template!r}; use room, start, position and rate") from None
        if name.is_absolute() or ".." in name.parts or name.suffix != ".wav":
            raise ValueError(f"template: {self.template!r} must stay below the directory and end in .wav")

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError that names a directory that cannot be written; ValueError for a format that
        is not available on this machine or for a room's rate.
        """
        with ExitStack() as stack:
            writer = await trio.to_thread.run_sync(self._writer, context, stack)
            if self.format == "wav" and self.keep_days is None and self.keep_gb is None:
                yield writer
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_maintain, writer)
                yield writer
                nursery.cancel_scope.cancel()
            await _maintain_for(writer, min(_CLOSE_TIMEOUT_S, self.timeout / 2))

    def holdings(self, context: Context) -> Iterable[Path]:
        """The recordings and the files beside them."""
        return (context.path(self.directory),)

    def audio_at(self, context: Context, room: str, start: int, end: int) -> Iterable[tuple[Path, int, int]]:
        """The recordings in the catalog, except compressed ones."""
        with read_catalog(context.state / CATALOG) as catalog:
            recordings = catalog.overlapping(room, start, end) if catalog else []
        for recording in recordings:
            if not recording.is_sealed:
                first = recording.offset(max(start, recording.first))
                last = recording.offset(min(end, recording.end) - 1)
                yield (
                    Path(recording.path),
                    HEADER_BYTES + first * SAMPLE_BYTES,
                    HEADER_BYTES + (last + 1) * SAMPLE_BYTES,
                )

    def _writer(self, context: Context, stack: ExitStack) -> WavWriter:
        directory = context.path(self.directory)
        make_writable_folder(directory, "directory")
        chosen = {room: rate for room, rate in context.rates.items() if not self.rooms or room in self.rooms}
        compression.check(self.format, chosen)
        catalog = stack.enter_context(open_catalog(context.state / CATALOG))
        if (context.state / CATALOG).with_suffix(SPOILED).exists() and catalog.is_empty():
            # The files of the damaged catalog: otherwise they would never be removed.
            files = catalog.adopt(described(directory))
            log.info("recordings.adopted", sink=context.name, files=files)
        has_text = self.transcript or bool(self.captions)

        def write(recording: Recording) -> None:
            write_sidecar(recording, catalog.turns(recording) if has_text else None, self.captions)

        is_alone = stack.enter_context(alone(context.state / "recordings.lock"))
        folder = RecordingFolder(directory, self.template, context.warn)
        for recording in catalog.newest_of_all():
            if not folder.contains(recording) and not recording.is_sealed:
                with folder.forgiving(recording, "finished"), open_wav(recording.path):
                    pass
        janitor = RecordingJanitor(
            catalog, folder, write, keep_days=self.keep_days, keep_gb=self.keep_gb, is_alone=is_alone
        )
        stack.callback(janitor.close)
        kind = TranscribingWriter if has_text else WavWriter
        return kind(catalog, folder, janitor, write, split=self.split, gaps=self.gaps, format=self.format)


async def _maintain_for(writer: WavWriter, seconds: float) -> None:
    """Work on finished files for this long at most: after a file as source, there may be no next start."""
    until = trio.current_time() + seconds
    while trio.current_time() < until and await trio.to_thread.run_sync(writer.maintain):
        pass


async def _maintain(writer: WavWriter) -> None:
    """Have the writer maintain finished files, between its hooks and in a thread of its own; until cancelled."""
    thread = trio.CapacityLimiter(1)
    while True:
        has_more = await trio.to_thread.run_sync(writer.maintain, limiter=thread)
        await trio.sleep(0 if has_more else _MAINTENANCE_INTERVAL_S)


@hookimpl
def register_sinks() -> list[type[Sink]]:
    return [Wav]
