"""Controls of a sink beyond its table, as marks in the journal: the operator pauses it, or has it get events again.

So a control is durable, and there is one way for both: a running daemon reads it when another process has written, a
stopped one at its next start. The command needs no daemon and no lock, only the right to write the journal.

The rooms whose audio waits for a sink are a mark too: only the plugin's class says if the sink takes audio, and the
audio must wait even while the plugin does not load. Pure.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from roomtone.journal.keys import SinkMark, sink_key, sink_prefix
from roomtone.journal.records import Mark
from roomtone.sinks import Sink


class Pause(msgspec.Struct, frozen=True):
    """A sink is paused since `at`, by the operator ("person") or by Roomtone. Events wait for it in the journal."""

    at: datetime
    by: Literal["person", "roomtone"]
    reason: str


class Retry(msgspec.Struct, frozen=True, array_like=True):
    """The refused events with after < seq <= until are retried before all others. `after` grows with each success."""

    after: int
    until: int


class SinkControls(msgspec.Struct, frozen=True):
    """The controls of one sink that are in force. `rewind` is the seq to which its cursor goes back."""

    paused: Pause | None = None
    rewind: int | None = None
    retry: Retry | None = None


def control_mark(sink: str, control: Pause | Retry | int) -> Mark:
    """The mark that sets this control; a number is the seq to which the cursor goes back."""
    names: dict[type, SinkMark] = {Pause: "paused", Retry: "retry", int: "rewind"}
    return Mark(sink_key(sink, names[type(control)]), msgspec.to_builtins(control))


def cancel_mark(sink: str, control: Literal["paused", "retry", "rewind"]) -> Mark:
    """The mark that removes the control: it is taken back, or carried out."""
    return Mark(sink_key(sink, control), None)


def controls_of(sink: str, marks: Mapping[str, Any]) -> SinkControls:
    """The controls among these marks. Values that cannot be read were not written by Roomtone, and are ignored."""
    begin = sink_prefix(sink)
    found = {key.removeprefix(begin): value for key, value in marks.items() if key.startswith(begin)}
    try:
        return msgspec.convert(
            {key: found[key] for key in SinkControls.__struct_fields__ if key in found}, SinkControls
        )
    except msgspec.ValidationError:
        return SinkControls()


def pins_of(sink: Sink) -> list[str] | None:
    """The rooms whose segments must wait until the sink has acknowledged them. Empty means all rooms, None no room."""
    is_taking = sink.audio and (not sink.kinds or "audio" in sink.kinds)
    return list(sink.rooms) if is_taking else None


def pins_mark(name: str, sink: Sink) -> Mark:
    """The mark that stores `pins_of`."""
    return Mark(pins_key(name), pins_of(sink))


def pins_key(name: str) -> str:
    return sink_key(name, "audio")


def is_pinned(pins: object, room: str) -> bool:
    """True if the room is among these pins. Any other value was not written by Roomtone, and pins nothing."""
    return isinstance(pins, list) and (not pins or room in pins)
