"""A webhook's receiver on a real loopback socket, which answers as it is told: well, badly, late, or not at all."""

import math
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import h11
import msgspec
import trio

from roomtone.proxy import join_authority


class Answer(NamedTuple):
    """The answer to one request, after `delay` seconds; with `reset`, a reset of the connection instead."""

    status: int = 204
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay: float = 0.0
    reset: bool = False


class Post(NamedTuple):
    """One request as it came, headers by their names in lower case."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[Any]:
        """The events in the body: one, or those of an array."""
        body = msgspec.json.decode(self.body)
        return body if isinstance(body, list) else [body]


class Receiver:
    """The received requests: `posts` are all of them, `accepted` those that were answered with a 2xx."""

    def __init__(self, url: str, port: int) -> None:
        self.url = url
        self.port = port
        self.posts: list[Post] = []
        self.accepted: list[Post] = []
        self.connections = 0
        self._script: deque[Answer] = deque()
        self._otherwise: Callable[[Post], Answer] = lambda _: Answer()
        self._changed = trio.Event()

    def script(self, *answers: Answer) -> None:
        """The next requests get these answers, one each; then again 204, or what `otherwise` says."""
        self._script.extend(answers)

    def otherwise(self, answer: Callable[[Post], Answer]) -> None:
        """Every request that the script has no answer for gets this one."""
        self._otherwise = answer

    @property
    def events(self) -> list[Any]:
        """Every event that was accepted, in the order of its coming, the doubled ones doubled."""
        return [event for post in self.accepted for event in post.events]

    async def wait_accepted(self, count: int) -> None:
        """Return when this many different events have been accepted."""
        while len({event["id"] for event in self.events}) < count:
            await self._changed.wait()

    async def wait_posts(self, count: int) -> None:
        """Return when this many requests have come."""
        while len(self.posts) < count:
            await self._changed.wait()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, for as long as both sides keep it."""
        self.connections += 1
        connection = h11.Connection(h11.SERVER)
        try:
            while (post := await _receive(connection, stream)) is not None:
                answer = self._script.popleft() if self._script else self._otherwise(post)
                self.posts.append(post)
                self._tell()
                await trio.sleep(answer.delay)
                if answer.reset:
                    _reset(stream)
                    return
                await _answer(connection, stream, answer)
                if 200 <= answer.status < 300:
                    self.accepted.append(post)
                    self._tell()
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return  # the client has gone in the middle, as in these tests it may

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def _receive(connection: h11.Connection, stream: trio.abc.Stream) -> Post | None:
    request: h11.Request | None = None
    body = b""
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(65_536)))
            case h11.Request() as begun:
                request = begun
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage():
                assert request is not None
                assert request.method == b"POST"
                headers = {name.decode(): value.decode() for name, value in request.headers}
                return Post(request.target.decode(), headers, body)
            case _:
                return None


async def _answer(connection: h11.Connection, stream: trio.abc.Stream, answer: Answer) -> None:
    headers: Iterable[tuple[str, str]] = answer.headers
    if answer.status != 204:
        headers = (*answer.headers, ("content-length", str(len(answer.body))))
    data = connection.send(h11.Response(status_code=answer.status, headers=list(headers))) or b""
    if answer.status != 204:
        data += connection.send(h11.Data(data=answer.body)) or b""
    await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))


def _reset(stream: trio.abc.Stream) -> None:
    assert isinstance(stream, trio.SocketStream)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@asynccontextmanager
async def open_receiver(
    *, port: int = 0, host: str = "127.0.0.1", trust: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """A receiver on loopback; leaving closes it and its connections. `port` lets one come back where it was."""
    listeners: list[Any] = list(await trio.open_tcp_listeners(port, host=host))
    (bound,) = (listener.socket.getsockname()[1] for listener in listeners)
    if trust is not None:
        listeners = [trio.SSLListener(listener, trust, https_compatible=True) for listener in listeners]
    scheme, name = ("http", host) if trust is None else ("https", "localhost")
    receiver = Receiver(f"{scheme}://{join_authority(name, bound)}/hook", bound)

    async def handle(stream: trio.abc.Stream) -> None:
        async with stream:
            await receiver.serve(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        try:
            yield receiver
        finally:
            nursery.cancel_scope.cancel()


NEVER = Answer(delay=math.inf)
"""No answer at all: the connection stands, and nothing comes."""
