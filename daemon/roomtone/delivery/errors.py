"""Describes the exceptions of a sink for a log, a notice and the next attempt. Pure.

The text of an error can quote an event: `int(event.text)` repeats its text, a receiver sends back what it got. Logs,
`status` and notices outlive `roomtone forget`, so `describe` gives them the class and the location of an error. It adds
the text only for sinks of this distribution, whose texts are known. `explain` gives everything, for the terminal of the
user of `roomtone check` or `roomtone sinks test`.

Total: the text and the attributes of a plugin's exception are code that can raise in turn.
"""

import os
import sysconfig
import traceback
from pathlib import Path

from roomtone.delivery.batch import SinkFailed
from roomtone.delivery.hooks import InvalidHook
from roomtone.legible import text_of, well_formed
from roomtone.paths import StateError
from roomtone.sinks import LONGEST_WAIT, Sink, Unprocessable

OUR_PACKAGES = frozenset(
    {"roomtone", "roomtone_command", "roomtone_jsonl", "roomtone_transcript", "roomtone_wav", "roomtone_webhook"}
)
"""The packages of this distribution."""

_OWN = str(Path(__file__).parents[1]) + os.sep

MAX_TEXT_CHARS = 300
"""At most this many characters of a text are shown."""


def requested_delay(failure: BaseException) -> float:
    """The seconds until the next attempt that the failure asks for, as far as the contract grants them."""
    seconds = _attribute(failure, "retry_after")
    if isinstance(seconds, int | float) and seconds > 0:  # NaN is not greater either
        return min(seconds, LONGEST_WAIT)
    return 0.0


def is_ours(kind: type[Sink]) -> bool:
    """True if the sink is part of this distribution."""
    return kind.__module__.partition(".")[0] in OUR_PACKAGES


def describe(error: BaseException, *, of: type[Sink]) -> str:
    """One line for logs, `status` and notices: the exception of a sink of this kind, and its location. No quotation."""
    if isinstance(error, SinkFailed | InvalidHook | StateError) or (is_ours(of) and _is_known(error)):
        return _summarize(error)
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return f"{type(error).__name__}: {os.strerror(error.errno)}{_place(error)}"
    cause = f" from {type(error.__cause__).__name__}" if error.__cause__ else ""
    return f"{type(error).__name__}{cause}{_place(error)}"


def explain(error: BaseException) -> str:
    """One line for the terminal of the user: the exception, its location, its text and its notes."""
    notes = _attribute(error, "__notes__")
    said = " ".join(" ".join(map(text_of, notes)).split()) if isinstance(notes, list) else ""
    return f"{_summarize(error)}: {said[:MAX_TEXT_CHARS]}" if said else _summarize(error)


def _attribute(error: BaseException, name: str) -> object:
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - a property of a plugin's exception
        return None


def _is_known(error: BaseException) -> bool:
    """True if the text comes from our own sinks or the system. A refusal may quote the receiver."""
    known = isinstance(error, OSError | ValueError) or type(error).__module__.partition(".")[0] in OUR_PACKAGES
    return known and not isinstance(error, Unprocessable)


def _summarize(error: BaseException) -> str:
    text = " ".join(text_of(error).split())[:MAX_TEXT_CHARS]
    if isinstance(error, SinkFailed | InvalidHook | StateError):
        return text
    place = _place(error)
    if isinstance(error, OSError) and (file := _attribute(error, "filename")) and error.strerror:
        name = os.fsdecode(file) if isinstance(file, bytes) else file
        return f"{text_of(name)}: {text_of(error.strerror)}"[:MAX_TEXT_CHARS] + place
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _place(error: BaseException) -> str:
    """The location in the sink's own code: a line of pathlib or of the daemon explains nothing."""
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [f" ({file}:{line})" for file, line in lines if not _is_library(file)]
    return well_formed(own[-1]) if own else ""


def _is_library(file: str) -> bool:
    """True if the file is part of the standard library or of the daemon's delivery."""
    return file.startswith(_OWN) or (
        file.startswith((sysconfig.get_path("stdlib"), "<frozen"))
        and not file.startswith((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    )
