"""The repair lane: what the live lane has left out is kept in the journal as holes, and has sessions of its own.

A hole is recorded audio that is not settled although the room's acknowledged position has passed it. It survives
restarts, shrinks as its session is heard, and is closed by Termination, or by a notice where its audio is gone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import structlog
import trio

from roomtone.events import Notice
from roomtone.journal.keys import backfill_prefix, holes_mark, holes_of, room_key
from roomtone.journal.records import Mark
from roomtone.protocol.messages import RetryAdvice
from roomtone.spans import Span, Spans
from roomtone.speech.reconnect import Reconnector
from roomtone.speech.session import SessionOutcome, StreamingSession
from roomtone.speech.session_journal import SessionContext

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

RESEND_S = 5
"""Seconds that are sent again before a position that is settled: where both sessions heard the same words they are
aligned."""


def already_set() -> trio.Event:
    """An event that has happened, for a session that need not wait for another."""
    event = trio.Event()
    event.set()
    return event


class Backfill:
    """The holes of one room, and the sessions that mend them, one at a time, `first` the newest or the oldest.

    `leaving` ends the mending: holes are there at the next start.
    """

    def __init__(
        self, desk: SessionContext, attempts: Reconnector, *, first: Literal["newest", "oldest"], leaving: trio.Event
    ) -> None:
        self.holes = Spans()
        self._desk = desk
        self._attempts = attempts
        self._first = first
        self._leaving = leaving
        self._doubted: Span | None = None
        self._doubted_after = 1.0

    async def load(self) -> None:
        """The holes as the journal knows them."""
        self.holes = holes_of(await self._desk.journal.mark(room_key(self._desk.room, "holes")))

    def add(self, holes: Spans) -> Mark:
        """There are these holes too. The mark is to be committed with whatever says that all else is settled."""
        self.holes |= holes
        return self._mark()

    def _mark(self) -> Mark:
        return holes_mark(self._desk.room, self.holes)

    def again_from(self, done: int) -> int:
        """AGAIN seconds before a settled position, but not before the end of a hole: what is there is not settled."""
        edge = max((hole.end for hole in self.holes if hole.end <= done), default=0)
        return min(done, max(self._desk.spool.first, edge, done - RESEND_S * self._desk.rate))

    async def take_wishes(self, acknowledged: int) -> None:
        """Make holes of what a person wants transcribed, as far as the live lane has passed it."""
        wishes = await self._desk.journal.marks(backfill_prefix(self._desk.room))
        if wishes:
            holes = Spans((start, min(end, acknowledged)) for start, end in wishes.values())
            await self._desk.journal.commit(self.add(holes), *(Mark(wish, None) for wish in wishes))

    async def doubt(self, span: Span) -> None:
        """A session heard this and said nothing, though it sounds like speech: make a hole of it, for another one."""
        desk = self._desk
        self._doubted, self._doubted_after = span, 2 * self._doubted_after
        seconds = round((span.end - span.start) / desk.rate)
        text = f"The speech service said nothing in {seconds} s of what sounds like speech. It is sent them again."
        await desk.journal.commit(self._notice(span.start, "session.deaf", text), self.add(Spans([span])))
        log.warning("session.deaf", room=desk.room, seconds=seconds)

    async def doubted_after(self) -> float:
        """Minutes of what sounds like speech after which a session that says nothing is doubted: one, and twice as many
        after each doubt that was wrong. It was right where another session found words.
        """
        if self._doubted and await self._desk.journal.select(self._desk.room, ["turn"], *self._doubted):
            self._doubted, self._doubted_after = None, 1.0
        return self._doubted_after if self._desk.endpoint.remote else math.inf

    async def mend_for_ever(self, acknowledged: Callable[[], int]) -> None:
        """Mend what holes there are and what holes come, wishes included, until cancelled."""
        while True:
            await self.take_wishes(acknowledged())
            await self.mend()
            await trio.sleep(RESEND_S)

    async def mend(self) -> None:
        """Transcribe what is in holes, one at a time; when leaving, none."""
        while self.holes and not self._leaving.is_set():
            hole = list(self.holes)[-1 if self._first == "newest" else 0]
            begun, before = trio.current_time(), self.holes.total
            ending = await self._mend(hole)
            if ending.complete:
                await self._close(hole)
                log.info("hole.closed", room=self._desk.room)
            settled = (before - self.holes.total) / self._desk.rate
            if not await self._attempts.wait_out(ending, trio.current_time() - begun, progress=settled):
                return

    async def _mend(self, hole: Span) -> SessionOutcome:
        desk, recorded = self._desk, self._desk.spool.recorded()
        is_gone = not recorded or hole.start >= recorded[-1].end
        if is_gone or hole.start < desk.spool.first:
            gone = hole if is_gone else Span(hole.start, min(hole.end, desk.spool.first))
            await self._close(gone, self._missing(gone))
            if gone == hole:
                return SessionOutcome(complete=True, verdict=RetryAdvice.RETRY, text="the audio is gone")
            hole = Span(gone.end, hole.end)

        def shrink(acknowledged: int) -> Sequence[Mark]:
            self.holes -= Spans([(hole.start, acknowledged)])
            return [self._mark()]

        passage = StreamingSession(
            desk,
            start=self.again_from(hole.start),
            floor=hole.start,
            until=hole.end,
            marks=shrink,
            settled=already_set(),
            may_send=already_set(),
        )
        async with trio.open_nursery() as nursery:
            await self._attempts.begin(nursery, passage)
        return passage.ending

    async def _close(self, hole: Span, *notices: Notice) -> None:
        self.holes -= Spans([hole])
        await self._desk.journal.commit(*notices, self._mark())

    def _missing(self, span: Span) -> Notice:
        seconds = (span.end - span.start) / self._desk.rate
        text = f"{seconds:.0f} s of audio were removed before they could be transcribed."
        return self._notice(span.start, "transcript.missing", text)

    def _notice(self, position: int, code: str, text: str) -> Notice:
        desk = self._desk
        at = desk.spool.at(position)
        return Notice(room=desk.room, position=position, at=at, severity="warning", code=code, text=text)
