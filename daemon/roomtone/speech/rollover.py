"""A session is relieved by the next one before the service ends it: in a pause, or with some seconds sent to both."""

import math
from collections.abc import Callable
from typing import NamedTuple

import structlog
import trio

from roomtone.spans import Span
from roomtone.speech.progress import RoomProgress
from roomtone.speech.session import TERMINATION_TIMEOUT_S, StreamingSession
from roomtone.speech.session_chain import PAUSE_TIMEOUT_S, SessionChain
from roomtone.speech.session_context import Handover

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

OVERLAP_S = 6
"""Seconds that both sessions are sent where no pause comes."""
MIN_OVERLAP_S = 2
"""Seconds that both are sent where the old session is about to end: with fewer the seam would lie in a word. If it ends
before them, what it has not heard is a hole."""
MAX_SESSION_S = 10_200.0
"""Seconds after which a session is relieved where the service names no end: ten minutes before its three hours."""
ROLLOVER_MARGIN_S = 180.0
"""Seconds before the end that the service names at which the next session is opened, a quarter of a short life."""
MIN_SESSION_S = 10.0
"""Seconds that every session lasts at the service; one that is said to last less is measured by a clock that disagrees
with ours."""


class SessionLifetime(NamedTuple):
    """A session is relieved after `longest` seconds, or before it expires; `utc` returns Unix seconds."""

    longest: float
    utc: Callable[[], float]

    def relief_in(self, session: StreamingSession) -> float:
        """Seconds until this session is to be relieved."""
        whole = trio.current_time() - session.begun_at + self.left(session)
        life = min(self.longest, whole - min(ROLLOVER_MARGIN_S, whole / 4))
        return max(0.0, session.begun_at + life - trio.current_time())

    def left(self, session: StreamingSession) -> float:
        """Seconds until the service ends this session, as far as it says so and the two clocks agree."""
        if session.expires_at is None:
            return math.inf
        left = session.expires_at.timestamp() - self.utc()
        # A clock that is hours ahead would have every session relieved as soon as it begins.
        return left if trio.current_time() - session.begun_at + left >= MIN_SESSION_S else math.inf


class Rollover:
    """Relieves the sessions of a chain, which run in the nursery."""

    def __init__(
        self, progress: RoomProgress, chain: SessionChain, lifetime: SessionLifetime, nursery: trio.Nursery
    ) -> None:
        self._progress = progress
        self._chain = chain
        self._lifetime = lifetime
        self._nursery = nursery

    async def relieve(self, old: StreamingSession) -> StreamingSession:
        """Open the next session before the old one ends, and switch in a pause. Returns the old one if that fails."""
        context, reconnector = self._progress.context, self._progress.backfill.reconnector
        handover = Handover()
        new = self._chain.add(old.position, old.position, handover)
        is_paused = await reconnector.begin(self._nursery, new) and await self._wait_for_pause(old, new)
        if new.over.is_set():
            log.warning("session.unrelieved", room=context.room, reason=new.outcome.text)
            with trio.move_on_after(reconnector.next_delay(new.outcome)):
                await old.over.wait()
            return old
        if old.over.is_set():
            done = old.acknowledged
            new.begin_at(self._progress.backfill.resend_from(done), done)
            handover.settled.set()
        else:
            begin = seam = old.end_here() if is_paused else old.position
            if not is_paused:
                # Each session hears its own edge badly, so both are sent some seconds, and the seam lies inside.
                seconds = min(OVERLAP_S, max(MIN_OVERLAP_S, self._lifetime.left(old) - 1))
                shared = round(seconds * context.rate)
                seam = begin + shared // 2
                old.share_until(begin + shared, seam)
            new.begin_at(begin, seam)
            self._nursery.start_soon(self._settle, old, seam, handover.settled)
        handover.may_send.set()
        return new

    async def _wait_for_pause(self, old: StreamingSession, new: StreamingSession) -> bool:
        """Wait until the last 300 ms that the old session was sent are a pause, or one of the two is over.

        Returns False where no pause came in time.
        """
        context, left = self._progress.context, self._lifetime.left(old)
        timeout = min(PAUSE_TIMEOUT_S, max(left - OVERLAP_S - TERMINATION_TIMEOUT_S, left / 2))
        with trio.move_on_after(max(0.0, timeout)):
            while not (old.over.is_set() or new.over.is_set()):
                if await self._chain.is_in_pause(old):
                    return True
                await trio.sleep(context.frame / context.rate)
        return old.over.is_set()

    async def _settle(self, old: StreamingSession, end: int, settled: trio.Event) -> None:
        """Let the new session write its words when the old one's are written, or are a hole up to `end`."""
        await old.over.wait()
        if old.acknowledged < end:
            await self._progress.leave_hole(Span(old.acknowledged, end), acknowledged=end)
        settled.set()
