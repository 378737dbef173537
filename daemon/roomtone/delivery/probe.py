"""Delivers one event to one sink outside of the daemon: opens, calls, flushes and leaves it, as a runner would."""

from collections.abc import Callable

import msgspec
import trio

from roomtone.concurrency import leaves_of
from roomtone.delivery.batch import Batch, SinkFailed
from roomtone.delivery.errors import explain
from roomtone.delivery.executor import HookExecutor
from roomtone.delivery.hooks import SinkHooks, open_sink, validate_hooks
from roomtone.events import Durable
from roomtone.sinks import Context, Sink


class ProbeResult(msgspec.Struct, frozen=True):
    """The outcome: `event` was sent, if any; `refused` is the reason why it was set aside, `error` the failure.

    Without either the event is acknowledged.
    """

    event: Durable | None = None
    refused: str | None = None
    error: str | None = None


async def probe_sink(sink: Sink, context: Context, choose: Callable[[SinkHooks], Durable | None]) -> ProbeResult:
    """Open the sink, send the event that `choose` makes for its hooks, and leave it. Raises no error of the sink.

    A synchronous hook that outlives the timeout is abandoned, and its context is left meanwhile.
    """
    outcome = ProbeResult()
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as timeout:
                timeout.deadline = trio.current_time() + sink.timeout
                async with open_sink(sink, context) as plugin:
                    timeout.deadline = float("inf")
                    outcome = await _send(sink, validate_hooks(plugin, name=context.name), choose)
                    timeout.deadline = trio.current_time() + sink.timeout
            nursery.cancel_scope.cancel()
        if timeout.cancelled_caught:
            return ProbeResult(error=f"opening or leaving took longer than {sink.timeout:g} s")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary: all of it runs the sink's code
        return ProbeResult(error=explain(leaves_of(error)[0]))
    return outcome


async def _send(sink: Sink, hooks: SinkHooks, choose: Callable[[SinkHooks], Durable | None]) -> ProbeResult:
    event = choose(hooks)
    if event is None:
        return ProbeResult()

    async def overdue(text: str) -> None:
        raise SinkFailed(text)  # which abandons the thread: the process ends soon

    batch = Batch([event], hooks)
    async with trio.open_nursery() as nursery:
        await HookExecutor(hooks, timeout_s=sink.timeout, nursery=nursery, on_overdue=overdue).deliver(batch)
    if failure := batch.error or batch.flush_error:
        return ProbeResult(event, error=explain(failure))
    return ProbeResult(event, refused=batch.refused[0][1] if batch.refused else None)
