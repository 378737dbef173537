"""The recognizer on this machine as a child process: kept alive, replaced when it dies, gone when we are.

Its standard input is its lifeline, and brings the token that keeps other users of this machine out: every user can read
a command line.
"""

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NoReturn

import msgspec
import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.descriptors import kept_from_forks

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

COMMAND: Final = (sys.executable, "-P", "-m", "roomtone.recognizer")
"""`-P`: modules are not looked for in the current folder."""
START_TIMEOUT_S: Final = 120.0
"""Seconds in which a child must report its address: a small computer reads the model from a slow card."""
STOP_TIMEOUT_S: Final = 5.0
"""Seconds between the end of the lifeline and the kill."""
MAX_LINE_BYTES: Final = 65_536


class RecognizerUnavailable(Exception):  # noqa: N818 - it says what is true
    """The recognizer cannot run, and waiting does not help. The text says, in one line, what the operator can do."""


class _Greeting(msgspec.Struct, frozen=True):
    """The child's first line: its URL, or the reason why it cannot run."""

    url: str | None = None
    error: str | None = None


class Recognizer:
    """The recognizer's current address. Made by `open_recognizer`."""

    def __init__(self) -> None:
        self._address: tuple[str, list[tuple[str, str]]] | None = None
        self._failure: str | None = None
        self._changed = trio.lowlevel.ParkingLot()

    async def address(self) -> tuple[str, list[tuple[str, str]]]:
        """The URL without a query, and the secret headers of a session; waits while a child is starting.

        They hold until that child dies: ask again for every session. Raises RecognizerUnavailable if the last child has
        reported that it cannot run, for instance without its engine; later children are started all the same.
        """
        while self._address is None:
            if self._failure is not None:
                raise RecognizerUnavailable(self._failure)
            await self._changed.park()
        return self._address

    def _set(self, *, address: tuple[str, list[tuple[str, str]]] | None = None, failure: str | None = None) -> None:
        self._address, self._failure = address, failure
        self._changed.unpark_all()

    async def _run(self, command: Sequence[str], engine: str) -> NoReturn:
        """One child after the other."""
        backoff = Backoff()
        while True:
            begun = trio.current_time()
            reason = await self._run_child(command, engine)
            backoff.healthy_for(trio.current_time() - begun)
            pause = backoff.next()
            if is_worth_saying(backoff.failures):
                log.warning("recognizer.ended", reason=reason, again_in=round(pause, 1))
            await trio.sleep(pause)
            self._set()

    async def _run_child(self, command: Sequence[str], engine: str) -> str:
        """Run one child. Returns the reason for its end, and sets `_failure` if it never became ready."""
        token = secrets.token_urlsafe(32)
        try:
            async with _open_child(command) as child:
                greeting = await _greet(child, {"token": token, "engine": engine})
                if greeting.url is not None:
                    self._set(address=(greeting.url, [("Authorization", token)]))
                    log.info("recognizer.ready", url=greeting.url, pid=child.pid)
                    reason = f"exit status {await child.wait()}"
                    self._set()
                    return reason
                failure = greeting.error or f"the recognizer ended before it was ready, {await _stderr_tail(child)}"
        except OSError as error:
            failure = f"the recognizer cannot be started: {error}"
        self._set(failure=failure)
        return failure


@asynccontextmanager
async def open_recognizer(
    *, engine: str = "pocketsphinx", command: Sequence[str] = COMMAND, wanted: trio.Event | None = None
) -> AsyncIterator[Recognizer]:
    """Run a recognizer with that engine until the context is left. Entering does not wait for it to be ready.

    It is started immediately, or when `wanted` is set.
    """
    recognizer = Recognizer()

    async def run_when_wanted() -> None:
        if wanted is not None:
            await wanted.wait()
        await recognizer._run(command, engine)  # noqa: SLF001 - its owner

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_when_wanted)
        yield recognizer
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_child(command: Sequence[str]) -> AsyncIterator[trio.Process]:
    child = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    lifelines = [pipe for pipe in (child.stdin, child.stdout) if isinstance(pipe, trio.lowlevel.FdStream)]
    try:
        with kept_from_forks(*(pipe.fileno() for pipe in lifelines)):  # a fork would keep the child after us
            yield child
    finally:
        with trio.CancelScope(shield=True):
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    await pipe.aclose()
            with trio.move_on_after(STOP_TIMEOUT_S):
                await child.wait()
            if child.returncode is None:
                child.kill()
                await child.wait()


async def _greet(child: trio.Process, options: dict[str, str]) -> _Greeting:
    """Send the child its options and read its first line; an empty greeting if there is none."""
    if child.stdin is None or child.stdout is None:  # for mypy: both are pipes
        return _Greeting()
    line = b""
    try:
        with trio.fail_after(START_TIMEOUT_S):
            await child.stdin.send_all(msgspec.json.encode(options) + b"\n")
            while b"\n" not in line and len(line) < MAX_LINE_BYTES and (piece := await child.stdout.receive_some()):
                line += piece
        return msgspec.json.decode(line, type=_Greeting)
    except (trio.BrokenResourceError, trio.TooSlowError, msgspec.DecodeError, UnicodeError):
        return _Greeting()


async def _stderr_tail(child: trio.Process) -> str:
    with trio.move_on_after(STOP_TIMEOUT_S):
        return f"with exit status {await child.wait()}"
    return "or did not say so in time"
