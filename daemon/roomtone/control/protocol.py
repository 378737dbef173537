"""What can be asked of a running daemon, and what it answers. Pure.

Both are JSON, one a line: each request carries the version of what it speaks and gets one answer, but for Tail, which
is answered by events until the client goes.
"""

from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec

from roomtone.monitoring.report import Report

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


Answer: TypeAlias = Done | Refused | Forgot | Report


class Dropped(msgspec.Struct, frozen=True, tag_field="kind", tag="dropped"):
    """Live events were dropped because this client did not read: how many in all."""

    count: int
