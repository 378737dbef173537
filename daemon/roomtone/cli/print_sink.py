"""The output of `roomtone run --print`: sessions, turns, answers of language models, and costs."""

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
"""A name that a table cannot have."""


class Print(Sink, frozen=True, kw_only=True, tag="print"):
    """A sink whose hooks print in this process. It has no table in the configuration.

    Events that were committed before `since` (UTC) belong to an earlier run and are not printed.
    """

    write: Any  # prints one line; a table cannot hold it
    since: datetime
    currency: str = "USD"

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        yield Printer(self.write, self.since, self.currency, rooms=context.rates)


class Printer:
    """Prints the events of this run as they arrive; with several rooms, each line begins with the room."""

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
        prefix = f"{event.room}: " if event.room and len(self._rooms) > 1 else ""
        for line in lines(event, self._currency):
            self._write(prefix + line if line else "")


def lines(event: Durable, currency: str) -> Iterator[str]:
    """The lines to print for an event. Pure."""
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
            usage = f"{event.audio_seconds:g} s of audio heard, open for {event.session_seconds:g} s"
            yield from ("", f"Session {event.session_id} has ended ({event.reason}): {usage}.")
        case Notice():
            yield f"{event.severity.capitalize()}: {event.text}"


def recordings(config: Config, environ: Mapping[str, str], since: datetime) -> Iterator[str]:
    """A line for each WAV file that was written since then."""
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
    """The commit time of an event: a UUIDv7 begins with its creation time in milliseconds."""
    return datetime.fromtimestamp((UUID(event.id).int >> 80) / 1000, UTC)
