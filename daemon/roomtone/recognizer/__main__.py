"""`python -m roomtone.recognizer`: speech to text on this machine, at the v3 protocol's own address.

Started by the daemon, without arguments: the first line of standard input is a JSON object with `Options`. The token is
among them, because every user of the machine can read a command line. Standard input is also the life line: when it
ends, the parent process is gone and this one ends too. Started by hand with `--port`, it reads no input.

One line of JSON on standard output says `{"url": ...}` when clients may come, or `{"error": ...}` why they never will.
SIGTERM and Ctrl-C let the sessions end first, a minute at most; the second one does not wait.
"""

import argparse
import faulthandler
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio
from structlog.typing import EventDict, WrappedLogger

from roomtone import descriptors
from roomtone.legible import describe_traceback, legible
from roomtone.recognizer.engine import EngineSettings, EngineUnavailable
from roomtone.recognizer.engines import open_with_fallback
from roomtone.recognizer.server import CannotServe, EngineStuck, Options, Server, open_server

DRAIN_TIMEOUT_S = 60.0  # seconds
MAX_LINE_BYTES = 65_536

UNAVAILABLE = 69  # sysexits.h: the operator must install or mend something
FAILED = 70
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit status is for sys.exit."""
    descriptors.prepare()
    lines = descriptors.Lines(sys.stderr)
    structlog.configure(
        processors=[
            lines.add_lost_lines,
            structlog.processors.add_log_level,
            _fit,
            structlog.processors.LogfmtRenderer(key_order=["level", "event"]),
        ],
        logger_factory=lines,
    )
    options = _options(arguments)
    status = 0
    try:
        trio.run(_run, options)
    except* (EngineUnavailable, CannotServe) as group:
        _say(error=str(_first(group)))
        status = UNAVAILABLE
    except* (KeyboardInterrupt, BrokenPipeError):
        status = INTERRUPTED  # before it was ready, or the parent process is gone
    except* EngineStuck as group:
        structlog.get_logger().error("engine.stuck", text=str(_first(group)))
        os._exit(FAILED)  # the thread inside the engine may not let the interpreter come to its end
    return status


async def _run(options: Options | None) -> None:
    if options is not None:
        await _serve(options)
        return
    # dup: the stream sets the descriptor to non-blocking and closes it, and sys.stdin keeps its own.
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        options = await _read_options(stdin)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, nursery.cancel_scope, partial(_wait_end, stdin))
            await _serve(options)
            nursery.cancel_scope.cancel()


async def _serve(options: Options) -> None:
    settings = EngineSettings(
        Path(options.model) if options.model else None, options.threads, options.sha256, options.options
    )
    opening = partial(open_with_fallback, options.engine, settings)
    engine, reason = await trio.to_thread.run_sync(opening, abandon_on_cancel=True)
    async with open_server(engine, options) as server, trio.open_nursery() as nursery:
        nursery.start_soon(_watch, options.patience)
        _say(url=server.url, engine=engine.info.engine, model=engine.info.name, fallback=reason)
        await _wait_signal(server)
        nursery.cancel_scope.cancel()


async def _wait_signal(server: Server) -> None:
    """Return when the first signal has come and the sessions have ended, or the second one has come.

    systemd signals all processes of a service concurrently; the daemon's sessions must still get their last turns.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await anext(signals)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, nursery.cancel_scope, partial(anext, signals))
            with trio.move_on_after(DRAIN_TIMEOUT_S):
                await server.drained()
            nursery.cancel_scope.cancel()


async def _cancel_after(scope: trio.CancelScope, wait: Callable[[], Awaitable[object]]) -> None:
    await wait()
    scope.cancel()


async def _watch(patience: float) -> None:
    """End the process when the loop does not run for `patience` seconds: an engine may hold the interpreter.

    faulthandler's thread needs no interpreter. The owner of this process replaces it.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(patience, exit=True)
            await trio.sleep(patience / 6)
    finally:
        faulthandler.cancel_dump_traceback_later()


async def _read_options(stdin: trio.abc.ReceiveStream) -> Options:
    line = b""
    while b"\n" not in line:
        piece = await stdin.receive_some(MAX_LINE_BYTES)
        line += piece
        if not piece or len(line) > MAX_LINE_BYTES:
            raise CannotServe("the first line of standard input must be a JSON object; by hand, give --port")
    try:
        return msgspec.json.decode(line.partition(b"\n")[0], type=Options)
    except msgspec.DecodeError as error:
        raise CannotServe(f"the first line of standard input does not hold options: {error}") from None


async def _wait_end(stdin: trio.abc.ReceiveStream) -> None:
    while await stdin.receive_some(MAX_LINE_BYTES):
        pass


def _options(arguments: Sequence[str] | None) -> Options | None:
    """The options of the command line; None where they come on standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m roomtone.recognizer", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--port", type=int, help="serve by hand at this port of 127.0.0.1; 0 for any")
    parser.add_argument("--engine", help="the name of an engine, or package.module:callable")
    parser.add_argument("--model", help="the folder of its model, if it shall use another than its own")
    parser.add_argument("--sessions", type=int, default=16, help="the most sessions at a time")
    given = parser.parse_args(arguments)
    if given.port is None:
        return None
    options = vars(given)
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        parser.error(str(error))


def _fit(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """As the daemon's log has it: no text of an engine's error, and nothing that a terminal would obey."""
    if line.pop("exc_info", None) and (error := sys.exc_info()[1]):
        line["exception"] = describe_traceback(error)
    return {key: legible(value) if isinstance(value, str) else value for key, value in line.items()}


def _say(**fields: str | None) -> None:
    sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
    sys.stdout.flush()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
