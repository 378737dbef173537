"""Notifications to the service manager: systemd's protocol (sd_notify(3)), with a status line for the operator.

A notification is a datagram of lines `NAME=value` to the socket in $NOTIFY_SOCKET. Without that, nothing is sent.
"""

import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import msgspec
import structlog
import trio

from roomtone.legible import legible
from roomtone.monitoring.liveness import Liveness, RoomHealth
from roomtone.monitoring.stall import watch_stalls

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

REPORT_INTERVAL_S = 5.0
"""Seconds between two reports, unless the watchdog asks for more."""
DEFAULT_WATCHDOG_S = 60.0
"""Seconds of the watchdog if none is set: a stall matters in a terminal too."""
STARTING_INTERVAL_S = 0.2
"""Seconds between two reports until the start is over, so that units that wait for it lose no time."""
REPORTS_PER_WATCHDOG = 6
"""Reports in one period of the watchdog: all but one may be late or lost."""
EXTEND_TIMEOUT_S = 20.0
"""Seconds that each report requests while starting or stopping: a loop that hangs gets no more than this."""
MAX_STATUS_CHARS = 300
"""Characters of the status line; `systemctl status` shows one line."""
MAX_REASON_CHARS = 120


class Notifier:
    """Notifies the service manager. If it does not accept a notification, the next report repeats it; nothing waits."""

    def __init__(self, address: str | None, channel: socket.socket) -> None:
        self._address = address
        self._channel = channel

    def send(self, **assignments: str | int) -> bool:
        """Send these in one datagram. False if there is no manager, or it does not read."""
        if self._address is None:
            return False
        text = "\n".join(f"{name}={legible(str(value))}" for name, value in assignments.items())
        try:
            self._channel.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("manager.deaf", error=str(error))
            return False
        return True

    def ready(self, status: str) -> bool:
        """The start, or a reload, is over."""
        return self.send(READY=1, STATUS=status)

    def alive(self, status: str) -> bool:
        """Feed the watchdog."""
        return self.send(WATCHDOG=1, STATUS=status)

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it. The time lets the manager distinguish this reload from the one before."""
        return self.send(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)

    def stopping(self, status: str) -> bool:
        """The daemon stops, which may take EXTEND_TIMEOUT_S seconds from now, whatever the unit's limit is."""
        return self.send(STOPPING=1, EXTEND_TIMEOUT_USEC=_microseconds(EXTEND_TIMEOUT_S), WATCHDOG=1, STATUS=status)

    def starting(self, status: str) -> bool:
        """The start goes on, which may take EXTEND_TIMEOUT_S seconds from now, whatever the unit's limit is."""
        return self.send(EXTEND_TIMEOUT_USEC=_microseconds(EXTEND_TIMEOUT_S), WATCHDOG=1, STATUS=status)


@contextmanager
def open_notifier(environ: Mapping[str, str]) -> Iterator[Notifier]:
    """A notifier for the socket in $NOTIFY_SOCKET: a path, or `@` and a name of the abstract namespace."""
    address = environ.get("NOTIFY_SOCKET") or None
    if address and address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.setblocking(False)
        yield Notifier(address, channel)


def watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """WatchdogSec= as systemd passes it (sd_watchdog_enabled(3)), None if this process is not watched."""
    given, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
    if not given.isdecimal() or int(given) == 0 or process != str(os.getpid()):
        return None
    return int(given) / 1e6


class DeliveryProgress(msgspec.Struct, frozen=True):
    """The progress after recording: `behind` has the events that wait for each sink, `unheard` the rooms that record
    without a session, each with the reason.
    """

    behind: Mapping[str, int] = {}
    unheard: Mapping[str, str] = {}


class Supervision:
    """The sources of the reports to the service manager.

    `health` has the rooms, `stopping` is set when the daemon begins to stop, and `progress` is replaced when there are
    sinks. A reload uses the `notifier` itself.
    """

    def __init__(self, notifier: Notifier, health: Liveness) -> None:
        self.notifier = notifier
        self.health = health
        self.stopping = trio.Event()
        self.progress: Callable[[], DeliveryProgress] = DeliveryProgress


