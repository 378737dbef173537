"""The hooks of the wav sink: events become samples at their place in a file."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from roomtone import Audio, Forgotten, Gap, hookimpl
from roomtone_wav import disk
from roomtone_wav.catalog import Catalog
from roomtone_wav.recording import WIDTH, Gaps, Hole, Recording, Split, continued, duration, united

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Writer:
    """Writes each segment by its position, so that one delivered again lands on itself, bit for bit.

    `name` gives the path for a recording that is about to begin. No file stays open between two calls, so one that
    somebody deletes is deleted, and the next sample begins another.
    Errors: OSError that names the file. Nothing of the batch is then acknowledged, for only `flush` commits.
    """

    def __init__(self, catalog: Catalog, name: Callable[[Recording], Path], split: Split, gaps: Gaps) -> None:
        self._catalog = catalog
        self._name = name
        self._split = split
        self._gaps = gaps
        self._changed: dict[tuple[str, int], Recording] = {}

    @hookimpl
    def audio(self, event: Audio) -> None:
        """Write the segment, part by part where a file ends inside it."""
        self._forget_other_journal(event)
        audio = _read(event)
        position, stop = event.position, event.position + event.samples
        while position < stop:
            at = event.at + duration(position - event.position, event.rate)
            recording, end = self._place(event, position, at)
            end = min(stop, end)
            part = audio[(position - event.position) * WIDTH : (end - event.position) * WIDTH]
            self._write(recording, event, position, end, part)
            position = end

    @hookimpl
    def gap(self, event: Gap) -> None:
        """Note the gap beside the file that it lies in or ends. The zeros come by themselves, with what follows."""
        recording = self._catalog.holding(event.room, event.start)
        hole = Hole.of(event)
        if recording is not None and Path(recording.path).exists() and hole not in recording.gaps:
            self._save(msgspec.structs.replace(recording, gaps=(*recording.gaps, hole)))

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        """Make zero what was heard there, in every file that is still there, and note it."""
        for recording in self._catalog.overlapping(event.room, event.start, event.end):
            if not Path(recording.path).exists():
                continue
            start, end = max(event.start, recording.first), min(event.end, recording.end)
            with disk.open_wav(recording.path) as wav:
                wav.erase(recording.offset(start), recording.offset(end - 1) + 1)
            self._save(msgspec.structs.replace(recording, forgotten=united(recording.forgotten, start, end)))

    @hookimpl
    def flush(self) -> None:
        """Samples, then headers, then sidecars, then the catalog: what is durable later speaks of what is durable."""
        for recording in self._changed.values():
            with disk.open_wav(recording.path) as wav:
                wav.settle(recording.samples, recording.rate)
            disk.write_sidecar(recording)
        self._catalog.commit()
        self._changed.clear()

    def _place(self, event: Audio, position: int, at: datetime) -> tuple[Recording, int]:
        """The recording for the sample at this position, and the first position that it cannot have."""
        held = self._catalog.holding(event.room, position)
        following = self._catalog.following(event.room, position)
        if held is not None and not Path(held.path).exists():
            held = None
        if held is not None and following is None:
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
        )
        path = _unused(self._name(recording))
        recording = msgspec.structs.replace(recording, path=str(path))
        self._catalog.put(recording)
        self._catalog.commit()
        disk.create(recording)
        log.info("recording.begun", room=event.room, path=str(path), position=position)
        return recording

    def _write(self, recording: Recording, event: Audio, start: int, end: int, audio: bytes) -> None:
        with disk.open_wav(recording.path) as wav:
            wav.write(recording.offset(start), audio)
        if end > recording.end:
            until = event.at + duration(end - event.position, event.rate)
            recording = msgspec.structs.replace(recording, end=end, until=until)
        if (there := start + len(audio) // WIDTH) < end:
            log.warning("audio.missing", room=event.room, path=recording.path, start=there, end=end)
            recording = msgspec.structs.replace(recording, missing=united(recording.missing, there, end))
        self._save(msgspec.structs.replace(recording, last=max(recording.last, event.id)))

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
            self._catalog.drop(event.room)


def _read(event: Audio) -> bytes:
    """The segment's samples: fewer than the event says, or none, where the spool has lost them."""
    if event.file is None:
        return b""
    try:
        audio = Path(event.file).read_bytes()
    except FileNotFoundError:  # removed since: waiting would bring nothing back, and would stop all that follows
        return b""
    return audio[: min(event.samples, len(audio) // WIDTH) * WIDTH]


def _unused(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free
