"""What the engines of the recognizer cost and hear: python tests/bench/engines.py [minutes of noise, default 6].

Held-out sentences by three voices, clean and over pink noise; the times of words; noise, clicks and music.
Processor time counts, so that a busy machine changes little.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from roomtone.recognizer.engine import EngineSettings, StreamEngine, TurnSettings
from roomtone.recognizer.engines import BUNDLED, open_engine
from support import make_speech
from support.word_error import RATE, frames, noise, word_error_rate

NOISES = (None, 20, 10)  # dB below the speech


def hear(engine: StreamEngine, audio: bytes) -> tuple[str, list[float]]:
    """The words of all turns, and for each turn the seconds from its last word to its final."""
    words: list[str] = []
    latencies: list[float] = []
    with engine.open(TurnSettings()) as stream:
        for number, frame in enumerate(frames(audio, 100), 1):
            begun = time.process_time()
            for final in (hypothesis for hypothesis in stream.feed(frame) if hypothesis.final and hypothesis.words):
                words += [word.text for word in final.words]
                latencies.append(number / 10 - final.words[-1].end / RATE + time.process_time() - begun)
        words += [word.text for final in stream.endpoint() for word in final.words]
    return " ".join(words), latencies


def measure(name: str) -> None:
    """Print a line for each loudness of the noise."""
    engine = open_engine(name, EngineSettings())
    groups = [[(voice, text) for text in make_speech.HELD_OUT] for voice in make_speech.VOICES]
    spoken = " ".join(make_speech.HELD_OUT)
    for decibels in NOISES:
        rates, costs, latencies = [], [], list[float]()
        for group in groups:
            audio = make_speech.converse(group)
            audio = audio if decibels is None else make_speech.with_noise(audio, decibels)
            begun = time.process_time()
            heard, late = hear(engine, audio)
            costs.append((time.process_time() - begun) / (len(audio) / 2 / RATE))
            rates.append(word_error_rate(spoken, heard))
            latencies += late
        label = "clean" if decibels is None else f"{decibels} dB"
        print(
            f"{name:14} {label:6} word errors {statistics.mean(rates):.3f} "
            f"({', '.join(f'{voice} {rate:.3f}' for voice, rate in zip(make_speech.VOICES, rates, strict=True))}), "
            f"CPU {statistics.mean(costs):.3f} s/s, last word to final {statistics.median(latencies):.2f} s"
        )


def place() -> None:
    """Print how far the times of words are from the synthesizer's."""
    engine, errors = open_engine("moonshine", EngineSettings()), list[float]()
    for text in make_speech.HELD_OUT:
        audio, said = make_speech.speak_timed(text)
        lead = make_speech.silence(1)
        with engine.open(TurnSettings()) as stream:
            heard = stream.feed(make_speech.room(lead + audio + lead)) + stream.endpoint()
            words = [word for final in heard if final.final for word in final.words]
        if len(words) == len(said):
            errors += [abs(word.start / RATE - 1 - true.start) for word, true in zip(words, said, strict=True)]
    print(f"times of words: off by {1000 * statistics.median(errors):.0f} ms in the median, of {len(errors)} words")


def invent(minutes: float) -> None:
    """Print the words that are heard in noise, clicks and music."""
    engine, seconds = open_engine("moonshine", EngineSettings()), 20 * minutes
    at = np.arange(round(seconds * RATE)) / RATE
    chords = [3000 * np.sin(2 * np.pi * 220 * up * np.floor(1 + at % 5) * at) for up in (1, 1.25, 1.5)]
    sounds = {
        "noise": noise(seconds, 2000),
        "clicks": (20_000 * (np.arange(len(at)) % 4801 == 0)).astype("<i2").tobytes(),
        "music": np.sum(chords, axis=0).astype("<i2").tobytes(),
    }
    for name, audio in sounds.items():
        print(f"{name}, {seconds / 60:g} minutes: {hear(engine, audio)[0].split() or 'not a word'}")


if __name__ == "__main__":
    for each in BUNDLED:
        measure(each)
    place()
    invent(float(sys.argv[1]) if len(sys.argv) > 1 else 6)
