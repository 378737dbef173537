"""The gate: which stretches of a room's audio are worth a session, decided by a voice detector that reads the spool.

It decides and does nothing: `speech/transcriber.py` opens and closes sessions by it. It reads what everybody reads, so
that it can be late without loss: a session that opens late begins where the speech began, and some time before.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

import trio

from roomtone.concurrency import RunSync
from roomtone.spans import Span, Spans
from roomtone.speech.vad import ONSET_LOOKBACK_S, Detector
from roomtone.spool.spool import Piece, Spool

DETECTOR_STEP_S = 0.5
"""Seconds of audio that the detector gets at once. A session opens that much later; its pre-roll is longer."""
HANGOVER_S = 2.0
"""Seconds behind the last speech that belong to it: a voice that sinks is no speech to a detector."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class GateDecisions:
    """What the gate has made of the audio before position `heard`. Pure; all in samples.

    `wanted` are the positions that a session must hear: those of speech, with `preroll` before and TAIL behind.
    """

    def __init__(
        self, rate: int, *, preroll: float, close_after: float, heard: int, wanted: Spans, last: int | None = None
    ) -> None:
        self.heard = heard
        self.wanted = wanted
        self._last = last
        self._preroll = round(preroll * rate)
        self._close_after = round(close_after * rate)
        self._tail = round(HANGOVER_S * rate)
        self._memory = round(ONSET_LOOKBACK_S * rate)

    @property
    def settled(self) -> int:
        """What is before this position and not wanted now will never be."""
        return max(0, self.heard - self._preroll - self._memory)

    @property
    def is_quiet(self) -> bool:
        """Whether the room has been silent for so long that no session is to be open."""
        return self._last is None or self.heard - self._last >= self._close_after

    def hear(self, piece: Span, speech: Iterable[Span], *, fresh: bool) -> None:
        """The detector has heard this piece of audio. `fresh`: time without a source lies before it."""
        if fresh or piece.start > self.heard:
            # Nothing comes behind the last speech any more.
            self.wanted &= Spans([(0, self.heard)])
        self.heard = piece.end
        for start, end in speech:
            self.wanted |= Spans([(max(0, start - self._preroll), end + self._tail)])
            self._last = end

    def forget(self, position: int) -> None:
        """What lies before this position is settled."""
        self.wanted -= Spans([(0, position)])

    def follow(self, position: int) -> int:
        """Up to where a session is wanted that is open at this position: over all silences that are short enough."""
        for span in self.wanted:
            if position <= span.end and not self._is_long(position, span.start + self._preroll):
                position = span.end
        return position

    def is_silent_after(self, position: int) -> bool:
        """Whether what is wanted ends at this position, and it has been silent for long enough since."""
        return self._is_long(position, self.heard)

    def passages(self, start: int, end: int) -> Spans:
        """What is wanted between these positions, in pieces as sessions would have taken it."""
        pieces: list[Span] = []
        for span in self.wanted & Spans([(start, end)]):
            if pieces and not self._is_long(pieces[-1].end, span.start + self._preroll):
                pieces[-1] = Span(pieces[-1].start, span.end)
            else:
                pieces.append(span)
        return Spans(pieces)

    def _is_long(self, end: int, begin: int) -> bool:
        return begin - (end - self._tail) >= self._close_after

    def state(self) -> dict[str, Any]:
        """What a mark needs so that the gate goes on where it was: see `recall`."""
        return {"heard": self.heard, "wanted": [list(span) for span in self.wanted], "last": self._last}


class GateSettings(NamedTuple):
    """How a room's gate decides. `preroll` and `close_after` are in seconds; `run_sync` calls the detector."""

    detector: Callable[[], Detector]
    preroll: float
    close_after: float
    run_sync: RunSync = trio.to_thread.run_sync

    def recall(
        self, state: dict[str, Any] | None, *, rate: int, acknowledged: int | None, recorded: Span
    ) -> GateDecisions:
        """The gate's state as the journal has it; before it had one, what is recorded and not transcribed is wanted."""
        done = acknowledged or 0
        if state is None and acknowledged is not None:
            wanted, heard, last = Spans([(done, recorded.end)]), max(done, recorded.end), None
        elif state is None:
            wanted, heard, last = Spans(), recorded.start, None
        else:
            wanted, heard, last = Spans(map(tuple, state["wanted"])), max(state["heard"], done), state["last"]
        hearing = GateDecisions(
            rate, preroll=self.preroll, close_after=self.close_after, heard=heard, wanted=wanted, last=last
        )
        hearing.forget(done)
        return hearing


class Gate:
    """Follows a room's spool with a detector. `over`: the spool has ended, and all of it is decided."""

    def __init__(self, spool: Spool, gating: GateSettings, hearing: GateDecisions) -> None:
        self.hearing = hearing
        self.over = False
        self._spool = spool
        self._gating = gating
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Listen until the spool has ended. One thread at a time works for it."""
        detector = self._gating.detector()
        while (piece := await self._next()) is not None:
            speech = await self._gating.run_sync(detector.hear, piece.position, piece.audio)
            self.hearing.hear(Span(piece.position, piece.end), speech, fresh=piece.fresh)
            self._changed.unpark_all()
        self.over = True
        self._changed.unpark_all()

    async def _next(self) -> Piece | None:
        """The next STEP of audio, or what there is of it at the end of the spool."""
        heard, size = self.hearing.heard, round(DETECTOR_STEP_S * self._spool.rate)
        await self._spool.wait_past(heard + size - 1)
        return await self._spool.read(heard, size)

    async def changed(self) -> None:
        """Return when more is decided; at once when all is."""
        await trio.lowlevel.checkpoint()
        if not self.over:
            await self._changed.park()

    @property
    def settled(self) -> int:
        """As Hearing has it; at the end of the spool, all of it."""
        return self._spool.end if self.over else self.hearing.settled

    async def next_wanted(self, position: int) -> int | None:
        """The first recorded position from here on that a session must hear. None: the spool ends without one."""
        while True:
            is_over = self.over
            for span in self.hearing.wanted - Spans([(0, position)]):
                piece = await self._spool.read(span.start, 1)
                if piece is not None and piece.position < span.end:
                    return piece.position
            if is_over:
                return None
            await self.changed()

    async def fall_silent(self, position: int) -> int:
        """Return when a session that began here need not be open any more, with the position up to which it is."""
        while True:
            is_over = self.over
            position = self.hearing.follow(position)
            if is_over or self.hearing.is_silent_after(position):
                return position
            await self.changed()
