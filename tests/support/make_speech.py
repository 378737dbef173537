"""Make the demo recording: a short dialogue by two voices, as FLAC with its transcript beside it.

    python tests/make_speech.py [folder]        # default: daemon/roomtone/demo

Needs `flite`, `sox` and, for the voice `hts`, `festival` with `festvox-us-slt-hts`.
Flite's voices are made from recordings of people, so that the recognizer on this machine hears
speech as it was trained on; with espeak-ng's formant synthesis it gets half of the words wrong. The result is the same
on every run: the noise comes from a fixed seed.
"""

import random
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

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


VOICES = ("rms", "slt", "hts")
"""Two of flite's, and festival's statistical voice `cmu_us_slt_arctic_hts`."""

TUNING = (
    "We met the engineers at the bridge before breakfast.",
    "Please send the new contract to the office by Friday.",
    "The train from the airport was late again this morning.",
    "She asked whether the water in the cellar had been pumped out.",
    "Our budget for the next quarter is larger than the last one.",
    "He put the keys under the flower pot beside the door.",
    "There were four people in the room when the lights went out.",
    "Could you move the meeting to three in the afternoon?",
    "The doctor said that the medicine should be taken after dinner.",
    "Nobody knew who had painted the old fence bright green.",
    "The report describes what went wrong with the second engine.",
    "I would like a cup of coffee and a piece of bread.",
)
"""Sentences that may be looked at while an engine's settings are chosen."""

HELD_OUT = (
    "The children walked along the river until it began to rain.",
    "We have to decide today who will speak at the conference.",
    "A large package for the laboratory arrived late last night.",
    "The minister answered every question with great patience.",
    "Turn left at the church and follow the road up the hill.",
    "My brother bought a small house near the coast of Ireland.",
    "The second chapter explains the history of the railway.",
    "Did anybody remember to bring the tickets for the concert?",
    "The price of the machine includes delivery and training.",
    "After the storm the whole village was without electricity.",
    "They repaired the roof with timber from the old barn.",
    "I think that we should wait for an answer from the bank.",
    "The kitchen window looks over a garden full of roses.",
    "Most of the passengers were asleep when the ship arrived.",
    "He wrote a long letter to the editor of the newspaper.",
)
"""Sentences for judging only."""


class Said(NamedTuple):
    """A word of festival's, and its time in seconds since the utterance began."""

    text: str
    start: float
    end: float


def speak(voice: str, text: str) -> bytes:
    """The sentence as 16-bit little-endian mono at RATE, its loudest sample at -6 dB."""
    if voice == "hts":
        return speak_timed(text)[0]
    return _convert(
        subprocess.run(
            ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"], check=True, capture_output=True
        ).stdout
    )


def speak_timed(text: str) -> tuple[bytes, list[Said]]:
    """The sentence by festival, with the times of its words as the synthesizer has set them."""
    segment = "R:SylStructure.daughter{}.daughter{}.R:Segment.segment_{}"
    with tempfile.TemporaryDirectory() as folder:
        program = f"""(voice_cmu_us_slt_arctic_hts)
            (set! said (SynthText "{text}"))
            (mapcar (lambda (word) (format t "%s %f %f\\n" (item.name word)
                (item.feat word "{segment.format(1, 1, "start")}")
                (item.feat word "{segment.format("n", "n", "end")}")))
                (utt.relation.items said 'Word))
            (utt.save.wave said "{folder}/said.wav" 'riff)"""
        Path(folder, "program.scm").write_text(program)
        printed = subprocess.run(
            ["festival", "-b", f"{folder}/program.scm"], check=True, capture_output=True, text=True
        ).stdout
        audio = _convert(Path(folder, "said.wav").read_bytes())
    times = [line.split() for line in printed.splitlines() if line]
    return audio, [Said(word, float(start), float(end)) for word, start, end in times]


def converse(lines: Iterable[tuple[str, str]]) -> bytes:
    """The lines of these voices with a pause after each, in a quiet room."""
    parts = [silence(LEAD)]
    for voice, text in lines:
        parts += [speak(voice, text), silence(PAUSE)]
    return room(b"".join(parts))


def pink(seconds: float, seed: int = 1) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Pink noise with an rms of 1."""
    count = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=count))
    spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
    samples = np.fft.irfft(spectrum, count)
    return np.asarray(samples / np.std(samples))


def with_noise(audio: bytes, decibels: float) -> bytes:
    """The audio over pink noise that is so many dB below its speech."""
    samples = np.frombuffer(audio, "<i2").astype(float)
    speech = samples[np.abs(samples) > 5 * NOISE]
    level = np.sqrt(np.mean(speech**2)) / 10 ** (decibels / 20)
    noisy = samples + level * pink(len(samples) / RATE)[: len(samples)]
    return bytes(np.clip(noisy, -32_768, 32_767).astype("<i2").tobytes())


def _convert(spoken: bytes) -> bytes:
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
    samples = np.frombuffer(converse(DIALOGUE), np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "meeting.flac", samples, RATE, subtype="PCM_16")
    (folder / "meeting.txt").write_text("".join(f"{text}\n" for _, text in DIALOGUE), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "daemon/roomtone/demo")
