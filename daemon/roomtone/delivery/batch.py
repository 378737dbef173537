"""One batch of events on its way through the hooks of a sink: the law of what is acknowledged, without any I/O.

The law stands once, in `calls`: a generator of the calls to make, into which their exceptions are thrown. Two drivers
make the calls: `run` all of them in a worker thread, and `run_async` one by one in the loop.
"""

import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, NamedTuple

import trio

from roomtone.delivery.hooks import Hook, SinkHooks
from roomtone.events import Durable
from roomtone.legible import text_of
from roomtone.sinks import Unprocessable

BATCH_HOOK_TIME_S = 1.0
"""A batch ends after this much time in hooks, so that what a slow sink has taken is acknowledged soon."""
MAX_REASON_CHARS = 2000
"""Characters that are kept of the reason for which a sink refuses an event."""


class SinkFailed(Exception):  # noqa: N818 - it says what is true of the sink
    """The sink failed without raising an error itself. The text says how."""


class HookCall(NamedTuple):
    """A hook to call, with the event or nothing."""

    hook: Hook
    arguments: tuple[Durable, ...]


class Batch:
    """Events on their way through the hooks, and the outcome.

    `done` events have returned or were refused; they are acknowledged unless `flush_error` is set, for then nothing is.
    `error` ended the batch before its end. `refused` are the seq and reason of events that will never be accepted.
    """

    def __init__(self, events: Sequence[Durable], hooks: SinkHooks) -> None:
        self.events = events
        self.done = 0
        self.refused: list[tuple[int, str]] = []
        self.error: Exception | None = None
        self.flush_error: Exception | None = None
        self.calls_begun = 0
        """Calls begun, counted in the thread and read by the loop: while it stands still, the sink does."""
        self._hooks = hooks

    def calls(self, clock: Callable[[], float]) -> Generator[HookCall, None, None]:
        """The calls to make, in order. The exception of a call is thrown in here, and judged here."""
        began = clock()
        for event in self.events:
            try:
                for hook in self._hooks.hooks_for(event):
                    self.calls_begun += 1
                    yield HookCall(hook, (event,))
            except Exception as error:  # noqa: BLE001 - the plugin boundary: a hook may raise anything
                reason = _refusal(error)
                if reason is None:
                    self.error = error
                    break
                self.refused.append((event.seq, reason))
            self.done += 1
            if clock() - began >= BATCH_HOOK_TIME_S:
                break
        if self.done and self._hooks.flush:
            yield from self._flush(self._hooks.flush)

    def _flush(self, flush: Hook) -> Generator[HookCall, None, None]:
        try:
            self.calls_begun += 1
            yield HookCall(flush, ())
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            reason = _refusal(error)
            if reason is not None and self.done == 1:
                # Only with one event in the batch is it known which one the sink refuses.
                self.refused = [(self.events[0].seq, reason)]
            else:
                self.flush_error = error

    def run(self) -> None:
        """Make the calls, all of them synchronous, in this thread."""
        calls = self.calls(time.monotonic)
        raised: Exception | None = None
        while (call := _next(calls, raised)) is not None:
            raised = None
            try:
                call.hook.call(*call.arguments)
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                raised = error
            except BaseException as error:  # noqa: BLE001 - sys.exit() in a hook ends the batch, not the daemon
                raised = SinkFailed(f"{call.hook.name} raised {type(error).__name__}")

    async def run_async(self, invoke: Callable[[Hook, Sequence[Any]], Awaitable[None]]) -> None:
        """Make the calls one by one, each by `invoke`. Cancellation passes through."""
        calls = self.calls(trio.current_time)
        raised: Exception | None = None
        while (call := _next(calls, raised)) is not None:
            raised = None
            try:
                await invoke(call.hook, call.arguments)
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                raised = error
            except BaseException as error:
                if _is_cancelled(error):
                    raise
                raised = SinkFailed(f"{call.hook.name} raised {type(error).__name__}")


def _next(calls: Generator[HookCall, None, None], raised: Exception | None) -> HookCall | None:
    try:
        return next(calls) if raised is None else calls.throw(raised)
    except StopIteration:
        return None


def _is_cancelled(error: BaseException) -> bool:
    """True if it is a cancellation, or a group that contains one."""
    return isinstance(error, trio.Cancelled) or (
        isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None
    )


def _refusal(error: Exception) -> str | None:
    """The reason why the event is unprocessable, also where a nursery of the hook has wrapped it in groups."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return (text_of(error)[:MAX_REASON_CHARS] or "no reason given") if isinstance(error, Unprocessable) else None
