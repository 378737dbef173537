"""Reads what a sink has raised, for a log, a notice and the next attempt. Pure.

Total: an exception of a plugin's is an object of its own, whose text and attributes can raise in turn.
"""

import os
import sysconfig
import traceback
from pathlib import Path

from roomtone.batch import SinkFailed
from roomtone.hooks import Misfit
from roomtone.sinks import LONGEST_WAIT
from roomtone.wellformed import text_of, well_formed

_OWN = str(Path(__file__).parent) + os.sep
MAX_TEXT = 300
"""Characters that are kept of a sink's own text."""


def wish(failure: BaseException) -> float:
    """The seconds that the failure asks to be left alone for, as far as the contract grants it."""
    seconds = _attribute(failure, "retry_after")
    if isinstance(seconds, int | float) and seconds > 0:  # what is not a number is not greater either
        return min(seconds, LONGEST_WAIT)
    return 0.0


def innermost(error: BaseException) -> BaseException:
    """The first error in nested groups. The others are nearly always its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def explain(error: BaseException) -> str:
    """One line for an operator: what was raised and where, without the traceback."""
    text = " ".join(text_of(error).split())[:MAX_TEXT]
    if isinstance(error, SinkFailed | Misfit):
        return text
    # Where the sink's own code was: a line of pathlib, or of the daemon's own, tells nobody anything.
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [f" ({file}:{line})" for file, line in lines if not _is_library(file)]
    place = well_formed(own[-1]) if own else ""
    if isinstance(error, OSError) and (file := _attribute(error, "filename")) and error.strerror:
        name = os.fsdecode(file) if isinstance(file, bytes) else file
        return f"{text_of(name)}: {text_of(error.strerror)}"[:MAX_TEXT] + place
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _attribute(error: BaseException, name: str) -> object:
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - a property of a plugin's exception
        return None


def _is_library(file: str) -> bool:
    """True if this is Python's own, and not what is installed beside it, or the daemon's."""
    return file.startswith(_OWN) or (
        file.startswith((sysconfig.get_path("stdlib"), "<frozen"))
        and not file.startswith((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    )
