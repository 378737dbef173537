"""Whether a session that answers pings hears anything at all. Pure.

A connection can outlive what stands behind it: the service's front answers, the recognizer behind it is gone, and what
is said would pass for silence. No message tells. What does is the audio: minutes that sound like speech, and not one
word.

Music and machines sound like speech too. So nobody's audio is held to be lost for a doubt: another session hears the
same, and each doubt that was wrong doubles what the next one takes.
"""

import math

from roomtone.speech.acks import SETTLE_DELAY_S
from roomtone.speech.pause import loudness, share_loud

WINDOW_S = 60.0
"""Seconds of audio that are judged as one."""
MIN_LOUD_SHARE = 0.3
"""The share of a minute that is loud when people talk. Measured: two voices in turn 0.64, the same at 10 and 5 dB over
pink noise 0.47 and 0.34; steady noise of any kind 0.07, a clock 0.06, a dog 0.12, typing 0.18, piano music 0.44."""


class SessionWatchdog:
    """What one session was sent, at `rate` Hz from position `start` on, since it last gave a sign of hearing.

    `minutes`: so many in succession that sound like speech, and no sign, make it deaf; math.inf: it never is.
    """

    def __init__(self, start: int, rate: int, *, suspicion_minutes: float) -> None:
        self._rate = rate
        self._needed = suspicion_minutes
        self._levels: list[float] = []
        self._heard = 0
        self._begin = self._end = self._since = start
        self._loud = 0

    def add_audio(self, position: int, audio: bytes) -> None:
        """The session was sent this audio, s16le mono, its first sample at `position`."""
        if self._needed == math.inf:
            return
        self._levels += loudness(audio, self._rate)
        self._heard += len(audio) // 2
        self._end = position + len(audio) // 2
        if self._heard >= WINDOW_S * self._rate:
            is_loud = share_loud(self._levels) >= MIN_LOUD_SHARE
            self._since = self._begin if is_loud and not self._loud else self._since
            self._loud = self._loud + 1 if is_loud else 0
            self._start_minute()

    def on_message(self) -> None:
        """The session has said a word, or that there is none: it is not deaf."""
        self._loud = 0
        self._start_minute()

    def _start_minute(self) -> None:
        self._begin, self._heard = self._end, 0
        self._levels.clear()

    @property
    def deaf_since(self) -> int | None:
        """From where on nothing was heard, if that is to be feared; the service may take SETTLING seconds for words."""
        is_settled = self._end - self._begin >= SETTLE_DELAY_S * self._rate
        minutes = self._loud if is_settled else self._loud - 1
        return self._since if minutes >= self._needed else None
