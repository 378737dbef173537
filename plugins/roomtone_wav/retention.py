"""What becomes of files that do not grow any more: they are compressed, and in their time removed."""

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
from roomtone_wav.place import RecordingFolder
from roomtone_wav.recording import Recording

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

SIDECAR_SUFFIXES = (".json", ".srt", ".vtt")
"""What may lie beside a file of audio, under the same name."""

_SLICE_S = 0.25
"""Seconds of work at once, for as long as which the hooks wait."""
_RETAIN_INTERVAL_S = 60.0
"""Seconds between two looks at age and size."""
_CLOCK_NOTE_INTERVAL_S = 3600.0
"""Seconds between two notes of the time that ages were judged by: a restart must not take a wrong clock at its word."""

RemovalReason = Literal["age", "size"]


class RecordingJanitor:
    """Compresses and removes, a moment at a time, between the hooks and never beside one.

    Nothing that it cannot do stops a recording: what fails is logged, and tried again when the sink is opened anew.
    `write_sidecar` writes what lies beside a recording.
    """

    def __init__(
        self,
        catalog: Catalog,
        place: RecordingFolder,
        write_sidecar: Callable[[Recording], None],
        *,
        keep_days: float | None,
        keep_gb: float | None,
        is_alone: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        uptime: Callable[[], float] = uptime,
    ) -> None:
        self._catalog = catalog
        self._folder = place
        self._write_sidecar = write_sidecar
        self._keep_days = keep_days
        self._keep_bytes = None if keep_gb is None else round(keep_gb * 1e9)
        self._is_alone = is_alone
        self._clock = clock
        self._uptime = uptime
        self._trusted_clock = catalog.calendar()
        self._clock_noted_at = float("-inf")
        self._work: Generator[None, None, int] | None = None
        self._compressing: Kept | None = None
        self._failed: set[str] = set()
        self._checked_at = float("-inf")

    def advance(self) -> bool:
        """Do some of what is to be done. Returns whether there is more. Beside another one it does nothing: two that
        compress the same file would spoil it.
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
        """Begin anew with this one, for it is about to change."""
        if self._compressing is not None and self._compressing.recording.path == recording.path:
            self.close()

    def close(self) -> None:
        """Leave what is half done: it is begun anew."""
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
        """Remove the WAV of a recording that is compressed, and say so beside it."""
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
        """Remove what is too old, then the oldest of what is too much. Never the file that a room's audio goes to."""
        if self._keep_days is not None:
            today = self._trusted_clock.read(self._clock(), self._uptime())
            self._remove(self._catalog.finished(shifted(today, -timedelta(days=self._keep_days))), "age")
            if time.monotonic() - self._clock_noted_at >= _CLOCK_NOTE_INTERVAL_S:
                self._clock_noted_at = time.monotonic()
                self._catalog.note(self._trusted_clock)
                self._catalog.commit()
        if self._keep_bytes is not None and self._catalog.size() > self._keep_bytes:
            self._remove(self._surplus(self._catalog.finished(), self._keep_bytes), "size")

    def _surplus(self, finished: list[Kept], limit: int) -> list[Kept]:
        """The oldest recordings whose removal leaves no more than `limit` bytes, by what is really there: somebody may
        have deleted some. Those go from the catalog that are older than the oldest that stays.
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
                # The audio last: as long as it is there, the catalog and the next look know of all that belongs to it.
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
        """Leave the recording until the sink is opened anew."""
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
    """Bytes of the recording's file: none where somebody has deleted it."""
    try:
        return Path(recording.path).stat().st_size
    except OSError:
        return 0
