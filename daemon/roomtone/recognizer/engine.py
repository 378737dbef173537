"""What the recognizer asks of an engine. An engine knows audio and words, and nothing of sessions, sockets or JSON.

An engine is a callable that takes nothing and returns an Engine; it raises EngineMissing where what it needs is not
installed. The server names engines by a short name or as `package.module:callable`, so that anybody can bring one.

Everything here may block: the server calls it in worker threads, never two calls of one stream at a time.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import msgspec


class EngineMissing(Exception):  # noqa: N818 - it says what is true; the text says what to install
    """The engine cannot run here. The text is one line for a person: what is missing and how to get it."""


class TurnSettings(msgspec.Struct, frozen=True):
    """How a stream is cut into turns. May change while it runs.

    `silence` is the pause, in ms, that ends a turn; `threshold` the probability of speech, 0 to 1, above which a sound
    counts as speech.
    """

    silence: int = 750
    threshold: float = 0.4


class Spoken(NamedTuple):
    """One word as it was heard: lower case, no punctuation; `start` and `end` in samples since the stream began."""

    text: str
    start: int
    end: int
    confidence: float  # 0 to 1


class Hypothesis(msgspec.Struct, frozen=True):
    """The whole turn as far as it is known. The next one replaces it, unless it is `final`: then the turn is over.

    Each turn ends with exactly one final hypothesis, which has no words where there was nothing but noise.
    """

    words: tuple[Spoken, ...]
    final: bool


class Stream(Protocol):
    """One session's audio at the engine. Memory is bounded whatever is fed, for however long."""

    @property
    def speaking(self) -> bool:
        """Whether a turn is open."""

    def configure(self, settings: TurnSettings) -> None:
        """Use these settings from now on."""

    def feed(self, audio: bytes) -> list[Hypothesis]:
        """Take the next samples, 16-bit little-endian mono at the engine's rate, any number of whole ones."""

    def endpoint(self) -> list[Hypothesis]:
        """End the open turn now, if there is one."""


class Engine(Protocol):
    """A recognizer of speech, ready to use: what takes long to load has been loaded."""

    @property
    def name(self) -> str:
        """What a session's `Begin` says in `config.model`."""

    @property
    def rate(self) -> int:
        """The rate of the audio that it wants, in Hz."""

    def open(self, settings: TurnSettings) -> AbstractContextManager[Stream]:
        """A stream from position 0; leaving the context frees what it held. A turn that is open then is dropped."""
