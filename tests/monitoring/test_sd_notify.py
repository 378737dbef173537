"""Laws of the notifications to the service manager. The other end is a socket like systemd's own."""

import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from roomtone.monitoring.liveness import Liveness, RoomHealth
from roomtone.monitoring.sd_notify import (
    MAX_STATUS_CHARS,
    REPORT_INTERVAL_S,
    DeliveryProgress,
    Notifier,
    Supervision,
    choose_period,
    compose_status,
    keep_informed,
    open_notifier,
    watchdog_seconds,
)


class Manager:
    """The service manager's end of the socket: its notifications, datagram by datagram."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def received(self) -> list[dict[str, str]]:
        """Every datagram since the last time, as its assignments."""
        datagrams: list[dict[str, str]] = []
        while True:
            try:
                text = self._channel.recv(65536).decode()
            except BlockingIOError:
                return datagrams
            datagrams.append(dict(line.split("=", 1) for line in text.splitlines()))


@contextmanager
def managed(address: str) -> Iterator[Manager]:
    """A service manager that listens at this address of the kernel's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.bind(address)
        yield Manager(channel)


def room(*, lasting: float = 10.0, silence: float = 0.1, **changes: object) -> RoomHealth:
    """A room that records, but for the changes."""
    facts: dict[str, object] = {"name": "desk", "settled": True, "ended": False, "cause": None} | changes
    return RoomHealth(since=1000.0 - lasting, tried=1000.0 - silence, now=1000.0, **facts)  # type: ignore[arg-type]  # a test names only what it is about


def test_tells_by_a_path(tmp_path: Path) -> None:
    """Assignments arrive as one datagram of lines at the path that $NOTIFY_SOCKET names."""
    address = str(tmp_path / "notify")
    with managed(address) as manager, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        assert notifier.ready("Recording desk")
        assert manager.received() == [{"READY": "1", "STATUS": "Recording desk"}]


def test_a_text_is_one_assignment(tmp_path: Path) -> None:
    """A newline in a text assigns nothing, and no text prevents the notification."""
    address = str(tmp_path / "notify")
    with managed(address) as manager, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        assert notifier.alive("desk\nSTOPPING=1\ud800")
        assert manager.received() == [{"WATCHDOG": "1", "STATUS": "desk\\nSTOPPING=1\\ud800"}]


def test_tells_by_an_abstract_name() -> None:
    """A name that begins with @ is one of the abstract namespace."""
    name = f"roomtone-test-{os.getpid()}"
    with managed("\0" + name) as manager, open_notifier({"NOTIFY_SOCKET": "@" + name}) as notifier:
        assert notifier.alive("ok")
        assert manager.received() == [{"WATCHDOG": "1", "STATUS": "ok"}]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    """Without a manager, or with one that is gone, telling does nothing and raises nothing."""
    with open_notifier(environ) as notifier:
        assert not notifier.ready("Recording desk")
        assert not notifier.reloading()


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """A full queue of the manager costs the report, not the loop's time."""
    address = str(tmp_path / "notify")
    with managed(address), open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        outcomes = [notifier.alive("x" * 200) for _ in range(5000)]

    assert outcomes[0]
    assert not outcomes[-1]


