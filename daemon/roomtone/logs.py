"""Where log lines go: colored and aligned on a terminal, as entries into systemd's journal where stderr is connected to
it, one JSON object a line everywhere else.

No line holds what was said in a room; the callers keep that law, and tracebacks come without the texts of their
errors. Addresses lose their passwords here, for they come from libraries too; and what a terminal would obey is
written out, for whoever reads a log does so on one.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from roomtone import journald, secret
from roomtone.legible import describe_traceback, legible

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


_OF_LINES = {"exception", "stack"}
"""Fields of our own making that have several lines; in any other a newline would begin a line of its own."""


def configure(level: str, stream: TextIO) -> None:
    """Send every log line of this process from this level on to the stream; warnings of libraries too.

    For the program's entry, once: structlog and logging are the process's, so this is a setting and no object.
    """
    to_journal = journald.is_journal(stream, os.environ)
    rendering = journald.processors() if to_journal else _rendering(stream)
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, _describe, _mask, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=journald.Entries() if to_journal else _Lines(stream),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    # Libraries tell of each connection at INFO, with the address: only what they warn of concerns the operator.
    root.setLevel(max(logging.WARNING, LEVELS[level]))
    logging.captureWarnings(capture=True)


def _rendering(stream: TextIO) -> Sequence[Processor]:
    """The last steps of lines, by where they go."""
    if stream.isatty():
        return [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors="NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=28,
            ),
        ]
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.JSONRenderer(serializer=_json),
    ]


def _json(line: EventDict, **_: object) -> str:
    first = {key: line[key] for key in ("at", "level", "event") if key in line}
    return msgspec.json.encode({**first, **line}, enc_hook=str).decode()


def _describe(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """`exc_info` in words, which become the field `exception`."""
    given = line.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given if isinstance(given, BaseException) else sys.exc_info()[1]
    return {**line, "exception": describe_traceback(error)} if given and error else line


def _mask(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    return {key: _fit(key, value) for key, value in line.items()}


def _fit(key: str, value: Any) -> Any:
    match value:
        case str() | Path():
            return legible(secret.mask(str(value)), lines=key in _OF_LINES)
        case list() | tuple():
            return [_fit(key, inner) for inner in value]
        case _:
            return value


class _Lines:
    """A logger that writes lines, and its own factory. A reader that has gone must not end the recording: what cannot
    be written is counted in `lost`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0

    def __call__(self, *_: object) -> "_Lines":
        return self

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            self.lost += 1

    debug = info = warning = error = critical = exception = log = msg


class _Forward(logging.Handler):
    """What a library says through the standard library's logging, as one of our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
        logger.log(
            max(record.levelno, logging.DEBUG),
            "library.said",
            library=record.name,
            text=record.getMessage(),
            **({"exc_info": record.exc_info} if record.exc_info else {}),
        )
