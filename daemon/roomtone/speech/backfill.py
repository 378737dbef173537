"""The backfill: audio that the live lane has left out is a hole in the journal, and gets sessions of its own.

A hole is recorded audio that is not settled although the room's acknowledged position is past it. It survives restarts,
shrinks as its session is heard, and is closed by Termination, or by a notice where its audio is gone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import structlog
import trio

from roomtone.events import Notice
from roomtone.journal.keys import backfill_prefix, holes_mark, holes_of
from roomtone.journal.records import Mark
from roomtone.protocol.close_codes import RetryAdvice
from roomtone.spans import Span, Spans
from roomtone.speech.reconnect import Reconnector
from roomtone.speech.session import SessionOutcome, StreamingSession
from roomtone.speech.session_context import Handover, SessionContext, Stretch

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

RESEND_S = 5
"""Seconds that are sent again before a position that is settled: the words that both sessions hear there are
aligned."""


class Backfill:
    """The holes of one room, and the sessions that transcribe them, one at a time, `first` the newest or the oldest.

    `leaving` ends that: the holes are kept for the next start.
    """

    def __init__(
        self,
        context: SessionContext,
        reconnector: Reconnector,
        *,
        first: Literal["newest", "oldest"],
        leaving: trio.Event,
    ) -> None:
        self.holes = Spans()
        self.reconnector = reconnector
        self._context = context
        self._first = first
        self._leaving = leaving
        self._suspected: Span | None = None
        self._suspicion_minutes = 1.0

    async def load(self, acknowledged: int) -> None:
        """Read the holes from the journal, and those that were requested before this position."""
        self.holes = holes_of(await self._context.journal.mark(self._context.key("holes")))
        await self.take_requests(acknowledged)

    def add(self, holes: Spans) -> Mark:
        """Add these holes. The mark is to be committed with the records that settle all else."""
        self.holes |= holes
        return self._mark()

    def _mark(self) -> Mark:
        return holes_mark(self._context.room, self.holes)

    def resend_from(self, done: int) -> int:
        """RESEND_S before a settled position, but not before the end of a hole: what is in it is not settled."""
        edge = max((hole.end for hole in self.holes if hole.end <= done), default=0)
        return min(done, max(self._context.spool.first, edge, done - RESEND_S * self._context.rate))

    async def take_requests(self, acknowledged: int) -> None:
        """Make holes of the audio whose transcript was requested, as far as the live lane is past it."""
        requests = await self._context.journal.marks(backfill_prefix(self._context.room))
        if requests:
            holes = Spans((start, min(end, acknowledged)) for start, end in requests.values())
            await self._context.journal.commit(self.add(holes), *(Mark(key, None) for key in requests))

    async def suspect(self, span: Span) -> None:
        """Make a hole of audio in which a session heard nothing although it sounds like speech."""
        context = self._context
        self._suspected, self._suspicion_minutes = span, 2 * self._suspicion_minutes
        seconds = round((span.end - span.start) / context.rate)
        text = f"The speech service returned nothing for {seconds} s of what sounds like speech. They are sent again."
        await context.journal.commit(self._notice(span.start, "session.deaf", text), self.add(Spans([span])))
        log.warning("session.deaf", room=context.room, seconds=seconds)

    async def suspicion_minutes(self) -> float:
        """Minutes of what sounds like speech after which a silent session is suspected: one, and twice as many after
        each wrong suspicion. It was right where another session found words.
        """
        if self._suspected and await self._context.journal.select(self._context.room, ["turn"], *self._suspected):
            self._suspected, self._suspicion_minutes = None, 1.0
        return self._suspicion_minutes if self._context.endpoint.remote else math.inf

    async def run(self, acknowledged: Callable[[], int]) -> None:
        """Until cancelled: transcribe the holes that there are, and those that come or are requested."""
        while True:
            await self.take_requests(acknowledged())
            await self.run_pending()
            await trio.sleep(RESEND_S)

    async def run_pending(self) -> None:
        """Transcribe the holes, one at a time, until there are none or the room is leaving."""
        while self.holes and not self._leaving.is_set():
            hole = list(self.holes)[-1 if self._first == "newest" else 0]
            begun, before = trio.current_time(), self.holes.total
            outcome = await self._transcribe_hole(hole)
            if outcome.complete:
                await self._close(hole)
                log.info("hole.closed", room=self._context.room)
            settled = (before - self.holes.total) / self._context.rate
            if not await self.reconnector.wait_before_retry(outcome, trio.current_time() - begun, progress=settled):
                return

    async def _transcribe_hole(self, hole: Span) -> SessionOutcome:
        context, recorded = self._context, self._context.spool.recorded()
        is_gone = not recorded or hole.start >= recorded[-1].end
        if is_gone or hole.start < context.spool.first:
            gone = hole if is_gone else Span(hole.start, min(hole.end, context.spool.first))
            await self._close(gone, self._missing(gone))
            if gone == hole:
                return SessionOutcome(complete=True, advice=RetryAdvice.RETRY, text="the audio is gone")
            hole = Span(gone.end, hole.end)

        def shrink(acknowledged: int) -> Sequence[Mark]:
            self.holes -= Spans([(hole.start, acknowledged)])
            return [self._mark()]

        stretch = Stretch(self.resend_from(hole.start), hole.start, hole.end)
        session = StreamingSession(context, stretch, marks=shrink, handover=Handover.immediate())
        async with trio.open_nursery() as nursery:
            await self.reconnector.begin(nursery, session)
        return session.outcome

    async def _close(self, hole: Span, *notices: Notice) -> None:
        self.holes -= Spans([hole])
        await self._context.journal.commit(*notices, self._mark())

    def _missing(self, span: Span) -> Notice:
        seconds = (span.end - span.start) / self._context.rate
        text = f"{seconds:.0f} s of audio were removed before they could be transcribed."
        return self._notice(span.start, "transcript.missing", text)

    def _notice(self, position: int, code: str, text: str) -> Notice:
        room, at = self._context.room, self._context.spool.at(position)
        return Notice(room=room, position=position, at=at, severity="warning", code=code, text=text)
