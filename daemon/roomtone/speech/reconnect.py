"""How a room tries for its sessions: how long one may take to begin, what follows a failure, who hears of it."""

from typing import Literal

import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.events import Notice, Severity
from roomtone.journal.journal import Mark
from roomtone.protocol.close_codes import RetryAdvice
from roomtone.speech.session import SessionOutcome, StreamingSession
from roomtone.speech.session_journal import SessionContext

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

REFUSED_RETRY_S = 300.0
"""Seconds between attempts that only a person can make succeed."""
HEALTHY_SESSION_S = 60.0
"""Seconds after which a session that has ended had nothing wrong with it."""
MIN_PROGRESS_S = 5.0
"""Seconds of audio that the next session hears again."""
EXCESSIVE = (
    "The speech service says more than speech can be, so its session was ended: nothing of it is kept beyond what the "
    "audio allows. The room is recorded on, and is tried again each minute. See that the endpoint is the one you mean."
)
STOPPING_OPEN_TIMEOUT_S = 5.0
"""Seconds that a session may take to begin when the daemon stops: what is pending is kept for the next start."""


class Reconnector:
    """A room's attempts at having a session. Its lanes share them: they meet one service.

    `leaving` ends all waiting: the daemon stops. A refusal that was told is a mark: it is mended by another
    configuration or another start, and its end must be told then.
    """

    def __init__(self, context: SessionContext, leaving: trio.Event) -> None:
        self._context = context
        self._leaving = leaving
        self._backoff = Backoff()
        self._count = 0
        self._reported = ""
        self._is_refused = False
        self._has_reported_excess = False
        self._has_tried = False

    async def load(self) -> None:
        """Look in the journal for a refusal whose end was not told yet."""
        self._is_refused = bool(await self._context.journal.mark(self._key))

    def next_delay(self, outcome: SessionOutcome) -> float:
        """Seconds until the next attempt: at least what the service has asked for, and no two rooms in step."""
        least = outcome.wait
        match outcome.advice:
            case RetryAdvice.BACK_OFF_A_MINUTE | RetryAdvice.EXCESS:
                least = max(least, 60.0)
            case RetryAdvice.FATAL:
                least = max(least, REFUSED_RETRY_S)
        return least + self._backoff.next()

    async def begin(self, nursery: trio.Nursery, session: StreamingSession) -> bool:
        """Run the passage in this nursery. Whether the service lets its session begin; one that does is accepted again,
        whatever was refused before.
        """
        async with trio.open_nursery() as opening:
            opening.start_soon(self._limit_opening, opening.cancel_scope)
            await nursery.start(session.run)
            opening.cancel_scope.cancel()
        if session.outcome.begun and self._is_refused:
            self._reported, self._is_refused = "", False
            await self._notify("info", "session.recovered", "The speech service accepts sessions again.", None)
        return session.outcome.begun

    async def _limit_opening(self, opening: trio.CancelScope) -> None:
        await self._leaving.wait()
        if self._context.endpoint.remote:
            # The recognizer on this machine may be reading its model, and it will come.
            await trio.sleep(STOPPING_OPEN_TIMEOUT_S)
            opening.cancel()

    async def wait_before_retry(self, outcome: SessionOutcome, lasted: float, *, progress: float = 0.0) -> bool:
        """Wait as long as this ending asks for; a session that lived, not one that spoke, resets the back-off.

        `progress`: so many seconds of audio were settled. More of them than the next session hears again is an
        achievement too: else sessions that all die young would be ever further apart, and the room never caught up.

        False: the daemon stops, and there is nothing to wait for any more. Where it stops while this waits, or while a
        session was up, there is one more attempt, at once, unless the service wants none so soon.
        """
        if lasted >= HEALTHY_SESSION_S:
            self._count = 0
        if lasted >= HEALTHY_SESSION_S or progress > MIN_PROGRESS_S:
            self._backoff.reset()
        if outcome.complete:
            self._count = 0
            return True
        self._count += 1
        self._context.report_failure(outcome.text)
        delay = self.next_delay(outcome)
        if is_worth_saying(self._count):
            log.warning(
                "session.failed", room=self._context.room, reason=outcome.text, failures=self._count, next_in=delay
            )
        if outcome.advice is RetryAdvice.FATAL and outcome.text != self._reported:
            self._reported, self._is_refused = outcome.text, True
            await self._notify("error", "session.refused", f"The speech service refuses sessions: {outcome.text}", True)
        if outcome.advice is RetryAdvice.EXCESS and not self._has_reported_excess:
            await self._notify("error", "session.excessive", EXCESSIVE, True if self._is_refused else None)
        self._has_reported_excess = outcome.advice is RetryAdvice.EXCESS or (
            self._has_reported_excess and lasted < HEALTHY_SESSION_S
        )
        if self._leaving.is_set() and (self._has_tried or not outcome.begun):
            return False
        with trio.move_on_after(delay):
            await self._leaving.wait()
            self._has_tried = True
            return outcome.advice in {RetryAdvice.RETRY, RetryAdvice.BACK_OFF}
        return True

    @property
    def _key(self) -> str:
        return f"room/{self._context.room}/refused"

    async def _notify(self, severity: Severity, code: str, text: str, refused: Literal[True] | None) -> None:
        desk = self._context
        position = desk.spool.end
        notice = Notice(
            room=desk.room, position=position, at=desk.spool.at(position), severity=severity, code=code, text=text
        )
        await desk.journal.commit(notice, Mark(self._key, refused))
