"""The health check for monitors: the problems of a running daemon. Pure."""

from collections.abc import Iterator

from roomtone.delivery.health import SinkStatus
from roomtone.legible import count_of
from roomtone.monitoring.report import Report, RoomReport

ABSENT_AFTER_S = 60.0
"""Seconds without a source until it is a problem: a device may be unplugged for a moment."""
MAX_BEHIND_EVENTS = 100_000
"""Events in the queue of a sink that still accepts some, until it is a problem."""


def problems(report: Report) -> Iterator[str]:
    """A line for each problem that the operator should look into. A healthy daemon has none."""
    if report.stopping:
        yield "the daemon is stopping"
    for room in report.rooms:
        yield from _room(room)
    for sink in report.sinks:
        yield from _sink(sink)


def _room(room: RoomReport) -> Iterator[str]:
    if room.state == "waiting" and room.gap is not None and room.gap.seconds > ABSENT_AFTER_S:
        reason = f": {room.gap.reason}" if room.gap.reason else ""
        yield f"room {room.name}: no samples for {room.gap.seconds:.0f} s ({room.gap.cause}){reason}"
    if room.state == "recording" and room.session is None and room.session_error is not None:
        yield f"room {room.name}: no session: {room.session_error}"


def _sink(sink: SinkStatus) -> Iterator[str]:
    if sink.state in {"failing", "stuck", "configuration error"}:
        error = f": {sink.error}" if sink.error else ""
        yield f"sink {sink.name}: {sink.state}, {count_of(sink.behind, 'event')} behind{error}"
    elif sink.state != "paused" and sink.behind > MAX_BEHIND_EVENTS:
        yield f"sink {sink.name}: {count_of(sink.behind, 'event')} behind"
    if sink.refused:
        refused = count_of(sink.refused, "event")
        yield f"sink {sink.name}: refused {refused}; see `roomtone sinks replay --refused {sink.name}`"
