"""Calls the hooks of one opened sink: one at a time, synchronous ones in a thread, each watched by the clock."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio

from roomtone.delivery.batch import Batch, SinkFailed
from roomtone.delivery.hooks import Hook, SinkHooks
from roomtone.events import kind_of
from roomtone.live import LiveEvent


class HookExecutor:
    """Makes the calls into one opened sink's object.

    A synchronous call that outlives `timeout_s` is reported to `on_overdue`. Then it is waited for while the rest of
    this sink stands still, for its object is in use. Its result counts: otherwise a receiver that is always too slow
    would get the same event again and again.

    Resources: `nursery` lies inside the sink's context and ends only after the thread has, cancelled or not. So no file
    or database is closed under a running hook, which C code does not survive. At shutdown the process ends without it:
    see `monitoring/exit_deadline.py`. An `on_overdue` that raises abandons the thread: for a process that then ends.
    """

    def __init__(
        self,
        hooks: SinkHooks,
        *,
        timeout_s: float,
        nursery: trio.Nursery,
        on_overdue: Callable[[str], Awaitable[None]],
    ) -> None:
        self.hooks = hooks
        self.is_stuck = False
        self._timeout_s = timeout_s
        self._nursery = nursery
        self._on_overdue = on_overdue
        self._lock = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)

    async def deliver(self, batch: Batch) -> None:
        """Take the batch through the hooks. The batch holds the outcome; nothing that the sink raises comes out."""
        async with self._lock:
            if self.hooks.is_sync:
                error = await self._in_thread(batch.run, batch)
                batch.error = batch.error or error
            else:
                await batch.run_async(partial(self._call, batch))

    async def deliver_live(self, event: LiveEvent) -> None:
        """Call the live hook of this event. Raises whatever the hook raises."""
        async with self._lock:
            await self._call(None, self.hooks.live[kind_of(event)], (event,))

    async def _call(self, batch: Batch | None, hook: Hook, arguments: Sequence[Any]) -> None:
        if not hook.is_async:
            if error := await self._in_thread(partial(hook.call, *arguments), batch):
                raise error
            return
        with trio.move_on_after(self._timeout_s) as scope:
            await hook.function(*arguments)
        if scope.cancelled_caught:
            raise SinkFailed(f"{hook.name} took longer than {self._timeout_s:g} s")

    async def _in_thread(self, work: Callable[[], None], batch: Batch | None) -> Exception | None:
        """Do the work in the thread of this sink. Returns what it raised, or None. Cancelled, it leaves the thread to
        the nursery.
        """
        ended = trio.Event()
        errors: list[Exception] = []
        self._nursery.start_soon(self._run_thread, work, batch, errors, ended)
        await ended.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return errors[0] if errors else None

    async def _run_thread(
        self, work: Callable[[], None], batch: Batch | None, errors: list[Exception], ended: trio.Event
    ) -> None:
        def contained() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                errors.append(error)
            except BaseException as error:  # noqa: BLE001 - sys.exit() in a hook ends the call, not the daemon
                errors.append(SinkFailed(f"a hook raised {type(error).__name__}"))

        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_timeout, batch)
                    await trio.to_thread.run_sync(contained, limiter=self._limiter, abandon_on_cancel=True)
                    nursery.cancel_scope.cancel()
            if self.is_stuck and batch:
                batch.error = batch.error or SinkFailed(self._overdue_text)
            elif self.is_stuck:
                errors.append(SinkFailed(self._overdue_text))
        finally:
            self.is_stuck = False
            ended.set()

    async def _watch_timeout(self, batch: Batch | None) -> None:
        """Report a call that takes longer than the timeout; cancelled when the thread returns."""
        begun, since = -1, trio.current_time()
        while True:
            now = trio.current_time()
            if batch and batch.calls_begun != begun:  # first: the loop may have stood still for longer than the timeout
                begun, since = batch.calls_begun, now
            if (left := since + self._timeout_s - now) <= 0:
                break
            await trio.sleep(min(left, self._timeout_s / 8))
        self.is_stuck = True
        await self._on_overdue(self._overdue_text)

    @property
    def _overdue_text(self) -> str:
        return f"a hook takes longer than {self._timeout_s:g} s"
