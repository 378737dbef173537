"""What a plugin's author imports. Loaded lazily (PEP 562): the capture process wants the package, and nothing of it."""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m roomtone...` begins here: what else lies in the folder that it happens to run in is not for us. All
    # that Python has imported from there by now is what `-m` itself needs, `importlib`; only `-P` keeps that out too.
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roomtone.events import (
        Analysis,
        Answer,
        Audio,
        Durable,
        Event,
        Forgotten,
        Gap,
        Interim,
        Level,
        Muted,
        Notice,
        RecordingStarted,
        RecordingStopped,
        SessionEnded,
        SessionStarted,
        Turn,
        Unmuted,
        Word,
        decode,
        encode,
    )
    from roomtone.sinks import Context, Sink, Unprocessable, hookimpl

_HOME = {
    **dict.fromkeys(("Context", "Sink", "Unprocessable", "hookimpl"), "roomtone.sinks"),
    **dict.fromkeys(
        (
            "Analysis",
            "Answer",
            "Audio",
            "Durable",
            "Event",
            "Forgotten",
            "Gap",
            "Interim",
            "Level",
            "Muted",
            "Notice",
            "RecordingStarted",
            "RecordingStopped",
            "SessionEnded",
            "SessionStarted",
            "Turn",
            "Unmuted",
            "Word",
            "decode",
            "encode",
        ),
        "roomtone.events",
    ),
}

__all__ = [
    "Analysis",
    "Answer",
    "Audio",
    "Context",
    "Durable",
    "Event",
    "Forgotten",
    "Gap",
    "Interim",
    "Level",
    "Muted",
    "Notice",
    "RecordingStarted",
    "RecordingStopped",
    "SessionEnded",
    "SessionStarted",
    "Sink",
    "Turn",
    "Unmuted",
    "Unprocessable",
    "Word",
    "decode",
    "encode",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
