"""Metrics for Prometheus: served over HTTP on this machine, or written into a file for the node exporter.

The library renders the text. Its server is a thread that nothing here would own, so a few lines of HTTP run in the
daemon's loop, by h11.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import h11
import structlog
import trio

from roomtone.admission import Door, is_local, is_same_origin
from roomtone.backoff import is_worth_saying
from roomtone.config.model import ServiceConfig, address_of
from roomtone.delivery.health import SinkStatus
from roomtone.descriptors import kept_from_forks
from roomtone.durable import replace
from roomtone.monitoring.report import CostReport, Report, RoomReport
from roomtone.proxy import join_authority

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Reporting = Callable[[], Awaitable[Report]]

WRITE_INTERVAL_S = 15.0
"""Seconds between two updates of the file: the usual interval of a scrape."""
CLIENT_TIMEOUT_S = 10.0
"""Seconds that a client may take."""
MAX_CLIENTS = 8
"""Reports that are collected concurrently."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def expose(service: ServiceConfig, folder: Path, report: Reporting) -> None:
    """Serve or write the metrics as configured, until cancelled; by default neither. Relative paths begin in `folder`.

    Contained here: OSError, of a port that is taken or a file that cannot be written; recording goes on.
    """
    if lacking(service):
        return
    async with trio.open_nursery() as nursery:
        if service.metrics is not None:
            nursery.start_soon(_serve, service.metrics, service.metrics_public, report)
        if service.metrics_textfile is not None:
            nursery.start_soon(_write, folder, service.metrics_textfile, report)


def lacking(service: ServiceConfig) -> str | None:
    """Why metrics are configured and cannot be served, or None: recording and all else works without them."""
    if (service.metrics or service.metrics_textfile) and find_spec("prometheus_client") is None:
        return "the package prometheus-client is missing; pip install 'roomtone[metrics]', then restart"
    return None


async def _write(folder: Path, name: str, report: Reporting) -> NoReturn:
    path = folder / os.path.expanduser(name)  # noqa: ASYNC240, PTH111 - it asks the environment, and no disk
    failures = 0
    while True:
        try:
            text = render(await report())
            await trio.to_thread.run_sync(replace, path, text)
        except OSError as error:
            failures += 1
            if is_worth_saying(failures):
                log.error("metrics.unwritten", path=str(path), error=str(error), failures=failures)  # noqa: TRY400 - the error's text says it all
        else:
            failures = 0
        await trio.sleep(WRITE_INTERVAL_S)


async def _serve(address: str, is_public: bool, report: Reporting) -> None:
    host, port = address_of(address)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        log.error("metrics.unavailable", address=join_authority(host, port), error=str(error))  # noqa: TRY400 - the error's text says it all
        return
    door, places = Door(), trio.CapacityLimiter(MAX_CLIENTS)

    async def answer(stream: trio.abc.Stream) -> None:
        with door.enter():
            await _answer(stream, places=places, report=report, is_public=is_public)

    log.info("metrics.served", address=join_authority(host, listeners[0].socket.getsockname()[1]))
    with kept_from_forks(*(listener.socket.fileno() for listener in listeners)):
        await trio.serve_listeners(answer, listeners)


async def _answer(
    stream: trio.abc.Stream, *, places: trio.CapacityLimiter, report: Reporting, is_public: bool = False
) -> None:
    """Answer one request of one client. Its failures end here."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16_384)
    try:
        with trio.fail_after(CLIENT_TIMEOUT_S):
            async with stream:
                request = await _request(stream, connection)
                async with places:
                    status, text = await _chosen(request, report, is_public=is_public)
                headers = [("content-type", _TYPE), ("content-length", str(len(text))), ("connection", "close")]
                for event in (
                    h11.Response(status_code=status, headers=headers),
                    h11.Data(data=b"" if request.method == b"HEAD" else text),
                    h11.EndOfMessage(),
                ):
                    await stream.send_all(connection.send(event) or b"")
    except* (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as group:
        log.debug("client.left", reason=str(group.exceptions[0]))


_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def _request(stream: trio.abc.Stream, connection: h11.Connection) -> h11.Request:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(4096)))
        elif isinstance(event, h11.Request):
            return event
        else:
            raise h11.RemoteProtocolError("this is not a request")


async def _chosen(request: h11.Request, report: Reporting, *, is_public: bool) -> tuple[int, bytes]:
    headers = {name: value.decode("latin-1") for name, value in request.headers}
    # If other machines may ask, they may know this one by any name.
    is_meant = is_same_origin if is_public else is_local
    if not is_meant(headers.get(b"host"), headers.get(b"origin")):
        return 403, b"for programs of this machine, by its address or a name without a dot\n"
    if request.method not in {b"GET", b"HEAD"}:
        return 405, b"only GET\n"
    if request.target.partition(b"?")[0] != b"/metrics":
        return 404, b"see /metrics\n"
    return 200, render(await report())


def render(report: Report) -> bytes:
    """The metrics of a report in the text format of Prometheus. Pure."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - late: only who wants it pays
    from prometheus_client.registry import Collector  # noqa: PLC0415 - late, as above

    class Reported(Collector):
        def collect(self) -> Iterator["Metric"]:
            yield from _families(report)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reported())
    text: bytes = generate_latest(registry)
    return text


