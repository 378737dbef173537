"""Blocking calls in the loop itself, for tests on a virtual clock: time passes while a thread works."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def run_inline(
    sync_fn: Callable[[*Ts], T],
    *args: *Ts,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """As `trio.to_thread.run_sync`, cancellation included: it comes before the call, or after its result is used."""
    await trio.lowlevel.checkpoint_if_cancelled()
    result = sync_fn(*args)
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result
