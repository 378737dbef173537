"""Where a turn begins and ends, from the probability of speech in windows of equal length. Pure.

A turn begins when `ONSET_SPEECH` of the last `ONSET_WINDOW` windows are speech, so that a click, a knock or a cough
begins none. It ends after `TurnSettings.silence`. From the length `relaxed` on, shorter and shorter pauses are enough,
and at `longest` none is needed: a television that never pauses is cut too, so that memory and delay are bounded.
"""

from collections import deque
from enum import Enum, auto

from roomtone.recognizer.engine import TurnSettings

MAX_TURN_MS = 30_000  # ms
MIN_PAUSE_MS = 100  # ms; shorter ones are inside words
ONSET_WINDOW = 6
ONSET_SPEECH = 5
HYSTERESIS = 0.15  # in a turn, speech is what is above the threshold less this: soft ends of words belong to it


class Step(Enum):
    """The meaning of one window."""

    QUIET = auto()
    BEGIN = auto()
    """The turn has begun, some windows ago; this one belongs to it."""
    SPEECH = auto()
    """The turn goes on, in speech or in a pause."""
    END = auto()
    """This window is the turn's last; what follows is quiet."""
    CUT = auto()
    """This window is the turn's last, for it is too long; the next one belongs to the next turn."""


class Endpointer:
    """Follows one stream. `window` is the length of a window, `relaxed` and `longest` are lengths of turns, in ms."""

    def __init__(self, window: float, *, relaxed: float = MAX_TURN_MS / 2, longest: float = MAX_TURN_MS) -> None:
        self._window = window
        self._relaxed = relaxed
        self._longest = longest
        self._recent: deque[bool] = deque(maxlen=ONSET_WINDOW)
        self._length = 0.0  # ms of the open turn
        self._pause = 0.0  # ms since its last speech
        self.speaking = False

    def hear(self, probability: float, settings: TurnSettings) -> Step:
        """The meaning of the next window."""
        if not self.speaking:
            self._recent.append(probability >= settings.threshold)
            return self._begin() if sum(self._recent) >= ONSET_SPEECH else Step.QUIET
        self._length += self._window
        speech = probability >= max(settings.threshold - HYSTERESIS, settings.threshold / 2)
        self._pause = 0.0 if speech else self._pause + self._window
        if self._pause and self._pause >= self._enough(settings.silence):
            self.reset()
            return Step.END
        if self._length >= self._longest:
            self._length = 0.0
            return Step.CUT
        return Step.SPEECH

    @property
    def pause(self) -> float:
        """Milliseconds since the last speech of the open turn."""
        return self._pause

    def resume(self, length: float) -> None:
        """The cut was made earlier: `length` ms of the audio belong to the turn that goes on."""
        self._length = length

    def reset(self) -> None:
        """The turn is over, by its end or by force."""
        self.speaking = False
        self._recent.clear()

    def _begin(self) -> Step:
        self.speaking = True
        self._length = len(self._recent) * self._window
        self._pause = 0.0
        return Step.BEGIN

    def _enough(self, silence: int) -> float:
        left = (self._longest - self._length) / (self._longest - self._relaxed)  # 1 where it relaxes, 0 at the longest
        return max(min(silence, silence * left), min(silence, MIN_PAUSE_MS))
