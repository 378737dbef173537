"""A session is doubted for minutes that sound like speech and bring no word, and for nothing else."""

import math
import random
from array import array
from collections.abc import Callable

import pytest

from roomtone.speech.acks import SETTLE_DELAY_S
from roomtone.speech.session_watchdog import WINDOW_S, SessionWatchdog
from roomtone.testing.encoded_speech import quiet, speak

RATE = 8_000
FRAME = RATE // 5


def talk(seconds: float) -> bytes:
    return speak(range(1, 2000), RATE)[: round(seconds * RATE) * 2]


def hum(seconds: float) -> bytes:
    wave = array("h", (round(3000 * math.sin(2 * math.pi * 50 * i / RATE)) for i in range(RATE)))
    return (wave.tobytes() * math.ceil(seconds))[: round(seconds * RATE) * 2]


def rustle(seconds: float) -> bytes:
    chance = random.Random(1)
    return array("h", (chance.randrange(-2000, 2000) for _ in range(RATE))).tobytes() * round(seconds)


def listen(doubt: SessionWatchdog, audio: bytes, position: int) -> int:
    """Send the audio from this position on, frame by frame; the position after it."""
    for start in range(0, len(audio), 2 * FRAME):
        doubt.add_audio(position, audio[start : start + 2 * FRAME])
        position += len(audio[start : start + 2 * FRAME]) // 2
    return position


def test_a_minute_of_speech_without_a_word() -> None:
    """From its beginning on it may not have been heard, once the service has had its time to say something."""
    doubt = SessionWatchdog(5 * RATE, RATE, suspicion_minutes=1)
    position = listen(doubt, talk(WINDOW_S), 5 * RATE)
    assert doubt.deaf_since is None

    listen(doubt, quiet(SETTLE_DELAY_S, RATE), position)

    assert doubt.deaf_since == 5 * RATE


@pytest.mark.parametrize("sound", [hum, rustle, lambda seconds: quiet(seconds, RATE)])
def test_what_is_no_speech(sound: Callable[[float], bytes]) -> None:
    """Machines and empty rooms give no reason to doubt, however long they last."""
    doubt = SessionWatchdog(0, RATE, suspicion_minutes=1)

    listen(doubt, sound(5 * WINDOW_S), 0)

    assert doubt.deaf_since is None


def test_a_word_ends_the_doubt() -> None:
    """Whatever was said before it was heard, and a doubt begins anew behind it."""
    doubt = SessionWatchdog(0, RATE, suspicion_minutes=1)
    position = listen(doubt, talk(WINDOW_S + SETTLE_DELAY_S), 0)
    assert doubt.deaf_since == 0

    doubt.on_message()
    assert doubt.deaf_since is None

    listen(doubt, talk(WINDOW_S + SETTLE_DELAY_S), position)
    assert doubt.deaf_since == position


def test_as_many_minutes_in_succession() -> None:
    """One quiet minute among them, and the count begins anew."""
    doubt = SessionWatchdog(0, RATE, suspicion_minutes=2)
    position = listen(doubt, talk(WINDOW_S), 0)
    position = listen(doubt, quiet(WINDOW_S, RATE), position)
    third = listen(doubt, talk(WINDOW_S), position)
    listen(doubt, talk(SETTLE_DELAY_S), third)
    assert doubt.deaf_since is None

    listen(doubt, talk(WINDOW_S), third + round(SETTLE_DELAY_S * RATE))

    assert doubt.deaf_since == position


def test_who_is_believed_is_never_doubted() -> None:
    doubt = SessionWatchdog(0, RATE, suspicion_minutes=math.inf)

    listen(doubt, talk(10 * WINDOW_S), 0)

    assert doubt.deaf_since is None
