"""Speech for tests: words are numbers that the audio itself encodes, so that the samples determine the text.

A word is 280 ms of square wave: a preamble, a number, a checksum, one bit in each 5 ms. It survives another volume,
resampling, and the loss of a few samples; a word that is cut is not heard at all. An Ear hears it from any offset on,
so the text is a function of the audio alone, regardless of its sender, its pieces and its repetitions.
"""

import binascii
import re
from array import array
from collections.abc import Iterable
from typing import Final, NamedTuple

WORD: Final = 0.280
"""Seconds that a word takes."""
MAX_NUMBER: Final = (1 << 24) - 1
"""The largest number that is a word."""

_CELL = 0.005
_PREAMBLE = 0b1011_0011_1000_1101
_BITS = 56
_LOUDNESS = 8000
# Both look at the high byte of each sample: 0 and 255 are what lies within 256 of zero.
_LOUD = re.compile(rb"[^\x00\xff]")
_CLEAR = 0.010


class HeardWord(NamedTuple):
    """A word in the audio: its number, and the samples from `start` to `end` since the first that the Ear was given."""

    number: int
    start: int
    end: int


def speak(numbers: Iterable[int], rate: int, *, turn: int = 8, pause: float = 0.12, break_: float = 1.2) -> bytes:
    """Say the numbers: s16le mono at `rate` Hz, a pause in seconds after each word, a break after each `turn` words.

    The last word is followed by a break too. Raises ValueError for a number that is not a word.
    """
    audio = bytearray()
    last = 0
    for last, number in enumerate(numbers, start=1):
        audio += _word(number, rate)
        audio += quiet(break_ if last % turn == 0 else pause, rate)
    if last % turn:
        audio += quiet(break_ - pause, rate)
    return bytes(audio)


def quiet(seconds: float, rate: int) -> bytes:
    """Digital silence: s16le mono at `rate` Hz."""
    return bytes(2 * round(seconds * rate))


def spell(number: int) -> str:
    """The word for a number in a transcript."""
    return f"w{number}"


def numbers_in(text: str) -> list[int]:
    """The numbers in a transcript, in any case and punctuation, including misheard ones (m7 for w7)."""
    return [int(number) for number in re.findall(r"\b[wm](\d+)\b", text.casefold())]


class Ear:
    """Hears the words in audio that comes in pieces.

    `samples` counts its input; `loud_until` is the end of the last sample that was not silent.
    """

    def __init__(self, rate: int) -> None:
        self.samples = 0
        self.loud_until = 0
        self._rate = rate
        self._word = round(WORD * rate)
        self._clear = re.compile(rb"[\x00\xff]{%d}" % round(_CLEAR * rate))
        self._kept = bytearray()
        self._noise = False

    def hear(self, audio: bytes) -> list[HeardWord]:
        """The words that end in this piece: s16le mono, whole samples."""
        piece = audio[1::2]
        before = self.samples
        self.samples += len(piece)
        loud = len(piece.rstrip(b"\x00\xff"))
        if loud:
            self.loud_until = before + loud
        self._kept += piece
        heard: list[HeardWord] = []
        at = 0
        while (start := self._next(at)) is not None:
            if start + self._word > len(self._kept):
                at = start
                break
            number = self._number(start)
            at = start
            if number is None:
                self._noise = True
                continue
            at = start + self._word
            first = self.samples - len(self._kept) + start
            heard.append(HeardWord(number, first, first + self._word))
        else:
            # Noise: keep only the samples that may begin the quiet that ends it.
            at = max(at, len(self._kept) - (round(_CLEAR * self._rate) if self._noise else 0))
        del self._kept[:at]
        return heard

    def _next(self, at: int) -> int | None:
        """Where the next word may begin: the first loud sample, after a stretch of quiet where noise was before."""
        if self._noise:
            clear = self._clear.search(self._kept, at)
            if clear is None:
                return None
            self._noise = False
            at = clear.end()
        loud = _LOUD.search(self._kept, at)
        return None if loud is None else loud.start()

    def _number(self, start: int) -> int | None:
        value = 0
        for bit in range(_BITS):
            level = self._kept[start + int((bit + 0.5) * _CELL * self._rate)]
            if level in {0x00, 0xFF}:
                return None
            value = value << 1 | (level < 0x80)
        number = value >> 16 & MAX_NUMBER
        if value >> 40 != _PREAMBLE or value & 0xFFFF != _checksum(number):
            return None
        return number


def _word(number: int, rate: int) -> bytes:
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"{number} is not a word: use 0 to {MAX_NUMBER}")
    value = _PREAMBLE << 40 | number << 16 | _checksum(number)
    edges = [round(bit * _CELL * rate) for bit in range(_BITS + 1)]
    samples = array("h")
    for bit in range(_BITS):
        level = _LOUDNESS if value >> (_BITS - 1 - bit) & 1 else -_LOUDNESS
        samples.extend([level] * (edges[bit + 1] - edges[bit]))
    return samples.tobytes()


def _checksum(number: int) -> int:
    return binascii.crc_hqx(number.to_bytes(3, "big"), 0xFFFF)
