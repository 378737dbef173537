"""One run of a program: its input in, its status and the end of its stderr out, and no process left behind."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

_MAX_STDERR_BYTES = 4096
"""The last bytes of standard error that are kept."""
SHOWN_CHARS = 200
"""The last characters of it that are shown to a user."""
_REAP_TIMEOUT_S = 1.0
"""Seconds from the end of the program to the end of its standard error: a child may hold it open without end."""
_TIMEOUT_MARGIN_S = 3.0
"""Seconds of the hook's timeout that are reserved for ending the program; a tenth of a short timeout."""


class RunResult(NamedTuple):
    """The end of a run: the exit status (None: it took too long; negative: a signal), in words, and its stderr."""

    status: int | None
    description: str
    stderr: str


class Program:
    """A program that can be run with some input, each time in a session and process group of its own.

    Its standard output is discarded, and its standard error is shown if it fails. A run that takes too long or is
    cancelled ends with the whole group: SIGTERM, and SIGKILL after that.
    """

    def __init__(self, argv: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout: float) -> None:
        self._argv = argv
        self._folder = folder
        self._environment = dict(environment)
        self._grace = min(_TIMEOUT_MARGIN_S, timeout * 0.1) / 2
        self._limit = timeout - 2 * self._grace
        self.name = Path(argv[0]).name

    async def run(self, data: bytes) -> RunResult:
        """Run it to its end. Errors: OSError where it cannot be started."""
        process = await trio.lowlevel.open_process(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=self._environment,
            start_new_session=True,
        )
        said = bytearray()
        try:
            with trio.move_on_after(self._limit):
                await _communicate(process, data, said)
            if process.returncode is None:
                await self._end(process)
                return RunResult(None, f"took longer than {self._limit:g} s and was killed", _shown(said))
            return RunResult(process.returncode, _describe(process.returncode), _shown(said))
        finally:
            await self._end(process)

    async def _end(self, process: trio.Process) -> None:
        """End its group if it still runs, and close its pipes."""
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    # Both, even if the first ended the leader: its children may still run.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
                    with trio.move_on_after(self._grace):
                        await process.wait()
            for pipe in (process.stdin, process.stderr):
                if pipe is not None:
                    await pipe.aclose()


async def _communicate(process: trio.Process, data: bytes, said: bytearray) -> None:
    """Write the input, read standard error, and return when the program has ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write, process, data)
        nursery.start_soon(_read_stderr, process, said, closed := trio.Event())
        await process.wait()
        with trio.move_on_after(_REAP_TIMEOUT_S):
            await closed.wait()
        nursery.cancel_scope.cancel()


async def _write(process: trio.Process, data: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe, as asked for
    # A program that exits without reading has answered by its status.
    with contextlib.suppress(trio.BrokenResourceError):
        await process.stdin.send_all(data)
    await process.stdin.aclose()


async def _read_stderr(process: trio.Process, said: bytearray, ended: trio.Event) -> None:
    assert process.stderr is not None  # noqa: S101 - a pipe, as asked for
    async for part in process.stderr:
        said += part
        del said[:-_MAX_STDERR_BYTES]
    ended.set()


def _shown(said: bytearray) -> str:
    """The last lines in one, without control characters."""
    text = " ".join(said.decode("utf-8", "replace").split())
    return "".join(character for character in text if character.isprintable())[-SHOWN_CHARS:]


def _describe(status: int) -> str:
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
