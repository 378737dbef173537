"""Small pieces of structured concurrency that trio leaves to its users. They know nothing of Roomtone."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class RunSync(Protocol):
    """Calls a blocking function from a task: `trio.to_thread.run_sync`, or one that knows no threads.

    `roomtone.testing.inline` has one for virtual time, which passes while a thread works.
    """

    async def __call__(
        self,
        sync_fn: Callable[[*Ts], T],
        *args: *Ts,
        abandon_on_cancel: bool = False,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T: ...


async def wait_any(*waits: Callable[[], Awaitable[object]]) -> None:
    """Return when one of them has returned; the others are cancelled."""

    async def cancel_after(wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
        await wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(cancel_after, wait, nursery.cancel_scope)


async def grace_after_cancel(shielded: trio.CancelScope, seconds: float) -> None:
    """Runs until it is cancelled, and then leaves the shielded scope only this many seconds."""
    try:
        await trio.sleep_forever()
    finally:
        shielded.deadline = trio.current_time() + seconds


def leaves_of(error: BaseException) -> list[BaseException]:
    """The exceptions in nested groups, in their order; one that is not a group is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for nested in error.exceptions for leaf in leaves_of(nested)]
    return [error]


class Restartable:
    """Work that can be begun again from outside: it is cancelled, and called anew."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._turn = trio.Lock()

    def restart(self) -> None:
        self._scope.cancel()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work until it returns by itself. After an error it can be run again."""
        while True:
            async with self._turn:
                try:
                    with self._scope as scope:
                        await work()
                finally:
                    self._scope = trio.CancelScope()
            if not scope.cancel_called:
                return

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The work is left, and not begun again as long as this lasts."""
        self._scope.cancel()
        async with self._turn:
            yield
