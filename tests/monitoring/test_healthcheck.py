"""Health for machines: figures, complaints, metrics and the exit code, of parts and of the whole daemon."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from roomtone.admission import MAX_PENDING
from roomtone.budget.ledger import Cost, Spent
from roomtone.config.loader import decode
from roomtone.config.model import ServiceConfig, address_of
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.health import SinkStatus
from roomtone.delivery.plugins import Plugins
from roomtone.events import Answer, Audio, Gap, SessionEnded, SessionStarted, Turn
from roomtone.monitoring import prometheus
from roomtone.monitoring.counters import Counters, RoomCounters
from roomtone.monitoring.healthcheck import problems
from roomtone.monitoring.report import CostReport, DiskUsage, OpenGap, Report, RoomReport
from roomtone.testing.encoded_speech import speak
from support.daemon import COMMAND, SINKS, events, run, write_wav

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def test_figures_are_what_happened() -> None:
    """Samples, losses by cause, sessions with their money, and turns, corrections not counted twice; rooms apart."""
    counting = Counters()
    said = Turn(room="desk", position=0, at=NOON, session_id="a", turn_order=0, text="hello")
    gap = Gap(room="desk", position=9, at=NOON, start=9, end=12, from_=NOON, until=at(2), cause="overrun")
    for event in (
        Audio(room="desk", position=0, at=NOON, samples=480, rate=16, file=None),
        Audio(room="hall", position=0, at=NOON, samples=7, rate=16, file=None),
        gap,
        gap,
        SessionStarted(room="desk", position=0, at=NOON, session_id="a", endpoint="x"),
        said,
        msgspec.structs.replace(said, supersedes="id"),
        Answer(room="desk", position=0, at=NOON, session_id="a", turn_order=0, text="yes", response={}),
        SessionEnded(
            room="desk", position=0, at=at(9), session_id="a", audio_seconds=8, session_seconds=9, reason="reset"
        ),
        SessionStarted(room="desk", position=0, at=at(10), session_id="b", endpoint="x"),
    ):
        counting.see(event)
    assert counting.of("desk", at(15)) == RoomCounters(
        captured=480,
        lost={"overrun": 6},
        missing={"overrun": 4.0},
        sessions=2,
        broken=1,
        open_seconds=9.0,
        open_now=5.0,
        audio_seconds=8.0,
        turns=1,
        answers=1,
    )
    assert counting.of("hall", NOON).captured == 7
    assert counting.of("cellar", NOON) == RoomCounters()


ROOM = RoomReport(name="desk", state="recording", source="file", rate=16_000, position=5)
SINK = SinkStatus(name="log", kind="jsonl", state="active", behind=3, refused=0, error=None)
DISK = DiskUsage(spool=10, journal=20, free=30)


def report(room: RoomReport = ROOM, sink: SinkStatus = SINK, **changes: Any) -> Report:
    whole = Report(
        version="1", pid=1, since=NOON, configuration="c", state="s", rooms=(room,), sinks=(sink,), disk=DISK
    )
    return msgspec.structs.replace(whole, **changes)


def changed(one: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(one, **changes)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (report(), None),
        (report(changed(ROOM, state="muted", gap=OpenGap("muted", 9e5))), None),
        (report(changed(ROOM, state="waiting", gap=OpenGap("device", 59))), None),
        (report(changed(ROOM, state="waiting", gap=OpenGap("device", 61))), "no samples for 61 s"),
        (report(changed(ROOM, state="waiting", gap=OpenGap("device", 61, "in use"))), "61 s (device): in use"),
        (report(changed(ROOM, session_error="401")), "no session: 401"),
        (report(changed(ROOM, state="ended", session_error="401")), None),
        (report(sink=changed(SINK, state="failing", error="refused")), "failing, 3 events behind: refused"),
        (report(sink=changed(SINK, state="paused", behind=10**6)), None),
        (report(sink=changed(SINK, behind=10**6)), "1000000 events behind"),
        (report(sink=changed(SINK, refused=2)), "refused 2 events"),
        (report(stopping=True), "is stopping"),
    ],
)
def test_complaints(state: Report, expected: str | None) -> None:
    """Problems for the operator are reported; a state that was asked for is not a problem."""
    found = list(problems(state))
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_metrics_can_be_read_by_a_parser() -> None:
    """Each metric has its labels and its value, and what is unknown is left out."""
    figures = RoomCounters(
        captured=5,
        lost={"disk full": 4},
        missing={"device": 2.5},
        sessions=7,
        broken=3,
        open_seconds=90.5,
        open_now=6.5,
        audio_seconds=80.5,
        turns=11,
        answers=10,
    )
    room = changed(ROOM, figures=figures, drift=-12.5, quiet=0.25)
    text = prometheus.render(report(room, changed(SINK, refused=2)))
    found = samples(text)
    assert found["roomtone_samples_captured_total", "desk"] == 5
    assert found["roomtone_samples_lost_total", "desk", "disk full"] == 4
    assert found["roomtone_missing_seconds_total", "desk", "device"] == 2.5
    assert found["roomtone_reconnects_total", "desk"] == 3
    assert found["roomtone_drift_ppm", "desk"] == -12.5
    assert found["roomtone_sessions_total", "desk"] == 7
    assert found["roomtone_session_open_seconds_total", "desk"] == 90.5
    assert found["roomtone_session_age_seconds", "desk"] == 6.5
    assert found["roomtone_session_audio_seconds_total", "desk"] == 80.5
    assert found["roomtone_turns_total", "desk"] == 11
    assert found["roomtone_answers_total", "desk"] == 10
    assert found["roomtone_last_sample_age_seconds", "desk"] == 0.25
    assert found["roomtone_sink_behind", "jsonl", "log"] == 3
    assert found["roomtone_sink_refused", "jsonl", "log"] == 2
    assert [found["roomtone_disk_bytes", what] for what in ("spool", "journal", "free")] == [10, 20, 30]
    assert ("roomtone_level_dbfs", "desk") not in found


def test_metrics_of_what_was_spent() -> None:
    """The cost of each room by kind, the budget, and a flag if it is spent; limits that are not set are left out."""
    bill = Cost(Spent(seconds=60, sessions=0.5, models=0.25), Spent(seconds=90, sessions=4.5, models=0.5))
    cost = CostReport(currency="EUR", bill=bill, monthly=5.0, spent="local")
    found = samples(prometheus.render(report(changed(ROOM, cost=bill), cost=cost)))
    assert found["roomtone_cost", "day", "desk", "models"] == 0.25
    assert found["roomtone_cost", "desk", "month", "sessions"] == 4.5
    assert found["roomtone_budget", "month"] == 5.0
    assert ("roomtone_budget", "day") not in found
    assert found[("roomtone_budget_spent",)] == 1


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: [::1]:9464\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n", b"403"),
        (b"\x16\x03\x01garbage\r\n\r\n", b""),
        (b"GET /" + b"x" * 20_000, b""),
        (b"", b""),
    ],
)
async def test_whatever_is_asked(autojump_clock: trio.testing.MockClock, request_: bytes, status: bytes) -> None:
    """Metrics are at one address; anything else gets its status or nothing, and a client that is silent is let go."""
    near, far = trio.testing.memory_stream_pair()

    async def give() -> Report:
        await trio.lowlevel.checkpoint()
        return report()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(prometheus._answer, far, places=trio.CapacityLimiter(1), report=give))
        await near.send_all(request_)
        answer = b"".join([part async for part in near])
    assert answer.partition(b"\r\n")[0].split(b" ")[1:2] == ([status] if status else [])
    assert (b"roomtone_recording" in answer) == (status == b"200" and not request_.startswith(b"HEAD"))


async def test_idle_clients_take_neither_descriptors_nor_the_place_of_honest_ones() -> None:
    """Hundreds of silent sockets are open, and the next scrape is answered immediately."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def give() -> Report:
        await trio.lowlevel.checkpoint()
        return report()

    async def scrape() -> bytes:
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return b"".join([part async for part in client])

    async with trio.open_nursery() as nursery, AsyncExitStack() as idle:
        nursery.start_soon(prometheus.expose, ServiceConfig(metrics=f"127.0.0.1:{port}"), Path(), give)
        while not await is_open(port):  # noqa: ASYNC110 - a port says nothing when it opens
            await trio.sleep(0.01)
        before = descriptors()
        for count in range(1, 301):
            await idle.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
            if count % 100 == 0:
                with trio.fail_after(prometheus.CLIENT_TIMEOUT_S / 2):
                    assert (await scrape()).startswith(b"HTTP/1.1 200")
        assert descriptors() - before <= 300 + MAX_PENDING + 1
        nursery.cancel_scope.cancel()


