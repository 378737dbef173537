"""The public names for plugin authors. They are loaded lazily (PEP 562), for the capture process needs none of them."""
# ruff: noqa: F405 - `__all__` has each name once; the star imports below say where they are, and mypy checks that

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m roomtone...` begins here: modules in the working folder are not for us. By now Python has imported only
    # what `-m` itself needs from there, `importlib`; only `-P` keeps that out too.
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roomtone.events import *  # noqa: F403 - see above
    from roomtone.sinks import *  # noqa: F403 - see above

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
    if name in __all__:
        for home in ("roomtone.events", "roomtone.sinks"):
            if hasattr(module := import_module(home), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
