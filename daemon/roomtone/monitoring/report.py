"""The state of a running daemon: one struct for status, metrics and health checks. Pure."""

from datetime import datetime
from typing import Literal

import msgspec

from roomtone.budget.ledger import Cost
from roomtone.budget.limits import CapAction
from roomtone.delivery.health import SinkStatus
from roomtone.events import Cause
from roomtone.monitoring.counters import RoomCounters


class SessionReport(msgspec.Struct, frozen=True):
    """A streaming session that is up. `since` is the time of its first audio."""

    id: str
    since: datetime
    endpoint: str


class OpenGap(msgspec.Struct, frozen=True):
    """There are no samples now: `cause` says why, `seconds` how long. `reason` has details for the operator."""

    cause: Cause
    seconds: float
    reason: str = ""


class DayCoverage(msgspec.Struct, frozen=True):
    """Coverage of the last day: the share of the time that was recorded, and the lost seconds by cause."""

    ratio: float
    lost: dict[str, float]


class RoomReport(msgspec.Struct, frozen=True, kw_only=True):
    """One room.

    `since`: when its recording began. `rms` and `peak`: dB below full scale. `session_error`: why the last session
    could not be opened, or ended early. `quiet`: seconds since the last sample. `drift`: parts per million by which
    the source runs faster than this machine's clock.
    """

    name: str
    state: Literal["recording", "muted", "waiting", "ended"]
    source: str
    rate: int
    position: int
    since: datetime | None = None
    muted_until: datetime | None = None
    gap: OpenGap | None = None
    rms: float | None = None
    peak: float | None = None
    session: SessionReport | None = None
    session_error: str | None = None
    quiet: float | None = None
    drift: float | None = None
    figures: RoomCounters = RoomCounters()
    coverage: DayCoverage | None = None
    cost: Cost | None = None


class DiskUsage(msgspec.Struct, frozen=True):
    """Bytes of the spools and the journal, and free bytes on their disk."""

    spool: int
    journal: int
    free: int


class CostReport(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of today and of this month (UTC), all rooms together, and their limits; None if there is no limit.

    `spent`: the action that replaces sessions once a limit is reached.
    """

    currency: str
    bill: Cost
    daily: float | None = None
    monthly: float | None = None
    spent: CapAction | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="answer", tag="report"):
    """The state of the daemon, which started at `since`."""

    version: str
    pid: int
    since: datetime
    configuration: str
    state: str
    rooms: tuple[RoomReport, ...]
    sinks: tuple[SinkStatus, ...]
    disk: DiskUsage
    cost: CostReport | None = None
    stopping: bool = False
