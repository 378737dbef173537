"""How a room tries for its sessions: how long one may take to begin, what follows a failure, who hears of it."""

from typing import Literal

import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.events import Notice, Severity
from roomtone.journal.keys import room_key
from roomtone.journal.records import Mark
from roomtone.protocol.messages import RetryAdvice
from roomtone.speech.session import SessionOutcome, StreamingSession
from roomtone.speech.session_journal import SessionContext

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

REFUSED_RETRY_S = 300.0
"""Seconds between attempts that only a person can make succeed."""
HEALTHY = 60.0
"""Seconds after which a session that has ended had nothing wrong with it."""
PROGRESS = 5.0
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

    def __init__(self, desk: SessionContext, leaving: trio.Event) -> None:
        self._desk = desk
        self._leaving = leaving
        self._backoff = Backoff()
        self._count = 0
        self._told = ""
        self._is_refused = False
        self._has_told_excess = False
        self._has_tried = False

    async def load(self) -> None:
        """Look in the journal for a refusal whose end was not told yet."""
        self._is_refused = bool(await self._desk.journal.mark(self._key))

    def next_delay(self, ending: SessionOutcome) -> float:
        """Seconds until the next attempt: at least what the service has asked for, and no two rooms in step."""
        least = ending.wait
        match ending.verdict:
            case RetryAdvice.BACK_OFF_A_MINUTE | RetryAdvice.EXCESS:
                least = max(least, 60.0)
            case RetryAdvice.FATAL:
                least = max(least, REFUSED_RETRY_S)
        return least + self._backoff.next()

    async def begin(self, nursery: trio.Nursery, passage: StreamingSession) -> bool:
        """Run the passage in this nursery. Whether the service lets its session begin; one that does is accepted again,
        whatever was refused before.
        """
        async with trio.open_nursery() as opening:
            opening.start_soon(self._hurry, opening.cancel_scope)
            await nursery.start(passage.run)
            opening.cancel_scope.cancel()
        if passage.ending.begun and self._is_refused:
            self._told, self._is_refused = "", False
            await self._tell("info", "session.recovered", "The speech service accepts sessions again.", None)
        return passage.ending.begun

    async def _hurry(self, opening: trio.CancelScope) -> None:
        await self._leaving.wait()
        if self._desk.endpoint.remote:
            # The recognizer on this machine may be reading its model, and it will come.
            await trio.sleep(STOPPING_OPEN_TIMEOUT_S)
            opening.cancel()

    async def wait_out(self, ending: SessionOutcome, lasted: float, *, progress: float = 0.0) -> bool:
        """Wait as long as this ending asks for; a session that lived, not one that spoke, resets the back-off.

        `progress`: so many seconds of audio were settled. More of them than the next session hears again is an
        achievement too: else sessions that all die young would be ever further apart, and the room never caught up.

        False: the daemon stops, and there is nothing to wait for any more. Where it stops while this waits, or while a
        session was up, there is one more attempt, at once, unless the service wants none so soon.
        """
        if lasted >= HEALTHY:
            self._count = 0
        if lasted >= HEALTHY or progress > PROGRESS:
            self._backoff.reset()
        if ending.complete:
            self._count = 0
            return True
        self._count += 1
        self._desk.failed(ending.text)
        delay = self.next_delay(ending)
        if is_worth_saying(self._count):
            log.warning("session.failed", room=self._desk.room, reason=ending.text, failures=self._count, next_in=delay)
        if ending.verdict is RetryAdvice.FATAL and ending.text != self._told:
            self._told, self._is_refused = ending.text, True
            await self._tell("error", "session.refused", f"The speech service refuses sessions: {ending.text}", True)
        if ending.verdict is RetryAdvice.EXCESS and not self._has_told_excess:
            await self._tell("error", "session.excessive", EXCESSIVE, True if self._is_refused else None)
        self._has_told_excess = ending.verdict is RetryAdvice.EXCESS or (self._has_told_excess and lasted < HEALTHY)
        if self._leaving.is_set() and (self._has_tried or not ending.begun):
            return False
        with trio.move_on_after(delay):
            await self._leaving.wait()
            self._has_tried = True
            return ending.verdict in {RetryAdvice.RETRY, RetryAdvice.BACK_OFF}
        return True

    @property
    def _key(self) -> str:
        return room_key(self._desk.room, "refused")

    async def _tell(self, severity: Severity, code: str, text: str, refused: Literal[True] | None) -> None:
        desk = self._desk
        position = desk.spool.end
        notice = Notice(
            room=desk.room, position=position, at=desk.spool.at(position), severity=severity, code=code, text=text
        )
        await desk.journal.commit(notice, Mark(self._key, refused))
