"""Unix sockets by their paths, however long these are, and the lines that come out of them."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio


class ControlError(Exception):
    """The daemon cannot be asked, or refuses; the text says why and what to do."""


class NoDaemonError(ControlError):
    """At none of the sockets does a daemon answer, and none is another user's."""


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client, short(path) as name:
        client.connect(name)
        yield client


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A name of the path that fits into the 108 bytes that the kernel gives to one, by way of its open folder."""
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Lines:
    """The lines that come in a stream, each of at most `longest` bytes and within `patience` seconds."""

    def __init__(self, stream: trio.abc.ReceiveStream, longest: int, patience: float) -> None:
        self._stream = stream
        self._longest = longest
        self._patience = patience
        self._held = bytearray()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next line that is not empty. Raises ControlError for one that is too long, TooSlowError, and what the
        stream raises.
        """
        with trio.fail_after(self._patience):
            while (line := self._first()) is None:
                if len(self._held) > self._longest:
                    raise ControlError(f"a line has more than {self._longest} bytes")
                if not (piece := await self._stream.receive_some(65_536)):
                    raise StopAsyncIteration
                self._held += piece
        return line

    def _first(self) -> bytes | None:
        while (end := self._held.find(b"\n")) >= 0:
            line = bytes(self._held[:end])
            del self._held[: end + 1]
            if line.strip():
                return line
        return None
