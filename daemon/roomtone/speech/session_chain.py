"""Sessions that relieve one another, and those among them that seem to hear nothing."""

from collections.abc import Iterator

import trio

from roomtone.spans import Span
from roomtone.speech.pause import ends_quiet
from roomtone.speech.progress import RoomProgress
from roomtone.speech.session import StreamingSession
from roomtone.speech.session_context import Handover, Stretch

PAUSE_TIMEOUT_S = 60.0
"""Seconds to wait for a pause in the speech before a session is relieved, or a deaf one ended, in the middle of it."""
WATCHDOG_INTERVAL_S = 5.0
"""Seconds between checks for deaf sessions."""
_PAUSE_WINDOW_S = 5
"""Seconds of audio whose quietest moments say how loud a pause is."""


class SessionChain:
    """The sessions from one position on, each beginning where the one before it ends."""

    def __init__(self, progress: RoomProgress, suspicion_minutes: float) -> None:
        self._progress = progress
        self._suspicion_minutes = suspicion_minutes
        self._sessions: list[StreamingSession] = []
        self._until: int | None = None

    def add(self, start: int, floor: int, handover: Handover) -> StreamingSession:
        """The next session of the chain, not yet open."""
        session = StreamingSession(
            self._progress.context,
            Stretch(start, floor, self._until),
            marks=self._progress.advance,
            handover=handover,
            suspicion_minutes=self._suspicion_minutes,
        )
        self._sessions.append(session)
        return session

    def end_by(self, position: int) -> None:
        """End all sessions at this position, those to come included, or where they are now if that is later."""
        self._until = position
        for session in self._sessions:
            session.end_by(position)

    @property
    def settled_s(self) -> float:
        """Seconds of audio that its sessions have settled, once they are over."""
        return sum(session.progress for session in self._sessions) / self._progress.context.rate

    def deaf_spans(self) -> Iterator[Span]:
        """The audio that sessions were sent, and counts as heard, since they seem to have heard nothing."""
        for session in self._sessions:
            end = min(session.position, self._progress.acknowledged)
            if session.deaf_since is not None and session.deaf_since < end:
                yield Span(session.deaf_since, end)

    async def end_deaf_sessions(self) -> None:
        """Until cancelled: end a session that answers and seems to hear nothing, in a pause if one comes."""
        while True:
            await trio.sleep(WATCHDOG_INTERVAL_S)
            for session in self._sessions:
                if session.deaf_since is not None and not session.over.is_set():
                    await self._end_in_pause(session)

    async def _end_in_pause(self, session: StreamingSession) -> None:
        """End the session in a pause of the speech, unless it says something meanwhile."""
        context = self._progress.context
        ends_by = trio.current_time() + PAUSE_TIMEOUT_S
        while session.deaf_since is not None:
            if await self.is_in_pause(session) or trio.current_time() >= ends_by:
                session.end_here()
                return
            await trio.sleep(context.frame / context.rate)

    async def is_in_pause(self, session: StreamingSession) -> bool:
        """True if there was no speech in the last 300 ms that this session was sent."""
        context = self._progress.context
        begin = max(0, session.position - _PAUSE_WINDOW_S * context.rate)
        if session.position == begin:
            return True
        piece = await context.spool.read(begin, session.position - begin)
        return piece is None or ends_quiet(piece.audio, context.rate)
