"""Make the demo recording: a short dialogue by two voices, as FLAC with its transcript beside it.

    python tests/make_speech.py [folder]        # default: daemon/roomtone/demo

Needs `flite` and `sox`. Flite's voices are made from recordings of people, so that the recognizer on this machine hears
speech as it was trained on; with espeak-ng's formant synthesis it gets half of the words wrong. The result is the same
on every run: the noise comes from a fixed seed.
"""

import random
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
PAUSE = 1.1  # seconds between two speakers: longer than the recognizer's default end of turn
LEAD = 0.6  # seconds before the first word and after the last pause
NOISE = 30  # rms of the room, in units of 16-bit samples: -61 dB below full scale

DIALOGUE = (
    ("rms", "Good morning. I have the numbers for the last three months."),
    ("slt", "How much money did we make this year?"),
    ("rms", "We made more than two million dollars, which is better than we expected."),
    ("slt", "And what about the new building?"),
    ("rms", "The work on the new building will be finished in the middle of September."),
    ("slt", "Do you have the names of the people we talked to last week?"),
    ("rms", "Yes, I sent the list to you on Monday morning."),
)


def speak(voice: str, text: str) -> bytes:
    """The sentence as 16-bit little-endian mono at RATE, its loudest sample at -6 dB."""
    spoken = subprocess.run(
        ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"], check=True, capture_output=True
    ).stdout
    form = ["-r", str(RATE), "-c", "1", "-b", "16", "-e", "signed-integer", "-t", "raw", "-"]
    return subprocess.run(
        ["sox", "-D", "-t", "wav", "-", *form, "norm", "-6"], input=spoken, check=True, capture_output=True
    ).stdout


def silence(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE))


def room(audio: bytes) -> bytes:
    """The same audio over the noise of a quiet room: no microphone delivers zeros."""
    chance = random.Random(7)
    noisy = (sample + round(chance.gauss(0, NOISE)) for sample in array("h", audio))
    return array("h", (max(-32768, min(32767, sample)) for sample in noisy)).tobytes()


def main(folder: Path) -> None:
    parts = [silence(LEAD)]
    for voice, text in DIALOGUE:
        parts += [speak(voice, text), silence(PAUSE)]
    samples = np.frombuffer(room(b"".join(parts)), np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "meeting.flac", samples, RATE, subtype="PCM_16")
    (folder / "meeting.txt").write_text("".join(f"{text}\n" for _, text in DIALOGUE), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "daemon/roomtone/demo")
