"""Control of one run of a room's recorder from outside: end it for a reason, or begin a new recording in it."""

from typing import Literal

import trio

from roomtone.capture.outbox import Outbox
from roomtone.capture.records import MuteState
from roomtone.events import Cause

ROTATE_TIMEOUT_S = 5.0
"""Seconds in which a recorder whose source gives samples begins a new recording."""


class RunControl:
    """The control of one run of `record`.

    `scope` is the run's; `reason` is why the run ends if the source does not; `cause` is that of the time after it;
    `mute` is journaled with the end. `outbox` is the room's, and outlives the run.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.scope = trio.CancelScope()
        self.reason: Literal["stopping", "muted"] = "stopping"
        self.cause: Cause = "daemon down"
        self.mute: MuteState | None = None
        self._waiting: list[trio.Event] = []

    def replace(self) -> None:
        """End the run because another one follows immediately."""
        self.take_out()
        self.scope.cancel()

    def take_out(self) -> None:
        """Journal the time after the run as that of an absent device: the room is no longer configured. A mute
        that was requested before stays the cause.
        """
        if self.reason != "muted":
            self.cause = "device"

    def close(self, mute: MuteState) -> None:
        """End the run because the device is to be closed."""
        self.reason = self.cause = "muted"
        self.mute = mute
        self.scope.cancel()

    async def rotate(self) -> bool:
        """Begin a new recording at the next block. False if no samples flow."""
        begun = trio.Event()
        self._waiting.append(begun)
        with trio.move_on_after(ROTATE_TIMEOUT_S):
            await begun.wait()
        return begun.is_set()

    @property
    def is_to_rotate(self) -> bool:
        """True if a new recording is requested."""
        return bool(self._waiting)

    def rotated(self) -> None:
        """Report that the recorder has begun a new recording."""
        for begun in self._waiting:
            begun.set()
        self._waiting.clear()
