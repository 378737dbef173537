"""Keeps a room transcribed until its spool has ended: session after session, from the durable position.

Two lanes read one spool. The live lane follows the head, and relieves each session by the next before it expires. Where
it has fallen too far behind for a service that takes little more than real time, it goes on near the head and leaves a
hole, which the backfill transcribes concurrently. Both resume from what the journal has as acknowledged, five seconds
earlier, and `seam` decides which words are new.

With a gate the live lane has a session only while there is speech; the audio between is *unsent*, and acknowledged as
such. `roomtone transcribe` makes holes of it.
"""

import time
from collections.abc import Callable
from typing import Literal

import trio

from roomtone.spans import Span
from roomtone.speech.backfill import Backfill
from roomtone.speech.gate import GateSettings
from roomtone.speech.gate_keeper import GateKeeper, load_gate, open_gate_keeper
from roomtone.speech.pause import last_pause
from roomtone.speech.progress import MAX_CATCH_UP_S, RoomProgress, load_acknowledged
from roomtone.speech.reconnect import Reconnector
from roomtone.speech.rollover import MAX_SESSION_S, Rollover, SessionLifetime
from roomtone.speech.sender import wait_piece
from roomtone.speech.session import SessionOutcome
from roomtone.speech.session_chain import SessionChain
from roomtone.speech.session_context import COVERAGE_COMMIT_INTERVAL_S, Handover, SessionContext

_NEVER = 1 << 62  # a position that no spool reaches


async def transcribe(
    context: SessionContext,
    *,
    realtime: bool,
    first: Literal["newest", "oldest"] = "newest",
    longest: float = MAX_SESSION_S,
    utc: Callable[[], float] = time.time,
    gating: GateSettings | None = None,
    leaving: trio.Event | None = None,
) -> None:
    """Transcribe the room until its spool has ended and nothing in it is pending.

    `realtime` rooms follow the head and leave holes behind a slow remote endpoint; others are read in order at the
    endpoint's pace. Holes are transcribed `first` newest or oldest. A session is relieved after `longest` seconds, or
    before it expires; `utc` returns Unix seconds. With `gating` sessions are open only while there is speech.
    `leaving`: the daemon or the room stops. An open session drains then; where none is open, and one more attempt
    fails, what is pending is left to the next start, as holes are.

    Resources: at most two sessions, three while one relieves another. Errors: those of the journal and the spool; it
    waits out those of the network and the service, without a limit.
    """
    leaving = trio.Event() if leaving is None else leaving
    progress = await _load(context, realtime=realtime, first=first, gating=gating, utc=utc, leaving=leaving)
    try:
        async with open_gate_keeper(progress) as gate_keeper:
            await LiveLane(progress, gate_keeper, SessionLifetime(longest, utc)).run()
            await progress.backfill.run_pending()
    finally:
        if leaving.is_set():
            progress.log_pending()


async def repair(context: SessionContext) -> None:
    """Transcribe what is in holes, those of `roomtone transcribe` included, and nothing else."""
    progress = await _load(context)
    await progress.backfill.run_pending()


async def withhold(context: SessionContext) -> None:
    """Settle all that is recorded as unsent, until the spool has ended."""
    progress = await _load(context)
    is_over = False
    while not is_over:
        with trio.move_on_after(COVERAGE_COMMIT_INTERVAL_S):
            is_over = not await context.spool.wait_past(_NEVER)
        await progress.withhold(context.spool.end)


async def _load(
    context: SessionContext,
    *,
    realtime: bool = False,
    first: Literal["newest", "oldest"] = "oldest",
    gating: GateSettings | None = None,
    utc: Callable[[], float] = time.time,
    leaving: trio.Event | None = None,
) -> RoomProgress:
    """The room's transcript as the journal has it."""
    leaving = trio.Event() if leaving is None else leaving
    reconnector = Reconnector(context, leaving)
    await reconnector.load()
    acknowledged = await load_acknowledged(context, utc())
    backfill = Backfill(context, reconnector, first=first, leaving=leaving)
    await backfill.load(acknowledged)
    gate = await load_gate(context, gating)
    leaves_holes = realtime and context.endpoint.remote
    return RoomProgress(context, acknowledged, backfill, gate, leaves_holes=leaves_holes)


