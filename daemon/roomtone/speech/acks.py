"""Tracks how much of its audio a session has heard, and what became of it. Pure.

The terms of the journal and of `roomtone coverage`: a position is *captured* or *lost*; what is captured is
*transcribed* (inside the words of a final turn), *silent* (heard, and no word there), *unsent* (held back by the gate
or the budget) or *pending* (anything else).
"""

from collections import deque
from collections.abc import Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Literal, TypeAlias

from roomtone.spans import Span, Spans

SETTLE_DELAY_S = 10.0
"""Seconds after an answered ping before what was sent ahead of it counts as heard: the service may still think."""

Settled: TypeAlias = Literal["transcribed", "silent"]


class AckTracker:
    """The audio that one session has heard, concluded from frames sent, pings answered, and turns.

    *heard(p)*: a pong has come to a ping sent after p was sent, ten seconds have passed since, or twice as long as the
    service is late with its words, and no turn is open at or before p. A returned send proves nothing: the kernel takes
    two minutes of audio for a peer that is gone.
    """

    def __init__(self, start: int, *, floor: int) -> None:
        """Audio is sent from `start` on; what lies before `floor` was settled by others and is not reported again."""
        self.start = start
        self.sent = start
        self.limit: int | None = None
        """From this position on the audio counts for another session, which was sent it too."""
        self._answered: deque[tuple[float, int]] = deque()
        self._open: dict[int, int] = {}
        self._settled = start
        self._finals = Spans()
        self._floor = self._reported = max(start, floor)
        self._settling = SETTLE_DELAY_S
        self._late = Spans()

    def answered(self, sent: int, now: float) -> None:
        """Note a pong, at `now` seconds, to a ping that went out after everything before `sent`."""
        self._answered.append((now, sent))

    def late_by(self, seconds: float) -> None:
        """Note that the service's newest words end this many seconds of audio before the last that it was sent."""
        self._settling = max(SETTLE_DELAY_S, 2 * seconds)

    def prove(self, position: int) -> None:
        """Note a final with words up to this position: the service hears in order, so that all before it is heard.

        Turns that are open there, that final included, are not heard before they are closed.
        """
        self._settled = max(self._settled, min(position, self.sent))

    def opened(self, turn: int, start: int) -> None:
        """Note that a turn is open: nothing from position `start` on counts as heard before it is closed."""
        self._open[turn] = min(start, self._open.get(turn, start))

    def closed(self, turn: int, words: Span | None) -> None:
        """Note that the turn is in the journal, or had no words."""
        self._open.pop(turn, None)
        if words:
            end = words.end if self.limit is None else min(words.end, self.limit)
            self._finals |= Spans([(words.start, end)])
            if end <= self._reported:
                # It was taken for silence, since the service was later than could be foreseen.
                self._late |= Spans([(max(words.start, self._floor), end)])

    def terminated(self) -> None:
        """Note the Termination: all that this session was sent is heard."""
        self._settled = self.sent
        self._open.clear()

    def heard(self, now: float) -> int:
        """The position before which everything is heard, at `now` seconds."""
        while self._answered and self._answered[0][0] + self._settling <= now:
            self._settled = max(self._settled, self._answered.popleft()[1])
        limits = [] if self.limit is None else [self.limit]
        return max(self.start, min([self._settled, *self._open.values(), *limits]))

    def acknowledged(self, now: float) -> int:
        """The largest position with everything before it, from the session's start, heard or transcribed."""
        heard = Spans([(self.start, self.heard(now))])
        return (heard | self._finals).reach(self.start)

    def after(self, turns: Mapping[int, Span | None]) -> "AckTracker":
        """A copy, as it will be once these turns are in the journal."""
        tracker = deepcopy(self)
        for turn, words in turns.items():
            tracker.closed(turn, words)
        return tracker

    def settle(self, acknowledged: int, turns: Mapping[int, Span | None] = MappingProxyType({})) -> None:
        """Note that the last report and these turns are in the journal. Nothing counts as settled before."""
        for turn, words in turns.items():
            self.closed(turn, words)
        self._reported = max(self._reported, acknowledged)
        self._finals -= Spans([(self.start, self._reported)])
        self._late = Spans()
        self.start = max(self.start, self._reported)

    def report(self, now: float) -> tuple[int, list[tuple[Span, Settled]]]:
        """The acknowledged position, and the spans to be settled since the last report as transcribed or silent.

        The turn of a service that was too late is transcribed, although its span was reported as silent.
        """
        acknowledged = self.acknowledged(now)
        fresh = Spans([(self._reported, acknowledged)])
        transcribed = fresh & self._finals
        rows: list[tuple[Span, Settled]] = [(span, "transcribed") for span in (*self._late, *transcribed)]
        rows += [(span, "silent") for span in fresh - transcribed]
        return acknowledged, sorted(rows)
