"""Finds pauses in 16-bit audio, by loudness. Pure, and cheap enough for a small computer.

Pauses are where a session ends and the next begins: a wrong one costs a seam inside a word, which the overlap repairs.
Loudness is also what a silent session is suspected by: a wrong suspicion costs another session. A voice detector would
cost more than it is worth here.
"""

from array import array

MIN_PAUSE_S = 0.3
"""Seconds of quiet that count as a pause: shorter ones occur inside words."""

_WINDOW_S = 0.02
_STRIDE = 4  # every fourth sample gives the loudness of speech well enough, at a quarter of the work
_ABOVE_FLOOR = 3.0
_SILENCE = 30.0


def loudness(audio: bytes, rate: int) -> list[float]:
    """The mean absolute sample (0 to 32,768) of every 20 ms of 16-bit little-endian mono audio."""
    samples = array("h", audio[: len(audio) // 2 * 2])
    window = max(_STRIDE, int(rate * _WINDOW_S))
    return [
        sum(map(abs, part)) / len(part)
        for start in range(0, len(samples) - window + 1, window)
        if (part := samples[start : start + window : _STRIDE])
    ]


def last_pause(audio: bytes, rate: int) -> int | None:
    """The sample in the middle of the last pause, or None where there is none of 300 ms.

    Audio within 10 dB of its quietest moments is quiet: a fan or a street is quiet too.
    """
    levels = loudness(audio, rate)
    if not levels:
        return None
    limit = _limit(levels)
    needed = round(MIN_PAUSE_S / _WINDOW_S)
    window = max(_STRIDE, int(rate * _WINDOW_S))
    run = 0
    for index in range(len(levels) - 1, -1, -1):
        run = run + 1 if levels[index] <= limit else 0
        if run >= needed and (index == 0 or levels[index - 1] > limit):
            return (index * 2 + run) * window // 2
    return None


def share_loud(levels: list[float]) -> float:
    """The share of these, 0 to 1, that are 10 dB louder than the quietest of them; 0 where there are none."""
    limit = _limit(levels)
    return sum(level > limit for level in levels) / max(1, len(levels))


def ends_quiet(audio: bytes, rate: int) -> bool:
    """True if the last 300 ms of this audio, of which there should be some seconds, are a pause."""
    levels = loudness(audio, rate)
    needed = round(MIN_PAUSE_S / _WINDOW_S)
    if len(levels) < needed:
        return False
    return max(levels[-needed:]) <= _limit(levels)


def _limit(levels: list[float]) -> float:
    """The loudness up to which audio is quiet."""
    floor = sorted(levels)[len(levels) // 50] if levels else 0.0
    return max(_SILENCE, floor * _ABOVE_FLOOR)
