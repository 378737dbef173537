"""What the gate costs and saves: `python tests/bench/gate.py [minutes]`, on generated conversations over noise.

An hour of audio, a fifth of it speech by flite's voices in conversations of minutes, at 20, 10 and 5 dB over pink and
over brown noise. Needs `flite` and `sox`; takes ten minutes of one core for the hour.
"""

import sys
import time
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from roomtone.speech.vad import open_detector
from support.make_speech import DIALOGUE, speak
from support.meeting import RATE, converse, judge, listen, sentences_in

SHORT = ("Yes.", "No, not yet.", "Hello?", "Okay.", "Stop.", "Come in.")
VOICES = ("slt", "rms", "awb", "kal16")
NOISES = {"pink": 1.0, "brown": 2.0}


def main(minutes: float) -> None:
    texts = (*(text for _, text in DIALOGUE), *SHORT)
    said = [max(sentences_in(speak(voice, text), pause=9), key=len) for voice in VOICES for text in texts]
    print(f"{minutes:g} min, {len(said)} sentences by {len(VOICES)} voices")
    head = ("noise", "dB", "sentences", "open s", "ideal s", "first words lost", "false openings", "CPU s/idle min")
    print(("{:>7}" * 2 + "{:>11}" + "{:>10}" * 2 + "{:>18}" * 3).format(*head))
    for (name, slope), decibels in product(NOISES.items(), (20.0, 10.0, 5.0)):
        talk = converse(said, seconds=60 * minutes, decibels=decibels, slope=slope, most=40)
        verdict = judge(talk, listen(talk.audio, open_detector(RATE)))
        row = f"{name:>7}{decibels:7.0f}{verdict.sentences:11}{verdict.seconds:10.0f}{verdict.ideal:10.0f}"
        print(f"{row}{verdict.lost:18}{verdict.false:18}{idle(talk.audio[: 2 * 40 * RATE]):18.2f}", flush=True)
    silence = np.random.default_rng(1).normal(0, 10, 60 * RATE).astype("<i2").tobytes()
    print(f"a quiet room: {idle(silence):.2f} CPU s in an idle minute")


def idle(audio: bytes) -> float:
    """CPU seconds for a minute of audio in which nobody speaks."""
    detector = open_detector(RATE)
    began = time.process_time()
    assert not listen(audio, detector)
    return (time.process_time() - began) * 60 / (len(audio) / 2 / RATE)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
