"""What `roomtone run --print` prints: sessions, what was heard, what a language model said to it, and what it took."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from wave import Error as WaveError
from wave import open as open_wave

from roomtone.config.model import Config
from roomtone.events import (
    Analysis,
    Answer,
    Durable,
    Notice,
    RecordingStarted,
    RecordingStopped,
    SessionEnded,
    SessionStarted,
    Turn,
)
from roomtone.sinks import Context, Sink, hookimpl

NAME = "@print"
"""No table can have this name."""


class Print(Sink, frozen=True, kw_only=True, tag="print"):
    """A sink whose hooks print in this process: the same door as every other sink's. It has no table.

    Events that were committed before `since` (UTC) are an earlier run's, and not printed.
    """

    write: Any  # what prints one line, which no table can hold
    since: datetime
    currency: str = "USD"

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        yield Printer(self.write, self.since, self.currency, rooms=context.rates)


class Printer:
    """Prints the events of this run as they come; with several rooms each line says whose it is."""

    def __init__(
        self, write: Callable[[str], None], since: datetime, currency: str, *, rooms: Mapping[str, int]
    ) -> None:
        self._write = write
        self._since = since
        self._currency = currency
        self._rooms = rooms

    @hookimpl
    async def event(self, event: Durable) -> None:
        if _committed(event) < self._since:
            return
        whose = f"{event.room}: " if event.room and len(self._rooms) > 1 else ""
        for line in lines(event, self._currency):
            self._write(whose + line if line else "")


def lines(event: Durable, currency: str) -> Iterator[str]:
    """What is printed of an event. Pure."""
    match event:
        case RecordingStarted():
            yield f"Recording from {event.source}. Press Ctrl-C to stop."
        case RecordingStopped():
            yield "Recording stopped; waiting for the last words ..."
        case SessionStarted():
            model = f" with {event.speech_model}" if event.speech_model else ""
            yield f"Session {event.session_id} is open at {event.endpoint}{model}."
        case Turn():
            who = f" from {event.speaker}" if event.speaker else ""
            yield from ("", f"{'Corrected' if event.supersedes else 'Heard'}{who}: {event.text}")
        case Answer():
            yield from ("", *f"Answer of the language model: {event.text}".split("\n"))
        case Analysis():
            cost = "" if event.cost is None else f", {event.cost:.4f} {currency}"
            head = f"Analysis [{event.name}] ({event.model or 'language model'}{cost}):"
            yield from ("", head, *event.text.split("\n"))
        case SessionEnded():
            took = f"{event.audio_seconds:g} s of audio heard, open for {event.session_seconds:g} s"
            yield from ("", f"Session {event.session_id} is over ({event.reason}): {took}.")
        case Notice():
            yield f"{event.severity.capitalize()}: {event.text}"


def recordings(config: Config, environ: Mapping[str, str], since: datetime) -> Iterator[str]:
    """The WAV files that were written since then, a line for each."""
    for sink in config.sinks.values():
        directory = getattr(sink, "directory", None)
        if sink.__struct_config__.tag != "wav" or directory is None:
            continue
        for path in sorted((config.sinks_folder(environ) / Path(directory).expanduser()).rglob("*.wav")):
            if path.stat().st_mtime >= since.timestamp():
                yield f"Audio saved to {path} ({_seconds(path):.2f} s)."


def _seconds(path: Path) -> float:
    try:
        with open_wave(str(path)) as file:
            return float(file.getnframes() / file.getframerate())
    except (WaveError, EOFError):
        return 0.0


def _committed(event: Durable) -> datetime:
    """A UUIDv7 begins with the milliseconds of its making."""
    return datetime.fromtimestamp((UUID(event.id).int >> 80) / 1000, UTC)
