"""The command sink: events as lines of JSON to a program of the user, whose exit status is the answer.

It is for users who do not write Python, and it is a process boundary: a crash, leak or loop of the program cannot reach
the daemon.
"""

import errno
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import trio

from roomtone import Context, Sink, hookimpl
from roomtone.secret import refuse_public
from roomtone_command.feeder import Feeder
from roomtone_command.program import Program

__all__ = ["CommandSink", "register_sinks"]

INHERITED = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
"""The variables of the daemon's environment that a program gets, with LC_*: no secrets, and none of systemd's."""

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


class CommandSink(Sink, frozen=True, kw_only=True, tag="command"):
    """`[sinks.<name>]` with `kind = "command"`. Segments of audio are left out unless `kinds` names `audio`.

    The program is started for each batch, reads lines of JSON to the end of its standard input, and exits. Status 0
    acknowledges all of them. Status 65 (EX_DATAERR of sysexits.h) refuses the one event that it was given, which is
    then set aside. After any other status the events come again.
    """

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """The program and its arguments, without a shell. Every user of the machine can see them: no secrets."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000
    """Maximum of events for one run of the program; 1 starts it for each event."""
    environment: tuple[Annotated[str, msgspec.Meta(pattern=_NAME)], ...] = ()
    """Variables of the daemon's environment that the program gets too, by name."""
    environment_files: dict[Annotated[str, msgspec.Meta(pattern=_NAME)], str] = msgspec.field(default_factory=dict)
    """Variables whose values, such as passwords, are in files."""

    def __post_init__(self) -> None:
        if not self.argv[0] or any("\0" in argument for argument in self.argv):
            raise ValueError("argv: must begin with a program, and an argument must not contain NUL")

    def __repr__(self) -> str:
        return f"CommandSink({self.argv[0]!r})"

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError or ValueError that names the key and the program or file."""
        program = await trio.to_thread.run_sync(self._program, context, os.environ)
        yield Feeder(program, batch=self.batch, audio="audio" in self.kinds)

    def _program(self, context: Context, environ: Mapping[str, str]) -> Program:
        """Read the named files: anew at each opening, so that a secret can be replaced."""
        chosen = {*INHERITED, *self.environment}
        variables = {name: value for name, value in environ.items() if name in chosen or name.startswith("LC_")}
        variables |= {name: _value(name, context.path(path)) for name, path in self.environment_files.items()}
        variables["ROOMTONE_SINK"] = context.name
        return Program(
            (_executable(self.argv[0], context, variables), *self.argv[1:]),
            folder=context.folder,
            environment=variables,
            timeout=self.timeout,
        )


def _executable(name: str, context: Context, environment: Mapping[str, str]) -> str:
    """The program's absolute path: a name is looked for in PATH, a relative path begins where the sinks' paths do."""
    found = shutil.which(context.path(name) if "/" in name else name, path=environment.get("PATH", os.defpath))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "argv: there is no such program, or it is not executable", name)
    return found


def _value(name: str, path: Path) -> str:
    key = f"environment_files: {name}"
    try:
        value = path.read_text("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{key}: {path} is not a text file") from None
    except OSError as error:
        raise OSError(
            error.errno, f"{key}: {error.strerror}; it must be a file that the daemon's user can read", str(path)
        ) from None
    refuse_public(key, path)
    if not value or "\0" in value:
        raise ValueError(f"{key}: {path} must contain the value and nothing else")
    return value


@hookimpl
def register_sinks() -> list[type[Sink]]:
    return [CommandSink]
