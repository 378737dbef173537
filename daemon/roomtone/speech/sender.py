"""The audio of one session: read from the spool, cut into frames, sent at the pace that the endpoint takes."""

import trio

from roomtone.protocol import messages
from roomtone.speech.acks import AckTracker
from roomtone.speech.connection import Connection
from roomtone.speech.session_context import SessionContext
from roomtone.speech.session_watchdog import SessionWatchdog
from roomtone.speech.time_map import Pace, TimeMap
from roomtone.spool.spool import Piece, Spool

IDLE_TIMEOUT_S = 10.0
"""Seconds without a new sample after which a session is ended: an open socket costs money."""
MAX_ZEROS_S = 1.0
"""Seconds of lost audio that are sent as silence, so that word times still map by one addition; a longer loss ends the
turn."""
AWAY = -1
"""In place of a number of missing samples: time without a source, in which none is missing."""


class AudioSender:
    """Sends a stretch of the spool to a session, from the time map's position up to `until` where that is known.

    `position` is sent next. `until` may be set while this runs. The time map, the acks and the watchdog record what was
    sent. Remote endpoints take little more than real time.
    """

    def __init__(
        self,
        context: SessionContext,
        time_map: TimeMap,
        acks: AckTracker,
        watchdog: SessionWatchdog,
        *,
        until: int | None,
    ) -> None:
        self.position = time_map.position
        self.until = until
        self._context = context
        self._time_map = time_map
        self._acks = acks
        self._watchdog = watchdog
        self._pace = Pace(context.rate, now=trio.current_time(), speed=1.2 if context.endpoint.remote else None)

    async def send(self, connection: Connection) -> bool:
        """Send the stretch, as it grows, to its end, or until the spool rests or nothing new comes for a while.

        No turn spans a long loss, nor time without a source. Returns False where the session is over.
        """
        size = 2 * self._context.frame
        held = b""
        while (found := await self._read_next(self._context.frame - len(held) // 2)) is not None:
            audio, lost = found
            if lost and held:
                await self._send_frame(connection, held)
                held = b""
            if lost > MAX_ZEROS_S * self._context.rate or lost == AWAY:
                await connection.send(messages.force_endpoint())
                lost = 0
            self._time_map.jump(self.position - len(audio) // 2 - lost - len(held) // 2)
            held += bytes(2 * lost) + audio
            while len(held) >= size:
                if not await self._send_frame(connection, held[:size]):
                    return False
                held = held[size:]
        return not held or await self._send_frame(connection, held)

    async def _read_next(self, limit: int) -> tuple[bytes, int] | None:
        """Returns the next audio and the number of samples missing before it, or AWAY; None where the stretch ends."""
        piece: Piece | None = None
        if self.until is None or self.position < self.until:
            with trio.move_on_after(IDLE_TIMEOUT_S):
                piece = await wait_piece(self._context.spool, self.position, limit, through_rest=False)
        if piece is None:
            return None
        if self.until is not None and piece.end > self.until:
            # The end of the stretch may have been set while this waited.
            if piece.position >= self.until:
                return None
            piece = piece._replace(audio=piece.audio[: 2 * (self.until - piece.position)])
        lost = piece.position - self.position
        if self._time_map.sent == 0:
            lost = 0
        elif piece.fresh and lost <= MAX_ZEROS_S * self._context.rate:
            lost = AWAY
        self.position = piece.end
        return piece.audio, lost

    async def _send_frame(self, connection: Connection, frame: bytes) -> bool:
        """Send one frame, padded to the shortest that the service takes."""
        samples = len(frame) // 2
        padded = max(samples, round(self._context.rate * messages.MIN_FRAME_S))
        await trio.sleep(self._pace.wait(self._time_map.sent, trio.current_time()))
        sent = await connection.send_audio(frame + bytes(2 * (padded - samples)))
        position = self._time_map.position + samples
        self._time_map.send(padded)
        self._time_map.jump(position)
        self._acks.sent = position
        self._watchdog.add_audio(position - samples, frame)
        return sent


async def wait_piece(spool: Spool, position: int, limit: int, *, through_rest: bool = True) -> Piece | None:
    """Waits for audio at or after `position`, and returns at most `limit` samples; None where the spool has ended.

    Without `through_rest` it also returns None when the spool rests.
    """
    while True:
        end = spool.end
        if (piece := await spool.read(position, limit)) is not None:
            return piece
        if not await spool.wait_past(end, through_rest=through_rest):
            return None
