"""Which rooms' audio waits for a sink. It is noted in the journal too, so that it waits while the plugin does not load:
only the plugin's class says whether the sink takes audio. Pure.
"""

from roomtone.journal.keys import sink_key
from roomtone.journal.records import Mark
from roomtone.sinks import Sink


def pins_of(sink: Sink) -> list[str] | None:
    """The rooms whose segments must wait until the sink has acknowledged them: none of them means all, None means no
    room.
    """
    is_taking = sink.audio and (not sink.kinds or "audio" in sink.kinds)
    return list(sink.rooms) if is_taking else None


def pins_mark(name: str, sink: Sink) -> Mark:
    """The mark that notes them."""
    return Mark(sink_key(name, "audio"), pins_of(sink))


def is_pinned(pins: object, room: str) -> bool:
    """Whether the room is among them. What else may stand in a mark was not written by us, and pins nothing."""
    return isinstance(pins, list) and (not pins or room in pins)
