"""Up to where a room's transcript is settled, and what it leaves out. The journal has both with every step."""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from roomtone.journal.records import CoverageSpan, Mark
from roomtone.spans import Span, Spans
from roomtone.speech.backfill import Backfill
from roomtone.speech.gate import Gate
from roomtone.speech.session_context import SessionContext

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAX_CATCH_UP_S = 20
"""Seconds behind the head up to which one session catches up; all before that is a hole for the backfill."""


class RoomProgress:
    """The position before which all is settled, or in a hole. `leaves_holes`: it may skip audio to follow the head."""

    def __init__(
        self,
        context: SessionContext,
        acknowledged: int,
        backfill: Backfill,
        gate: Gate | None,
        *,
        leaves_holes: bool,
    ) -> None:
        self.context = context
        self.acknowledged = acknowledged
        self.backfill = backfill
        self.gate = gate
        self._leaves_holes = leaves_holes

    def advance(self, acknowledged: int) -> Sequence[Mark]:
        """Move on to this position. The marks are to be committed with the records that settle it."""
        self.acknowledged = max(self.acknowledged, acknowledged)
        mark = Mark(self.context.key("acknowledged"), self.acknowledged)
        if self.gate is None:
            return [mark]
        self.gate.decisions.drop_before(self.acknowledged)
        return [mark, Mark(self.context.key("gate"), self.gate.decisions.state())]

    def is_far_behind(self, position: int) -> bool:
        """True if a session that begins here could not catch up with the head, and the room may leave a hole."""
        rate = self.context.rate
        return self._leaves_holes and self.context.spool.end - position > MAX_CATCH_UP_S * rate

    async def withhold(self, end: int) -> None:
        """Settle everything up to that position as unsent."""
        if end > self.acknowledged:
            rows = self._unsent(Spans([(self.acknowledged, end)]))
            await self.context.journal.commit(*rows, *self.advance(end))

    async def leave_hole(self, hole: Span, *, acknowledged: int) -> None:
        """Move on to `acknowledged`, and leave this to the backfill; with a gate, only what the gate wants heard."""
        holes = Spans([hole]) if self.gate is None else self.gate.decisions.wanted_between(hole.start, hole.end)
        unsent = self._unsent(Spans([hole]) - holes)
        await self.context.journal.commit(*unsent, *self.advance(acknowledged), self.backfill.add(holes))
        seconds = round((hole.end - hole.start) / self.context.rate, 1)
        log.info("hole.left", room=self.context.room, seconds=seconds)

    def log_pending(self) -> None:
        """Log how much audio is left for the next start, if there is any."""
        spool = self.context.spool
        recorded = Spans([(spool.first, spool.end)])
        pending = (Spans([(self.acknowledged, spool.end)]) | self.backfill.holes) & recorded
        if pending:
            seconds = round(pending.total / self.context.rate, 1)
            log.warning("transcript.pending", room=self.context.room, seconds=seconds, until="the next start")

    def _unsent(self, spans: Spans) -> Sequence[CoverageSpan]:
        room, at = self.context.room, self.context.spool.at
        return [CoverageSpan(room, start, end, "unsent", None, at(start), at(end)) for start, end in spans]


async def load_acknowledged(context: SessionContext, now: float) -> int:
    """The position before which the journal has all of this room as settled. `now` is in Unix seconds.

    An empty spool goes on at the last recorded position that the journal knows.
    """
    journal, done = context.journal, await context.journal.mark(context.key("acknowledged")) or 0
    if not context.spool.recorded():
        known = await journal.covered(context.room, max(0, done - 1))
        captured = [(cover.end, cover.until) for cover in known if cover.state == "captured"]
        context.spool.date(*max(captured, default=(done, datetime.fromtimestamp(now, UTC))))
    return int(done)
