"""Words by which forgotten speech would be known in a text, a file or an error that quotes it. Pure but for one reader.

A word proves nothing where the program writes it itself: `start` is a key of each event, `refused` a table. So words of
the program's own source are left out, and so are words of fewer than four characters.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from roomtone.events import Analysis, Answer, Durable, Turn

MIN_WORD_BYTES = 4
MIN_TEXT_CHARS = 24
"""From this length on, a whole text is taken to be said only once."""

_LETTERS = bytes(byte if byte >= 128 or 97 <= byte <= 122 else 32 for byte in range(256))
_DIGITS = bytes(byte if 48 <= byte <= 57 else 32 for byte in range(256))
"""Tables that leave letters (of any script, in UTF-8) or digits, and make spaces of all else. Never both: SQLite puts a
column directly behind another. Rejected: a regular expression with all the words, which takes several times as long.
"""
_HEX = re.compile(rb"[a-f]{4,7}|[0-9]{4}")
"""`dead` and `face` are parts of ids, and `2026` is one of each time."""


def tokens(data: bytes) -> set[bytes]:
    """The words and numbers in these bytes, ASCII letters as lowercase."""
    data = data.lower()
    found = {*data.translate(_LETTERS).split(), *data.translate(_DIGITS).split()}
    return {word for word in found if len(word) >= MIN_WORD_BYTES}


def texts_in(events: Iterable[Durable]) -> list[str]:
    """The texts that were said, answered and summarized."""
    return [event.text for event in events if isinstance(event, Turn | Answer | Analysis)]


def telling_words(events: Iterable[Durable], known: Iterable[bytes]) -> set[bytes]:
    """The words of these events but for those that are `known` for another reason."""
    found = tokens("\n".join(texts_in(events)).encode(errors="replace"))
    return {word for word in found.difference(known) if not _HEX.fullmatch(word)}


def has_quote(text: str, words: set[bytes], whole: Sequence[str]) -> bool:
    """True if the text has one of these words, or one of these texts where that is long enough to tell."""
    return not words.isdisjoint(tokens(text.encode(errors="replace"))) or any(
        len(one) >= MIN_TEXT_CHARS and one in text for one in whole
    )


def program_words(others: Iterable[Path] = ()) -> frozenset[bytes]:
    """The words that the program writes itself: those in the source of this package and in `others`, files and folders.

    A file that is gone, as in an upgrade, has none: then more words count as quotes, not fewer.
    """
    return frozenset(chain.from_iterable(map(tokens, _sources([Path(__file__).parents[1], *others]))))


def _sources(places: Iterable[Path]) -> Iterator[bytes]:
    for path in chain.from_iterable(place.rglob("*.py") if place.is_dir() else [place] for place in places):
        with suppress(OSError):
            yield path.read_bytes()
