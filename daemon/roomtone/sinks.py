"""The contract between Roomtone and a sink: everything that a plugin author needs to read.

A sink is its configuration plus one verb. The configuration is a frozen Struct, the `[sinks.<name>]` table; the verb is
`open`, an async context manager that yields a pluggy plugin: any object with `@hookimpl` methods for the events that it
wants. A plugin announces its sinks with one hook, `register_sinks`. A single file whose module-level functions are
`@hookimpl` is a sink too: the module is the plugin object.

The daemon keeps these laws for every sink, and a sink cannot break them for another one:

- **Returning is the acknowledgement.** Events come in order, each at least once. An event whose hook has returned is
  acknowledged after `flush` has returned; one whose hook raises comes again later.
- `Unprocessable`, raised from an event's hook, sets that one event aside; the next ones come.
- An exception with an attribute `retry_after`, in seconds, delays the next attempt: the sink is not opened again
  sooner, nor before its back-off is over. At most an hour is granted.
- Synchronous hooks run in a worker thread of their sink, a whole batch in one call; asynchronous ones in the trio loop.
- A call may take `timeout` seconds. A sink that takes longer is left, and opened again, after the call has ended.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar, Literal

import msgspec
import pluggy

from roomtone import events, paths

PROJECT = "roomtone"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as an implementation of a hook. A misspelt hook or argument is refused when the sink opens."""

LONGEST_WAIT = 3600.0
"""Seconds that `retry_after` of an exception can put off the next attempt by, at most."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class Unprocessable(Exception):  # noqa: N818 - it states a fact about the event, and is not an error of the sink
    """The sink will never accept this event. Raised from an event's hook: the event is set aside with this reason."""


def _ignore(text: str) -> None:
    """Outside of the daemon there is no journal for a notice."""


class Context(msgspec.Struct, frozen=True):
    """The daemon's data for a sink that it opens.

    `name` is the table's name; relative paths of this sink begin in `folder`; `state` is a folder of its own, private
    to the daemon's user, for data that it must remember; `rates` has each room's rate in Hz. `warn` has the daemon
    commit a notice with that line, about work that the sink cannot do and goes on without; from any thread.
    """

    name: str
    folder: Path
    state: Path
    rates: dict[str, int]
    warn: Callable[[str], None] = _ignore

    def path(self, path: str | Path) -> Path:
        """The absolute path for a path in the configuration: `~` is the home folder."""
        return self.folder / paths.expand(path)


class Sink(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """A sink's configuration. Derive from it with `tag="mykind"`; the fields are the keys of `[sinks.<name>]`.

    `audio = True` on a class pins each segment of audio until this sink has acknowledged it, as far as the quota goes.
    """

    audio: ClassVar[bool] = False

    rooms: tuple[str, ...] = ()
    """Only events of these rooms; empty means all."""
    kinds: tuple[str, ...] = ()
    """Only events of these kinds; empty means all that its hooks ask for."""
    start: Literal["now", "oldest"] = "now"
    """The event at which a sink begins that the journal does not know yet."""
    timeout: Seconds = 30.0
    """Seconds that one call of a hook, or opening the sink, may take."""
    disabled: bool = False
    """True: the table is checked, but not used. The sink keeps its place in the journal."""

    def open(self, context: Context) -> AbstractAsyncContextManager[object]:
        """Yield the object whose `@hookimpl` methods get the events; what it owns ends with the context.

        Errors: any exception is logged, and the sink is opened again after a back-off.
        """
        raise NotImplementedError

    def holdings(self, context: Context) -> Iterable[Path]:
        """Files and folders in which this sink keeps data of events, besides its `context.state`.

        `roomtone forget` searches them for remains. It warns of a sink that names none and has no hook `forgotten`,
        because it cannot check that sink.
        """
        return ()

    def audio_at(self, context: Context, room: str, start: int, end: int) -> Iterable[tuple[Path, int, int]]:
        """The places in the sink's files where the room's audio of these positions lies as plain samples: each file,
        with the first byte and the one after the last.

        For playing recordings. Called in a thread of its own, beside the hooks.
        """
        return ()


class Module(Sink, frozen=True, kw_only=True, tag="module"):
    """A drop-in file as a sink: its module-level hooks. It has no table unless one names its kind, the file's stem."""

    module: ClassVar[ModuleType]

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        yield self.module


class Hooks:
    """Every hook that a sink's object may implement, with the argument that it gets. Implement only what you want.

    Each hook named after a kind gets the durable events of that kind. Where an object has both, the specific hook is
    called first, then `event`.
    """

    @hookspec
    def event(self, event: events.Durable) -> None:
        """Every durable event."""

    @hookspec
    def recording_started(self, event: events.RecordingStarted) -> None:
        """A room's first samples have come."""

    @hookspec
    def recording_stopped(self, event: events.RecordingStopped) -> None:
        """A room's samples have ended for now."""

    @hookspec
    def session_started(self, event: events.SessionStarted) -> None:
        """A streaming session is up."""

    @hookspec
    def turn(self, event: events.Turn) -> None:
        """A final turn."""

    @hookspec
    def answer(self, event: events.Answer) -> None:
        """The LLM Gateway's answer to a turn."""

    @hookspec
    def analysis(self, event: events.Analysis) -> None:
        """The result of a named prompt about a conversation."""

    @hookspec
    def session_ended(self, event: events.SessionEnded) -> None:
        """A streaming session is over."""

    @hookspec
    def audio(self, event: events.Audio) -> None:
        """A segment of audio is complete, in the file that the event names."""

    @hookspec
    def gap(self, event: events.Gap) -> None:
        """Samples or time are missing, and why."""

    @hookspec
    def muted(self, event: events.Muted) -> None:
        """The room does not listen now."""

    @hookspec
    def unmuted(self, event: events.Unmuted) -> None:
        """The room listens again."""

    @hookspec
    def forgotten(self, event: events.Forgotten) -> None:
        """Remove all data of this stretch."""

    @hookspec
    def notice(self, event: events.Notice) -> None:
        """A message of the daemon for the operator."""

    @hookspec
    def interim(self, event: events.Interim) -> None:
        """Live only: text that may still change. Best effort."""

    @hookspec
    def level(self, event: events.Level) -> None:
        """Live only: how loud the room is. Best effort."""

    @hookspec
    def flush(self) -> None:
        """After each batch: make its events durable. Raising means that none of them is."""


class Registry:
    """The one hook of a plugin: it announces its kinds of sinks."""

    @hookspec
    def register_sinks(self) -> Iterable[type[Sink]]:
        """Return the Sink classes of this plugin."""
        raise NotImplementedError


def wants(sink: Sink, event: events.Durable, *, kinds: Sequence[str] = ()) -> bool:
    """True if this sink's own filters let the event through. `kinds` replaces an empty `sink.kinds`.

    A notice of the whole daemon (no room) passes every filter of rooms. `forgotten` passes every filter of kinds: a
    sink that has data of the stretch must get it.
    """
    if isinstance(event, events.Forgotten):
        return not sink.rooms or event.room in sink.rooms
    chosen = sink.kinds or kinds
    return (not chosen or events.kind_of(event) in chosen) and (
        not sink.rooms or not event.room or event.room in sink.rooms
    )
