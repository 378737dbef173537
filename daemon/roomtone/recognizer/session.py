"""One session without sockets and clocks: audio and commands in, messages out.

Everything here may block for as long as the engine takes; the server calls it in a worker thread.
"""

import string
from collections.abc import Callable, Iterator, Sequence

from roomtone.protocol.messages import (
    MAX_FRAME_S,
    MIN_FRAME_S,
    ClientCommand,
    Message,
    Silence,
    SpeechStarted,
    TimedWord,
    TurnMessage,
)
from roomtone.recognizer.engine import Capabilities, Hypothesis, Spoken, Stream
from roomtone.recognizer.query import Parameters, SessionRefused, update

SHORT_FRAMES = 50
"""Frames below SHORTEST_FRAME that end a session; the service lets some 49 pass, and clients send a short last one."""

_NAMES = frozenset(
    {
        *("i", "i'm", "i'll", "i've", "i'd"),
        *("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
        *("january", "february", "april", "june", "july", "august", "september", "october", "november", "december"),
    }
)
"""Words that always have a capital. March and may are verbs too; other names the engine's dictionary does not tell."""

_MARKS = string.punctuation.replace("'", "").replace("%", "").replace("$", "") + "\u2026\u201c\u201d"


_NO_CAPABILITIES = Capabilities()


class RecognizerSession:
    """The turns of one session. `parameters` change with UpdateConfiguration."""

    def __init__(
        self, parameters: Parameters, stream: Stream, rate: int, capabilities: Capabilities = _NO_CAPABILITIES
    ) -> None:
        """`rate` is the engine's, in Hz; the client's stands in the parameters."""
        self.parameters = parameters
        self.samples = 0  # received, at the client's rate
        self._stream = stream
        self._rate = rate
        self._punctuates = capabilities.punctuates
        self._resample = _resampler(parameters.sample_rate, rate)
        self._short = 0
        self._order = 0
        self._shown = False  # something of the open turn was sent
        self._quiet = 0  # ms up to which silence was acknowledged

    def hear(self, frame: bytes) -> list[Message]:
        """Take one binary frame. Raises Refused: 3007 for its length, 3006 for half a sample."""
        self._check(frame)
        self.samples += len(frame) // 2
        audio = self._resample(frame, False)
        return [*self._turns(self._stream.feed(audio)), *self._silence()]

    def obey(self, command: ClientCommand) -> list[Message]:
        """Take one message of the client other than Terminate and KeepAlive. Raises Refused: 3006 for a bad value."""
        match command:
            case ClientCommand("UpdateConfiguration", changes):
                self.parameters = update(self.parameters, changes)
                self._stream.configure(self.parameters.settings)
            case ClientCommand("ForceEndpoint"):
                return list(self._turns(self._stream.endpoint()))
        return []

    def finish(self) -> list[Message]:
        """The last turns: nothing more will come."""
        heard = self._stream.feed(self._resample(b"", True))
        return list(self._turns([*heard, *self._stream.endpoint()]))

    def _check(self, frame: bytes) -> None:
        seconds = len(frame) / 2 / self.parameters.sample_rate
        if len(frame) % 2:
            raise SessionRefused(
                3006, "User Input Validation Error: Invalid audio: half a sample at the end of a frame"
            )
        if seconds < MIN_FRAME_S:
            self._short += 1
        if seconds > MAX_FRAME_S or self._short >= SHORT_FRAMES:
            raise SessionRefused(
                3007,
                f"Input Duration Error: Input Duration Violation: {1000 * seconds:.1f} ms. "
                f"Expected between {1000 * MIN_FRAME_S:.0f} and {1000 * MAX_FRAME_S:.0f} ms",
            )

    def _turns(self, hypotheses: Sequence[Hypothesis]) -> Iterator[Message]:
        for hypothesis in hypotheses:
            if hypothesis.final:
                yield from self._final(hypothesis.words)
            elif hypothesis.words and self.parameters.include_partial_turns:
                yield from self._announce(hypothesis.words)
                yield self._turn(hypothesis.words, final=False)

    def _final(self, words: Sequence[Spoken]) -> Iterator[Message]:
        # A turn of which a partial was shown ends in every case, if need be without a word; noise of which nothing
        # was shown is not a turn.
        if words or self._shown:
            yield from self._announce(words)
            yield self._turn(words, final=True)
            self._order += 1
        self._shown = False

    def _announce(self, words: Sequence[Spoken]) -> Iterator[Message]:
        if not self._shown and self.parameters.announces:
            yield SpeechStarted(self._ms(words[0].start), words[0].confidence)
        self._shown = True

    def _turn(self, words: Sequence[Spoken], *, final: bool) -> TurnMessage:
        texts = self._written([word.text for word in words], end=final)
        timed = tuple(
            TimedWord(self._ms(word.start), self._ms(word.end), text, round(word.confidence, 6), word_is_final=final)
            for word, text in zip(words, texts, strict=True)
        )
        transcript = " ".join(word.text for word in timed)
        return TurnMessage(
            turn_order=self._order,
            turn_is_formatted=self.parameters.formatted,
            end_of_turn=final,
            transcript=transcript,
            end_of_turn_confidence=int(final),
            words=timed,
            utterance=transcript if final else "",
        )

    def _written(self, words: list[str], *, end: bool) -> list[str]:
        """The words as the client wants them: with capitals and punctuation, or lower case without any."""
        match self.parameters.formatted, self._punctuates:
            case True, False:
                return _punctuate(words, end=end)
            case False, True:
                return [word.lower().strip(_MARKS) or word for word in words]
        return words

    def _silence(self) -> Iterator[Message]:
        now = 1000 * self.samples // self.parameters.sample_rate
        if self._stream.speaking:
            self._quiet = now
        elif self.parameters.acknowledge_silence and now - self._quiet >= 1000:
            yield Silence(self._quiet, now)
            self._quiet = now

    def _ms(self, sample: int) -> int:
        return round(1000 * sample / self._rate)


def _punctuate(words: list[str], *, end: bool) -> list[str]:
    """Capitals at the beginning and for few names, and a full stop at the end: as much as can be had honestly."""
    dressed = [word.capitalize() if word in _NAMES else word for word in words]
    if dressed:
        dressed[0] = dressed[0][:1].upper() + dressed[0][1:]
        dressed[-1] += "." if end and not dressed[-1].endswith(".") else ""
    return dressed


def _resampler(rate: int, wanted: int) -> Callable[[bytes, bool], bytes]:
    """A function from audio at one rate to audio at the other; its second argument says that no more will come."""
    if rate == wanted:
        return lambda audio, _last: audio
    import numpy as np  # noqa: PLC0415 - 17 MB that most recognizers never need
    import soxr  # noqa: PLC0415 - the same

    stream = soxr.ResampleStream(rate, wanted, 1, dtype="int16", quality="HQ")
    return lambda audio, last: bytes(stream.resample_chunk(np.frombuffer(audio, np.int16), last=last).tobytes())
