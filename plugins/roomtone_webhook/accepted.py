"""What the receiver has and the daemon does not know of: arrays that were accepted in a batch whose flush failed.

Nothing of such a batch is acknowledged, so all of it comes again. What is noted here is not sent a second time.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import trio

from roomtone.durable import remove, replace


class AcceptedIds:
    """The ids of accepted events, in a file of the sink's own from a failure until everything in it is past."""

    def __init__(self, path: Path) -> None:
        """Read the file. One that cannot be read is none: what it was to prevent is a doubled event."""
        self._path = path
        try:
            self._known = set(msgspec.json.decode(path.read_bytes(), type=list[str]))
        except (OSError, msgspec.DecodeError):
            self._known = set()
        self._fresh: set[str] = set()

    def has(self, id_: str) -> bool:
        return id_ in self._known

    def add(self, ids: Iterable[str]) -> None:
        """The receiver has these; the daemon will know with the next flush that returns."""
        self._fresh.update(ids)

    async def keep(self) -> None:
        """The flush fails: note what would be forgotten. Errors: OSError."""
        if self._fresh:
            self._known |= self._fresh
            self._fresh.clear()
            await trio.to_thread.run_sync(replace, self._path, msgspec.json.encode(sorted(self._known)))

    async def settle(self) -> None:
        """The flush returns: what was accepted is acknowledged. An event that was not noted says by its coming that all
        which was noted has come, for they come in order. Errors: OSError.
        """
        if self._known and self._fresh:
            await trio.to_thread.run_sync(remove, self._path)
            self._known.clear()
        self._fresh.clear()
