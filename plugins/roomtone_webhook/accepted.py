"""Events that the receiver has and the daemon takes for undelivered: accepted arrays of a batch whose flush failed.

Such a batch is not acknowledged, so all of it comes again. The events noted here are not sent a second time.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import trio

from roomtone.durable import remove, replace


class AcceptedIds:
    """The ids of accepted events, in a file of the sink's own, from a failure until all of them have come again."""

    def __init__(self, path: Path) -> None:
        """Read the file. One that cannot be read is ignored: it only prevents doubled events."""
        self._path = path
        try:
            self._known = set(msgspec.json.decode(path.read_bytes(), type=list[str]))
        except (OSError, msgspec.DecodeError):
            self._known = set()
        self._fresh: set[str] = set()

    def has(self, id_: str) -> bool:
        return id_ in self._known

    def add(self, ids: Iterable[str]) -> None:
        """The receiver has accepted these; the next flush that returns acknowledges them."""
        self._fresh.update(ids)

    async def keep(self) -> None:
        """The flush fails: note the accepted events. Errors: OSError."""
        if self._fresh:
            self._known |= self._fresh
            self._fresh.clear()
            await trio.to_thread.run_sync(replace, self._path, msgspec.json.encode(sorted(self._known)))

    async def settle(self) -> None:
        """The flush returns: accepted events are acknowledged. A new event means that all noted ones have come again,
        because events come in order. Errors: OSError.
        """
        if self._known and self._fresh:
            await trio.to_thread.run_sync(remove, self._path)
            self._known.clear()
        self._fresh.clear()
