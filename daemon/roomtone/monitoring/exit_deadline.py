"""Ends the process when its ending hangs: in an fsync of a dying disk, or in a plugin that does not come back.

The spool and the journal make that harmless, and a service manager would kill the process a little later.
"""

import faulthandler
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FAILED = 1
"""The exit status of a process that could not end in order."""
_STDERR = 2


@contextmanager
def open_deadline() -> Iterator[Callable[[float], None]]:
    """Yields a call that sets the deadline, in seconds from now, in the place of the one before.

    When it passes before the context is left, the stack of each thread goes to stderr and the process exits. A thread
    does that: the loop may stand still in the very call that closes a file.
    """
    orders: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    thread = threading.Thread(target=_watch, args=(orders,), name="deadline", daemon=True)
    thread.start()
    try:
        yield orders.put
    finally:
        orders.put(None)
        thread.join()


def _watch(orders: "queue.SimpleQueue[float | None]") -> None:
    seconds = orders.get()
    while seconds is not None:
        try:
            seconds = orders.get(timeout=seconds)
        except queue.Empty:
            faulthandler.dump_traceback(file=_STDERR, all_threads=True)
            os._exit(FAILED)
