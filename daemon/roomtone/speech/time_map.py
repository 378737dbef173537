"""Maps a session's own clock, the milliseconds of audio that it was sent, to the room's positions. Pure."""

from bisect import bisect_right
from collections.abc import Iterable

from roomtone.events import Word
from roomtone.protocol.messages import TimedWord

MAX_PADDING_S = 0.5
"""Seconds by which a turn's last word may end too late; half of that is usual."""


class TimeMap:
    """The audio that one session was sent: the number of samples, and the position from which each stretch comes.

    Word times count audio sent, not wall time (facts of the wire), so that a position is one addition within a stretch.
    A new stretch begins where something long was lost, or where silence was sent that was never recorded.
    """

    def __init__(self, start: int, rate: int) -> None:
        self.rate = rate
        self.sent = 0
        self._sent = [0]
        self._positions = [start]

    @property
    def position(self) -> int:
        """The position that the next sample sent would have."""
        return self._positions[-1] + self.sent - self._sent[-1]

    def send(self, samples: int) -> None:
        """Count these samples as sent, from `position` on."""
        self.sent += samples

    def jump(self, position: int) -> None:
        """Go on at this position: the next sample sent is the one there."""
        if position != self.position:
            self._sent.append(self.sent)
            self._positions.append(position)

    def at(self, milliseconds: float) -> int:
        """The position of this moment of the session's audio; never before its first sample nor after its last."""
        sample = min(max(round(milliseconds * self.rate / 1000), 0), self.sent)
        return self._place(sample, bisect_right(self._sent, max(sample - 1, 0)) - 1)

    def words(self, words: Iterable[TimedWord]) -> tuple[Word, ...]:
        """The words by position, ascending. A word lies in its end's stretch: a turn's first start may be 1 s early."""
        placed = []
        for word in words:
            end = min(max(round(word.end * self.rate / 1000), 0), self.sent)
            stretch = bisect_right(self._sent, max(end - 1, 0)) - 1
            start = min(max(round(word.start * self.rate / 1000), self._sent[stretch]), end)
            placed.append(
                Word(
                    word.text,
                    self._place(start, stretch),
                    self._place(end, stretch),
                    word.confidence,
                    word.speaker,
                )
            )
        return tuple(sorted(placed, key=lambda word: (word.start, word.end)))

    def has_sent(self, milliseconds: float) -> bool:
        """True if that moment is not in the future of what was sent, give or take a padded edge."""
        return milliseconds * self.rate / 1000 <= self.sent + MAX_PADDING_S * self.rate

    def _place(self, sample: int, stretch: int) -> int:
        return self._positions[stretch] + sample - self._sent[stretch]


class Pace:
    """Limits the rate of sending: first a burst of seconds, then a multiple of real time.

    The service takes little more than real time and ends sessions that send faster (3007), so that a backlog is sent at
    1.2 times. With `speed` None the peer sets the pace.
    """

    def __init__(self, rate: int, *, now: float, burst: float = 5.0, speed: float | None = 1.2) -> None:
        self._rate = rate
        self._begun = now
        self._burst = burst
        self._speed = speed

    def wait(self, sent: int, now: float) -> float:
        """Seconds until one more frame may be sent after this many samples."""
        if self._speed is None:
            return 0.0
        return max(0.0, self._begun + (sent / self._rate - self._burst) / self._speed - now)