class LiveLane:
    """Follows the head of a room's spool with chains of sessions."""

    def __init__(self, progress: RoomProgress, gate_keeper: GateKeeper | None, lifetime: SessionLifetime) -> None:
        self._progress = progress
        self._context = progress.context
        self._backfill = progress.backfill
        self._gate_keeper = gate_keeper
        self._lifetime = lifetime
        # Where all of the spool is settled, its last session has heard the end of it: nothing is sent again.
        self._resends = progress.acknowledged < self._context.spool.end

    async def run(self) -> None:
        """Follow the head until the spool has ended and all of it is settled, or in a hole."""
        while await self._wait_for_work():
            begun = trio.current_time()
            chain = SessionChain(self._progress, await self._backfill.suspicion_minutes())
            outcome = await self._run_chain(chain)
            self._resends = not outcome.complete
            for span in chain.deaf_spans():
                await self._backfill.suspect(span)
            lasted = trio.current_time() - begun
            if not await self._backfill.reconnector.wait_before_retry(outcome, lasted, progress=chain.settled_s):
                return

    async def _wait_for_work(self) -> bool:
        """Returns True when there is audio that a session must hear; False where the spool has ended without any."""
        if self._gate_keeper is None:
            return await wait_piece(self._context.spool, self._progress.acknowledged, 1) is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._backfill.run, lambda: self._progress.acknowledged)
            found = await self._gate_keeper.wait_for_speech()
            nursery.cancel_scope.cancel()
        return found

    async def _run_chain(self, chain: SessionChain) -> SessionOutcome:
        """Run sessions from the durable position to the first that ends without a successor."""
        start, floor = await self._choose_start()
        session = chain.add(start, floor, Handover.immediate())
        async with trio.open_nursery() as nursery:
            if not await self._backfill.reconnector.begin(nursery, session):
                return session.outcome
            scope = trio.CancelScope()
            nursery.start_soon(self._work_beside, scope, chain, start)
            rollover = Rollover(self._progress, chain, self._lifetime, nursery)
            while not session.over.is_set():
                with trio.move_on_after(self._lifetime.relief_in(session)):
                    await session.over.wait()
                    break
                session = await rollover.relieve(session)
            scope.cancel()
        return session.outcome

    async def _work_beside(self, scope: trio.CancelScope, chain: SessionChain, start: int) -> None:
        """Run all that accompanies a chain, which began at `start`."""
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._backfill.run, lambda: self._progress.acknowledged)
                nursery.start_soon(chain.end_deaf_sessions)
                if self._gate_keeper is not None:
                    nursery.start_soon(self._gate_keeper.close_after_speech, chain, start)

    async def _choose_start(self) -> tuple[int, int]:
        """The position at which the next session begins to read, and the one before which all is settled."""
        progress, done = self._progress, self._progress.acknowledged
        if not progress.is_far_behind(done):
            return (self._backfill.resend_from(done) if self._resends else done), done
        start = await self._find_pause(self._context.spool.end)
        if progress.gate is not None:
            # Speech that the gate is about to find may have begun there.
            start = max(done, min(start, progress.gate.settled))
        await progress.leave_hole(Span(done, start), acknowledged=start)
        return start, start

    async def _find_pause(self, head: int) -> int:
        """The last pause within the seconds that a session catches up with, or the head itself."""
        spool, rate = self._context.spool, self._context.rate
        begin = position = max(0, head - MAX_CATCH_UP_S * rate)
        audio = bytearray()
        while position < head and (piece := await spool.read(position, head - position)) is not None:
            if piece.position > position:
                begin, audio = piece.position, bytearray()
            audio += piece.audio
            position = piece.position + len(piece.audio) // 2
        pause = last_pause(bytes(audio), rate)
        return head if pause is None else max(begin + pause, self._progress.acknowledged)
