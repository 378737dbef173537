"""The control socket: how the commands of this machine ask a running daemon, and how it answers.

A unix socket of mode 0600, so that only the daemon's own user and root can open it, and whoever connects is asked for
by the kernel too (SO_PEERCRED). Requests and answers are JSON, one a line; each request carries the version of what it
speaks, and gets one answer. `tail` is answered by events until the client goes.

Nothing that a client does or leaves undone harms the daemon: lines, clients and waiting are bounded, and a client that
does not read loses live events, which are counted and told.
"""

import errno
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeAlias

import msgspec
import structlog
import trio

from roomtone import events
from roomtone.events import Cause, Interim, Level
from roomtone.figures import Figures
from roomtone.journal import Journal
from roomtone.live import Live
from roomtone.speech.books import Bill
from roomtone.speech.budget import Course
from roomtone.standing import SinkStatus

VERSION = 1
LONGEST_REQUEST = 65_536
"""Bytes of a request's line."""
LONGEST_ANSWER = 16 * 2**20
CLIENTS = 16
"""Clients at a time; one more is told so and let go."""
QUIET = 60.0
"""Seconds that a client may say nothing, or not read, before it is let go."""
ANSWERING = 60.0
"""Seconds that a command waits for the answer."""
CAPTIONS = 64
"""Live events that wait for a client that does not read; then the oldest go, and are counted."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class ControlError(Exception):
    """The daemon cannot be asked, or refuses; the text says why and what to do."""


Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag=str.lower):
    """A request. `version` is that of the one who asks."""

    version: int = VERSION


class Status(Ask, frozen=True, kw_only=True):
    """How everything stands; answered by a Report."""


class Tail(Ask, frozen=True, kw_only=True):
    """What is said and what happens from now on, in one room or all; answered by events, one a line, without end."""

    room: str | None = None


class Rotate(Ask, frozen=True, kw_only=True):
    """Begin a new recording in one room or all, without the loss of a sample."""

    room: str | None = None


class Reload(Ask, frozen=True, kw_only=True):
    """Read the configuration again."""


class Mute(Ask, frozen=True, kw_only=True):
    """Close the device of one room or all, for so many seconds or until it is unmuted."""

    room: str | None = None
    seconds: float | None = None


class Unmute(Ask, frozen=True, kw_only=True):
    """Open the device of one room or all again."""

    room: str | None = None


class Forget(Ask, frozen=True, kw_only=True):
    """Remove what one room or all have heard between these times (UTC); answered by Forgot."""

    room: str | None = None
    since: Time
    until: Time


Request: TypeAlias = Status | Tail | Rotate | Reload | Mute | Unmute | Forget


class Done(msgspec.Struct, frozen=True, tag_field="answer", tag="done"):
    """It is done: a line for each thing that was."""

    lines: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, tag_field="answer", tag="refused"):
    """It is not done, and nothing has changed; a line for each reason."""

    lines: tuple[str, ...]


class Forgot(msgspec.Struct, frozen=True, tag_field="answer", tag="forgot"):
    """It is forgotten: a line for each thing that was done, and in `left` one for each that was not, or not yet."""

    lines: tuple[str, ...]
    left: tuple[str, ...]


class Session(msgspec.Struct, frozen=True):
    """A streaming session that is up. `since` is the time of its first audio."""

    id: str
    since: datetime
    endpoint: str


class OpenGap(msgspec.Struct, frozen=True):
    """There are no samples now: why, and for how many seconds. `reason`: what is known of it, for a person."""

    cause: Cause
    seconds: float
    reason: str = ""


class Coverage(msgspec.Struct, frozen=True):
    """Of the last day: the share of the time that was recorded, and seconds by cause that were not."""

    ratio: float
    lost: dict[str, float]


class RoomReport(msgspec.Struct, frozen=True, kw_only=True):
    """One room. `since`: when its recording began; `rms` and `peak` in dB below full scale; `session_error`: why the
    last session could not be, or ended before its time; `quiet`: seconds since the last sample; `drift`: how much
    faster than this machine's clock the source runs, in parts per million.
    """

    name: str
    state: Literal["recording", "muted", "waiting", "ended"]
    source: str
    rate: int
    position: int
    since: datetime | None = None
    muted_until: datetime | None = None
    gap: OpenGap | None = None
    rms: float | None = None
    peak: float | None = None
    session: Session | None = None
    session_error: str | None = None
    quiet: float | None = None
    drift: float | None = None
    figures: Figures = Figures()
    coverage: Coverage | None = None
    cost: Bill | None = None


class Disk(msgspec.Struct, frozen=True):
    """Bytes of the spools and the journal, and what is free where they lie."""

    spool: int
    journal: int
    free: int


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What today and this month (UTC) have cost, all rooms together, and what they may: None where nothing is capped.

    `spent`: what is done instead of opening sessions, since that is all that they may cost.
    """

    currency: str
    bill: Bill
    daily: float | None = None
    monthly: float | None = None
    spent: Course | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="answer", tag="report"):
    """How everything stands. `since` is the daemon's start."""

    version: str
    pid: int
    since: datetime
    configuration: str
    state: str
    rooms: tuple[RoomReport, ...]
    sinks: tuple[SinkStatus, ...]
    disk: Disk
    cost: Cost | None = None
    stopping: bool = False


