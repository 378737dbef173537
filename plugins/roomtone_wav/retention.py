"""Compresses files that no longer grow, and removes those that are too old or too many."""

import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from roomtone.durable import remove
from roomtone.trusted_clock import shifted, uptime
from roomtone_wav import compression
from roomtone_wav.catalog import Catalog, Kept
from roomtone_wav.compression import CompressionError
from roomtone_wav.folder import RecordingFolder
from roomtone_wav.recording import Recording

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

SIDECAR_SUFFIXES = (".json", ".srt", ".vtt")
"""Suffixes of the files that may lie beside a file of audio, under the same name."""

_SLICE_S = 0.25
"""Seconds of work in one step: the hooks wait for it."""
_RETAIN_INTERVAL_S = 60.0
"""Seconds between two checks of age and size."""
_CLOCK_NOTE_INTERVAL_S = 3600.0
"""Seconds between two saved readings of the trusted clock: a restart must not simply believe a wrong clock."""

RemovalReason = Literal["age", "size"]


class RecordingJanitor:
    """Compresses and removes, a moment at a time, between the hooks and never beside one.

    A failure stops no recording: it is logged, and the work is retried when the sink is opened again.
    `write_sidecar` writes the files beside a recording. `read_clocks` gives the time and the uptime in seconds.
    """

    def __init__(
        self,
        catalog: Catalog,
        folder: RecordingFolder,
        write_sidecar: Callable[[Recording], None],
        *,
        keep_days: float | None,
        keep_gb: float | None,
        is_alone: bool = True,
        read_clocks: Callable[[], tuple[datetime, float]] = lambda: (datetime.now(UTC), uptime()),
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._write_sidecar = write_sidecar
        self._keep_days = keep_days
        self._keep_bytes = None if keep_gb is None else round(keep_gb * 1e9)
        self._is_alone = is_alone
        self._read_clocks = read_clocks
        self._trusted_clock = catalog.calendar()
        self._clock_noted_at = float("-inf")
        self._work: Generator[None, None, int] | None = None
        self._compressing: Kept | None = None
        self._failed: set[str] = set()
        self._checked_at = float("-inf")

    def advance(self) -> bool:
        """Do some of the work. Returns True if there is more. Does nothing beside another process with this sink: two
        that compress the same file would spoil it.
        """
        if not self._is_alone:
            return False
        if time.monotonic() - self._checked_at >= _RETAIN_INTERVAL_S:
            self._checked_at = time.monotonic()
            self._retain()
        for kept in self._catalog.todo("remove"):
            self._finish(kept)
        return self._compress()

    def interrupt(self, recording: Recording) -> None:
        """Restart the compression of this recording later: it is about to change."""
        if self._compressing is not None and self._compressing.recording.path == recording.path:
            self.close()

    def close(self) -> None:
        """Discard a half-done compression: it is begun anew."""
        if self._work is not None:
            self._work.close()
        self._work = self._compressing = None

    def _compress(self) -> bool:
        until = time.monotonic() + _SLICE_S
        while True:
            if self._work is None or self._compressing is None:
                self._compressing = next(
                    (kept for kept in self._catalog.todo("encode") if self._is_possible(kept)), None
                )
                if self._compressing is None:
                    return False
                self._work = compression.compress(self._compressing.recording)
            try:
                next(self._work)
            except StopIteration as done:
                self._seal(self._compressing, done.value)
                self.close()
            except (OSError, CompressionError) as error:
                log.warning("recording.uncompressed", path=self._compressing.recording.path, error=str(error))
                self._skip(self._compressing.recording, "compressed", error)
                self.close()
            if time.monotonic() >= until:
                return True

    def _is_possible(self, kept: Kept) -> bool:
        return kept.recording.path not in self._failed and self._folder.exists(kept.recording)

    def _seal(self, kept: Kept, size: int) -> None:
        """The compressed file takes the WAV's place: first on the disk, then in the catalog, then alone."""
        now = self._catalog.get(kept)
        if now is None or (now.path, now.forgotten) != (kept.recording.path, kept.recording.forgotten):
            compression.discard(kept.recording)
            return
        path = compression.put_compressed(now)
        self._catalog.put(msgspec.structs.replace(now, path=str(path), compressed=size), era=kept.era)
        self._catalog.set_todo(kept, "remove")
        self._catalog.commit()
        log.info("recording.compressed", room=now.room, path=str(path), bytes=size, before=now.size)
        for each in self._catalog.todo("remove"):
            self._finish(each)

    def _finish(self, kept: Kept) -> None:
        """Remove the WAV of a compressed recording, and update its sidecar."""
        try:
            compression.remove_others(kept.recording)
            if Path(kept.recording.path).exists():
                self._write_sidecar(kept.recording)
        except OSError as error:
            log.warning("recording.untidy", path=kept.recording.path, error=str(error))
            return
        self._catalog.set_todo(kept, "")
        self._catalog.commit()

    def _retain(self) -> None:
        """Remove what is too old, then the oldest of what is too much; never the newest file of a room."""
        if self._keep_days is not None:
            today = self._trusted_clock.read(*self._read_clocks())
            self._remove(self._catalog.finished(shifted(today, -timedelta(days=self._keep_days))), "age")
            if time.monotonic() - self._clock_noted_at >= _CLOCK_NOTE_INTERVAL_S:
                self._clock_noted_at = time.monotonic()
                self._catalog.note(self._trusted_clock)
                self._catalog.commit()
        if self._keep_bytes is not None and self._catalog.size() > self._keep_bytes:
            self._remove(self._surplus(self._catalog.finished(), self._keep_bytes), "size")

    def _surplus(self, finished: list[Kept], limit: int) -> list[Kept]:
        """The oldest recordings whose removal leaves at most `limit` bytes. It counts the files that are really there,
        for a user may have deleted some; of these, the ones older than the oldest that stays leave the catalog.
        """
        there = {kept.recording.path: _bytes(kept.recording) for kept in finished}
        total = sum(there.values()) + sum(map(_bytes, self._catalog.newest_of_all()))
        chosen = []
        for kept in finished:
            if total <= limit:
                break
            chosen.append(kept)
            total -= there[kept.recording.path]
        return chosen

    def _remove(self, chosen: list[Kept], why: RemovalReason) -> None:
        files = size = 0
        for kept in chosen:
            path = Path(kept.recording.path)
            if kept.recording.path in self._failed:
                continue
            self.interrupt(kept.recording)
            try:
                # The audio last: while it exists, the catalog and the next check know all files that belong to it.
                for suffix in (*SIDECAR_SUFFIXES, *(each for each in compression.SUFFIXES if each != path.suffix)):
                    remove(path.with_suffix(suffix))
                there = remove(path)
            except OSError as error:
                log.warning("recording.unremoved", path=str(path), error=str(error))
                self._skip(kept.recording, "removed", error)
                continue
            self._catalog.remove(kept)
            self._catalog.commit()
            files, size = files + bool(there), size + there
            self._remove_empty(path.parent)
        if files:
            log.info("recordings.removed", why=why, files=files, bytes=size)

    def _skip(self, recording: Recording, doing: str, error: Exception) -> None:
        """Skip the recording until the sink is opened again."""
        self._failed.add(recording.path)
        if not self._folder.contains(recording):
            self._folder.report(recording, doing, error)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._folder.directory and self._folder.directory in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty, or not there
                return
            folder = folder.parent


def _bytes(recording: Recording) -> int:
    """Bytes of the recording's file: 0 if a user has deleted it."""
    try:
        return Path(recording.path).stat().st_size
    except OSError:
        return 0
