"""The requests to a running daemon, and its answers. Pure.

Both are JSON, one object a line. Each request carries its version and gets one answer. Only Tail is answered by a
stream of events, until the client disconnects.
"""

from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec

from roomtone.monitoring.report import Report

VERSION = 1

Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag=str.lower):
    """A request. `version` is the client's."""

    version: int = VERSION


class Status(Ask, frozen=True, kw_only=True):
    """The state of the daemon; answered by a Report."""


class Tail(Ask, frozen=True, kw_only=True):
    """The events of one room or all from now on; answered by one event a line, without end."""

    room: str | None = None


class Rotate(Ask, frozen=True, kw_only=True):
    """Begin a new recording in one room or all, without the loss of a sample."""

    room: str | None = None


class Reload(Ask, frozen=True, kw_only=True):
    """Read the configuration again."""


class Mute(Ask, frozen=True, kw_only=True):
    """Close the device of one room or all, for this many seconds, or until it is unmuted."""

    room: str | None = None
    seconds: float | None = None


class Unmute(Ask, frozen=True, kw_only=True):
    """Open the device of one room or all again."""

    room: str | None = None


class Forget(Ask, frozen=True, kw_only=True):
    """Remove everything that one room or all recorded between these times (UTC); answered by Forgot."""

    room: str | None = None
    since: Time
    until: Time


Request: TypeAlias = Status | Tail | Rotate | Reload | Mute | Unmute | Forget


class Done(msgspec.Struct, frozen=True, tag_field="answer", tag="done"):
    """The request is done: a line for each thing that was done."""

    lines: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, tag_field="answer", tag="refused"):
    """The request is refused, and nothing has changed: a line for each reason."""

    lines: tuple[str, ...]


class Forgot(msgspec.Struct, frozen=True, tag_field="answer", tag="forgot"):
    """The stretch is forgotten: a line for each thing that was done, and in `left` for each that is not done yet."""

    lines: tuple[str, ...]
    left: tuple[str, ...]


Answer: TypeAlias = Done | Refused | Forgot | Report


class Dropped(msgspec.Struct, frozen=True, tag_field="kind", tag="dropped"):
    """Live events were dropped because this client did not read: `count` in all."""

    count: int
