"""What has become of every sample: spans of positions, and what one session has heard of what it was sent. Pure.

The words, as the journal and `roomtone coverage` use them: a position is *captured* or *lost*; what is captured is
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
    """What one session has heard: built from what was sent, the pings that were answered, and the turns.

    *heard(p)*: a pong has come to a ping sent after p was sent, ten seconds have passed since, or twice as long as the
    service is late with its words, and no turn is open at or before p. A returned send proves nothing: the kernel takes
    two minutes of audio for a peer that is gone.
    """

    def __init__(self, start: int, *, floor: int) -> None:
        """Sent from `start` on; everything before `floor` was settled by others and is not reported again."""
        self.start = start
        self.sent = start
        self.limit: int | None = None
        """What this session hears from here on counts for another one, which was sent it too."""
        self._answered: deque[tuple[float, int]] = deque()
        self._open: dict[int, int] = {}
        self._settled = start
        self._finals = Spans()
        self._floor = self._reported = max(start, floor)
        self._settling = SETTLE_DELAY_S
        self._late = Spans()

    def answered(self, sent: int, now: float) -> None:
        """A ping that went out when everything before `sent` had been sent has its pong, at `now` seconds."""
        self._answered.append((now, sent))

    def late_by(self, seconds: float) -> None:
        """What the service has said now ends so many seconds of audio before the last that it was sent."""
        self._settling = max(SETTLE_DELAY_S, 2 * seconds)

    def prove(self, position: int) -> None:
        """A final has words up to this position: a service hears in order, so that all before it is heard.

        What is open there, that final itself included, is not heard before it is closed.
        """
        self._settled = max(self._settled, min(position, self.sent))

    def opened(self, turn: int, start: int) -> None:
        """A turn is open from position `start`: nothing at or behind it counts as heard before it is closed."""
        self._open[turn] = min(start, self._open.get(turn, start))

    def closed(self, turn: int, words: Span | None) -> None:
        """The turn is in the journal, or had no words."""
        self._open.pop(turn, None)
        if words:
            end = words.end if self.limit is None else min(words.end, self.limit)
            self._finals |= Spans([(words.start, end)])
            if end <= self._reported:
                # It was taken for silence, for the service is later than anybody could know.
                self._late |= Spans([(max(words.start, self._floor), end)])

    def terminated(self) -> None:
        """The service has sent Termination: all that this session was sent is heard."""
        self._settled = self.sent
        self._open.clear()

    def heard(self, now: float) -> int:
        """Everything before this position is heard, at `now` seconds."""
        while self._answered and self._answered[0][0] + self._settling <= now:
            self._settled = max(self._settled, self._answered.popleft()[1])
        limits = [] if self.limit is None else [self.limit]
        return max(self.start, min([self._settled, *self._open.values(), *limits]))

    def acknowledged(self, now: float) -> int:
        """The largest position with everything before it, from the session's start, heard or transcribed."""
        heard = Spans([(self.start, self.heard(now))])
        return (heard | self._finals).reach(self.start)

    def after(self, turns: Mapping[int, Span | None]) -> "AckTracker":
        """How this ledger will stand when these turns are in the journal."""
        ledger = deepcopy(self)
        for turn, words in turns.items():
            ledger.closed(turn, words)
        return ledger

    def settle(self, acknowledged: int, turns: Mapping[int, Span | None] = MappingProxyType({})) -> None:
        """What `report` has said is in the journal now, and so are these turns. Nothing is settled before."""
        for turn, words in turns.items():
            self.closed(turn, words)
        self._reported = max(self._reported, acknowledged)
        self._finals -= Spans([(self.start, self._reported)])
        self._late = Spans()
        self.start = max(self.start, self._reported)

    def report(self, now: float) -> tuple[int, list[tuple[Span, Settled]]]:
        """The acknowledged position, and the spans to be settled since the last report as transcribed or silent.

        A turn of a service that was too late is transcribed, though its span was reported silent.
        """
        acknowledged = self.acknowledged(now)
        fresh = Spans([(self._reported, acknowledged)])
        transcribed = fresh & self._finals
        rows: list[tuple[Span, Settled]] = [(span, "transcribed") for span in (*self._late, *transcribed)]
        rows += [(span, "silent") for span in fresh - transcribed]
        return acknowledged, sorted(rows)
