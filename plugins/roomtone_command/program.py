"""One run of a program: its input in, its last words and its status out, and nothing of it left in the end."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

_MAX_STDERR_BYTES = 4096
"""Bytes of the end of the standard error that are kept."""
SHOWN_CHARS = 200
"""Characters of it that are shown to a person."""
_REAP_TIMEOUT_S = 1.0
"""Seconds for the end of the standard error after the program's: a child of the program's may hold it open for ever."""
_TIMEOUT_MARGIN_S = 3.0
"""Seconds of the hook's timeout that are for ending the program, which has the rest; a tenth of a short one."""


class RunResult(NamedTuple):
    """How a run ended: the exit status (None: it took too long; negative: a signal), in words, and what it said."""

    status: int | None
    description: str
    stderr: str


class Program:
    """A program that can be run with some input, each time in a session and process group of its own.

    Its standard output is thrown away, and what it says on standard error is shown where it fails. A run that takes too
    long or is cancelled ends with the whole group: SIGTERM, and SIGKILL after that.
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
                await _converse(process, data, said)
            if process.returncode is None:
                await self._end(process)
                return RunResult(None, f"took longer than {self._limit:g} s and was killed", _shown(said))
            return RunResult(process.returncode, _describe(process.returncode), _shown(said))
        finally:
            await self._end(process)

    async def _end(self, process: trio.Process) -> None:
        """Leave nothing of it: where it still runs its group is ended, and its pipes are closed."""
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    # Also when the leader has ended by the first: what it started may not have.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
                    with trio.move_on_after(self._grace):
                        await process.wait()
            for pipe in (process.stdin, process.stderr):
                if pipe is not None:
                    await pipe.aclose()


async def _converse(process: trio.Process, data: bytes, said: bytearray) -> None:
    """Write the input, listen to what it says, and return when it has ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write, process, data)
        nursery.start_soon(_listen, process, said, listening := trio.Event())
        await process.wait()
        with trio.move_on_after(_REAP_TIMEOUT_S):
            await listening.wait()
        nursery.cancel_scope.cancel()


async def _write(process: trio.Process, data: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe, as asked for
    # Who exits without reading has said with its status what that means.
    with contextlib.suppress(trio.BrokenResourceError):
        await process.stdin.send_all(data)
    await process.stdin.aclose()


async def _listen(process: trio.Process, said: bytearray, ended: trio.Event) -> None:
    assert process.stderr is not None  # noqa: S101 - a pipe, as asked for
    async for part in process.stderr:
        said += part
        del said[:-_MAX_STDERR_BYTES]
    ended.set()


def _shown(said: bytearray) -> str:
    """The last lines in one, without what a terminal would obey."""
    text = " ".join(said.decode("utf-8", "replace").split())
    return "".join(character for character in text if character.isprintable())[-SHOWN_CHARS:]


def _describe(status: int) -> str:
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
