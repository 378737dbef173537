"""The recognizer on this machine as a child process: kept alive, replaced when it dies, gone when we are.

Its standard input is its lifeline, and brings the token that keeps other users of this machine out: every user can read
a command line.
"""

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NoReturn

import msgspec
import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.descriptors import kept_from_forks
from roomtone.events import Notice, notice

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

COMMAND: Final = (sys.executable, "-P", "-m", "roomtone.recognizer")
"""`-P`: modules are not looked for in the current folder."""
START_TIMEOUT_S: Final = 120.0
"""Seconds in which a child must report its address: a small computer reads the model from a slow card."""
STOP_TIMEOUT_S: Final = 5.0
"""Seconds between the end of the lifeline and the kill."""
MAX_LINE_BYTES: Final = 65_536
FLOOR: Final = "pocketsphinx"
"""The engine that gives words where another one cannot."""
MAX_DEATHS: Final = 3
"""Deaths in a row after which an engine gives way to the fallback."""
HEALTHY_S: Final = 600.0
"""Seconds of life after which a death is not one in a row."""


class RecognizerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[recognizer]` table: the engine of the recognizer on this machine."""

    engine: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """A short name, an entry point of the group roomtone.engines, or package.module:callable; else moonshine."""
    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """A folder or file of weights, relative to the configuration; else the engine's own."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")] | None = None
    """The digest that the model must have."""
    options: dict[str, Any] = {}
    """Keys of this engine alone."""


async def _ignore(event: Notice) -> None:
    """For callers without a journal: the log has it."""


class RecognizerUnavailable(Exception):  # noqa: N818 - it says what is true
    """The recognizer cannot run, and waiting does not help. The text says, in one line, what the operator can do."""


class _Greeting(msgspec.Struct, frozen=True):
    """The child's first line: its URL, or the reason why it cannot run."""

    url: str | None = None
    error: str | None = None
    engine: str | None = None
    model: str | None = None
    fallback: str | None = None
    """The reason why another engine serves than the one that was asked for."""


class Recognizer:
    """The recognizer's current address. Made by `open_recognizer`."""

    def __init__(self, config: RecognizerConfig, report: Callable[[Notice], Awaitable[object]]) -> None:
        self.model: str | None = None
        """Engine and model of the child that serves, as sessions say it."""
        self._config = config
        self._report = report
        self._deaths = 0  # in a row
        self._reported: str | None = None
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

    async def _run(self, command: Sequence[str]) -> NoReturn:
        """One child after the other."""
        backoff = Backoff()
        while True:
            begun = trio.current_time()
            reason = await self._run_child(command)
            lived = trio.current_time() - begun
            self._deaths = 1 if lived >= HEALTHY_S else self._deaths + 1
            backoff.healthy_for(lived)
            pause = backoff.next()
            if is_worth_saying(backoff.failures):
                log.warning("recognizer.ended", reason=reason, again_in=round(pause, 1))
            await trio.sleep(pause)
            self._set()

    async def _run_child(self, command: Sequence[str]) -> str:
        """Run one child. Returns the reason for its end, and sets `_failure` if it never became ready."""
        token = secrets.token_urlsafe(32)
        try:
            async with _open_child(command) as child:
                greeting = await _greet(child, {"token": token, **self._options()})
                if greeting.url is not None:
                    self.model = greeting.model
                    await self._report_fallback(greeting)
                    self._set(address=(greeting.url, [("Authorization", token)]))
                    log.info("recognizer.ready", url=greeting.url, pid=child.pid, model=greeting.model)
                    reason = f"exit status {await child.wait()}"
                    self._set()
                    return reason
                failure = greeting.error or f"the recognizer ended before it was ready, {await _stderr_tail(child)}"
        except OSError as error:
            failure = f"the recognizer cannot be started: {error}"
        self._set(failure=failure)
        return failure

    def _options(self) -> dict[str, Any]:
        """The child's options: the configured engine, or the fallback where that one has died too often."""
        if self._deaths >= MAX_DEATHS:
            return {"engine": FLOOR}
        return msgspec.structs.asdict(self._config)

    async def _report_fallback(self, greeting: _Greeting) -> None:
        """Notify the operator once of each reason for which another engine serves."""
        wanted = self._config.engine or "the default engine"
        reason = greeting.fallback
        if reason is None and self._deaths >= MAX_DEATHS and self._config.engine != FLOOR:
            reason = f"{wanted} has died {MAX_DEATHS} times"
        if reason is not None and reason != self._reported:
            log.warning("recognizer.fallback", engine=greeting.engine)
            text = f"The recognizer on this machine uses {greeting.engine} instead of {wanted}: {reason}"
            await self._report(notice("recognizer.fallback", text, at=datetime.now(UTC)))
        self._reported = reason


@asynccontextmanager
async def open_recognizer(
    config: RecognizerConfig | None = None,
    *,
    report: Callable[[Notice], Awaitable[object]] = _ignore,
    command: Sequence[str] = COMMAND,
    wanted: trio.Event | None = None,
) -> AsyncIterator[Recognizer]:
    """Run a recognizer with the configured engine until the context is left. Entering does not wait for it to be ready.

    It is started immediately, or when `wanted` is set. `report` gets a notice when another engine serves.
    """
    recognizer = Recognizer(config or RecognizerConfig(), report)

    async def run_when_wanted() -> None:
        if wanted is not None:
            await wanted.wait()
        await recognizer._run(command)  # noqa: SLF001 - its owner

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


async def _greet(child: trio.Process, options: dict[str, Any]) -> _Greeting:
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