def _families(report: Report) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily  # noqa: PLC0415 - late, as above

    yield InfoMetricFamily("roomtone", "The daemon.", {"version": report.version})
    started = GaugeMetricFamily("roomtone_start_time_seconds", "Unix time of the daemon's start.")
    started.add_metric([], report.since.timestamp())
    yield started
    yield from _rooms(report.rooms)
    if report.cost is not None:
        yield from _costs(report.cost, report.rooms)
    for name, (text, value) in _SINKS.items():
        family = GaugeMetricFamily(f"roomtone_sink_{name}", text, labels=["sink", "kind"])
        for sink in report.sinks:
            family.add_metric([sink.name, sink.kind], value(sink))
        yield family
    disk = GaugeMetricFamily("roomtone_disk_bytes", "Bytes on the disk of the state folder.", labels=["what"])
    for what in ("spool", "journal", "free"):
        disk.add_metric([what], getattr(report.disk, what))
    yield disk


def _rooms(rooms: tuple[RoomReport, ...]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - late, as above

    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"roomtone_{name}", text, labels=["room"])
        for room in rooms:
            counter.add_metric([room.name], getattr(room.figures, _FIELDS.get(name, name)))
        yield counter
    for name, text, field in (
        ("samples_lost", "Samples that the source produced and that are not recorded.", "lost"),
        ("missing_seconds", "Seconds without samples, time without a source included.", "missing"),
    ):
        counter = CounterMetricFamily(f"roomtone_{name}", text, labels=["room", "cause"])
        for room in rooms:
            for cause, value in getattr(room.figures, field).items():
                counter.add_metric([room.name, cause], value)
        yield counter
    for name, (text, value) in _GAUGES.items():
        gauge = GaugeMetricFamily(f"roomtone_{name}", text, labels=["room"])
        for room in rooms:
            if (now := value(room)) is not None:
                gauge.add_metric([room.name], now)
        yield gauge


def _costs(cost: CostReport, rooms: tuple[RoomReport, ...]) -> Iterator["Metric"]:
    """Gauges: what a session has cost so far can turn out to be less when the service has counted it."""
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - late, as above

    spent = GaugeMetricFamily(
        "roomtone_cost",
        f"What today and this month (UTC) have cost, in {cost.currency}.",
        labels=["room", "what", "period"],
    )
    for room in rooms:
        for period, sums in (("day", room.cost.day), ("month", room.cost.month)) if room.cost else ():
            spent.add_metric([room.name, "sessions", period], sums.sessions)
            spent.add_metric([room.name, "models", period], sums.models)
    yield spent
    budget = GaugeMetricFamily("roomtone_budget", "What all rooms together may cost.", labels=["period"])
    for period, limit in (("day", cost.daily), ("month", cost.monthly)):
        if limit is not None:
            budget.add_metric([period], limit)
    yield budget
    yield GaugeMetricFamily("roomtone_budget_spent", "1 while the budget is spent.", float(cost.spent is not None))


_SINKS: dict[str, tuple[str, Callable[[SinkStatus], float]]] = {
    "behind": ("Events that wait for the sink.", lambda sink: sink.behind),
    "refused": ("Events that the sink will never accept.", lambda sink: sink.refused),
    "up": ("1 while events are delivered to the sink.", lambda sink: sink.state == "active"),
}
_COUNTERS = {
    "samples_captured": "Samples on disk.",
    "sessions": "Streaming sessions that came up.",
    "reconnects": "Sessions that ended before their time, and were followed by another.",
    "session_open_seconds": "Seconds that sessions were open: what the service bills.",
    "session_audio_seconds": "Seconds of audio that sessions were sent.",
    "turns": "Final turns.",
    "answers": "Answers of the language model.",
}
_FIELDS = {
    "samples_captured": "captured",
    "reconnects": "broken",
    "session_open_seconds": "open_seconds",
    "session_audio_seconds": "audio_seconds",
}
_GAUGES: dict[str, tuple[str, Callable[[RoomReport], float | None]]] = {
    "recording": ("1 while samples are written.", lambda room: float(room.state == "recording")),
    "muted": ("1 while the room is muted.", lambda room: float(room.state == "muted")),
    "session_age_seconds": ("Seconds that the open sessions have been open.", lambda room: room.figures.open_now),
    "session_up": ("1 while a streaming session is up.", lambda room: float(room.session is not None)),
    "last_sample_age_seconds": ("Seconds since the last sample.", lambda room: room.quiet),
    "drift_ppm": ("How much faster than this machine's clock the source runs.", lambda room: room.drift),
    "level_dbfs": ("How loud the last block was, in dB below full scale.", lambda room: room.rms),
}
