"""The contract of an engine. An engine knows audio and words; it knows nothing of sessions, sockets or JSON.

There are two shapes. A turn engine turns the audio of one turn into words, and `adapter.py` does the rest: detection of
speech, endpointing, partials, limits and alignment. A stream engine does all of that itself. Write a turn engine unless
the engine decodes while it listens.

An engine is made by a callable that takes EngineSettings. It raises EngineUnavailable when something that it needs is
missing. Packages offer theirs as entry points of the group `roomtone.engines`; see `engines.py`.

Every call may block: the server calls engines in worker threads. It never makes two calls of one stream concurrently.
Calls of a turn engine do come concurrently, one for each room, so that a turn engine takes a lock if it needs one.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

RATE = 16_000
"""Hz, of the audio that turn engines get."""


class EngineUnavailable(Exception):  # noqa: N818 - it says what is true; the text says what to install
    """The engine cannot run here. The text is one line for the user: what is missing and how to get it."""


class EngineSettings(msgspec.Struct, frozen=True):
    """The table `[recognizer]` for the engine. An engine refuses settings that it cannot follow."""

    model: Path | None = None
    """A folder or file of weights; None is the engine's own model."""
    threads: int | None = None
    sha256: str | None = None
    """The digest that the model must have; checked before the engine is made. See `model_files.digest_of`."""
    options: dict[str, Any] = {}


class Capabilities(msgspec.Struct, frozen=True):
    """The abilities of an engine. The adapter supplies the rest as far as it can."""

    punctuates: bool = False
    """Its words have capitals and punctuation. Otherwise they are lower case, and the adapter adds the least."""
    times: bool = False
    """It knows the times of words. Otherwise the adapter aligns them."""
    confidences: bool = False
    """Its confidences mean something. Otherwise all are 1."""
    terms: bool = False
    """It takes the terms of `keyterms_prompt`."""


class EngineInfo(msgspec.Struct, frozen=True):
    """The identity of an engine, as `Begin` and `session_started` name it."""

    engine: str
    model: str
    capabilities: Capabilities = Capabilities()
    size: int = 0
    """Bytes of the model."""
    license: str = ""
    """The license of the model, and the file that holds it."""

    @property
    def name(self) -> str:
        """Engine and model in one word."""
        return f"{self.engine}-{self.model}"


class TurnSettings(msgspec.Struct, frozen=True):
    """The rules by which a stream is cut into turns, and words to expect. They may change while it runs.

    `silence` is the pause, in ms, that ends a turn; `threshold` the probability of speech, 0 to 1, above which a sound
    counts as speech. `terms` are words that are likely to be said.
    """

    silence: int = 750
    threshold: float = 0.4
    terms: tuple[str, ...] = ()


class Spoken(NamedTuple):
    """One word as it was heard; `start` and `end` in samples since the stream or the turn began."""

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
        """True if a turn is open."""

    def configure(self, settings: TurnSettings) -> None:
        """Use these settings from now on."""

    def feed(self, audio: bytes) -> list[Hypothesis]:
        """Take the next samples, 16-bit little-endian mono at the engine's rate, any number of whole ones."""

    def endpoint(self) -> list[Hypothesis]:
        """End the open turn now, if there is one."""


class StreamEngine(Protocol):
    """A recognizer that follows a stream, ready to use: what takes long to load has been loaded."""

    @property
    def info(self) -> EngineInfo:
        """Its identity and capabilities."""

    @property
    def rate(self) -> int:
        """The rate of the audio that it wants, in Hz."""

    def open(self, settings: TurnSettings) -> AbstractContextManager[Stream]:
        """A stream from position 0; leaving the context frees what it held. A turn that is open then is dropped."""


@runtime_checkable
class TurnEngine(Protocol):
    """A recognizer that turns the audio of one turn into words, ready to use."""

    @property
    def info(self) -> EngineInfo:
        """Its identity and capabilities."""

    def decode(self, audio: bytes, terms: tuple[str, ...] = ()) -> str | Sequence[Spoken]:
        """The words of one turn, 16-bit little-endian mono at RATE, at most half a minute.

        Returns text, or words with their times since the first sample if `times` is among the capabilities. The same
        audio may come several times: an open turn is decoded for its partials too.
        """


Engine = StreamEngine | TurnEngine
