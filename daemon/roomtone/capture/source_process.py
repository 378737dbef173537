"""The daemon's side of a source: a child process that reads it, and the blocks that it sends.

The frames are those of `ring`; the process is `python -m roomtone.capture.source`. It is started with the context and
ends with it, together with all that it has started (`source.descendants`). A process that does not end is killed with
its group, and is left behind after some seconds: a driver may hold it.
"""

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import structlog
import trio

from roomtone.capture.source.descendants import MARK, SURVIVED_STATUS, has_mark, kill_processes
from roomtone.capture.source.ring import BLOCK, ENDED, Frame, Frames
from roomtone.capture.source.stderr_tail import StderrTail, describe
from roomtone.capture.sources import File, Source, name_of
from roomtone.descriptors import kept_from_forks
from roomtone.legible import legible

RING_S = 60.0
"""Seconds that the daemon may stand still without losing a sample of a microphone."""
COMMAND_SILENCE_TIMEOUT_S = 25.0
"""Seconds after which a command that writes nothing has failed. A camera may take ten to answer. Less than the
receiver's timeout, because only the process that runs the command has the tail of its standard error.
"""
LIST_TIMEOUT_S = 10.0
"""Seconds that a search for devices may take. A healthy system needs a second or two on a small computer."""

_PIPE_BYTES = 1 << 20
_READ_BYTES = 65536
_CLOSE_TIMEOUT_S = 2.0
"""Seconds that a capture process may take to end what it has started, and itself."""
_REAP_TIMEOUT_S = 2.0
"""Seconds that a process may take to end after SIGKILL."""
_RETRY_S = 0.01

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Block(NamedTuple):
    """Audio as it came: 16-bit little-endian mono. `dropped` samples were lost directly before it, not taken in
    time. `boottime` is CLOCK_BOOTTIME in seconds when its last sample was read.
    """

    audio: bytes
    dropped: int
    boottime: float


class SourceEnded(Exception):  # noqa: N818 - it is the end of data, not an error
    """The file was played to its end, or the command exited with status 0."""

    def __init__(self, text: str) -> None:
        super().__init__(legible(text))


