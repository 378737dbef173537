"""What a sink has raised, made fit for a log, a notice and the next attempt. Pure."""

import sysconfig
import traceback

from roomtone.batch import SinkFailed
from roomtone.hooks import Misfit
from roomtone.sinks import LONGEST_WAIT


def wish(failure: BaseException) -> float:
    """The seconds that the failure asks to be left alone for, as far as the contract grants it."""
    seconds = getattr(failure, "retry_after", 0.0)
    is_number = isinstance(seconds, int | float) and seconds > 0  # what is not a number is not greater either
    return min(seconds, LONGEST_WAIT) if is_number else 0.0


def innermost(error: BaseException) -> BaseException:
    """The first error in nested groups. The others are nearly always its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def explain(error: BaseException) -> str:
    """One line for a person: what was raised and where, without the traceback."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, SinkFailed | Misfit):
        return text
    # Where the sink's own code was: a line of pathlib tells nobody anything.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}{place}"
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _is_library(file: str) -> bool:
    """Whether this is Python's own, and not what is installed beside it."""
    return file.startswith((sysconfig.get_path("stdlib"), "<frozen")) and not file.startswith(
        (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    )
