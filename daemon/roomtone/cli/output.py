"""Output of all commands. Untrusted text (speech, errors, labels, names of files) is escaped here.

`tests/cli/test_output.py` enforces that commands write in no other way.
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
    """Write these lines to standard output or standard error. A newline inside a line is escaped."""
    for line in lines:
        click.echo(legible(line), err=err)


def say_text(text: str, *, err: bool = False) -> None:
    """Write a text of several lines, such as an answer that is the whole output."""
    say(*text.removesuffix("\n").split("\n"), err=err)


def say_json(value: Any) -> None:
    """Write one line of JSON. Text that JSON cannot hold, such as a file name that is not UTF-8, is escaped."""
    try:
        document = msgspec.json.encode(value)
    except UnicodeEncodeError:
        document = msgspec.json.encode(_encodable(msgspec.to_builtins(value)))
    say_document(document)


def say_document(document: bytes) -> None:
    """Write one line that is already JSON."""
    click.echo(legible_json(document.decode("utf-8", "backslashreplace")))


def install_traceback_hooks() -> None:
    """Write all tracebacks through this module: of unexpected errors, of threads that a plugin started, and of
    unraisable errors. Called once, at the program's entry: these hooks belong to the process.
    """
    sys.excepthook = show_traceback
    threading.excepthook = lambda failed: _show(failed.exc_value)
    sys.unraisablehook = lambda failed: _show(failed.exc_value)


def show_traceback(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """An excepthook: the whole traceback on a terminal, for the bug report; in a log without the error texts, which may
    quote speech.
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
