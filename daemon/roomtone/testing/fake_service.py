"""A scripted speech service: v3 as AssemblyAI serves it, with a text that the audio itself determines.

It transcribes the words of `roomtone.testing.encoded_speech`, from the audio that it received, so that each word that a
daemon misses, doubles or misplaces is visible. It is as strict as the service is documented to be (frames of 50 to
1000 ms, values of parameters, the key) and carries out the given faults, see `faults`.

    async with open_service(faults=script({0: [Drop(words=3)]})) as service:
        async with open_session(service.url + "?" + build_query(streaming, rate), connect=service.connect) as session:
            ...
    assert service.sessions[0].numbers == [1, 2, 3]

With `port=None` it opens no socket and lives in memory, so that a test can run on a virtual clock.
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import h11
import trio
import trio.testing
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketRequest, wrap_server_stream
from wsproto.utilities import ProtocolError

from roomtone.testing import faults as fault
from roomtone.testing.fake_connection import FakeConnection, FaultyStream, ServiceRules, SessionRecord
from roomtone.testing.fake_session import Manner
from roomtone.testing.faults import Fault, Faults, fair

_BROKEN = (
    ConnectionClosed,
    HandshakeError,
    h11.ProtocolError,
    ProtocolError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)


class FakeService:
    """A running fake service. `sessions` has every connection that asked for an upgrade, in order.

    `connections` also counts those that did not.
    """

    def __init__(self, url: str, rules: ServiceRules, nursery: trio.Nursery) -> None:
        self.url = url
        self.connections = 0
        self.sessions: list[SessionRecord] = []
        self._rules = rules
        self._nursery = nursery

    async def connect(self, url: str) -> trio.abc.Stream:
        """The `connect` of `open_connection`: a stream in memory to this service, for any address."""
        await trio.lowlevel.checkpoint()
        near, far = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.serve, far)
        return near

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection, from its first byte to its last; its errors are contained here."""
        number = self.connections
        self.connections += 1
        line = FaultyStream(stream)
        try:
            async with trio.open_nursery() as nursery:
                await self._answer(nursery, line, number, self._rules.faults(number))
                nursery.cancel_scope.cancel()
        except* _BROKEN:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, nursery: trio.Nursery, line: FaultyStream, number: int, faults: Sequence[Fault]) -> None:
        for one in faults:
            match one:
                case fault.Deaf():
                    await trio.sleep_forever()
                case fault.HangUp(garbage=garbage):
                    await line.receive_some()
                    await line.send_all(garbage)
                    return
        request = await wrap_server_stream(nursery, line)
        record = self._register(number, request)
        for one in faults:
            if isinstance(one, fault.Refuse):
                record.ended = f"HTTP {one.status}"
                await _refuse(request, line, one)
                return
        try:
            await FakeConnection(record, await request.accept(), line, faults, self._rules).run()
        finally:
            record.ended = record.ended or "broken"
            record.ended_at = trio.current_time()

    def _register(self, number: int, request: WebSocketRequest) -> SessionRecord:
        record = SessionRecord(number, request)
        limit = math.inf if self._rules.sessions_a_minute is None else self._rules.sessions_a_minute
        record.crowded = sum(other.asked_at > record.asked_at - 60 for other in self.sessions) >= limit
        self.sessions.append(record)
        return record


@asynccontextmanager
async def open_service(
    *,
    manner: Manner | None = None,
    faults: Faults = fair,
    key: str | None = None,
    port: int | None = 0,
    rush: float | None = None,
    sessions_a_minute: int | None = None,
    utc: Callable[[], float] = time.time,
) -> AsyncIterator[FakeService]:
    """Serve v3 on 127.0.0.1, at `service.url`, until the context is left; open sessions break then.

    `manner` is its behavior; `key` is the only accepted key, None accepts any. `rush`: more audio than this many times
    real time, after 10 s of grace, ends a session with 3007. `sessions_a_minute`: more new ones than that are refused
    with 3009. `utc` gives the Unix time for `expires_at`.
    """
    rules = ServiceRules(manner or Manner(), faults, key, rush, sessions_a_minute, utc)
    async with trio.open_nursery() as nursery:
        if port is None:
            service = FakeService("ws://service.test/v3/ws", rules, nursery)
        else:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            address = listeners[0].socket.getsockname()
            service = FakeService(f"ws://127.0.0.1:{address[1]}/v3/ws", rules, nursery)
            nursery.start_soon(trio.serve_listeners, service.serve, listeners)
        yield service
        nursery.cancel_scope.cancel()


async def _refuse(request: WebSocketRequest, line: FaultyStream, one: fault.Refuse) -> None:
    headers = [] if one.retry_after is None else [(b"Retry-After", one.retry_after.encode())]
    if one.told:
        await request.reject(one.status, extra_headers=headers, body=b"no")
    else:
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        await line.send_all(b"HTTP/1.1 %d No\r\n%sConnection: close\r\n\r\nno" % (one.status, lines))
