"""The client of the control socket: a command asks the running daemon."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from roomtone.control.protocol import Answer, Done, Forgot, Refused, Request
from roomtone.control.unix_socket import ControlError, LineReader, NoDaemonError, check_peer, connected, short
from roomtone.monitoring.report import Report

MAX_ANSWER_BYTES = 16 * 2**20
"""Bytes of an answer's line."""
ANSWER_TIMEOUT_S = 60.0
"""Seconds that a command waits for the answer."""

_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def find_socket(paths: Iterable[Path]) -> Path:
    """The first of the sockets at which a daemon answers.

    Raises ControlError if the daemon is another user's, NoDaemonError if none answers.
    """
    looked, failure = [], None
    for path in paths:
        try:
            with connected(path) as client:
                check_peer(client, path)
                return path
        except ControlError as error:
            failure = str(error)
        except PermissionError:
            failure = f"{path} belongs to another user's daemon: use sudo, or ask as that user"
        except OSError:
            looked.append(str(path))
    absent = f"no daemon answers here; start one with `roomtone run`. Looked for {', '.join(looked)}"
    raise ControlError(failure) if failure else NoDaemonError(absent)


class Client:
    """A connection to a running daemon. Made by `open_client`."""

    def __init__(self, stream: trio.SocketStream, timeout_s: float) -> None:
        self.lines = LineReader(stream, MAX_ANSWER_BYTES, timeout_s)
        """The lines that the daemon sends; after a Tail without end."""
        self._stream = stream

    async def ask(self, request: Request) -> Done | Forgot | Report:
        """The daemon's answer. Raises ControlError if it refuses or disconnects."""
        try:
            await self._stream.send_all(msgspec.json.encode(request) + b"\n")
            answer = _answers.decode(await anext(self.lines))
        except (trio.BrokenResourceError, StopAsyncIteration):
            raise ControlError("the daemon disconnected before it answered; see its log") from None
        except trio.TooSlowError:
            raise ControlError("the daemon does not answer; see its log") from None
        except msgspec.MsgspecError as error:
            raise ControlError(f"the daemon's answer cannot be read: {error}") from None
        if isinstance(answer, Refused):
            raise ControlError("\n".join(answer.lines))
        return answer


@asynccontextmanager
async def open_client(path: Path, *, timeout_s: float = ANSWER_TIMEOUT_S) -> AsyncIterator[Client]:
    """Connect to the daemon at the path; it has `timeout_s` seconds for each line. Raises ControlError."""
    try:
        with short(path) as name:
            stream = await trio.open_unix_socket(name)
    except OSError as error:
        raise ControlError(f"{path}: no daemon answers: {error.strerror or error}") from None
    async with stream:
        check_peer(stream.socket, path)
        yield Client(stream, timeout_s)


def ask(path: Path, request: Request, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Done | Forgot | Report:
    """Send one request to the daemon at the path, which has `timeout_s` seconds to answer. Raises ControlError."""

    async def once() -> Done | Forgot | Report:
        async with open_client(path, timeout_s=timeout_s) as client:
            return await client.ask(request)

    return trio.run(once)
