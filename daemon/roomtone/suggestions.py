"""Messages about a name that does not exist, with the nearest one that does, or all of them if they are few. Pure."""

import difflib
from collections.abc import Iterable

MAX_LISTED = 15
"""Names that a message lists; of more, it has the nearest only."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, if there is one."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """A message that there is no `what` of the name `word`."""
    names = sorted(known)
    near = nearest(word.lower(), names)
    text = f"unknown {what}" + (f', did you mean "{near}"?' if near else "")
    if len(names) > MAX_LISTED:
        return text
    return f"{text}{' Known are' if near else '; known are'} {listing(names)}" if names else text


def listing(words: Iterable[str]) -> str:
    """The words in quotes, with commas between."""
    return ", ".join(f'"{word}"' for word in words)