def descriptors() -> int:
    """The number of descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def is_open(port: int) -> bool:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port):
            return True
    except OSError:
        return False


async def test_a_file_that_cannot_be_written_is_told_ever_rarer(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It is tried four times a minute, for years: the log has the first, then the 2nd, 4th and 8th. Once it
    has been written, the next failure is logged immediately.
    """
    looks = 0

    async def give() -> Report:
        nonlocal looks
        await trio.lowlevel.checkpoint()
        looks += 1
        match looks:
            case 21:
                (tmp_path / "absent").mkdir()
            case 22:
                shutil.rmtree(tmp_path / "absent")
            case 23:
                scope.cancel()
        return report()

    with structlog.testing.capture_logs() as logs, trio.CancelScope() as scope:
        await prometheus.expose(ServiceConfig(metrics_textfile="absent/roomtone.prom"), tmp_path, give)
    assert [entry["failures"] for entry in logs if entry["event"] == "metrics.unwritten"] == [1, 2, 4, 8, 16, 1]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"metrics": "0.0.0.0:9464"}, "open to other machines"),
        ({"metrics": "[::]:9464"}, "open to other machines"),
        ({"metrics": "localhost:9464"}, "is not an address"),
        ({"metrics": "127.0.0.1"}, "is not an address"),
        ({"metrics": "127.0.0.1:99999"}, "is not an address"),
        ({"metrics_textfile": "metrics.txt"}, ".prom"),
    ],
)
def test_metrics_are_for_this_machine(table: dict[str, Any], expected: str) -> None:
    """An address that others reach is refused, with what to do; and so is what is none."""
    room = {"source": {"kind": "file", "path": "talk.wav"}}
    with pytest.raises(ConfigError) as raised:
        decode({"service": table, "rooms": {"desk": room}}, Path("roomtone.toml"), Plugins({}, {}, ()))
    assert "[service]" in str(raised.value)
    assert expected in str(raised.value)


