"""The loudness of a block."""

import math
from array import array

import pytest

from roomtone.capture.level import FLOOR_DB, measure_loudness


def sine(amplitude: float, samples: int = 3200) -> bytes:
    return array("h", (round(amplitude * math.sin(place / 7)) for place in range(samples))).tobytes()


def test_a_full_sine_is_3_db_below_its_peak() -> None:
    """Level is dB below full scale: 0 for the peak, -3 for the RMS of a sine."""
    loudness = measure_loudness(sine(32767))
    assert loudness.peak == pytest.approx(0, abs=0.01)
    assert loudness.rms == pytest.approx(-3.01, abs=0.2)
    assert not loudness.still


def test_halving_the_amplitude_is_6_db() -> None:
    """The scale is logarithmic."""
    assert measure_loudness(sine(16000)).rms - measure_loudness(sine(8000)).rms == pytest.approx(6.02, abs=0.05)


def test_silence_is_the_floor() -> None:
    """Zeros are the floor, not minus infinity."""
    assert measure_loudness(bytes(6400)) == (FLOOR_DB, FLOOR_DB, True)


def test_the_lowest_sample_is_full_scale() -> None:
    """-32768 has no positive twin, and is not louder than full scale."""
    assert measure_loudness(b"\x00\x80" * 10) == (0.0, 0.0, True)


def test_one_click_is_a_peak() -> None:
    """The peak looks at every sample, also where the RMS does not."""
    samples = array("h", bytes(6400))
    samples[1601] = 20_000
    loudness = measure_loudness(samples.tobytes())
    assert loudness.peak == pytest.approx(-4.29, abs=0.01)
    assert not loudness.still
