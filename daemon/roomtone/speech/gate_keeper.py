"""A gated room's sessions: opened when there is speech, closed when it has been silent for long enough.

The gate decides by the audio alone; the keeper carries its decisions out, and keeps them over a restart.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from roomtone.journal.records import Mark
from roomtone.spans import Span
from roomtone.speech.gate import Gate, GateSettings
from roomtone.speech.progress import RoomProgress
from roomtone.speech.session_chain import SessionChain
from roomtone.speech.session_context import COVERAGE_COMMIT_INTERVAL_S, SessionContext


class GateKeeper:
    """Opens and closes the sessions of one room by its gate."""

    def __init__(self, gate: Gate, progress: RoomProgress) -> None:
        self._gate = gate
        self._progress = progress

    async def wait_for_speech(self) -> bool:
        """Returns True when there is speech; all before it is unsent. False: the spool has ended without any."""
        gate, progress = self._gate, self._progress
        while True:
            is_over, found = gate.over, None
            with trio.move_on_after(COVERAGE_COMMIT_INTERVAL_S):
                found = await gate.next_wanted(progress.acknowledged)
            if found is not None and progress.is_far_behind(found) and gate.decisions.is_quiet:
                # The speech is over, and no session could be opened while it lasted.
                await progress.leave_hole(Span(progress.acknowledged, gate.settled), acknowledged=gate.settled)
            elif found is not None:
                await progress.withhold(found)
                return True
            else:
                await progress.withhold(gate.settled)
                if is_over:
                    return False

    async def close_after_speech(self, chain: SessionChain, start: int) -> None:
        """End the sessions of this chain, which began at `start`, when it has been silent for long enough."""
        chain.end_by(await self._gate.fall_silent(start))

    async def save_periodically(self) -> None:
        """Keep what the gate has heard while no session is open, so that it is not heard again after a crash."""
        context, saved = self._progress.context, None
        while True:
            await trio.sleep(COVERAGE_COMMIT_INTERVAL_S)
            state = self._gate.decisions.state()
            if state["wanted"] and state != saved:
                await context.journal.commit(Mark(context.key("gate"), state))
                saved = state


async def load_gate(context: SessionContext, settings: GateSettings | None) -> Gate | None:
    """The gate, as the journal has its state; without settings there is none, and its state is removed."""
    state = await context.journal.mark(context.key("gate"))
    if settings is None:
        if state is not None:
            await context.journal.commit(Mark(context.key("gate"), None))
        return None
    acknowledged = await context.journal.mark(context.key("acknowledged"))
    recorded = Span(context.spool.first, context.spool.end)
    decisions = settings.recall(state, rate=context.rate, acknowledged=acknowledged, recorded=recorded)
    return Gate(context.spool, settings, decisions)


@asynccontextmanager
async def open_gate_keeper(progress: RoomProgress) -> AsyncIterator[GateKeeper | None]:
    """The keeper of the room's gate, if it has one. Resources: the gate's thread, until the context is left."""
    if progress.gate is None:
        yield None
        return
    keeper = GateKeeper(progress.gate, progress)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.gate.run)
        nursery.start_soon(keeper.save_periodically)
        yield keeper
        nursery.cancel_scope.cancel()
