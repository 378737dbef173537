"""The engines that there are, and how one is made.

A name is one of BUNDLED, an entry point of the group `roomtone.engines`, or `package.module:callable`. The callable
takes EngineSettings and returns an engine of either shape.
"""

import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Final

from roomtone.recognizer.adapter import open_adapter
from roomtone.recognizer.engine import EngineSettings, EngineUnavailable, StreamEngine, TurnEngine
from roomtone.recognizer.model_files import check_digest

GROUP: Final = "roomtone.engines"
DEFAULT: Final = "moonshine"
FLOOR: Final = "pocketsphinx"
"""The engine that gives words where another one cannot."""
BUNDLED: Final = {
    "moonshine": "roomtone.recognizer.moonshine:open_engine",
    "pocketsphinx": "roomtone.recognizer.sphinx:open_engine",
}


def open_engine(name: str | None, settings: EngineSettings) -> StreamEngine:
    """An engine that follows streams, ready to use. Raises EngineUnavailable, whatever the engine's own code raises."""
    chosen = name or DEFAULT
    make = _find(chosen)
    check_digest(settings)
    try:
        engine: StreamEngine | TurnEngine = make(settings)
    except EngineUnavailable:
        raise
    except Exception as error:
        raise EngineUnavailable(f"engine {chosen!r} does not open: {type(error).__name__}: {error}") from error
    return open_adapter(engine) if isinstance(engine, TurnEngine) else engine


def open_with_fallback(name: str | None, settings: EngineSettings) -> tuple[StreamEngine, str | None]:
    """The engine, or the fallback and the reason why the engine is not there.

    Raises EngineUnavailable, with the first engine's reason, if there is no fallback either.
    """
    try:
        return open_engine(name, settings), None
    except EngineUnavailable as unavailable:
        if (name or DEFAULT) == FLOOR:
            raise
        try:
            return open_engine(FLOOR, EngineSettings()), str(unavailable)
        except EngineUnavailable:
            raise unavailable from None


def names() -> Iterator[tuple[str, str]]:
    """Names of engines and the package that brings each."""
    yield from ((name, "roomtone") for name in BUNDLED)
    for point in entry_points(group=GROUP):
        if point.name not in BUNDLED:
            yield point.name, point.dist.name if point.dist else ""


def _find(name: str) -> Callable[[EngineSettings], StreamEngine | TurnEngine]:
    points = [] if name in BUNDLED or ":" in name else list(entry_points(group=GROUP, name=name))
    if name not in BUNDLED and ":" not in name and not points:
        known = ", ".join(known for known, _ in names())
        raise EngineUnavailable(f"engine {name!r} is not known: use one of {known}, or package.module:callable")
    try:
        found: Callable[[EngineSettings], StreamEngine | TurnEngine] = (
            points[0].load() if points else pkgutil.resolve_name(BUNDLED.get(name, name))
        )
    except Exception as error:
        raise EngineUnavailable(f"engine {name!r} cannot be loaded: {error}") from error
    return found
