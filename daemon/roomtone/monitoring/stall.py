"""Notices that the loop stands still, and writes down where: what every thread and every task is doing.

The service manager ends a stalled daemon with SIGABRT, after which no Python runs. So a thread of ours looks first, at
half of the watchdog's time, and puts all stacks into the log while there is still somebody to write them.

A thread needs the interpreter's lock, and native code can keep it. Then nothing but C can speak: the standard library's
faulthandler, armed a little later, writes the threads' stacks straight to the error stream.
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
"""Looks in one limit."""
NATIVE_DUMP_FACTOR = 1.5
"""The native dump comes after so many limits, and so only when the thread did not get to speak."""


@contextmanager
def watch_stalls(limit: float, stream: TextIO) -> Iterator[Callable[[], None]]:
    """Watch the loop of this trio run. Yields what the loop must call more often than once in `limit` seconds.

    A stall is told once, and its end with how long it was. `stream` gets the native dump, also when a plugin closes it;
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
    """What the loop and the thread share. Numbers are stored whole, so that no lock can be what the loop waits for."""

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
        told: float | None = None
        looked = time.monotonic()
        forgiven = 0.0
        while not self._ending.wait(self._limit / CHECKS_PER_LIMIT):
            now, beaten = time.monotonic(), self._beaten
            # A process that was stopped as a whole, by a debugger or the kernel, is no stalled loop.
            if now - looked > self._limit / 2:
                forgiven = now
            looked = now
            if told is not None and beaten > told:
                log.warning("loop.resumed", seconds=round(beaten - told, 1))
                told = None
            if told is None and now - max(beaten, forgiven) >= self._limit:
                log.error("loop.stalled", seconds=round(now - beaten, 1), stack=describe_stacks(self._root))
                told = beaten


def describe_stacks(root: trio.lowlevel.Task | None) -> str:
    """The stack of every thread, and below it the tree of tasks with where each one waits."""
    text = io.StringIO()
    text.write(_thread_stacks())
    text.write("\nTasks, each below the nursery that owns it:\n")
    if root is not None:
        _describe_task(root, 0, text)
    return text.getvalue()


def _thread_stacks() -> str:
    """By faulthandler, which looks at every thread and needs a file to write to: one in memory, for a stall may well be
    the disk's.
    """
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