def test_metrics_for_others_when_somebody_says_so() -> None:
    """Loopback needs no word, and any address is allowed with one."""
    ServiceConfig(metrics="127.0.0.1:9464")
    ServiceConfig(metrics="[::1]:9464")
    ServiceConfig(metrics="0.0.0.0:9464", metrics_public=True)
    assert address_of("[::1]:9464") == ("::1", 9464)


def health(folder: Path) -> tuple[int, Any]:
    command = [*COMMAND, "health", "--json", "--config", str(folder / "roomtone.toml")]
    environ = os.environ | {"XDG_RUNTIME_DIR": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environ)
    return done.returncode, json.loads(done.stdout)


def test_a_daemon_is_looked_after(tmp_path: Path) -> None:
    """Healthy is 0, a failing sink is 1, no daemon is 69; metrics come by HTTP and as a file, and say the same."""
    write_wav(tmp_path / "talk.wav", speak(range(200), 16_000))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    service = f'[service]\nstate = "state"\nmetrics = "127.0.0.1:{port}"\nmetrics_textfile = "roomtone.prom"\n'
    config = f'{service}[rooms.desk]\nsource = {{ kind = "file", path = "talk.wav" }}\n{SINKS}'
    streaming = '[rooms.desk.streaming]\nendpoint = "ws://127.0.0.1:9"\n'
    assert health_of_nobody(tmp_path, config)
    with run(tmp_path, config, env={"XDG_RUNTIME_DIR": ""}) as daemon:
        daemon.wait_for(lambda: events(tmp_path, "session_started"))
        code, found = health(tmp_path)
        assert (code, found["healthy"], found["problems"]) == (0, True, [])
        assert found["report"]["rooms"][0]["quiet"] < 10
        got = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read()
        written = samples((tmp_path / "roomtone.prom").read_bytes())
        assert samples(got).keys() >= written.keys()
        assert samples(got)["roomtone_recording", "desk"] == 1
        assert samples(got)["roomtone_sessions_total", "desk"] == 1
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    broken = config.replace('path = "events.jsonl"', 'path = "talk.wav/events.jsonl"') + streaming
    with run(tmp_path, broken, env={"XDG_RUNTIME_DIR": ""}) as daemon:
        daemon.wait_for(lambda: "sink.failed" in daemon.log)
        code, found = health(tmp_path)
        assert (code, found["healthy"], found["running"]) == (1, False, True)
        assert any("sink log: failing" in problem for problem in found["problems"])


def health_of_nobody(folder: Path, config: str) -> bool:
    (folder / "roomtone.toml").write_text(config)
    code, found = health(folder)
    return (code, found["healthy"], found["running"], found["report"]) == (69, False, False, None)
