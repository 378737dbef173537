"""How a command ends: its exit code, and one clear line instead of a traceback."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager

import click

from roomtone.capture.recovery import RateChanged
from roomtone.cli.output import say
from roomtone.concurrency import leaves_of
from roomtone.config.toml_file import ConfigError
from roomtone.control.unix_socket import ControlError
from roomtone.journal.schema import JournalError
from roomtone.paths import StateError


class Exit(enum.IntEnum):
    """What a script can tell from a command's exit code. The numbers from 64 on are those of sysexits.h."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    CANTCREAT = 73
    CONFIG = 78
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "all is well; for run: stopped cleanly, or every room has ended",
    Exit.FAILED: "a problem while running",
    Exit.USAGE: "the command line is wrong",
    Exit.UNAVAILABLE: "no daemon answers, or it refuses",
    Exit.CANTCREAT: "the state folder cannot be used, or another roomtone has it; a file cannot be written",
    Exit.CONFIG: "the configuration is missing or wrong",
    Exit.INTERRUPTED: "interrupted by Ctrl-C (run and demo stop cleanly instead: 0)",
}


class CommandFailure(click.ClickException):
    """Ends the command with this code, after these lines on stderr."""

    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.exit_code = int(code)  # type: ignore[misc]  # click's own way: its subclasses have their codes

    def show(self, file: object = None) -> None:
        say(*(f"roomtone: {line}" for line in self.message.split("\n")), err=True)


@contextmanager
def contained() -> Iterator[None]:
    """The one place where what a user can cause becomes a line and an exit code. What nobody foresaw passes through:
    its traceback is for the report.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has gone, as `head` does; click ends quietly
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
