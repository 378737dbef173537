"""The control socket: commands on this machine send requests to the running daemon.

It is a unix socket of mode 0600, so only the daemon's user and root can open it; the kernel confirms the user of each
client (SO_PEERCRED). In a folder that a group may enter, as systemd makes it for the service, members of the group may
connect as well. They may only ask for the status, which is all that a monitor needs.

No client can harm the daemon: lines, clients and waiting are bounded. A client that does not read loses live events,
and is sent their number. A request that fails is refused, and its traceback is in the log.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
import trio

from roomtone import events
from roomtone.control.protocol import VERSION, Answer, Done, Dropped, Refused, Request, Status, Tail
from roomtone.control.unix_socket import ControlError, LineReader, connected, peer_user, short
from roomtone.descriptors import kept_from_forks
from roomtone.events import Interim, Level
from roomtone.journal.journal import Journal
from roomtone.live import Live

MAX_REQUEST_BYTES = 65_536
"""Bytes of a request's line."""
MAX_CLIENTS = 16
"""Clients at a time; one more gets a refusal and is disconnected."""
MAX_GUESTS = 4
"""Clients of the folder's group at a time, beside the others."""
IDLE_TIMEOUT_S = 60.0
"""Seconds without a request, or without reading, until a client is disconnected."""
MAX_LIVE_EVENTS = 64
"""Live events that wait for a client that does not read; then the oldest are dropped and counted."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


class Answerer(Protocol):
    """Answers requests. Its exceptions are contained here, and the request is refused."""

    async def answer(self, request: Request) -> Answer: ...
    def has_room(self, name: str) -> bool: ...


@contextmanager
def open_socket(path: Path) -> Iterator[trio.SocketListener]:
    """Listen at the path, for this user only, or for the group that may enter its folder.

    A stale socket is replaced; a socket that answers is left to its owner. Raises OSError.
    """
    _make_way(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
        # On Linux the mode of an unbound socket is that of the file which binding it makes: there is no moment in which
        # others could connect, as there is before a chmod, and no umask of the whole process is touched.
        os.fchmod(listening.fileno(), 0o600)
        with short(path) as name:
            listening.bind(name)
        if _is_shared(path.parent):
            path.chmod(0o660)
        ours = path.lstat()
        try:
            listening.listen(MAX_CLIENTS)
            with kept_from_forks(listening.fileno()):
                yield trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        finally:
            if path.exists() and (path.lstat().st_dev, path.lstat().st_ino) == (ours.st_dev, ours.st_ino):
                path.unlink()


def _is_shared(folder: Path) -> bool:
    """True if only the owner and a group may enter the folder."""
    return folder.stat().st_mode & 0o077 == 0o050


def _make_way(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "is not a socket; remove it", str(path))
        with connected(path):
            pass
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)  # left by a daemon that was killed
    except FileNotFoundError:
        return
    else:
        raise OSError(errno.EADDRINUSE, "another daemon answers there", str(path))


async def serve(path: Path, answerer: Answerer, journal: Journal, live: Live) -> None:
    """Answer requests at the path until cancelled. An OSError of the socket is logged, and recording goes on."""
    try:
        with open_socket(path) as listener:
            server = _Server(answerer, journal, live, shared=_is_shared(path.parent))
            await trio.serve_listeners(server.converse, [listener])
    except* OSError as group:
        log.error("control.unavailable", path=str(path), error=str(group.exceptions[0]))  # noqa: TRY400 - it says it all


class _Server:
    def __init__(self, answerer: Answerer, journal: Journal, live: Live, *, shared: bool) -> None:
        self._shared = shared
        self._guests = 0
        self._answerer = answerer
        self._journal = journal
        self._live = live
        self._clients = 0

    async def converse(self, stream: trio.SocketStream) -> None:
        """Serve one client. Its failures end here."""
        try:
            async with stream:
                user = peer_user(stream.socket)
                with self._counted(is_guest=user not in {0, os.geteuid()}) as is_guest:
                    if is_guest and not self._shared:
                        log.warning("client.refused", user=user)
                        return
                    count, limit = (self._guests, MAX_GUESTS) if is_guest else (self._clients, MAX_CLIENTS)
                    if count > limit:
                        await _send(stream, Refused((f"{limit} clients are connected already; try again later",)))
                        return
                    async for line in LineReader(stream, MAX_REQUEST_BYTES, IDLE_TIMEOUT_S):
                        await self._take(stream, line, is_guest=is_guest)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ControlError) as group:
            log.debug("client.left", reason=str(group.exceptions[0]))
        except* Exception:
            log.exception("request.failed", request="tail")

    @contextmanager
    def _counted(self, *, is_guest: bool) -> Iterator[bool]:
        """Guests are counted apart: they must not keep the owner from muting."""
        self._guests += is_guest
        self._clients += not is_guest
        try:
            yield is_guest
        finally:
            self._guests -= is_guest
            self._clients -= not is_guest

    async def _take(self, stream: trio.SocketStream, line: bytes, *, is_guest: bool) -> None:
        request: Request | None = None
        answer: Answer = Refused(("the daemon failed to answer this request; see its log",))
        try:
            request = _understand(line)
            answer = await self._answer(request, is_guest=is_guest)
        except* _Refusal as group:
            answer = Refused((str(group.exceptions[0]),))
        except* Exception:
            log.exception("request.failed", request=type(request).__name__.lower())
        await _send(stream, answer)
        if isinstance(request, Tail) and isinstance(answer, Done):
            await self._tail(stream, request.room)

    async def _answer(self, request: Request, *, is_guest: bool) -> Answer:
        match request:
            case _ if is_guest and not isinstance(request, Status):
                raise _Refusal("only root and the daemon's own user may do that; use sudo")
            case Tail(room=room) if room is not None and not self._answerer.has_room(room):
                raise _Refusal(f"there is no room {room!r}")
            case Tail():
                return Done(())
            case _:
                return await self._answerer.answer(request)

    async def _tail(self, stream: trio.SocketStream, room: str | None) -> None:
        """Send events until the client closes its end."""
        turn = trio.Lock()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tail_journal, stream, turn, room)
            nursery.start_soon(self._tail_live, stream, turn, room)
            while await stream.receive_some(4096):
                pass
            nursery.cancel_scope.cancel()

    async def _tail_journal(self, stream: trio.SocketStream, turn: trio.Lock, room: str | None) -> None:
        """Durable events wait in the journal while the client does not read."""
        seq = self._journal.tip
        while True:
            await self._journal.wait_after(seq)
            for event in await self._journal.read(seq):
                seq = event.seq
                if room in {None, event.room} or not event.room:
                    async with turn:
                        await _write(stream, events.encode(event))

    async def _tail_live(self, stream: trio.SocketStream, turn: trio.Lock, room: str | None) -> None:
        reported = 0
        with self._live.subscribe(MAX_LIVE_EVENTS, wanted=partial(_is_of, room)) as feed:
            async for event in feed:
                async with turn:
                    if feed.dropped > reported:
                        reported = feed.dropped
                        await _write(stream, msgspec.json.encode(Dropped(reported)))
                    await _write(stream, events.encode(event))


def _is_of(room: str | None, event: Interim | Level) -> bool:
    return room in {None, event.room}


class _Refusal(Exception):  # noqa: N818 - it says what is true
    """The request is refused; the text says why."""


def _understand(line: bytes) -> Request:
    try:
        request = _decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _Refusal(f"this is not a request of version {VERSION}: {error}") from None
    if request.version != VERSION:
        raise _Refusal(
            f"the daemon speaks version {VERSION}, not {request.version}; use the same release of `roomtone`"
        )
    return request


async def _send(stream: trio.SocketStream, answer: Answer) -> None:
    await _write(stream, msgspec.json.encode(answer))


async def _write(stream: trio.SocketStream, line: bytes) -> None:
    with trio.fail_after(IDLE_TIMEOUT_S):
        await stream.send_all(line + b"\n")