@asynccontextmanager
async def open_supervision(environ: Mapping[str, str], rooms: Iterable[str]) -> AsyncIterator[Supervision]:
    """Keep the service manager informed, and watch for stalls of the loop, until the context is left.

    Stalls are noticed at half of the watchdog's time; without a watchdog, as if it had a minute.
    """
    watchdog = watchdog_seconds(environ)
    with open_notifier(environ) as notifier, watch_stalls((watchdog or DEFAULT_WATCHDOG_S) / 2, sys.stderr) as beat:
        supervision = Supervision(notifier, Liveness(rooms, trio.current_time()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_informed, supervision, choose_period(watchdog), beat)
            yield supervision
            nursery.cancel_scope.cancel()


async def keep_informed(supervision: Supervision, period: float, beat: Callable[[], None]) -> None:
    """Report every `period` seconds, and immediately when `stopping` is set. Runs until it is cancelled.

    The sign of life is left out while a room is unaccounted for. `beat` is called each time: this loop still turns.
    When this loop itself stood still, the rooms are judged one period later: what was read meanwhile waits to be
    recorded.
    """
    notifier, health, stopping = supervision.notifier, supervision.health, supervision.stopping
    is_started = is_ready = is_late = False
    missing: tuple[str, ...] = ()
    due = trio.current_time()
    while True:
        beat()
        now = trio.current_time()
        status = compose_status(health.rooms(now), supervision.progress(), stopping=stopping.is_set())
        before = missing
        was_late, is_late = is_late, now - due >= period
        if was_late or not is_late:
            missing = health.unaccounted(now)
        if stopping.is_set():
            notifier.stopping(status)
        elif missing:
            notifier.send(STATUS=status)
        elif is_started or health.settled():
            is_started = is_started or _log_start(status)
            is_ready = is_ready or notifier.ready(status)
            notifier.alive(status)
        else:
            notifier.starting(status)
        if missing != before:
            _log_missing(missing)
        due = trio.current_time() + (period if is_started else STARTING_INTERVAL_S)
        if stopping.is_set():
            await trio.sleep_until(due)
        else:
            with trio.move_on_at(due):
                await stopping.wait()


def _log_start(status: str) -> Literal[True]:
    log.info("service.started", status=status)
    return True


def _log_missing(rooms: Sequence[str]) -> None:
    if rooms:
        log.error("rooms.unaccounted", rooms=" ".join(rooms))
    else:
        log.warning("rooms.accounted")


def choose_period(watchdog: float | None) -> float:
    """Seconds between two reports under a watchdog of `watchdog` seconds."""
    return REPORT_INTERVAL_S if watchdog is None else min(REPORT_INTERVAL_S, watchdog / REPORTS_PER_WATCHDOG)


def compose_status(rooms: Sequence[RoomHealth], progress: DeliveryProgress, *, stopping: bool = False) -> str:
    """The status in one line: the rooms that record, the others with the reason, the rooms without a session, and the
    sinks that are behind. Pure.
    """
    parts = [_recording(rooms)] if not stopping else ["Stopping"]
    if not stopping:
        parts += [_missing(room) for room in rooms if not room.ended and (room.cause or not room.accounted)]
        parts += _unheard(progress.unheard)
    waiting = {name: count for name, count in progress.behind.items() if count}
    parts += [f"{count} event{'s' * (count != 1)} behind: {name}" for name, count in sorted(waiting.items())]
    line = "; ".join(part for part in parts if part)
    return line if len(line) <= MAX_STATUS_CHARS else line[: MAX_STATUS_CHARS - 1] + "…"


def _recording(rooms: Sequence[RoomHealth]) -> str:
    names = [room.name for room in rooms if room.cause is None and room.accounted and not room.ended]
    expected = [room for room in rooms if not room.ended]
    if not expected:
        return "Every room has ended" if rooms else "No room is open"
    if not names:
        return "Recording nothing"
    return f"Recording {', '.join(names)}" if len(names) <= 5 else f"Recording {len(names)} of {len(expected)} rooms"


def _missing(room: RoomHealth) -> str:
    if not room.accounted:
        return f"{room.name} is unaccounted for since {_duration(room.silence)}"
    if not room.settled:
        return f"{room.name} waits for its first samples since {_duration(room.lasting)}"
    if room.cause == "muted":
        return f"{room.name} is muted since {_duration(room.lasting)}"
    return f"{room.name} has no samples ({room.cause}) since {_duration(room.lasting)}"


def _unheard(reasons: Mapping[str, str]) -> Iterator[str]:
    """One text for all rooms with the same reason."""
    for reason in sorted(set(reasons.values())):
        names = sorted(name for name, why in reasons.items() if why == reason)
        shown = reason if len(reason) <= MAX_REASON_CHARS else reason[: MAX_REASON_CHARS - 1] + "…"
        yield f"no session for {', '.join(names)}: {' '.join(shown.split())}"


def _duration(seconds: float) -> str:
    """In the largest unit whose rounding error is below a third."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
