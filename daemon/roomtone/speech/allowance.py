"""Limits the bytes that a service may send, by the audio that it was sent. Pure.

All that a service sends is kept, first in memory and then in the journal, and it decides how much that is. So its bytes
are bounded by the audio, which the daemon controls: people do not speak faster when another service hears them.
"""

from typing import Final

WIRE_BURST_BYTES: Final = 8 << 20
"""Bytes of messages, of any kind, that a session may send before its first audio, and ahead of it later."""
WIRE_RATIO: Final = 16
"""Bytes of messages for each byte of audio: 512 KB a second at 16 kHz. A partial for each word, with all words of the
turn before it, is the most that a service sends; a turn of five minutes without a pause has 150 KB a second of them."""
KEPT_BURST_BYTES: Final = 4 << 20
"""Bytes of finals, corrections and answers ahead of their audio: as many as three hours of uninterrupted talk have, for
the speakers of all of it may be revised when a session ends."""
KEPT_BYTES_PER_S: Final = 16 << 10
"""Bytes of finals, corrections and answers for each second of audio. Fast speech with its words' times has 600 bytes,
and an answer of 4,000 tokens to each turn of two seconds another 8 KB."""
EVENT_BYTES: Final = 1 << 10
"""Bytes that each of them costs besides its text: a transaction, a row, and a delivery to every sink."""


class Allowance:
    """At most `burst` bytes ahead of `rate` bytes for each unit of audio; unused bytes do not add up."""

    def __init__(self, *, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._audio = 0.0

    def take(self, size: int, audio: float) -> bool:
        """Count `size` bytes that came after this total of audio. Returns False if they exceed the limit."""
        self._left = min(self._burst, self._left + self._rate * (audio - self._audio)) - size
        self._audio = audio
        return self._left >= 0
