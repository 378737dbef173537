"""A webhook receiver for the demo: it accepts every event and keeps only the count."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import h11
import trio

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Bytes of one request. Only the daemon's own sink posts here; the limit is for other programs on the machine."""
IDLE_TIMEOUT_S: Final = 60.0
"""Seconds after which a silent connection is closed."""


class Receiver:
    """Serves on loopback. `url` is for the sink, `posts` counts the requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.posts = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection, one request after the other, until it is closed or fails."""
        connection = h11.Connection(h11.SERVER)
        try:
            async with stream:
                while await self._take_request(connection, stream):
                    connection.start_next_cycle()
        except (h11.ProtocolError, trio.BrokenResourceError, trio.TooSlowError):
            return  # the client repeats the request

    async def _take_request(self, connection: h11.Connection, stream: trio.SocketStream) -> bool:
        """Read a request and accept a POST. Returns True if another request may follow on this connection."""
        method, size = b"", 0
        while True:
            event = connection.next_event()
            match event:
                case h11.Request():
                    method = event.method
                case h11.Data():
                    size += len(event.data)
                    if size > MAX_BODY_BYTES:
                        return False
                case h11.EndOfMessage():
                    break
                case h11.ConnectionClosed():
                    return False
                case _:
                    with trio.fail_after(IDLE_TIMEOUT_S):
                        connection.receive_data(await stream.receive_some())
        is_post = method == b"POST"
        self.posts += is_post
        answer = h11.Response(status_code=204 if is_post else 405, headers=[])
        for part in (answer, h11.EndOfMessage()):
            await stream.send_all(connection.send(part) or b"")
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE


@asynccontextmanager
async def open_receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port of 127.0.0.1, until the end of the context."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        receiver = Receiver(f"http://127.0.0.1:{port}/events")
        nursery.start_soon(trio.serve_listeners, receiver.serve, [listener])
        yield receiver
        nursery.cancel_scope.cancel()