Answer: TypeAlias = Done | Refused | Forgot | Report


class Dropped(msgspec.Struct, frozen=True, tag_field="kind", tag="dropped"):
    """Live events were dropped because this client did not read: how many in all."""

    count: int


class Answerer(Protocol):
    """What the daemon does with a request. Raises nothing that a client could cause."""

    async def answer(self, request: Request) -> Answer: ...
    def has_room(self, name: str) -> bool: ...


_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


# --- where it is -----------------------------------------------------------------------------------------------------


def find_socket(paths: Iterable[Path]) -> Path:
    """The first of the sockets at which a daemon answers. Raises ControlError where none does."""
    looked, failure = [], None
    for path in paths:
        try:
            with _connected(path):
                return path
        except PermissionError:
            failure = f"{path} belongs to another user's daemon: ask as that user, or with sudo"
        except OSError:
            looked.append(str(path))
    absent = f"no daemon answers here; start one with `roomtone run`. Looked for {', '.join(looked)}"
    raise ControlError(failure or absent)


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client, _short(path) as name:
        client.connect(name)
        yield client


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the path that fits into the 108 bytes that the kernel gives to one, by way of its open folder."""
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


# --- the daemon's side -----------------------------------------------------------------------------------------------


@contextmanager
def open_socket(path: Path) -> Iterator[trio.SocketListener]:
    """Listen at the path, for this user only. A stale socket is replaced, one that answers is left to its owner.

    Raises OSError.
    """
    _make_way(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
        # On Linux the mode of an unbound socket is that of the file which binding it makes: there is no moment in which
        # others could connect, as there is before a chmod, and no umask of the whole process is touched.
        os.fchmod(listening.fileno(), 0o600)
        with _short(path) as name:
            listening.bind(name)
        ours = path.lstat()
        try:
            listening.listen(CLIENTS)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        finally:
            if path.exists() and (path.lstat().st_dev, path.lstat().st_ino) == (ours.st_dev, ours.st_ino):
                path.unlink()


def _make_way(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "is no socket; take it away", str(path))
        with _connected(path):
            pass
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)  # left by a daemon that was killed
    except FileNotFoundError:
        return
    else:
        raise OSError(errno.EADDRINUSE, "another daemon answers there", str(path))


async def serve(path: Path, answerer: Answerer, *, journal: Journal, live: Live) -> None:
    """Answer requests at the path until cancelled. Where there can be no socket, the log says so: recording goes on."""
    try:
        with open_socket(path) as listener:
            server = _Server(answerer, journal, live)
            await trio.serve_listeners(server.converse, [listener])
    except* OSError as group:
        log.error("control.unavailable", path=str(path), error=str(group.exceptions[0]))  # noqa: TRY400 - it says it all


class _Server:
    def __init__(self, answerer: Answerer, journal: Journal, live: Live) -> None:
        self._answerer = answerer
        self._journal = journal
        self._live = live
        self._clients = 0

    async def converse(self, stream: trio.SocketStream) -> None:
        """One client, from its first request to its last. Whatever it does ends here."""
        self._clients += 1
        try:
            async with stream:
                if not _is_allowed(stream):
                    return
                if self._clients > CLIENTS:
                    await _send(stream, Refused((f"{CLIENTS} clients are here already; try again later",)))
                    return
                async for line in Lines(stream, LONGEST_REQUEST, QUIET):
                    await self._take(stream, line)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ControlError) as group:
            log.debug("client.left", reason=str(group.exceptions[0]))
        finally:
            self._clients -= 1

    async def _take(self, stream: trio.SocketStream, line: bytes) -> None:
        request = _understand(line)
        match request:
            case Refused():
                await _send(stream, request)
            case Tail(room=room) if room is not None and not self._answerer.has_room(room):
                await _send(stream, Refused((f"there is no room {room!r}",)))
            case Tail(room=room):
                await _send(stream, Done(()))
                await self._tail(stream, room)
            case _:
                await _send(stream, await self._answerer.answer(request))

    async def _tail(self, stream: trio.SocketStream, room: str | None) -> None:
        """Events until the client goes, which its end of the stream tells."""
        turn = trio.Lock()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tail_journal, stream, turn, room)
            nursery.start_soon(self._tail_live, stream, turn, room)
            while await stream.receive_some(4096):
                pass
            nursery.cancel_scope.cancel()

    async def _tail_journal(self, stream: trio.SocketStream, turn: trio.Lock, room: str | None) -> None:
        """Durable events wait in the journal for a client that does not read."""
        seq = self._journal.tip
        while True:
            await self._journal.grown(seq)
            for event in await self._journal.read(seq):
                seq = event.seq
                if room in {None, event.room} or not event.room:
                    async with turn:
                        await _write(stream, events.encode(event))

    async def _tail_live(self, stream: trio.SocketStream, turn: trio.Lock, room: str | None) -> None:
        told = 0
        with self._live.subscribe(CAPTIONS, wanted=partial(_is_of, room)) as feed:
            async for event in feed:
                async with turn:
                    if feed.dropped > told:
                        told = feed.dropped
                        await _write(stream, msgspec.json.encode(Dropped(told)))
                    await _write(stream, events.encode(event))


def _is_of(room: str | None, event: Interim | Level) -> bool:
    return room in {None, event.room}


def _understand(line: bytes) -> Request | Refused:
    try:
        request = _decoder.decode(line)
    except msgspec.MsgspecError as error:
        return Refused((f"this is no request of version {VERSION}: {error}",))
    if request.version != VERSION:
        return Refused(
            (f"the daemon speaks version {VERSION}, not {request.version}; use the `roomtone` that it runs",)
        )
    return request


def _is_allowed(stream: trio.SocketStream) -> bool:
    """The kernel says who connected: this user, or root."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    if user in {0, os.geteuid()}:
        return True
    log.warning("client.refused", user=user)
    return False


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


