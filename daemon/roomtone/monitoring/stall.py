"""Detects that the loop is stalled, and logs the stacks of all threads and tasks.

The service manager ends a stalled daemon with SIGABRT, after which no Python runs. So a thread looks first, at half of
the watchdog's time, and logs all stacks while Python still runs.

A thread needs the interpreter's lock, and native code can keep it. For that case the standard library's faulthandler is
armed, with a later deadline: it writes the threads' stacks directly to the error stream, from C.
"""

import faulthandler
import io
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import structlog
import trio

from roomtone import descriptors

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

CHECKS_PER_LIMIT = 8
"""Checks in one limit."""
NATIVE_DUMP_FACTOR = 1.5
"""Limits until the native dump, which comes only if the thread could not run."""


@contextmanager
def watch_stalls(limit: float, stream: TextIO) -> Iterator[Callable[[], None]]:
    """Watch the loop of this trio run. Yields what the loop must call more often than once in `limit` seconds.

    A stall is logged once, and its end with the duration. `stream` gets the native dump, also when a plugin closes it;
    a stream without a file descriptor gets none.
    """
    descriptor = descriptors.copy_of(stream)
    watch = _Watch(limit, trio.lowlevel.current_root_task(), descriptor)
    thread = threading.Thread(target=watch.run, name="stall watch", daemon=True)
    thread.start()
    try:
        yield watch.beat
    finally:
        watch.end()
        thread.join()
        if descriptor is not None:
            os.close(descriptor)


class _Watch:
    """Shared by the loop and the thread. Numbers are stored atomically, so the loop waits for no lock."""

    def __init__(self, limit: float, root: trio.lowlevel.Task | None, descriptor: int | None) -> None:
        self._limit = limit
        self._root = root
        self._descriptor = descriptor
        self._beaten = time.monotonic()
        self._ending = threading.Event()

    def beat(self) -> None:
        self._beaten = time.monotonic()
        if self._descriptor is not None:
            faulthandler.dump_traceback_later(self._limit * NATIVE_DUMP_FACTOR, file=self._descriptor)

    def end(self) -> None:
        self._ending.set()
        if self._descriptor is not None:
            faulthandler.cancel_dump_traceback_later()

    def run(self) -> None:
        logged: float | None = None
        looked = time.monotonic()
        forgiven = 0.0
        while not self._ending.wait(self._limit / CHECKS_PER_LIMIT):
            now, beaten = time.monotonic(), self._beaten
            # A process that was stopped as a whole, by a debugger or the kernel, does not have a stalled loop.
            if now - looked > self._limit / 2:
                forgiven = now
            looked = now
            if logged is not None and beaten > logged:
                log.warning("loop.resumed", seconds=round(beaten - logged, 1))
                logged = None
            if logged is None and now - max(beaten, forgiven) >= self._limit:
                log.error("loop.stalled", seconds=round(now - beaten, 1), stack=describe_stacks(self._root))
                logged = beaten


def describe_stacks(root: trio.lowlevel.Task | None) -> str:
    """The stack of every thread, and below it the tree of tasks with where each one waits."""
    text = io.StringIO()
    text.write(_thread_stacks())
    text.write("\nTasks, each below the nursery that owns it:\n")
    if root is not None:
        _describe_task(root, 0, text)
    return text.getvalue()


def _thread_stacks() -> str:
    """By faulthandler, which shows every thread and needs a file: one in memory, for the disk may cause the stall."""
    with os.fdopen(os.memfd_create("stacks"), "w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _describe_task(task: trio.lowlevel.Task, depth: int, text: TextIO) -> None:
    indent = "  " * depth
    text.write(f"{indent}{task.name}\n")
    # A task that runs at this moment has its frames in its thread's stack, and only its outermost one here.
    frames = traceback.StackSummary.extract(task.iter_await_frames(), lookup_lines=False)
    text.writelines(f"{indent}  {frame.filename}:{frame.lineno} {frame.name}\n" for frame in frames)
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda one: one.name):
            _describe_task(child, depth + 1, text)
