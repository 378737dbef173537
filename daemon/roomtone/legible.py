r"""Makes untrusted text fit to be shown: characters that a terminal would obey, or that hide or reorder other text, are
escaped as `\u001b`. Pure, and total: any text is valid input, lone surrogates too.

Escaped are control characters (C0, DEL, C1), lone surrogates, the separators of lines and paragraphs, and characters
of format: overrides and isolates of direction, marks, zero width spaces, tags. The two joiners stay, for emoji and
several scripts need them. A newline is escaped if the text must be one line.
"""

import re
import traceback

_ALONE = {"\n": "\\n", "\r": "\\r"}
_FORMAT = (
    "\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f"
)
_UNFIT = re.compile(f"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_FORMAT}]")
_UNFIT_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_FORMAT}]")


def legible(text: str, *, lines: bool = False) -> str:
    """The text for a terminal, a log or a pipe: one line, or, with `lines`, as many as it has newlines."""
    return (_UNFIT_IN_LINES if lines else _UNFIT).sub(_written_out, text)


def legible_json(document: str) -> str:
    """The JSON document with the same values, without characters that a terminal obeys."""
    return _UNFIT_IN_LINES.sub(_written_in_json, document)


def count_of(count: int, noun: str) -> str:
    """A count with its noun: `1 event`, `2 events`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def describe_traceback(error: BaseException) -> str:
    """The traceback of an error with the classes of it and its causes, without their texts.

    The text of an error may quote its input: that of `int(event.text)` contains what was said.
    """
    return "\n\n".join(_describe(each) for each in reversed(_chain(error)))


def _describe(error: BaseException) -> str:
    name = type(error).__name__
    own = ["Traceback (most recent call last):", *_frames(error), name if name.isidentifier() else "an error"]
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    own += ["  " + line for each in inner for line in describe_traceback(each).split("\n")]
    return "\n".join(own)


def _frames(error: BaseException) -> list[str]:
    return "".join(traceback.format_tb(error.__traceback__)).rstrip("\n").split("\n")


def _chain(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that, and so on; each one once."""
    chain = [error]
    while (before := chain[-1].__cause__ or _context(chain[-1])) and not any(before is each for each in chain):
        chain.append(before)
    return chain


def _context(error: BaseException) -> BaseException | None:
    return None if error.__suppress_context__ else error.__context__


def _written_out(found: re.Match[str]) -> str:
    character = found.group()
    number = ord(character)
    return _ALONE.get(character) or (f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}")


def _written_in_json(found: re.Match[str]) -> str:
    number = ord(found.group())
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"


def well_formed(text: str) -> str:
    """The text with escapes for what UTF-8 cannot encode, so that it can be logged and journaled."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(value: object) -> str:
    """The value's own text, well-formed. Total: a value whose `__str__` raises is described by its type."""
    try:
        return well_formed(str(value))
    except Exception:  # noqa: BLE001 - it may be an object of a plugin's, which can do anything
        return f"<{type(value).__name__} without a text>"