async def _send(stream: trio.SocketStream, answer: Answer) -> None:
    await _write(stream, msgspec.json.encode(answer))


async def _write(stream: trio.SocketStream, line: bytes) -> None:
    with trio.fail_after(QUIET):
        await stream.send_all(line + b"\n")


# --- the command's side ----------------------------------------------------------------------------------------------


class Client:
    """A connection to a running daemon. Made by `open_client`."""

    def __init__(self, stream: trio.SocketStream, patience: float) -> None:
        self.lines = Lines(stream, LONGEST_ANSWER, patience)
        """What the daemon says; after a Tail without end."""
        self._stream = stream

    async def ask(self, request: Request) -> Done | Forgot | Report:
        """The daemon's answer. Raises ControlError where it refuses, or goes away."""
        try:
            await self._stream.send_all(msgspec.json.encode(request) + b"\n")
            answer = _answers.decode(await anext(self.lines))
        except (trio.BrokenResourceError, StopAsyncIteration):
            raise ControlError("the daemon went away before it had answered") from None
        except trio.TooSlowError:
            raise ControlError("the daemon does not answer; see its log") from None
        except msgspec.MsgspecError as error:
            raise ControlError(f"the daemon's answer is not understood: {error}") from None
        if isinstance(answer, Refused):
            raise ControlError("\n".join(answer.lines))
        return answer


@asynccontextmanager
async def open_client(path: Path, *, patience: float = ANSWERING) -> AsyncIterator[Client]:
    """Ask the daemon at the path, which has so many seconds for each line. Raises ControlError where there is none."""
    try:
        with _short(path) as name:
            stream = await trio.open_unix_socket(name)
    except OSError as error:
        raise ControlError(f"{path}: no daemon answers: {error.strerror or error}") from None
    async with stream:
        yield Client(stream, patience)


def ask(path: Path, request: Request, *, patience: float = ANSWERING) -> Done | Forgot | Report:
    """One request to the daemon at the path, which has so many seconds to answer. Raises ControlError."""

    async def once() -> Done | Forgot | Report:
        async with open_client(path, patience=patience) as client:
            return await client.ask(request)

    return trio.run(once)
