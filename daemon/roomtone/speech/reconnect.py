"""A room's attempts to open sessions: their time limit, the delay after a failure, the notices to the operator."""

from typing import Literal

import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.events import Notice, Severity
from roomtone.journal.records import Mark
from roomtone.protocol.close_codes import RetryAdvice
from roomtone.speech.session import SessionOutcome, StreamingSession
from roomtone.speech.session_context import SessionContext

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

REFUSED_RETRY_S = 300.0
"""Seconds between attempts after a refusal that only the operator can remove."""
HEALTHY_SESSION_S = 60.0
"""Seconds after which a session counts as healthy, however it ended."""
MIN_PROGRESS_S = 5.0
"""Seconds of audio that must be settled for progress: as many as the next session is sent again."""
EXCESSIVE = (
    "The speech service sent far more text than speech can contain, so its session was ended and the excess dropped. "
    "Recording goes on, and a new session is tried every minute. Check that `endpoint` names the right service."
)
STOPPING_OPEN_TIMEOUT_S = 5.0
"""Seconds that a session may take to begin while the daemon stops: pending audio is kept for the next start."""


class Reconnector:
    """The attempts of one room. Its live lane and its backfill share them, since both use one service.

    `leaving` ends all waiting: the daemon stops. A reported refusal is a mark: another configuration or another start
    may end it, and its end must be reported then.
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
        """Read from the journal if there is a refusal whose end was not reported yet."""
        self._is_refused = bool(await self._context.journal.mark(self._context.key("refused")))

    def next_delay(self, outcome: SessionOutcome) -> float:
        """Seconds until the next attempt: at least what the service asked for, and a random part."""
        least = outcome.wait
        match outcome.advice:
            case RetryAdvice.BACK_OFF_A_MINUTE | RetryAdvice.EXCESS:
                least = max(least, 60.0)
            case RetryAdvice.FATAL:
                least = max(least, REFUSED_RETRY_S)
        return least + self._backoff.next()

    async def begin(self, nursery: trio.Nursery, session: StreamingSession) -> bool:
        """Run the session in this nursery. Returns True if it has begun, which ends an earlier refusal."""
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
            # The recognizer on this machine may still be loading its model.
            await trio.sleep(STOPPING_OPEN_TIMEOUT_S)
            opening.cancel()

    async def wait_before_retry(self, outcome: SessionOutcome, lasted: float, *, progress: float = 0.0) -> bool:
        """Wait as long as this outcome requires. A session of `lasted` healthy seconds resets the back-off.

        So does `progress` of more seconds of audio than the next session is sent again: without that, sessions that all
        die young would be opened ever more rarely, and the room would never catch up.

        Returns False where the daemon stops and another attempt is pointless. Where it stops during this wait, or
        during a session, one more attempt follows immediately, unless the service asked for a longer pause.
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

    async def _notify(self, severity: Severity, code: str, text: str, refused: Literal[True] | None) -> None:
        context = self._context
        position = context.spool.end
        notice = Notice(
            room=context.room, position=position, at=context.spool.at(position), severity=severity, code=code, text=text
        )
        await context.journal.commit(notice, Mark(context.key("refused"), refused))