class SourceFailed(Exception):  # noqa: N818 - it says what is true of the source
    """The source is gone, or was never there: the text says what happened and what to do. `code` is a `noun.state`.

    The text has the last lines that the source's program wrote to its standard error. That is the operator's own
    program, and its output is the diagnosis, so it appears in the log, in `status` and in notices: short, on one line,
    without the secrets of addresses and without control characters.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(legible(text))
        self.code = code


class Listing(NamedTuple):
    """The names that `Microphone.device` can have here, each with a label for users, and the problems of the search."""

    devices: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


class SourceProcess:
    """The blocks of an open source. `name` is for users: `microphone default`, `file talk.wav`, `command ffmpeg`."""

    def __init__(self, name: str, child: "Child") -> None:
        self.name = name
        self._child = child
        self._frames = Frames()
        self._last: Frame | None = None

    async def receive(self) -> Block:
        """The next block, as soon as it is there. Cancelled, it has taken nothing.

        A stalled source gives nothing: timeouts are the caller's. Errors: SourceEnded, SourceFailed, after the last
        block, and again at each further call.
        """
        frame = self._last
        if frame is None:
            await trio.lowlevel.checkpoint()
            frame = self._frames.pop()
        while frame is None:
            portion = await self._child.receive()
            if not portion:
                raise SourceFailed("source.died", await self._child.exit_reason(f"the capture process of {self.name}"))
            self._frames.feed(portion)
            frame = self._frames.pop()
        if frame.kind == BLOCK:
            return Block(frame.body, frame.dropped, frame.boottime)
        self._last = frame
        message = json.loads(frame.body)
        if frame.kind == ENDED:
            raise SourceEnded(message["text"])
        raise SourceFailed(message["code"], message["text"])


@asynccontextmanager
async def open_source(
    source: Source,
    *,
    rate: int,
    frame: int,
    folder: Path,
    skip: int = 0,
    ring_seconds: float = RING_S,
    silence: float = COMMAND_SILENCE_TIMEOUT_S,
) -> AsyncIterator[SourceProcess]:
    """A running source at `rate` Hz that sends `frame` samples a block; relative paths begin in `folder`.

    `skip` samples of a file were recorded before and are left out. `ring_seconds` of audio wait in the child process
    while the daemon does not receive; a command may write nothing for `silence` seconds. A source that is not there
    fails at the first `receive`. Resources: one child process with all that it starts, gone when the context ends.
    """
    options = {"rate": rate, "frame": frame, "ring": round(ring_seconds * rate), "skip": skip, "silence": silence}
    where = {"folder": str(folder), "source": _located(source, folder)}
    async with open_child("roomtone.capture.source", {**options, **where}, mark=secrets.token_hex(8)) as child:
        yield SourceProcess(name_of(source), child)


def _located(source: Source, folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(source)
    if isinstance(source, File):
        fields["path"] = str(folder / Path(source.path).expanduser())
    return fields


async def list_devices(seconds: float = LIST_TIMEOUT_S) -> Listing:
    """The microphones that are present now. A child process lists them, because PortAudio searches once in a process.

    After `seconds` it returns what is known by then: a frozen sound server freezes its clients, and half a list is
    better for a user than none.
    """
    text = bytearray()
    problems = []
    async with open_child("roomtone.capture.source.devices", {}) as child:
        with trio.move_on_after(seconds) as listing:
            while portion := await child.receive():
                text += portion
        if listing.cancelled_caught:
            problems.append("the sound system does not answer")
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
    devices = tuple((line["name"], line["label"]) for line in lines if "name" in line)
    return Listing(devices, tuple(line["problem"] for line in lines if "problem" in line) + tuple(problems))


class Child:
    """A running child process of ours, its output, and the tail of its standard error."""

    def __init__(self, process: trio.Process, output: trio.abc.ReceiveStream, errors: IO[bytes]) -> None:
        self._process = process
        self._output = output
        self._errors = errors
        self._tail = StderrTail()
        self._killed = False

    async def receive(self) -> bytes:
        """Some bytes of its standard output; empty at the end. Cancelled, it has taken nothing."""
        portion = await self._output.receive_some(_READ_BYTES)
        self._read_stderr()
        return bytes(portion)

    async def exit_reason(self, name: str) -> str:
        """The reason for users why it ended without a last frame, with the tail of its standard error."""
        await self.kill()
        self._read_stderr()
        status = self._process.returncode
        return self._tail.after(f"{name} {'does not end' if status is None else describe(status)}")

    async def kill(self) -> None:
        """Kill the whole group and reap the child, within two seconds: a driver can hold a process that was killed.

        A child that is held stays behind, and `subprocess` reaps it when the next process is started.
        """
        # Before anything reaps the child: until then its number belongs to this group, which may have outlived it.
        if not self._killed:
            self._killed = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with trio.move_on_after(_REAP_TIMEOUT_S):
            await self._process.wait()

    async def end_all(self, mark: str) -> None:
        """Have the process end all that it has started, and itself; where it does not, search for that by its mark.

        Its input must be closed. Returns when nothing is left, or after some seconds: that something may be left is
        logged then.
        """
        if not self._killed:
            with _process_descriptor(self._process.pid) as process, trio.move_on_after(_CLOSE_TIMEOUT_S):
                await trio.lowlevel.wait_readable(process)  # it has ended, and is not reaped: see `kill`
        await self.kill()
        if self._process.returncode == 0:
            return
        with trio.move_on_after(_REAP_TIMEOUT_S) as searching:
            while kill_processes(partial(has_mark, mark=mark)):  # noqa: ASYNC110 - the kernel has no event for this
                await trio.sleep(_RETRY_S)
        if searching.cancelled_caught or self._process.returncode == SURVIVED_STATUS:
            log.error("source.unkillable", process=self._process.pid)

    def _read_stderr(self) -> None:
        """Take what is in the pipe of its errors. Not a task of its own: a full pipe loses the newest lines only."""
        if words := self._errors.read(_READ_BYTES):
            self._tail.feed(words)


@asynccontextmanager
async def open_child(module: str, config: Mapping[str, Any], *, mark: str | None = None) -> AsyncIterator[Child]:
    """`python -m module` in a process group of its own, which reads `config` as its first line of standard input.

    Its standard input stays open for the life of the context. With a `mark` the child ends when its input does, with
    all that it has started, which inherits the mark; without one it is killed.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with open(reading, "rb", buffering=0) as errors:  # noqa: ASYNC230, PTH123 - a pipe that never blocks
        try:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=writing,
                start_new_session=True,
                env=os.environ if mark is None else {**os.environ, MARK: mark},
            )
        finally:
            os.close(writing)
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101 - both are pipes
        async with process.stdin, process.stdout:
            child = Child(process, process.stdout, errors)
            try:
                _widen(process.stdout)
                with suppress(trio.BrokenResourceError):  # it is dead already: its exit reason says why
                    await process.stdin.send_all(json.dumps(config).encode() + b"\n")
                with kept_from_forks(*_pipe_descriptors(process)):
                    yield child
            finally:
                with trio.CancelScope(shield=True):
                    if mark is None:
                        await child.kill()
                    else:
                        await process.stdin.aclose()
                        await child.end_all(mark)


@contextmanager
def _process_descriptor(pid: int) -> Iterator[int]:
    """A descriptor of a child that is not reaped: readable when it has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pipe_descriptors(process: trio.Process) -> list[int]:
    """The pipes that keep the child alive. A plugin's fork that held them would keep it, and its device, for itself."""
    return [pipe.fileno() for pipe in (process.stdin, process.stdout) if isinstance(pipe, trio.lowlevel.FdStream)]


def _widen(pipe: trio.abc.ReceiveStream) -> None:
    """Let a pipe hold 25 s of audio at 16 kHz. The kernel refuses that to a user with too many such pipes."""
    if isinstance(pipe, trio.lowlevel.FdStream):
        with suppress(PermissionError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
