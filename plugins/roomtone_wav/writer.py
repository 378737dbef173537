"""The hooks of the wav sink: they write samples to their places in files."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from threading import Lock

import msgspec
import structlog

from roomtone import Audio, Forgotten, Gap, RecordingStopped, Turn, hookimpl
from roomtone_wav import compression, files
from roomtone_wav.catalog import Catalog
from roomtone_wav.folder import RecordingFolder
from roomtone_wav.recording import (
    MAX_TURN_S,
    SAMPLE_BYTES,
    Format,
    Gaps,
    Hole,
    PositionSpan,
    Recording,
    Split,
    continued,
    duration,
    united,
)
from roomtone_wav.retention import RecordingJanitor

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class WavWriter:
    """Writes each segment by its position, so that one delivered again lands on itself, bit for bit.

    No file stays open between two calls: a file that a user deletes is gone, and the next sample begins another.
    Errors: OSError that names the file. Nothing of the batch is then acknowledged, for only `flush` commits.
    """

    def __init__(
        self,
        catalog: Catalog,
        folder: RecordingFolder,
        janitor: RecordingJanitor,
        write_sidecar: Callable[[Recording], None],
        *,
        split: Split,
        gaps: Gaps,
        format: Format,  # noqa: A002 - the configuration's word
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._janitor = janitor
        self._write_sidecar = write_sidecar
        self._split: Split = split
        self._gaps: Gaps = gaps
        self._format: Format = format
        self._changed: dict[tuple[str, int], Recording] = {}
        self._ended: set[str] = set()
        self._must_scrub = False
        self._lock = Lock()

    def maintain(self) -> bool:
        """Do some work on finished files, between two batches. Returns True if there is more."""
        with self._lock:
            # Only between two batches: until the flush, the catalog is ahead of the disk.
            return self._janitor.advance() if not self._changed else False

    @hookimpl
    def audio(self, event: Audio) -> None:
        """Write the segment, part by part where a file ends inside it."""
        with self._lock:
            self._forget_other_journal(event)
            audio = _read(event)
            position, stop = event.position, event.position + event.samples
            while position < stop:
                at = event.at + duration(position - event.position, event.rate)
                recording, end = self._place(event, position, at)
                end = min(stop, end)
                part = audio[(position - event.position) * SAMPLE_BYTES : (end - event.position) * SAMPLE_BYTES]
                self._write(recording, event, position, end, part)
                position = end

    @hookimpl
    def gap(self, event: Gap) -> None:
        """Note the gap beside its file. Its zeros appear by themselves, with the samples that follow."""
        with self._lock:
            recording = self._catalog.holding(event.room, event.start)
            hole = Hole.of(event)
            if recording is not None and self._folder.exists(recording) and hole not in recording.gaps:
                self._save(msgspec.structs.replace(recording, gaps=(*recording.gaps, hole)))

    @hookimpl
    def recording_stopped(self, event: RecordingStopped) -> None:
        """Begin another file if the recording was rotated, though no time lies between them."""
        with self._lock:
            recording = self._catalog.holding(event.room, event.position - 1)
            is_known = recording is not None and recording.end == event.position and self._folder.exists(recording)
            if event.reason == "rotated" and recording is not None and is_known:
                self._save(msgspec.structs.replace(recording, limit=event.position))
            if event.reason == "ended" or (event.reason != "stopping" and self._gaps == "split"):
                self._ended.add(event.room)

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        """Make the samples zero in every existing file, and note the stretch."""
        with self._lock:
            self._catalog.forget_turns(event.room, event.start, event.end)
            self._catalog.put_forgotten(event.room, event.start, event.end)
            self._must_scrub = True
            if (newest := self._catalog.newest(event.room)) is not None:
                # A forgotten turn may have begun in an earlier file, or gone on in a later one: their sidecars are
                # written anew.
                around = MAX_TURN_S * newest.rate
                for near in self._catalog.overlapping(event.room, event.start - around, event.end + around):
                    if self._folder.exists(near):
                        self._save(near)
            for recording in self._catalog.overlapping(event.room, event.start, event.end):
                with self._folder.forgiving(recording, "forgotten"):
                    if Path(recording.path).exists():
                        self._erase(recording, max(event.start, recording.first), min(event.end, recording.end))

    @hookimpl
    def flush(self) -> None:
        """Samples, then headers, then sidecars, then the catalog: each describes only what is durable already."""
        with self._lock:
            for recording in self._changed.values():
                with self._folder.forgiving(recording, "written to"):
                    if not recording.is_sealed:
                        with files.open_wav(recording.path) as wav:
                            wav.settle(recording.samples, recording.rate)
                    self._write_sidecar(recording)
            self._complete()
            self._catalog.commit()
            if self._must_scrub:
                self._catalog.scrub()
                self._must_scrub = False
            self._changed.clear()
            self._ended.clear()

    def _erase(self, recording: Recording, start: int, end: int) -> None:
        """Make the samples of these positions zero in the recording's file."""
        recording = self._reopen(recording)
        files.remove_unfinished(Path(recording.path))
        with files.open_wav(recording.path) as wav:
            wav.erase(recording.offset(start), recording.offset(end - 1) + 1)
        self._save(msgspec.structs.replace(recording, forgotten=united(recording.forgotten, start, end)))

    def _complete(self) -> None:
        """Note the complete files: those before a file that this batch has written to. A file that merely has a
        successor may still lack samples that come again after a crash.
        """
        for room, first in self._changed:
            self._catalog.complete(room, first)
        for room in self._ended:
            if (newest := self._catalog.newest(room)) is not None:
                self._catalog.complete(room, newest.first + 1)

    def _place(self, event: Audio, position: int, at: datetime) -> tuple[Recording, int]:
        """The recording for the sample at this position, and the first position that it cannot hold."""
        held = self._catalog.holding(event.room, position)
        following = self._catalog.following(event.room, position)
        if held is not None and not self._folder.exists(held):
            held = None
        if held is not None and not self._folder.contains(held) and not files.has_all(held):
            held = None  # the samples that are missing in that file begin a new one
        if held is not None and position < held.end and self._is_complete(held):
            return held, held.end
        if held is not None and not self._folder.contains(held):
            held = None
        if held is not None and (following is None or held.is_sealed):
            held = continued(held, event, position, at, split=self._split, gaps=self._gaps)
        if held is None:
            held = self._begin(event, position, at)
        return held, held.boundary(position, at, self._split) if following is None else following.first

    def _begin(self, event: Audio, position: int, at: datetime) -> Recording:
        """Make the files of a new recording. The catalog has them first, so that none is ever left unknown."""
        recording = Recording(
            room=event.room,
            rate=event.rate,
            first=position,
            start=at,
            path="",
            end=position,
            until=at,
            last=event.id,
            format=self._format,
        )
        path = _unused(self._folder.path_for(recording))
        recording = msgspec.structs.replace(recording, path=str(path))
        self._catalog.put(recording)
        self._catalog.commit()
        files.create(recording)
        log.info("recording.begun", room=event.room, path=str(path), position=position)
        return recording

    def _write(self, recording: Recording, event: Audio, start: int, end: int, audio: bytes) -> None:
        if self._is_complete(recording):  # it has these samples, and they come again
            return
        with files.open_wav(recording.path) as wav:
            wav.write(recording.offset(start), audio)
        if end > recording.end:
            until = event.at + duration(end - event.position, event.rate)
            recording = msgspec.structs.replace(recording, end=end, until=until)
        if (there := start + len(audio) // SAMPLE_BYTES) < end:
            log.warning("audio.missing", room=event.room, path=recording.path, start=there, end=end)
            recording = msgspec.structs.replace(recording, missing=united(recording.missing, there, end))
        for gone in self._catalog.forgotten(event.room, start, end):
            forgotten = united(recording.forgotten, gone.start, gone.end)
            recording = msgspec.structs.replace(recording, forgotten=forgotten)
        self._save(msgspec.structs.replace(recording, last=max(recording.last, event.id)))

    def _is_complete(self, recording: Recording) -> bool:
        """True if the file takes no more samples: it is compressed, or lies in another directory."""
        return recording.is_sealed or not self._folder.contains(recording)

    def _reopen(self, recording: Recording) -> Recording:
        """The recording as a writable WAV, to be compressed again later. Its other forms are removed."""
        self._janitor.interrupt(recording)
        if recording.is_sealed:
            path = compression.decompress(recording)
            recording = msgspec.structs.replace(recording, path=str(path), compressed=None)
            self._catalog.open_up(recording)
            self._catalog.commit()
        compression.remove_others(recording)
        return recording

    def _save(self, recording: Recording) -> None:
        self._catalog.put(recording)
        self._changed[recording.room, recording.first] = recording

    def _forget_other_journal(self, event: Audio) -> None:
        """Positions only grow within one journal. A new event with an old position comes from another journal, which
        began after the first was lost: it must not overwrite what is there.
        """
        newest = self._catalog.newest(event.room)
        if newest is not None and event.id > newest.last and event.position < newest.end:
            log.warning("recording.restarted", room=event.room, position=event.position, path=newest.path)
            self._catalog.part(newest)


def _read(event: Audio) -> bytes:
    """The segment's samples: fewer than the event says, or none, if the spool has lost them."""
    if event.file is None:
        return b""
    try:
        audio = Path(event.file).read_bytes()
    except FileNotFoundError:  # removed since: waiting would not bring it back, and would block all later events
        return b""
    return audio[: min(event.samples, len(audio) // SAMPLE_BYTES) * SAMPLE_BYTES]


def _unused(path: Path) -> Path:
    number, free = 1, path
    while any(free.with_suffix(suffix).exists() for suffix in compression.SUFFIXES):
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free


class TranscribingWriter(WavWriter):
    """A writer whose sidecars also have the turns, each correction in the place of the corrected turn.

    A turn can come before its audio or after it: it is kept, and written beside the file as soon as that has its first
    sample. If another file begins inside the turn, each word is written beside the file that it is in.
    """

    @hookimpl
    def turn(self, event: Turn) -> None:
        """Keep the turn, and write it beside its file."""
        if event.is_test:
            return
        with self._lock:
            if event.supersedes and (corrected := self._catalog.take_turn(event.supersedes)) is not None:
                self._touch(event.room, corrected)
            end = max((word.end for word in event.words), default=event.position)
            self._catalog.put_turn(event, end)
            self._touch(event.room, PositionSpan(event.position, max(end, event.position + 1)))

    def _touch(self, room: str, said: PositionSpan) -> None:
        for recording in self._catalog.overlapping(room, said.start, said.end):
            if self._folder.exists(recording):
                self._changed[recording.room, recording.first] = recording
