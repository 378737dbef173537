"""What can be asked of a running daemon, and what it answers. Pure.

Both are JSON, one a line: each request carries the version of what it speaks and gets one answer, but for Tail, which
is answered by events until the client goes.
"""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import msgspec

from roomtone.events import Cause
from roomtone.figures import Figures
from roomtone.speech.books import Bill
from roomtone.speech.budget import Course
from roomtone.standing import SinkStatus

VERSION = 1

Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag=str.lower):
    """A request. `version` is that of the one who asks."""

    version: int = VERSION


class Status(Ask, frozen=True, kw_only=True):
    """How everything stands; answered by a Report."""


class Tail(Ask, frozen=True, kw_only=True):
    """What is said and what happens from now on, in one room or all; answered by events, one a line, without end."""

    room: str | None = None


class Rotate(Ask, frozen=True, kw_only=True):
    """Begin a new recording in one room or all, without the loss of a sample."""

    room: str | None = None


class Reload(Ask, frozen=True, kw_only=True):
    """Read the configuration again."""


class Mute(Ask, frozen=True, kw_only=True):
    """Close the device of one room or all, for so many seconds or until it is unmuted."""

    room: str | None = None
    seconds: float | None = None


class Unmute(Ask, frozen=True, kw_only=True):
    """Open the device of one room or all again."""

    room: str | None = None


class Forget(Ask, frozen=True, kw_only=True):
    """Remove what one room or all have heard between these times (UTC); answered by Forgot."""

    room: str | None = None
    since: Time
    until: Time


Request: TypeAlias = Status | Tail | Rotate | Reload | Mute | Unmute | Forget


class Done(msgspec.Struct, frozen=True, tag_field="answer", tag="done"):
    """It is done: a line for each thing that was."""

    lines: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, tag_field="answer", tag="refused"):
    """It is not done, and nothing has changed; a line for each reason."""

    lines: tuple[str, ...]


class Forgot(msgspec.Struct, frozen=True, tag_field="answer", tag="forgot"):
    """It is forgotten: a line for each thing that was done, and in `left` one for each that was not, or not yet."""

    lines: tuple[str, ...]
    left: tuple[str, ...]


class Session(msgspec.Struct, frozen=True):
    """A streaming session that is up. `since` is the time of its first audio."""

    id: str
    since: datetime
    endpoint: str


class OpenGap(msgspec.Struct, frozen=True):
    """There are no samples now: why, and for how many seconds. `reason`: what is known of it, for a person."""

    cause: Cause
    seconds: float
    reason: str = ""


class Coverage(msgspec.Struct, frozen=True):
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
    session: Session | None = None
    session_error: str | None = None
    quiet: float | None = None
    drift: float | None = None
    figures: Figures = Figures()
    coverage: Coverage | None = None
    cost: Bill | None = None


class Disk(msgspec.Struct, frozen=True):
    """Bytes of the spools and the journal, and what is free where they lie."""

    spool: int
    journal: int
    free: int


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What today and this month (UTC) have cost, all rooms together, and what they may: None where nothing is capped.

    `spent`: what is done instead of opening sessions, since that is all that they may cost.
    """

    currency: str
    bill: Bill
    daily: float | None = None
    monthly: float | None = None
    spent: Course | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="answer", tag="report"):
    """How everything stands. `since` is the daemon's start."""

    version: str
    pid: int
    since: datetime
    configuration: str
    state: str
    rooms: tuple[RoomReport, ...]
    sinks: tuple[SinkStatus, ...]
    disk: Disk
    cost: Cost | None = None
    stopping: bool = False


Answer: TypeAlias = Done | Refused | Forgot | Report


class Dropped(msgspec.Struct, frozen=True, tag_field="kind", tag="dropped"):
    """Live events were dropped because this client did not read: how many in all."""

    count: int
