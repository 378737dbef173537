"""The hooks of the wav sink: events become samples at their place in a file."""

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

    def tend(self) -> bool:
        """Do some of what becomes of finished files, unless a hook is at work. Returns whether there is more."""
        with self._lock:
            # Between two batches only: until its flush, what the catalog says of a file is ahead of the disk.
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
        """Note the gap beside the file that it lies in or ends. The zeros come by themselves, with what follows."""
        with self._lock:
            recording = self._catalog.holding(event.room, event.start)
            hole = Hole.of(event)
            if recording is not None and self._folder.exists(recording) and hole not in recording.gaps:
                self._save(msgspec.structs.replace(recording, gaps=(*recording.gaps, hole)))

    @hookimpl
    def recording_stopped(self, event: RecordingStopped) -> None:
        """Where a recording was rotated, another file begins, though no time lies between them."""
        with self._lock:
            recording = self._catalog.holding(event.room, event.position - 1)
            is_known = recording is not None and recording.end == event.position and self._folder.exists(recording)
            if event.reason == "rotated" and recording is not None and is_known:
                self._save(msgspec.structs.replace(recording, limit=event.position))
            if event.reason == "ended" or (event.reason != "stopping" and self._gaps == "split"):
                self._ended.add(event.room)

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        """Make zero what was heard there, in every file that is still there, and note it."""
        with self._lock:
            self._catalog.forget_turns(event.room, event.start, event.end)
            self._catalog.put_forgotten(event.room, event.start, event.end)
            self._must_scrub = True
            if (newest := self._catalog.newest(event.room)) is not None:
                # A turn that goes may have begun in a file before, or gone on in one behind: what is said there is
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
        """Samples, then headers, then sidecars, then the catalog: what is durable later speaks of what is durable."""
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
        """Note which files have everything: those before one that this batch has written to. One that merely has a
        successor may still lack what comes again after a crash.
        """
        for room, first in self._changed:
            self._catalog.complete(room, first)
        for room in self._ended:
            if (newest := self._catalog.newest(room)) is not None:
                self._catalog.complete(room, newest.first + 1)

    def _place(self, event: Audio, position: int, at: datetime) -> tuple[Recording, int]:
        """The recording for the sample at this position, and the first position that it cannot have."""
        held = self._catalog.holding(event.room, position)
        following = self._catalog.following(event.room, position)
        if held is not None and not self._folder.exists(held):
            held = None
        if held is not None and not self._folder.contains(held) and not files.has_all(held):
            held = None  # what that file cannot show begins here
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
        """Make the files of a new recording. The catalog knows of them first: none is ever left that nobody knows."""
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
        """True if no sample is written into this file any more: it is compressed, or lies in another directory."""
        return recording.is_sealed or not self._folder.contains(recording)

    def _reopen(self, recording: Recording) -> Recording:
        """The recording as a WAV that can be written to, to be compressed again. Nothing of its other forms stays."""
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
        """Positions only grow for as long as there is one journal. A new event with an old position comes from another
        one, that began after the first was lost: it must not be written over what is there.
        """
        newest = self._catalog.newest(event.room)
        if newest is not None and event.id > newest.last and event.position < newest.end:
            log.warning("recording.restarted", room=event.room, position=event.position, path=newest.path)
            self._catalog.part(newest)


def _read(event: Audio) -> bytes:
    """The segment's samples: fewer than the event says, or none, where the spool has lost them."""
    if event.file is None:
        return b""
    try:
        audio = Path(event.file).read_bytes()
    except FileNotFoundError:  # removed since: waiting would bring nothing back, and would stop all that follows
        return b""
    return audio[: min(event.samples, len(audio) // SAMPLE_BYTES) * SAMPLE_BYTES]


def _unused(path: Path) -> Path:
    number, free = 1, path
    while any(free.with_suffix(suffix).exists() for suffix in compression.SUFFIXES):
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free


class TranscribingWriter(WavWriter):
    """A writer whose sidecars have what is said in the file, with corrections in the place of what they correct.

    A turn comes before the audio that it was said in as often as after it: it is kept, and stands beside the file as
    soon as that has its first sample; where another file begins inside it, its words stand beside the one they are in.
    """

    @hookimpl
    def turn(self, event: Turn) -> None:
        """Keep what was said, and write it beside the file that has it."""
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
