"""Exit codes of commands, and one clear line in place of a traceback."""

import enum
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click

from roomtone.capture.recovery import RateChanged
from roomtone.cli.output import say
from roomtone.concurrency import leaves_of
from roomtone.config.toml_file import ConfigError
from roomtone.control.unix_socket import ControlError
from roomtone.journal.schema import JournalError
from roomtone.paths import StateError
from roomtone.suggestions import unknown


class Exit(enum.IntEnum):
    """The exit codes for scripts. Numbers from 64 are those of sysexits.h."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    CANTCREAT = 73
    CONFIG = 78
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "success; for run: stopped cleanly, or every room has ended",
    Exit.FAILED: "a problem while running",
    Exit.USAGE: "the command line is wrong",
    Exit.UNAVAILABLE: "no daemon answers, or it refuses the request",
    Exit.CANTCREAT: "the state folder cannot be used, or another roomtone uses it; a file cannot be written",
    Exit.CONFIG: "the configuration is missing or wrong",
    Exit.INTERRUPTED: "interrupted by Ctrl-C (run and demo stop cleanly instead: 0)",
}


class CommandFailure(click.ClickException):
    """Ends the command with these lines on standard error and this exit code."""

    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.exit_code = int(code)  # type: ignore[misc]  # as click's own subclasses do

    def show(self, file: object = None) -> None:
        say(*(f"roomtone: {line}" for line in self.message.split("\n")), err=True)


def check_names(noun: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises CommandFailure with `Exit.USAGE` for the first of these names that is not known: every command does."""
    choices = list(known)
    for name in names:
        if name not in choices:
            raise CommandFailure(unknown(f'{noun} "{name}"', name, choices), Exit.USAGE)


@contextmanager
def contain_known_errors() -> Iterator[None]:
    """The one place where errors that a user can cause become a line and an exit code. Unexpected errors pass through:
    their traceback is for the bug report.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output has exited, as `head` does; click ends quietly
    except _KNOWN as error:
        raise _failure([error]) from None
    except BaseExceptionGroup as group:
        # Not `except*`, which would wrap what is raised here in a group again.
        if group.subgroup(lambda inner: not isinstance(inner, (*_KNOWN, BaseExceptionGroup))):
            raise
        raise _failure(leaves_of(group)) from None


_KNOWN = (ConfigError, ControlError, RateChanged, StateError, JournalError, OSError)


def _failure(errors: list[BaseException]) -> CommandFailure:
    text = "\n".join(dict.fromkeys(str(error) or type(error).__name__ for error in errors))
    match errors[0]:
        case ConfigError() | RateChanged():
            return CommandFailure(text, Exit.CONFIG)
        case ControlError():
            return CommandFailure(text, Exit.UNAVAILABLE)
        case StateError() | JournalError():
            return CommandFailure(text, Exit.CANTCREAT)
        case _:
            return CommandFailure(text)