def test_a_reload_says_when_it_began(tmp_path: Path) -> None:
    """RELOADING=1 comes with CLOCK_MONOTONIC in microseconds, as sd_notify(3) asks for."""
    address = str(tmp_path / "notify")
    with managed(address) as manager, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        before = time.monotonic_ns() // 1000
        notifier.reloading()
        [notification] = manager.received()

    assert notification["RELOADING"] == "1"
    assert before <= int(notification["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_or_not(environ: dict[str, str], seconds: float | None) -> None:
    """The watchdog's time is taken only where it is meant for this process."""
    assert watchdog_seconds(environ) == seconds


def test_the_period_leaves_room_below_the_watchdog() -> None:
    """Several reports may be lost before the watchdog bites, however short it is."""
    assert choose_period(None) == choose_period(60.0) == REPORT_INTERVAL_S
    assert choose_period(3.0) == 0.5


class Informed:
    """A daemon of one room whose reports are collected, on the virtual clock."""

    def __init__(self, manager: Manager, notifier: Notifier) -> None:
        self.manager = manager
        self.health = Liveness(["desk"], trio.current_time())
        self.supervision = Supervision(notifier, self.health)
        self.stopping = self.supervision.stopping
        self.beats = 0

    def beat(self) -> None:
        self.beats += 1

    async def run(self) -> None:
        await keep_informed(self.supervision, 5.0, self.beat)

    async def after(self, seconds: float) -> list[dict[str, str]]:
        """The notifications of the next seconds. The manager reads all the time, for its queue holds ten."""
        self.manager.received()
        heard: list[dict[str, str]] = []
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await trio.sleep(min(1.0, end - trio.current_time()))
            heard += self.manager.received()
        return heard


@pytest.fixture
async def informed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Informed]:
    address = str(tmp_path / "notify")
    with managed(address) as manager, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        informed = Informed(manager, notifier)
        nursery.start_soon(informed.run)
        await trio.sleep(1)
        yield informed
        nursery.cancel_scope.cancel()


async def test_ready_comes_with_the_first_samples(informed: Informed, autojump_clock: MockClock) -> None:
    """READY=1 is sent once, immediately after the first samples are on disk; until then the start asks for time."""
    before = await informed.after(10)
    informed.health.samples("desk", trio.current_time())
    after = await informed.after(0.5)
    informed.health.samples("desk", trio.current_time())
    after += await informed.after(9)

    assert before
    assert all("READY" not in told and told["EXTEND_TIMEOUT_USEC"] == "20000000" for told in before)
    assert [index for index, told in enumerate(after) if "READY" in told] == [0]


async def test_ready_comes_without_a_device(informed: Informed, autojump_clock: MockClock) -> None:
    """A daemon that waits for a device has started, and its status says what it waits for."""
    informed.health.gap("desk", "device", trio.current_time())
    ready, *_ = [told for told in await informed.after(5) if "READY" in told]

    assert ready["STATUS"].startswith("Recording nothing; desk has no samples (device)")


async def test_life_is_told_while_every_room_is_accounted_for(informed: Informed, autojump_clock: MockClock) -> None:
    """WATCHDOG=1 comes in every period while samples come; within 15 s of the last sample it stops."""
    for _ in range(20):
        informed.health.samples("desk", trio.current_time())
        assert any("WATCHDOG" in told for told in await informed.after(5))

    await trio.sleep(15)
    reports = await informed.after(100)
    assert reports
    assert not any("WATCHDOG" in told for told in reports)
    assert "desk is unaccounted for since 2" in reports[0]["STATUS"]


async def test_life_goes_on_when_the_room_is_accounted_for_again(informed: Informed, autojump_clock: MockClock) -> None:
    """A room that comes back feeds the watchdog again."""
    informed.health.samples("desk", trio.current_time())
    await trio.sleep(30)
    assert not any("WATCHDOG" in told for told in await informed.after(5))

    informed.health.gap("desk", "device", trio.current_time())
    assert any("WATCHDOG" in told for told in await informed.after(5))


async def test_stopping_is_told_at_once_and_again(informed: Informed, autojump_clock: MockClock) -> None:
    """The shutdown is reported as soon as it begins, and asks for more time until it is over."""
    informed.health.samples("desk", trio.current_time())
    await trio.sleep(5)
    informed.stopping.set()
    at_once = await informed.after(0.1)
    assert at_once[0]["STOPPING"] == "1"

    later = await informed.after(60)
    assert len(later) == 12
    assert all(told["EXTEND_TIMEOUT_USEC"] == "20000000" for told in later)


async def test_a_loop_that_stood_still_does_not_blame_the_rooms(informed: Informed, autojump_clock: MockClock) -> None:
    """Right after a standstill of the loop the samples of that time are not written yet; the next look judges."""
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            informed.health.samples("desk", trio.current_time())
            autojump_clock.jump(50)
            await trio.sleep(1)
            informed.health.samples("desk", trio.current_time())
            await trio.sleep(5)
        assert not [entry for entry in logs if entry["event"].startswith("rooms.")]
        autojump_clock.jump(50)
        await trio.sleep(6)
        assert [entry["event"] for entry in logs if entry["event"].startswith("rooms.")] == ["rooms.unaccounted"]


async def test_every_report_proves_the_loop(informed: Informed, autojump_clock: MockClock) -> None:
    """Whatever is reported, the loop has turned: the watch on stalls is notified each time."""
    informed.health.gap("desk", "muted", trio.current_time())
    await trio.sleep(1)
    before = informed.beats
    await trio.sleep(50)

    assert informed.beats == before + 10


def test_status_says_what_records() -> None:
    """All rooms by name, or how many when they are many."""
    assert compose_status([room(), room(name="kitchen")], DeliveryProgress()) == "Recording desk, kitchen"
    assert compose_status([room(name=f"r{n}") for n in range(40)], DeliveryProgress()) == "Recording 40 of 40 rooms"


@pytest.mark.parametrize(
    ("stands", "says"),
    [
        (room(cause="device", lasting=180.0), "Recording nothing; desk has no samples (device) since 3 min"),
        (room(cause="disk full", lasting=7.2), "Recording nothing; desk has no samples (disk full) since 7 s"),
        (room(cause="muted", lasting=7200.0), "Recording nothing; desk is muted since 2 h"),
        (
            room(cause="daemon down", settled=False, lasting=2.0),
            "Recording nothing; desk waits for its first samples since 2 s",
        ),
        (room(silence=12.0), "Recording nothing; desk is unaccounted for since 12 s"),
        (room(ended=True), "Every room has ended"),
    ],
)
def test_status_says_what_does_not_and_why(stands: RoomHealth, says: str) -> None:
    """A room without samples is named with its cause and since when."""
    assert compose_status([stands], DeliveryProgress()) == says


def test_status_names_the_sinks_that_are_behind() -> None:
    """A sink that has everything is not mentioned."""
    status = compose_status([room()], DeliveryProgress(behind={"log": 0, "hook": 1204, "archive": 1}))

    assert status == "Recording desk; 1 event behind: archive; 1204 events behind: hook"


def test_status_says_why_nobody_transcribes() -> None:
    """Rooms that wait for the same thing are reported together, each reason once and in one line."""
    progress = DeliveryProgress(unheard={"desk": "invalid key", "kitchen": "no\nnetwork", "hall": "invalid key"})

    assert compose_status([room()], progress) == (
        "Recording desk; no session for desk, hall: invalid key; no session for kitchen: no network"
    )
    assert compose_status([room()], progress, stopping=True) == "Stopping"
    long = compose_status([room()], DeliveryProgress(unheard={"desk": "x" * 1000}, behind={"log": 2}))
    assert long.endswith("…; 2 events behind: log")


def test_status_of_the_end() -> None:
    """While stopping, rooms without samples are not a fault; events that sinks wait for are reported."""
    assert compose_status([room(silence=12.0)], DeliveryProgress(behind={"hook": 3}), stopping=True) == (
        "Stopping; 3 events behind: hook"
    )


def test_status_is_one_short_line() -> None:
    """However many rooms fail, the status is one line that a terminal can show."""
    status = compose_status([room(name=f"room-{n}", cause="device") for n in range(200)], DeliveryProgress())

    assert len(status) == MAX_STATUS_CHARS
    assert "\n" not in status
