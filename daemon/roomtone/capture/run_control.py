"""How one run of a room's recorder is held from outside: to end it, and say why, or to begin a new recording in it."""

from typing import Literal

import trio

from roomtone.capture.outbox import Outbox
from roomtone.capture.records import MuteState
from roomtone.events import Cause

ROTATE_TIMEOUT_S = 5.0
"""Seconds in which a recorder that hears its source comes round to begin a new recording."""


class RunControl:
    """Given to one run of `record`, and to whoever may want something of it.

    `scope` is the run's; `reason` is why it ends where that is not the source's end; `cause` is what the time after it
    is to be called; `mute` is what is journalled with the end. `outbox` is the room's, and outlives the run.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.scope = trio.CancelScope()
        self.reason: Literal["stopping", "muted"] = "stopping"
        self.cause: Cause = "daemon down"
        self.mute: MuteState | None = None
        self._waiting: list[trio.Event] = []

    def replace(self) -> None:
        """End the run because another one follows at once."""
        self.cause = "device"
        self.scope.cancel()

    def take_out(self) -> None:
        """Call the time after the run that of a device that is away: the room is configured no more."""
        self.cause = "device"

    def close(self, mute: MuteState) -> None:
        """End the run because the device is to be closed."""
        self.reason = self.cause = "muted"
        self.mute = mute
        self.scope.cancel()

    async def rotate(self) -> bool:
        """Have a new recording begin at the next block. False where no samples flow in which it could."""
        begun = trio.Event()
        self._waiting.append(begun)
        with trio.move_on_after(ROTATE_TIMEOUT_S):
            await begun.wait()
        return begun.is_set()

    @property
    def is_to_rotate(self) -> bool:
        return bool(self._waiting)

    def rotated(self) -> None:
        """The recorder has begun a new recording."""
        for begun in self._waiting:
            begun.set()
        self._waiting.clear()
