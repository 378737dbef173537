"""The gate: which stretches of a room's audio are worth a session, decided by a voice detector that reads the spool.

It only decides: `speech/gate_keeper.py` opens and closes sessions by it. It reads the spool like any reader, so that it
can be late without loss: a session that opens late begins where the speech began, and some time before.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import trio

from roomtone.concurrency import RunSync
from roomtone.spans import Span, Spans
from roomtone.speech.vad import ONSET_LOOKBACK_S, Detector
from roomtone.spool.spool import Piece, Spool

DETECTOR_STEP_S = 0.5
"""Seconds of audio that the detector gets in one call. A session opens that much later; its pre-roll is longer."""
HANGOVER_S = 2.0
"""Seconds after the last speech that belong to it: a detector misses a voice that fades."""


class GateDecisions:
    """The gate's decisions about the audio before position `heard`. Pure; all in samples.

    `wanted` are the spans that a session must hear: those of speech, with `preroll` before and HANGOVER_S after.
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
        """The position before which nothing more will be wanted."""
        return max(0, self.heard - self._preroll - self._memory)

    @property
    def is_quiet(self) -> bool:
        """True if the room has been silent for long enough that no session need be open."""
        return self._last is None or self.heard - self._last >= self._close_after

    def add(self, piece: Span, speech: Iterable[Span], *, fresh: bool) -> None:
        """Add the speech of this piece of audio. `fresh`: time without a source lies before it."""
        if fresh or piece.start > self.heard:
            # The last speech has no audio after it any more.
            self.wanted &= Spans([(0, self.heard)])
        self.heard = piece.end
        for start, end in speech:
            self.wanted |= Spans([(max(0, start - self._preroll), end + self._tail)])
            self._last = end

    def drop_before(self, position: int) -> None:
        """Drop all before this position: it is settled."""
        self.wanted -= Spans([(0, position)])

    def follow(self, position: int) -> int:
        """The position up to which a session that is open at this one is wanted, across all short silences."""
        for span in self.wanted:
            if position <= span.end and not self._is_long(position, span.start + self._preroll):
                position = span.end
        return position

    def is_silent_after(self, position: int) -> bool:
        """True if nothing is wanted from this position on, and it has been silent for long enough since."""
        return self._is_long(position, self.heard)

    def wanted_between(self, start: int, end: int) -> Spans:
        """The wanted audio between these positions, in pieces, one for each session that would have taken it."""
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
        """The state for a mark, from which `recall` goes on."""
        return {"heard": self.heard, "wanted": [list(span) for span in self.wanted], "last": self._last}


class GateSettings(NamedTuple):
    """The settings of a room's gate. `preroll` and `close_after` are in seconds.

    `run_sync` runs the detector, in a thread; a test on virtual time gives another.
    """

    detector: Callable[[], Detector]
    preroll: float
    close_after: float
    run_sync: RunSync = trio.to_thread.run_sync

    def recall(
        self, state: dict[str, Any] | None, *, rate: int, acknowledged: int | None, recorded: Span
    ) -> GateDecisions:
        """The gate's decisions as the journal has them; without any, all that is recorded and not settled is wanted."""
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
        hearing.drop_before(done)
        return hearing


class Gate:
    """Follows a room's spool with a detector. `over`: the spool has ended, and all of it is decided."""

    def __init__(self, spool: Spool, settings: GateSettings, decisions: GateDecisions) -> None:
        self.decisions = decisions
        self.over = False
        self._spool = spool
        self._settings = settings
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Listen until the spool has ended. It uses one thread at a time."""
        detector = self._settings.detector()
        while (piece := await self._next()) is not None:
            speech = await self._settings.run_sync(detector.hear, piece.position, piece.audio)
            self.decisions.add(Span(piece.position, piece.end), speech, fresh=piece.fresh)
            self._changed.unpark_all()
        self.over = True
        self._changed.unpark_all()

    async def _next(self) -> Piece | None:
        """The next DETECTOR_STEP_S of audio, or less at the end of the spool."""
        heard, size = self.decisions.heard, round(DETECTOR_STEP_S * self._spool.rate)
        await self._spool.wait_past(heard + size - 1)
        return await self._spool.read(heard, size)

    async def wait_changed(self) -> None:
        """Return when more is decided; immediately if all is."""
        await trio.lowlevel.checkpoint()
        if not self.over:
            await self._changed.park()

    @property
    def settled(self) -> int:
        """As in GateDecisions; at the end of the spool, all of it."""
        return self._spool.end if self.over else self.decisions.settled

    async def next_wanted(self, position: int) -> int | None:
        """Waits for the first recorded position from here on that a session must hear; None if the spool ends."""
        while True:
            is_over = self.over
            for span in self.decisions.wanted - Spans([(0, position)]):
                piece = await self._spool.read(span.start, 1)
                if piece is not None and piece.position < span.end:
                    return piece.position
            if is_over:
                return None
            await self.wait_changed()

    async def fall_silent(self, position: int) -> int:
        """Waits until a session that began here need not be open any more; returns the position where it ends."""
        while True:
            is_over = self.over
            position = self.decisions.follow(position)
            if is_over or self.decisions.is_silent_after(position):
                return position
            await self.wait_changed()
