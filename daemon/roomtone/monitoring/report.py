"""How a running daemon stands: one struct for status, metrics and health checks. Pure."""

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
    """There are no samples now: why, and for how many seconds. `reason`: what is known of it, for a person."""

    cause: Cause
    seconds: float
    reason: str = ""


class DayCoverage(msgspec.Struct, frozen=True):
    """Of the last day: the share of the time that was recorded, and seconds by cause that were not."""

    ratio: float
    lost: dict[str, float]


class RoomReport(msgspec.Struct, frozen=True, kw_only=True):
    """One room. `since`: when its recording began; `rms` and `peak` in dB below full scale; `session_error`: why the
    last session could not be, or ended before its time; `quiet`: seconds since the last sample; `drift`: how much
    faster than this machine's clock the source runs, in parts per million.
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
    """Bytes of the spools and the journal, and what is free where they lie."""

    spool: int
    journal: int
    free: int


class CostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What today and this month (UTC) have cost, all rooms together, and what they may: None where nothing is capped.

    `spent`: what is done instead of opening sessions, since that is all that they may cost.
    """

    currency: str
    bill: Cost
    daily: float | None = None
    monthly: float | None = None
    spent: CapAction | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="answer", tag="report"):
    """How everything stands. `since` is the daemon's start."""

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
