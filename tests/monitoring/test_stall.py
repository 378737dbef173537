"""Laws of the watch on a loop that stands still. Real threads and real time: a stall is just that."""

import io
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from roomtone.monitoring.stall import describe_stacks, watch_stalls

LIMIT = 0.4


@pytest.fixture
def lines() -> LogCapture:
    """The lines of the log, from every thread."""
    capture = LogCapture()
    structlog.configure(processors=[capture])
    return capture


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def wait_for(lines: LogCapture, event: str) -> dict[str, object]:
    """The first line of this event, as soon as the watching thread has written it."""
    for _ in range(500):
        if found := [dict(line) for line in lines.entries if line["event"] == event]:
            return found[0]
        time.sleep(0.02)
    pytest.fail(f"no {event} in {lines.entries}")


async def keep_beating(beat: Callable[[], None]) -> None:
    while True:
        beat()
        await trio.sleep(LIMIT / 10)


async def sleep_in_a_task() -> None:
    await trio.sleep_forever()


def stand_still_until(lines: LogCapture, event: str) -> None:
    wait_for(lines, event)


async def test_a_stall_is_told_with_all_stacks(nursery: trio.Nursery, lines: LogCapture) -> None:
    """A loop that is stalled for the limit is logged once, with the stacks of its thread and of each task."""
    nursery.start_soon(sleep_in_a_task)
    with watch_stalls(LIMIT, io.StringIO()) as beat:
        nursery.start_soon(keep_beating, beat)
        await trio.sleep(LIMIT / 2)
        stand_still_until(lines, "loop.stalled")
        await trio.sleep(LIMIT)
        wait_for(lines, "loop.resumed")
    stack = str(wait_for(lines, "loop.stalled")["stack"])

    assert [line["event"] for line in lines.entries] == ["loop.stalled", "loop.resumed"]
    assert "in stand_still_until" in stack
    assert re.search(r"test_stall\.sleep_in_a_task\n +\S+:\d+ sleep_in_a_task\n(.*\n)* +\S+:\d+ sleep_forever", stack)
    nursery.cancel_scope.cancel()


async def test_a_loop_that_turns_is_not_told(nursery: trio.Nursery, lines: LogCapture) -> None:
    """Beats within the limit keep the watch quiet, however long it lasts."""
    with watch_stalls(60.0, io.StringIO()) as beat:
        beat()
        await trio.sleep(0.5)

    assert lines.entries == []


async def test_the_watch_ends_with_its_context() -> None:
    """No thread is left behind."""
    before = threading.active_count()
    with watch_stalls(LIMIT, io.StringIO()):
        assert threading.active_count() == before + 1

    assert threading.active_count() == before


async def test_the_tree_shows_who_owns_whom(nursery: trio.Nursery) -> None:
    """A task stands below the one whose nursery it is in."""

    async def parent() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(sleep_in_a_task)

    nursery.start_soon(parent)
    await trio.testing.wait_all_tasks_blocked()
    text = describe_stacks(trio.lowlevel.current_root_task())
    nursery.cancel_scope.cancel()

    child = re.search(r"^( +)\S*sleep_in_a_task$", text, re.MULTILINE)
    owner = re.search(r"^( +)\S*parent$", text, re.MULTILINE)
    assert child
    assert owner
    assert len(child[1]) == len(owner[1]) + 2


def test_native_code_that_keeps_the_interpreter_is_dumped_too() -> None:
    """When no Python runs at all, the threads' stacks still reach the error stream."""
    program = """
        import ctypes, sys, trio
        from roomtone.monitoring.stall import watch_stalls

        async def main():
            with watch_stalls(0.3, sys.stderr) as beat:
                beat()
                ctypes.PyDLL(None).usleep(950_000)  # PyDLL keeps the interpreter's lock

        trio.run(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )

    assert "Timeout" in done.stderr
    assert "in main" in done.stderr
