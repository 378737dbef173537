"""One event through one sink, outside of the daemon: opened, called, flushed, left, as delivery would do it once."""

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
    """What came of it: `event` was sent, or None; `refused` says why it was set aside, `error` what failed.

    Without either it is acknowledged.
    """

    event: Durable | None = None
    refused: str | None = None
    error: str | None = None


async def probe_sink(sink: Sink, context: Context, choose: Callable[[SinkHooks], Durable | None]) -> ProbeResult:
    """Open the sink, send what `choose` makes for its hooks, and leave it. Raises nothing of the sink's.

    A synchronous hook that never returns holds this up: who asks is a person, and can interrupt it.
    """
    outcome = ProbeResult()
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as patience:
                patience.deadline = trio.current_time() + sink.timeout
                async with open_sink(sink, context) as plugin:
                    patience.deadline = float("inf")
                    outcome = await _send(sink, validate_hooks(plugin, name=context.name), choose, nursery)
                    patience.deadline = trio.current_time() + sink.timeout
            nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            return ProbeResult(error=f"opening or leaving took longer than {sink.timeout:g} s")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary: all of it runs the sink's code
        return ProbeResult(error=explain(leaves_of(error)[0]))
    return outcome


async def _send(
    sink: Sink, hooks: SinkHooks, choose: Callable[[SinkHooks], Durable | None], nursery: trio.Nursery
) -> ProbeResult:
    event = choose(hooks)
    if event is None:
        return ProbeResult()

    async def overdue(text: str) -> None:
        raise SinkFailed(text)

    batch = Batch([event], hooks)
    await HookExecutor(hooks, timeout_s=sink.timeout, nursery=nursery, on_overdue=overdue).deliver(batch)
    if failure := batch.error or batch.flush_error:
        return ProbeResult(event, error=explain(failure))
    return ProbeResult(event, refused=batch.refused[0][1] if batch.refused else None)
