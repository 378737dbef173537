"""Pauses in speech, found by loudness."""

import random
from array import array

from roomtone.speech.pause import ends_quiet, last_pause

RATE = 16_000


def noise(seconds: float, loudness: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return array("h", (rng.randint(-loudness, loudness) for _ in range(int(seconds * RATE)))).tobytes()


def test_the_last_pause_is_found() -> None:
    """Of several pauses the last one counts, in its middle, and a fan in it does not hide it."""
    audio = noise(1, 4_000) + noise(0.5, 100) + noise(1, 4_000) + noise(0.4, 100) + noise(1, 4_000)

    middle = last_pause(audio, RATE)

    assert middle is not None
    assert abs(middle - int(2.7 * RATE)) < 0.03 * RATE


def test_a_short_silence_is_no_pause() -> None:
    """Words have silence inside: 200 ms of it are not a pause."""
    assert last_pause(noise(2, 4_000) + noise(0.2, 50) + noise(2, 4_000), RATE) is None


def test_no_audio_has_no_pause() -> None:
    """Nothing, or less than a window, is neither a pause nor an error."""
    assert last_pause(b"", RATE) is None
    assert not ends_quiet(b"\0" * 100, RATE)


def test_ends_quiet() -> None:
    """Only quiet of 300 ms at the very end counts."""
    assert ends_quiet(noise(2, 4_000) + noise(0.4, 80), RATE)
    assert not ends_quiet(noise(2, 4_000) + noise(0.4, 80) + noise(0.1, 4_000), RATE)
    assert ends_quiet(bytes(2 * RATE), RATE)
