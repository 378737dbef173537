"""An unexpected error in one part of the daemon ends neither another part nor the daemon."""

import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from roomtone.config.model import ServiceConfig
from roomtone.containment import FAILED, LONGEST_RETRY_S, supervise
from roomtone.events import Notice
from roomtone.journal.journal import Journal, JournalError, open_journal
from roomtone.journal.records import Mark
from roomtone.monitoring import prometheus
from roomtone.monitoring.report import Report
from roomtone.testing.inline import run_inline
from support.daemon import SINKS, events, run

SECRET = "what was said"


async def notices(journal: Journal) -> list[Notice]:
    return [event for event in await journal.read(0) if isinstance(event, Notice)]


def failing(times: int, error: Callable[[], BaseException]) -> tuple[Callable[[], Awaitable[None]], list[float]]:
    """A part that raises some times and then returns, and the times at which it was begun."""
    begun: list[float] = []

    async def part() -> None:
        begun.append(trio.current_time())
        await trio.sleep(0.001)
        if len(begun) <= times:
            raise error()

    return part, begun


def raised(error: Exception) -> Exception:
    """The error as a group has it."""
    with pytest.raises(type(error)):
        raise error
    return error


@pytest.mark.parametrize(
    "error",
    [
        lambda: ValueError(SECRET),
        lambda: OSError(24, SECRET, "caf\udce9"),
        lambda: ExceptionGroup(SECRET, [ExceptionGroup(SECRET, [raised(KeyError(SECRET))]), raised(KeyError(SECRET))]),
    ],
)
async def test_it_is_begun_again_and_reported_without_its_text(
    tmp_path: Path, autojump_clock: MockClock, error: Callable[[], BaseException]
) -> None:
    """Ever later, half a minute apart at most; reported ever rarer, with the place and without what was said."""
    part, begun = failing(20, error)
    with structlog.testing.capture_logs() as logs:
        async with open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal:
            await supervise("The part", part, journal, room="desk")
            told = await notices(journal)
    pauses = [later - earlier for earlier, later in pairwise(begun)]
    assert len(begun) == 21
    assert max(pauses) <= LONGEST_RETRY_S + 1
    assert [line["failures"] for line in logs if line["event"] == FAILED] == [1, 2, 4, 8, 16]
    assert [(notice.code, notice.room, notice.severity) for notice in told] == [(FAILED, "desk", "error")] * 5
    assert "test_containment.py" in told[0].text
    assert SECRET not in "".join([notice.text for notice in told]) + str(logs)
    assert all(re.search("in (part|raised)", line["stack"]) for line in logs)


async def test_the_journals_own_error_passes(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Nothing goes on without the journal: the daemon ends, and is started again."""
    part, begun = failing(1, lambda: ExceptionGroup("", [ValueError(), JournalError("damaged")]))
    async with open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal:
        with pytest.RaisesGroup(JournalError, flatten_subgroups=True):
            await supervise("The part", part, journal)
        assert len(begun) == 1


async def test_what_is_to_end_is_not_begun_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The end comes during the pause, or before the failure; cancellation is not a failure."""
    part, begun = failing(99, ValueError)
    ending = trio.Event()
    async with (
        open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(supervise, "The part", part, journal, until=ending))
        await trio.sleep(100)
        count = len(begun)
        ending.set()
        with trio.move_on_after(100) as scope:
            await supervise("Another", part, journal, until=ending)
        assert not scope.cancelled_caught
        assert len(begun) == count + 1
        with trio.move_on_after(1):
            await supervise("One more", trio.sleep_forever, journal)
    async with open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal:
        assert not [notice for notice in await notices(journal) if "One more" in notice.text]


async def test_metrics_that_fail_are_served_again(tmp_path: Path) -> None:
    """A report that cannot be made costs its request; the port is open again after the back-off."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asked = trio.Event()

    async def report() -> Report:
        await trio.lowlevel.checkpoint()
        asked.set()
        raise ZeroDivisionError(SECRET)

    async def ask() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            await client.receive_some()

    async with open_journal(tmp_path / "journal.sqlite") as journal, trio.open_nursery() as nursery:
        expose = partial(prometheus.expose, ServiceConfig(metrics=f"127.0.0.1:{port}"), tmp_path, report)
        nursery.start_soon(supervise, "Serving metrics", expose, journal)
        for _ in range(2):
            asked = trio.Event()
            with trio.fail_after(30):
                while not asked.is_set():
                    try:
                        await ask()
                    except (OSError, trio.BrokenResourceError):
                        await trio.sleep(0.02)
        while len(await notices(journal)) < 2:
            await journal.wait_after(journal.tip)
        nursery.cancel_scope.cancel()


COUNTING = (
    "import sys, time\\n"
    "while True:\\n"
    "    sys.stdout.buffer.write(bytes(range(128)) * 25)\\n"
    "    sys.stdout.buffer.flush()\\n"
    "    time.sleep(0.1)\\n"
)


def test_parts_that_fail_leave_the_rest_alone(tmp_path: Path) -> None:
    """A room whose spool cannot be opened, the streaming of another, and housekeeping, each with something in its way
    that are unexpected: the rooms record, the sinks are notified, and the room begins when its way is free.
    """
    state = tmp_path / "state"
    (state / "spool").mkdir(parents=True, mode=0o700)
    (state / "spool" / "attic").write_text("no folder")

    async def spoil() -> None:
        async with open_journal(state / "journal.sqlite") as journal:
            await journal.commit(Mark("room/desk/holes", "garbage"), Mark("calendar", "garbage"))

    trio.run(spoil)
    source = f'source = {{ kind = "command", argv = ["{sys.executable}", "-c", "{COUNTING}"] }}\n'
    streaming = 'streaming = { endpoint = "ws://127.0.0.1:9" }\n'
    rooms = "".join(f"[rooms.{name}]\n{source}{streaming}" for name in ("desk", "door", "attic"))
    with run(tmp_path, rooms + SINKS, env={"WATCHDOG_USEC": "60000000"}) as daemon:
        failed = partial(parts_told, tmp_path)
        daemon.wait_for(
            lambda: failed() >= {("Room attic", "attic"), ("Streaming of desk", "desk"), ("Housekeeping", "")}
        )
        daemon.wait_for(lambda: all(recorded(state, name) for name in ("desk", "door")))
        (state / "spool" / "attic").unlink()
        daemon.wait_for(lambda: recorded(state, "attic"))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert {event["room"] for event in events(tmp_path, "recording_started")} == {"desk", "door", "attic"}


def parts_told(folder: Path) -> set[tuple[str, str]]:
    told = [event for event in events(folder, "notice") if event["code"] == FAILED]
    return {(event["text"].partition(" has failed")[0], event["room"]) for event in told}


def recorded(state: Path, room: str) -> bool:
    return sum(path.stat().st_size for path in (state / "spool" / room).glob("*.pcm")) > 64_000
