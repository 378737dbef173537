"""The voice detector finds every first word over noise, takes no noise for speech, and is cheap where it is quiet."""

import sys

import numpy as np
import pytest

from conftest import Report
from roomtone.speech import vad
from roomtone.speech.vad import Cascade, DetectorMissing, open_detector
from support.meeting import converse, judge, listen, noise, sentences_in
from support.word_error import RATE, demo_audio


@pytest.mark.parametrize(("decibels", "slope"), [(20.0, 2.0), (5.0, 1.0)])
def test_conversations_over_noise(decibels: float, slope: float, report: Report) -> None:
    """In minutes of conversation now and then no first word is lost, nothing is opened for noise, and the time that
    sessions are open is close to the ideal.
    """
    talk = converse(sentences_in(demo_audio()), seconds=210, decibels=decibels, slope=slope)
    verdict = judge(talk, listen(talk.audio, open_detector(RATE), close_after=10), close_after=10)
    report(f"{decibels:g} dB: {verdict}")

    assert (verdict.lost, verdict.false) == (0, 0)
    assert verdict.seconds < verdict.ideal * 1.1


def test_minutes_of_noise_wear_nobody_out() -> None:
    """The first words of people who speak now and then, 5 dB above the noise, are heard after minutes of it as well."""
    said = [sentence[: round(0.8 * RATE)] for sentence in sentences_in(demo_audio())]
    begins = [15 * RATE * number for number in range(1, len(said) + 1)]
    power = np.sqrt(np.mean(np.concatenate(said) ** 2))
    signal = noise(begins[-1] + 3 * RATE, slope=1.0, seed=1) * power / 10 ** (5 / 20)
    for begin, words in zip(begins, said, strict=True):
        signal[begin : begin + len(words)] += words
    found = open_detector(RATE).hear(0, np.clip(signal, -32768, 32767).astype("<i2").tobytes())

    assert [begin for begin in begins if not any(abs(span.start - begin) < RATE for span in found)] == []
    assert [span for span in found if not any(abs(span.start - begin) < 2 * RATE for begin in begins)] == []


class Counting:
    """A second stage that counts what it is asked."""

    def __init__(self) -> None:
        self.windows = 0

    def __call__(self, audio: bytes) -> float:
        self.windows += 1
        return 1.0

    def reset(self) -> None:
        pass


def test_a_quiet_room_is_left_to_the_first_stage() -> None:
    """Where the first stage hears nothing the second is never asked."""
    second = Counting()
    audio = np.random.default_rng(2).normal(0, 10, 20 * RATE)
    webrtcvad = pytest.importorskip("webrtcvad")
    cascade = Cascade(RATE, webrtcvad.Vad(2).is_speech, second)
    samples = audio.astype("<i2").tobytes()
    cascade.hear(0, samples[: 2 * 2 * RATE])  # it has to learn what is quiet
    learned = second.windows

    assert cascade.hear(2 * RATE, samples[2 * 2 * RATE :]) == []
    assert second.windows == learned


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_rates(rate: int) -> None:
    """Positions are those of the room, whatever its rate."""
    import soxr

    audio = np.frombuffer(demo_audio()[: 2 * 5 * RATE], "<i2")
    converted = soxr.resample(audio, RATE, rate).astype("<i2").tobytes()
    expected, found = open_detector(RATE).hear(0, audio.tobytes()), open_detector(rate).hear(1000, converted)

    assert found[0].start - 1000 == pytest.approx(expected[0].start * rate / RATE, abs=0.07 * rate)
    assert found[-1].end - 1000 == pytest.approx(expected[-1].end * rate / RATE, abs=0.25 * rate)


def test_it_begins_anew_after_a_break() -> None:
    """Audio that does not follow what was heard last has positions of its own."""
    detector = open_detector(RATE)
    audio = demo_audio()[: 2 * 4 * RATE]
    first = detector.hear(0, audio)
    second = detector.hear(100 * RATE, audio)

    assert [span.start + 100 * RATE for span in first] == [span.start for span in second]


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its packages the error says what to install, in one line."""
    monkeypatch.setitem(sys.modules, "webrtcvad", None)

    with pytest.raises(DetectorMissing, match=r"needs webrtcvad; run  pip install 'roomtone\[gate\]'"):
        vad.open_detector(RATE)
