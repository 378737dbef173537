"""How every command writes: text of others (what was said, errors, labels, names of files) passes through here.

`tests/test_output.py` holds that no command writes in another way.
"""

import sys
import threading
import traceback
from types import TracebackType
from typing import Any

import click
import msgspec

from roomtone.legible import describe_traceback, legible, legible_json


def say(*lines: str, err: bool = False) -> None:
    """Write these lines to standard output, or to standard error. A newline inside of one begins no other."""
    for line in lines:
        click.echo(legible(line), err=err)


def say_text(text: str, *, err: bool = False) -> None:
    """Write a text that has lines of its own, such as an answer that is the whole output."""
    say(*text.removesuffix("\n").split("\n"), err=err)


def say_json(value: Any) -> None:
    """Write one line of JSON. Text that no JSON can hold, such as the name of a file that is no UTF-8, is escaped."""
    try:
        document = msgspec.json.encode(value)
    except UnicodeEncodeError:
        document = msgspec.json.encode(_encodable(msgspec.to_builtins(value)))
    say_document(document)


def say_document(document: bytes) -> None:
    """Write one line that is JSON already."""
    click.echo(legible_json(document.decode("utf-8", "backslashreplace")))


def take_hooks() -> None:
    """Have Python itself write tracebacks through here: of what nobody foresaw, of threads that a plugin started, and
    of what could not be raised anywhere. For the program's entry, once: these hooks are the process's.
    """
    sys.excepthook = show_traceback
    threading.excepthook = lambda failed: _show(failed.exc_value)
    sys.unraisablehook = lambda failed: _show(failed.exc_value)


def show_traceback(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """An excepthook: all of it on a terminal, for the report; in a log without its texts, which may quote what was
    said.
    """
    _show(error)


def _show(error: BaseException | None) -> None:
    if error is None or sys.stderr is None:
        return
    if sys.stderr.isatty():
        say_text("".join(traceback.format_exception(error)), err=True)
    else:
        say_text(describe_traceback(error), err=True)


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_encodable(key): _encodable(inner) for key, inner in value.items()}
        case list():
            return [_encodable(inner) for inner in value]
        case _:
            return value
