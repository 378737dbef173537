"""The records that one transaction of the journal holds: events, marks and coverage; and the ids of events. Pure."""

import secrets
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from roomtone.events import Cause, Durable

_ADJOINING_TOLERANCE = timedelta(milliseconds=50)
"""Stretches whose times are at most this far apart meet: less than a block, more than the noise of a clock."""


class Mark(msgspec.Struct, frozen=True):
    """A piece of state under a key, as JSON. A later mark replaces it; the value None deletes it."""

    key: str
    value: Any


class CoverageSpan(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """The state of a room's positions `start` to `end`, which are the times `from` to `until` (UTC).

    *unsent* audio was given to no session: the gate heard no speech, or the budget was spent. *removed* audio was
    captured and had to go before it was transcribed; *forgotten* audio was captured and went by a user's order.
    Adjacent stretches of the same state and cause are kept as one.
    """

    room: str
    start: int
    end: int
    state: Literal["captured", "lost", "transcribed", "silent", "unsent", "removed", "forgotten"]
    cause: Cause | None
    from_: datetime
    until: datetime

    def adjoins(self, other: "CoverageSpan") -> bool:
        """True if the two are one stretch: of one kind, and without a position, or time that counts, between them."""
        return (
            (self.room, self.state, self.cause) == (other.room, other.state, other.cause)
            and self.start <= other.end
            and other.start <= self.end
            # What was captured or lost is an account of time as well, and time may pass between two positions.
            and (self.state not in {"captured", "lost"} or self._meets(other))
        )

    def joined(self, other: "CoverageSpan") -> "CoverageSpan":
        """The stretch that both are. Saying the same twice changes nothing."""
        return msgspec.structs.replace(
            self,
            start=min(self.start, other.start),
            end=max(self.end, other.end),
            from_=min(self.from_, other.from_),
            until=max(self.until, other.until),
        )

    def without(self, start: int, end: int) -> Iterator["CoverageSpan"]:
        """The rest of it without these positions; its time is cut in proportion."""
        for first, last in ((self.start, min(start, self.end)), (max(end, self.start), self.end)):
            if first < last:
                yield msgspec.structs.replace(
                    self, start=first, end=last, from_=self._time(first), until=self._time(last)
                )

    def _time(self, position: int) -> datetime:
        return self.from_ + (self.until - self.from_) * ((position - self.start) / (self.end - self.start))

    def _meets(self, other: "CoverageSpan") -> bool:
        return self.from_ - other.until <= _ADJOINING_TOLERANCE and other.from_ - self.until <= _ADJOINING_TOLERANCE


Record: TypeAlias = Durable | Mark | CoverageSpan


class Unwritable(Exception):  # noqa: N818 - it says what is true of the facts
    """The values of one write cannot be stored: nothing of it was, and no other write is concerned."""


class Refusal(msgspec.Struct, frozen=True):
    """An event that a sink will never accept, and why. `event` is None where the journal no longer has it."""

    sink: str
    seq: int
    at: datetime
    reason: str
    event: Durable | None


def next_id(last: uuid.UUID, milliseconds: int) -> uuid.UUID:
    """A UUIDv7 (RFC 9562) of that time, or the next one after the last: never smaller, whatever the clock does."""
    fresh = milliseconds << 74 | secrets.randbits(74)
    return _uuid7(max(fresh, _number(last) + 1))


def _uuid7(number: int) -> uuid.UUID:
    """The UUIDv7 of 48 bits of time and 74 others, which leave out the bits of version and variant."""
    time_bits, others = number >> 74, number & (1 << 74) - 1
    return uuid.UUID(int=time_bits << 80 | 7 << 76 | others >> 62 << 64 | 2 << 62 | others & (1 << 62) - 1)


def _number(identifier: uuid.UUID) -> int:
    whole = identifier.int
    return whole >> 80 << 74 | (whole >> 64 & 0xFFF) << 62 | whole & (1 << 62) - 1
