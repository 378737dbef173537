"""Unix sockets by their paths, however long these are, and the lines that come out of them."""

import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise
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


def peer_user(connection: socket.socket | trio.socket.SocketType) -> int:
    """The user id of the process at the other end, by the kernel's word (SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return int(user)


def check_peer(client: socket.socket | trio.socket.SocketType, path: Path) -> None:
    """Raise ControlError where neither root, nor this user, nor the user of the service answers at this path.

    A service's user is whom the socket's folder belongs to: root has made that, or
    whoever is asked for by the configuration. A folder that anybody could have made says nothing.
    """
    user = peer_user(client)
    if user in {0, os.geteuid()}:
        return
    real = path.absolute().resolve()
    statuses = [place.stat() for place in (real, *real.parents)]
    is_its = statuses[1].st_uid == user and all(status.st_uid in {0, os.geteuid(), user} for status in statuses)
    if not is_its or any(_is_anybodys(inner, outer, user) for inner, outer in pairwise(statuses)):
        raise ControlError(f"{path}: user {user} answers there, whose daemon this is not; nothing was asked")


def _is_anybodys(inner: os.stat_result, outer: os.stat_result, user: int) -> bool:
    """True if anybody could have put the inner one into the outer one: with the sticky bit, only what is the user's."""
    is_open = bool(outer.st_mode & stat.S_IWOTH)
    return is_open and (inner.st_uid == user or not outer.st_mode & stat.S_ISVTX)


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


class LineReader:
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
