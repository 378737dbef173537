"""What a person wants of a sink beyond its table: that it pauses, or gets events again. Kept in marks of the journal.

So an order is durable, and one way serves both: a daemon that runs looks when another process has written, one that
does not finds it at its next start. The command needs no daemon and no lock, only the right to write the journal.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from roomtone.journal.keys import SinkMark, sink_key, sink_prefix
from roomtone.journal.records import Mark


class Pause(msgspec.Struct, frozen=True):
    """Since when a sink is paused, by whom, and why. Events wait for it in the journal."""

    at: datetime
    by: Literal["person", "roomtone"]
    reason: str


class Retry(msgspec.Struct, frozen=True, array_like=True):
    """The refused events with after < seq <= until are tried again, before all others. `after` grows as they are."""

    after: int
    until: int


class SinkControls(msgspec.Struct, frozen=True):
    """The orders that stand for one sink. `rewind` is where its cursor is to go back to."""

    paused: Pause | None = None
    rewind: int | None = None
    retry: Retry | None = None


def mark_of(sink: str, order: Pause | Retry | int) -> Mark:
    """The mark that gives this order; a number is where the cursor is to go back to."""
    names: dict[type, SinkMark] = {Pause: "paused", Retry: "retry", int: "rewind"}
    return Mark(sink_key(sink, names[type(order)]), msgspec.to_builtins(order))


def cancel(sink: str, order: Literal["paused", "retry", "rewind"]) -> Mark:
    """The mark that takes the order back, or says that it is done."""
    return Mark(sink_key(sink, order), None)


def controls_of(sink: str, marks: Mapping[str, Any]) -> SinkControls:
    """The orders among these marks. What cannot be read was not written by us, and is no order."""
    begin = sink_prefix(sink)
    found = {key.removeprefix(begin): value for key, value in marks.items() if key.startswith(begin)}
    try:
        return msgspec.convert(
            {key: found[key] for key in SinkControls.__struct_fields__ if key in found}, SinkControls
        )
    except msgspec.ValidationError:
        return SinkControls()
