"""Detects sessions that answer pings and hear nothing. Pure.

A connection can outlive the recognizer behind it: the service's front end still answers, and speech would pass for
silence. No message reports that. Only the audio does: minutes that sound like speech, without a single word.

Music and machines sound like speech too. So a silent session is suspected, but its silence is not treated as loss:
another session hears the same audio, and each wrong suspicion doubles the minutes that the next one takes.
"""

import math

from roomtone.speech.acks import SETTLE_DELAY_S
from roomtone.speech.pause import loudness, share_loud

WINDOW_S = 60.0
"""Seconds of audio that are judged together."""
MIN_LOUD_SHARE = 0.3
"""The share of a minute that is loud when people talk. Measured: two voices in turn 0.64, the same at 10 and 5 dB over
pink noise 0.47 and 0.34; steady noise of any kind 0.07, a clock 0.06, a dog 0.12, typing 0.18, piano music 0.44."""


class SessionWatchdog:
    """The audio that one session was sent, at `rate` Hz from position `start` on, since it last reported anything.

    It is deaf after `suspicion_minutes` in succession that sound like speech, without a report; with math.inf never.
    """

    def __init__(self, start: int, rate: int, *, suspicion_minutes: float) -> None:
        self._rate = rate
        self._needed = suspicion_minutes
        self._levels: list[float] = []
        self._heard = 0
        self._begin = self._end = self._since = start
        self._loud = 0

    def add_audio(self, position: int, audio: bytes) -> None:
        """Note that the session was sent this audio, s16le mono, its first sample at `position`."""
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
        """Note a turn or a silence from the session: it is not deaf."""
        self._loud = 0
        self._start_minute()

    def _start_minute(self) -> None:
        self._begin, self._heard = self._end, 0
        self._levels.clear()

    @property
    def deaf_since(self) -> int | None:
        """The position since which nothing was heard, if it is suspected; words may take SETTLE_DELAY_S to come."""
        is_settled = self._end - self._begin >= SETTLE_DELAY_S * self._rate
        minutes = self._loud if is_settled else self._loud - 1
        return self._since if minutes >= self._needed else None
