"""A room in which people talk now and then, over the noise of a fan or a street; and what a gate makes of it."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from roomtone.spans import Span, Spans
from roomtone.speech.gate import DETECTOR_STEP_S, GateDecisions
from roomtone.speech.vad import Detector

RATE = 16_000
LEVEL = 0.05  # rms of the speech, of full scale
Signal = NDArray[np.float64]


class Talk(NamedTuple):
    """16-bit audio at RATE, and where in it each sentence lies."""

    audio: bytes
    sentences: list[Span]


class Session(NamedTuple):
    """One opening of the gate: it reads from `start`, is opened at `opened` and ended at `closed`."""

    start: int
    opened: int
    closed: int


def sentences_in(audio: bytes, *, pause: float = 0.6) -> list[Signal]:
    """The sentences of a recording that is silent, or nearly so, between them."""
    samples = np.frombuffer(audio, "<i2").astype(float)
    loud = np.flatnonzero(np.abs(samples) > 600)
    breaks = np.flatnonzero(np.diff(loud) > pause * RATE)
    begins, ends = [loud[0], *loud[breaks + 1]], [*loud[breaks], loud[-1]]
    return [samples[begin : end + 1] for begin, end in zip(begins, ends, strict=True)]


def noise(samples: int, *, slope: float, seed: int) -> Signal:
    """Noise of rms 1 whose power falls with 1/f to that power: 1 is pink, 2 is brown. Nothing below 40 Hz."""
    rng = np.random.default_rng(seed)
    size = 1 << 20
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    shape = np.where(frequencies < 40, 0.0, np.maximum(frequencies, 1.0) ** (-slope / 2))
    parts = [np.fft.irfft(np.fft.rfft(rng.normal(size=size)) * shape) for _ in range(-(-samples // size))]
    joined: Signal = np.concatenate(parts)[:samples]
    return joined / float(np.sqrt(np.mean(joined**2)))


def converse(
    said: Sequence[Signal],
    *,
    seconds: float,
    decibels: float,
    slope: float,
    share: float = 0.2,
    most: int = 8,
    seed: int = 1,
) -> Talk:
    """Conversations of at most `most` sentences that fill this share of the time, `decibels` above the noise."""
    rng, total = random.Random(seed), round(seconds * RATE)
    speech, sentences, position = np.zeros(total), list[Span](), 40 * RATE
    while position < total - 40 * RATE:
        spoken = 0
        for _ in range(rng.randint(most // 4, most)):
            one = rng.choice(said)
            if position + len(one) > total - 40 * RATE:
                break
            speech[position : position + len(one)] += one
            sentences.append(Span(position, position + len(one)))
            spoken += len(one)
            position += len(one) + round(rng.uniform(0.5, 4) * RATE)
        position += round(spoken * (1 / share - 1) * rng.uniform(0.7, 1.1)) + RATE
    power = np.mean(np.concatenate([speech[start:end] for start, end in sentences]) ** 2)
    level = LEVEL * 32768
    mixed = speech * level / np.sqrt(power) + noise(total, slope=slope, seed=seed) * level / 10 ** (decibels / 20)
    return Talk(np.clip(np.rint(mixed), -32768, 32767).astype("<i2").tobytes(), sentences)


def listen(audio: bytes, detector: Detector, *, preroll: float = 2.0, close_after: float = 30.0) -> list[Session]:
    """The sessions that a gate opens for this audio as it comes, as the transcriber follows it."""
    hearing = GateDecisions(RATE, preroll=preroll, close_after=close_after, heard=0, wanted=Spans())
    sessions: list[Session] = []
    start = end = opened = None
    step = round(DETECTOR_STEP_S * RATE)
    for position in range(0, len(audio) // 2, step):
        piece = audio[2 * position : 2 * (position + step)]
        hearing.add(Span(position, position + len(piece) // 2), detector.hear(position, piece), fresh=False)
        if start is None and hearing.wanted:
            start = end = next(iter(hearing.wanted)).start
            opened = hearing.heard
        if start is not None and end is not None and opened is not None:
            end = hearing.follow(end)
            if hearing.is_silent_after(end):
                sessions.append(Session(start, opened, hearing.heard))
                hearing.drop_before(hearing.settled)
                start = None
    if start is not None and opened is not None:
        sessions.append(Session(start, opened, hearing.heard))
    return sessions


class Verdict(NamedTuple):
    """The gate's result: seconds that sessions were open, the ideal, sentences in all, those whose first word no
    session had, and sessions without speech.
    """

    seconds: float
    ideal: float
    sentences: int
    lost: int
    false: int


def judge(talk: Talk, sessions: Sequence[Session], *, close_after: float = 30.0) -> Verdict:
    """Ideal is a session from the first sample of a conversation until close_after seconds behind its last."""
    ideal, end = 0.0, -float("inf")
    for one in talk.sentences:
        ideal += min(one.start - end, close_after * RATE) if end > 0 else 0
        ideal += one.end - one.start
        end = one.end
    read = Spans((session.start, session.closed) for session in sessions)
    lost = sum(one.start not in read for one in talk.sentences)
    false = sum(
        not any(session.start < one.end and one.start < session.closed for one in talk.sentences)
        for session in sessions
    )
    seconds = sum(session.closed - session.opened for session in sessions)
    return Verdict(seconds / RATE, ideal / RATE + close_after, len(talk.sentences), lost, false)
