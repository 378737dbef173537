"""Ends the process when its shutdown hangs: in an fsync of a dying disk, or in a plugin that does not return.

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
    """Yields a function that sets the deadline, in seconds from now; a later call replaces it.

    If the deadline passes before the context is left, the stack of each thread is written to stderr and the process
    exits. A thread does that, for the loop may hang in the call that closes a file.
    """
    deadlines: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    thread = threading.Thread(target=_watch, args=(deadlines,), name="deadline", daemon=True)
    thread.start()
    try:
        yield deadlines.put
    finally:
        deadlines.put(None)
        thread.join()


def _watch(deadlines: "queue.SimpleQueue[float | None]") -> None:
    seconds = deadlines.get()
    while seconds is not None:
        try:
            seconds = deadlines.get(timeout=seconds)
        except queue.Empty:
            faulthandler.dump_traceback(file=_STDERR, all_threads=True)
            os._exit(FAILED)
