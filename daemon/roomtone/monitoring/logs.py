"""The output of log lines: colored and aligned on a terminal, as entries in systemd's journal if stderr is connected to
it, else one JSON object a line.

No line contains what was said in a room: the callers keep that law, and tracebacks come without the texts of their
errors. Passwords in addresses are masked here, for addresses come from libraries too. Control characters are escaped,
for logs are read on terminals.

A log call never raises: texts of plugins and names of files may be impossible to encode, and an object of a plugin may
have no text at all.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from roomtone import descriptors, secret
from roomtone.legible import describe_traceback, legible, text_of
from roomtone.monitoring import journald

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


_OF_LINES = {"exception", "stack"}
"""Our own fields of several lines; in all others a newline is escaped."""


def configure(level: str, stream: TextIO) -> None:
    """Send the log lines of this process to the stream, from this level on; warnings of libraries too.

    For the program's entry, once: structlog and logging are the process's, so this is a setting and no object.
    """
    to_journal = journald.is_journal(stream, os.environ)
    lines = descriptors.Lines(stream)
    rendering = journald.processors() if to_journal else [lines.add_lost_lines, *_rendering(stream)]
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, _describe, _make_plain, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=journald.Entries() if to_journal else lines,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    # Libraries log each connection at INFO, with the address: only their warnings concern the operator.
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
    if not (given and error):
        return line
    try:
        return {**line, "exception": describe_traceback(error)}
    except Exception as failure:  # noqa: BLE001 - a traceback shows attributes of the exception, which are its own
        return {**line, "exception": f"the traceback cannot be shown: {type(failure).__name__}"}


def _make_plain(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Values that every renderer can show: escaped text without passwords, and numbers that JSON has."""
    return {text_of(key): _plain(key, value) for key, value in line.items()}


def _plain(key: str, value: object) -> object:
    match value:
        case None | bool() | float():
            return value
        case int() if abs(value) < 2**63:
            return value
        case list() | tuple():
            return [_plain(key, inner) for inner in value]
        case dict():
            return {text_of(inner): _plain(key, one) for inner, one in value.items()}
        case _:
            return legible(secret.mask(text_of(value)), lines=key in _OF_LINES)


class _Forward(logging.Handler):
    """Records of libraries, from the standard library's logging, as our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
        logger.log(
            max(record.levelno, logging.DEBUG),
            "library.said",
            library=record.name,
            text=_message(record),
            **({"exc_info": record.exc_info} if record.exc_info else {}),
        )


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a library's mistake in a log call must not end the caller
        return text_of(record.msg)
