"""Unix sockets by paths of any length, and the lines that they deliver."""

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
    """The daemon does not answer, or refuses; the text says why and what to do."""


class NoDaemonError(ControlError):
    """No daemon answers at any of the sockets, and none of them is another user's."""


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client, short(path) as name:
        client.connect(name)
        yield client


def peer_user(connection: socket.socket | trio.socket.SocketType) -> int:
    """The user id of the process at the other end, as the kernel reports it (SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return int(user)


def check_peer(client: socket.socket | trio.socket.SocketType, path: Path) -> None:
    """Raise ControlError unless root, this user, or the user of the service answers at this path.

    The user of the service owns the socket's folder, which root made for it. A folder that any user could have made
    proves nothing.
    """
    user = peer_user(client)
    if user in {0, os.geteuid()}:
        return
    real = path.absolute().resolve()
    statuses = [place.stat() for place in (real, *real.parents)]
    is_its = statuses[1].st_uid == user and all(status.st_uid in {0, os.geteuid(), user} for status in statuses)
    if not is_its or any(_is_replaceable(inner, outer, user) for inner, outer in pairwise(statuses)):
        raise ControlError(f"{path}: user {user} answers there, but the daemon is not theirs; nothing was sent")


def _is_replaceable(inner: os.stat_result, outer: os.stat_result, user: int) -> bool:
    """True if any user could have put the inner place into the outer one: with the sticky bit, only a user's own."""
    is_open = bool(outer.st_mode & stat.S_IWOTH)
    return is_open and (inner.st_uid == user or not outer.st_mode & stat.S_ISVTX)


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A name of the path that fits into the kernel's 108 bytes: if needed, through a descriptor of its folder."""
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class LineReader:
    """The lines of a stream, each of at most `max_bytes` bytes and within `timeout_s` seconds."""

    def __init__(self, stream: trio.abc.ReceiveStream, max_bytes: int, timeout_s: float) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._held = bytearray()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next line that is not empty. Raises ControlError if it is too long, TooSlowError, and the errors of the
        stream.
        """
        with trio.fail_after(self._timeout_s):
            while (line := self._first()) is None:
                if len(self._held) > self._max_bytes:
                    raise ControlError(f"a line has more than {self._max_bytes} bytes")
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
