"""The terminal display of a room while it is recorded: a line for each event, live captions, and a level meter."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from roomtone.cli.output import say
from roomtone.cli.recording_summary import Tally
from roomtone.events import (
    Answer,
    Audio,
    Durable,
    Gap,
    Interim,
    Level,
    Notice,
    RecordingStarted,
    RecordingStopped,
    SessionEnded,
    SessionStarted,
    Turn,
    kind_of,
)
from roomtone.legible import legible
from roomtone.sinks import Context, Sink, hookimpl

METER_FLOOR_DB = -60.0
"""Level at the left end of the meter, in dB relative to full scale."""
METER_COLUMNS = 40
MIN_TEXT_COLUMNS = 24
"""With fewer columns beside the time and kind, a text is printed from the left edge."""


class Display(Protocol):
    """Shows events to a user."""

    def show(self, event: Durable) -> None: ...
    def caption(self, event: Interim) -> None: ...
    def meter(self, event: Level) -> None: ...


class Screen(Sink, frozen=True, kw_only=True, tag="screen"):
    """A sink whose hooks draw a display in this process. It has no table in the configuration."""

    display: Any  # a Display; a table cannot hold one
    tally: Any  # a Tally

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        yield DisplayHooks(self.display, self.tally)


class DisplayHooks:
    """Asynchronous hooks: they take microseconds, and run in the event loop that owns the display."""

    def __init__(self, display: Display, tally: Tally) -> None:
        self._display = display
        self._tally = tally

    @hookimpl
    async def event(self, event: Durable) -> None:
        self._tally.add(event)
        self._display.show(event)

    @hookimpl
    async def interim(self, event: Interim) -> None:
        self._display.caption(event)

    @hookimpl
    async def level(self, event: Level) -> None:
        self._display.meter(event)


class LineDisplay:
    """A line for each event without live text, for pipes and files."""

    def __init__(self, write: Callable[[str], None] = say) -> None:
        self._write = write

    def show(self, event: Durable) -> None:
        self._write(f"{_clock(event)}  {kind_of(event):17}  {describe(event)}".rstrip())

    def caption(self, event: Interim) -> None:
        """Only final text is printed."""

    def meter(self, event: Level) -> None:
        """The level is not printed."""


class Captions:
    """Events scroll past; below them stand the interim text and the level."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._caption = ""
        self._level: Level | None = None

    def show(self, event: Durable) -> None:
        from rich.padding import Padding  # noqa: PLC0415 - late, as all of rich
        from rich.text import Text  # noqa: PLC0415 - late, as all of rich

        if isinstance(event, Turn):
            self._caption = ""
        style = _STYLES.get(kind_of(event), "dim")
        begin = Text.assemble((f"{_clock(event)}  ", "dim"), (f"{kind_of(event):17}  ", style))
        room = self._live.console.width - len(begin)
        if room < MIN_TEXT_COLUMNS:
            self._live.console.print(begin + Text(legible(describe(event))))
        else:
            first, *others = Text(legible(describe(event), lines=True)).wrap(self._live.console, room) or [Text()]
            self._live.console.print(begin + first)
            for line in others:
                self._live.console.print(Padding(line, (0, 0, 0, len(begin))))
        self._draw()

    def caption(self, event: Interim) -> None:
        self._caption = event.text
        self._draw()

    def meter(self, event: Level) -> None:
        self._level = event
        self._draw()

    def _draw(self) -> None:
        from rich.text import Text  # noqa: PLC0415 - late, as all of rich

        bar = bar_of(self._level) if self._level else " " * METER_COLUMNS
        shown = f" {self._level.rms:6.1f} dB  " if self._level else ""
        self._live.update(
            Text.assemble((bar, "green"), (shown, "dim"), "\n", (legible(self._caption) or " ", "italic"))
        )


_STYLES = {
    "turn": "bold cyan",
    "answer": "bold magenta",
    "gap": "bold yellow",
    "notice": "bold yellow",
    "session_started": "green",
    "session_ended": "green",
}


@contextmanager
def open_display(*, terminal: bool) -> Iterator[Display]:
    """Captions on a terminal, else lines."""
    if not terminal:
        yield LineDisplay()
        return
    from rich.live import Live  # noqa: PLC0415 - late: only a terminal needs it

    with Live(refresh_per_second=10, transient=True) as live:
        yield Captions(live)


def describe(event: Durable) -> str:  # noqa: PLR0911 - one line for each kind
    """The event in a few words."""
    match event:
        case RecordingStarted():
            return f"{event.source}, {event.rate} Hz"
        case RecordingStopped():
            return event.reason
        case SessionStarted():
            return f"at {event.endpoint}" + (f", {event.speech_model}" if event.speech_model else "")
        case SessionEnded():
            return f"{event.reason}: {event.audio_seconds:.1f} s of audio in {event.session_seconds:.1f} s"
        case Turn() | Answer():
            return event.text
        case Audio():
            return f"{event.samples / event.rate:.1f} s from position {event.position}"
        case Gap():
            return f"{event.cause}: {event.end - event.start} samples, {event.from_:%H:%M:%S} to {event.until:%H:%M:%S}"
        case Notice():
            return event.text
        case _:
            return ""


def bar_of(level: Level) -> str:
    """The level as a bar: filled to the RMS value, with a mark at the peak."""
    filled, peak = (
        round(max(0.0, min(1.0, (decibels - METER_FLOOR_DB) / -METER_FLOOR_DB)) * METER_COLUMNS)
        for decibels in (level.rms, level.peak)
    )
    bar = "█" * filled + "░" * (METER_COLUMNS - filled)
    return bar[: peak - 1] + "▌" + bar[peak:] if peak > filled else bar


def _clock(event: Durable) -> str:
    return f"{event.at.astimezone():%H:%M:%S}"
