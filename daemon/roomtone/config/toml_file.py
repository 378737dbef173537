"""Reads the TOML of the configuration into tables. An error says where it is, and what to write instead.

Values that no key can have are refused here, so later code need not expect them: infinity and "not a number", NUL in a
text (no path, argument or header can contain it), and tables nested too deeply.
"""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roomtone.config.validation import Problem

FORBIDDEN = (
    "this user may not read it: use sudo; or let the user be a member of the group that may (ls -l shows it; for "
    "/etc/roomtone: sudo usermod --append --groups roomtone-config NAME); or name another with --config"
)
"""Advice for a configuration that the user may not read."""
MAX_DEPTH = 32
"""Levels of nested tables and lists. The tools of a language model may need ten."""


class ConfigError(Exception):
    """The configuration cannot be used. Its text has one line for each problem."""


def read(path: Path) -> dict[str, Any]:
    """The tables of the file, unchecked. Raises ConfigError if it cannot be read or is not TOML."""
    try:
        # utf-8-sig: some editors begin a file with a byte order mark, which TOML does not know.
        tables = tomllib.loads(_text(path.read_bytes(), path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; write one with: roomtone init --output {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the file in it") from None
    except PermissionError:
        raise ConfigError(f"{path}: {FORBIDDEN}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {_place(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{path}: {_TOO_DEEP}") from None
    except ValueError:  # Python's own bound of 4,300 digits, which tomllib does not expect
        raise ConfigError(f"{path}: a number in it has thousands of digits; write one that the key can mean") from None
    if problems := list(_meaningless(tables)):
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return tables


def _text(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8; save the file as UTF-8") from None
    if "\0" in text:  # as in UTF-16 without its mark, which is valid UTF-8 where all of it is ASCII
        line = text[: text.index("\0")].count("\n") + 1
        raise ConfigError(f"{path}: line {line}: holds NUL bytes; save the file as UTF-8 text")
    return text


_TOO_DEEP = f"is nested too deeply; nothing here needs more than {MAX_DEPTH} levels"


def _meaningless(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """The values that are TOML, and that no key can have."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tables)]
    while waiting:
        where, value = waiting.pop()
        is_table = isinstance(value, dict)
        table = where if is_table else where[:-1]
        for key, entry in value.items() if is_table else ((f"{where[-1]}[{i}]", v) for i, v in enumerate(value)):
            match entry:
                case float() if not math.isfinite(entry):
                    yield Problem(table, "must be a finite number; leave the key out for its default", key, entry)
                case str() if "\0" in entry:
                    yield Problem(table, "must not contain NUL", key, entry)
                case dict() | list() if len(where) > MAX_DEPTH:
                    yield Problem(table[:1], _TOO_DEEP)
                case dict() | list():
                    waiting.append(((*table, key), entry))


def _place(message: str) -> str:
    """The message of tomllib with the place first, and with advice if there is any."""
    found = re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", message, re.DOTALL)
    what, place = (found[1], f"{found[2]}: ") if found else (message, "")
    if twice := re.fullmatch(r"Cannot declare \((.*?),?\) twice", what):
        table = ".".join(re.findall(r"""['"](.*?)['"]""", twice[1]))
        return f"{place}[{table}] stands here a second time; write all its keys into one table"
    hint = next((hint for beginning, hint in _HINTS.items() if what.startswith(beginning)), None)
    return f"{place}{what}; {hint or 'this is not TOML'}"


_HINTS = {
    "Cannot mutate immutable": "this table is there already, in braces: write all its keys in one place",
    "Cannot overwrite": "this key or table is there already: leave one of the two",
    "Duplicate inline table key": "leave one of the two",
    "Expected '=' after a key": "write key = value; a key has no spaces",
    "Expected ']' at the end": "write [rooms.desk]; names have no spaces",
    "Expected newline": "one key = value a line, text in quotes, 4.5 and not 4,5",
    "Found invalid character": "remove this character",
    "Illegal character": 'its closing quote is missing in this line; a text of several lines stands in """',
    "Invalid hex value": r"write a backslash twice, or the text in single quotes, as in 'C:\talk.wav'",
    "Invalid initial character for a key part": "a table in braces stands in one line, without a comma at its end",
    "Invalid statement": "a line is a [table], or key = value, or a # comment",
    "Invalid value": "text stands in quotes, and it is true and false",
    "Unclosed array": "write [1, 2], with commas between",
    "Unclosed inline table": "write { kind = ..., path = ... } in one line, with commas between",
    "Unescaped": r"write a backslash twice, or the text in single quotes, as in 'C:\talk.wav'",
    "Unterminated string": "its closing quote is missing",
}
"""Advice by the beginning of the message of tomllib, which is the same in Python 3.11 to 3.13."""
