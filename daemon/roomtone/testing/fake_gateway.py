"""A scripted language model: chat completions over HTTP that repeat the last message.

It carries out the given mishaps, one for each request in order, and keeps every request. It listens on loopback;
`gateway.transport` serves the same without a socket, so that a test can run on a virtual clock.

    async with open_gateway(mishaps=[Limited(retry_after=2), Empty()]) as gateway:
        ...
    assert [request["model"] for request in gateway.requests] == ["one", "one", "one"]
"""

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import h11
import httpx2
import msgspec
import trio

from roomtone.proxy import join_authority


class Limited(msgspec.Struct, frozen=True):
    """429: too many requests; `retry_after` as the header has it, if there is one."""

    retry_after: str | None = "1"


class StatusReply(msgspec.Struct, frozen=True):
    """This HTTP status, with this body."""

    status: int = 500
    body: bytes = b"<html>no</html>"


class Silent(msgspec.Struct, frozen=True):
    """Accept the request and never answer."""


class CutOff(msgspec.Struct, frozen=True):
    """Close the connection in the middle of the answer."""


class Garbled(msgspec.Struct, frozen=True):
    """200 with one of BODIES, by the name of its fault."""

    body: str


Mishap: TypeAlias = Limited | StatusReply | Silent | CutOff | Garbled | None

BODIES: Final[Mapping[str, bytes]] = {
    "empty": b"",
    "no JSON": b"<html>ok</html>",
    "half": b'{"choices":[{"message":{"content":"ha',
    "no object": b'["hello"]',
    "no choices": b'{"choices":[]}',
    "null choices": b'{"choices":null}',
    "no message": b'{"choices":[{"index":0}]}',
    "null content": b'{"choices":[{"message":{"role":"assistant","content":null}}]}',
    "empty content": b'{"choices":[{"message":{"role":"assistant","content":"  "}}]}',
    "no room": b'{"choices":[{"message":{"content":""},"finish_reason":"length"}],"usage":{"completion_tokens":10}}',
    "error as text": b'{"error":"model not found","status":404,"request_id":"r"}',
    "error as object": b'{"error":{"code":503,"message":"overloaded","metadata":{}}}',
    "error as message": b'{"message":"no access","code":403,"request_id":"r","metadata":{"errors":[]}}',
    "deep": b'{"choices":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "binary": b"\xff\xfe\x00",
    "long": b'{"choices":"' + b"x" * (9 << 20) + b'"}',
}
"""Malformed bodies: none of them is an answer."""


class FakeGateway:
    """A running fake. `requests` has the bodies that came, in order, and `keys` the Authorization of each, or None."""

    def __init__(self, url: str, mishaps: Iterator[Mishap]) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._mishaps = mishaps

    @property
    def transport(self) -> httpx2.AsyncBaseTransport:
        """The same without a socket."""
        return _Transport(self)

    async def answer(self, body: bytes, key: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to this request."""
        request = json.loads(body)
        self.requests.append(request)
        self.keys.append(key)
        match next(self._mishaps, None):
            case Limited(retry_after=wait):
                return 429, {} if wait is None else {"retry-after": wait}, b'{"error":"slow down"}'
            case StatusReply(status=status, body=content):
                return status, {}, content
            case Silent():
                await trio.sleep_forever()
            case CutOff():
                raise httpx2.RemoteProtocolError("the connection is cut")
            case Garbled(body=name):
                return 200, {}, BODIES[name]
        return 200, {"content-type": "application/json"}, _completion(request)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends; its errors are contained here."""
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._exchange(connection, stream):
                connection.start_next_cycle()
        except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _exchange(self, connection: h11.Connection, stream: trio.abc.Stream) -> bool:
        headers: dict[str, str] = {}
        body = b""
        while True:
            event = connection.next_event()
            match event:
                case h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some()))
                case h11.Request():
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage():
                    break
                case _:
                    return False
        try:
            status, more, content = await self.answer(body, headers.get("authorization"))
        except httpx2.RemoteProtocolError:
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            return False
        sizes = [*more.items(), ("content-length", str(len(content)))]
        for event in (h11.Response(status_code=status, headers=sizes), h11.Data(data=content), h11.EndOfMessage()):
            await stream.send_all(connection.send(event) or b"")
        return connection.our_state is h11.DONE


class _Transport(httpx2.AsyncBaseTransport):
    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        status, headers, content = await self._gateway.answer(body, request.headers.get("authorization"))
        return httpx2.Response(status, headers=headers, stream=_Content(content))


class _Content(httpx2.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


@asynccontextmanager
async def open_gateway(
    *, mishaps: Iterable[Mishap] = (), port: int | None = 0, host: str = "127.0.0.1"
) -> AsyncIterator[FakeGateway]:
    """Serve chat completions on loopback, at `gateway.url`, until the context is left; `port=None`: without a socket.

    Each request gets the next mishap; None, or the end of the mishaps, is an answer.
    """
    async with trio.open_nursery() as nursery:
        if port is None:
            yield FakeGateway("http://gateway.test/v1/chat/completions", iter(mishaps))
        else:
            listeners = await trio.open_tcp_listeners(port, host=host)
            address = join_authority(host, listeners[0].socket.getsockname()[1])
            gateway = FakeGateway(f"http://{address}/v1/chat/completions", iter(mishaps))
            nursery.start_soon(trio.serve_listeners, gateway.serve, listeners)
            yield gateway
        nursery.cancel_scope.cancel()


def _completion(request: Mapping[str, Any]) -> bytes:
    """The model repeats the last message, up to `max_tokens`. A token is a word here."""
    asked = str(request["messages"][-1]["content"])
    if len(asked.split()) > request["max_tokens"]:
        asked = " ".join(asked.split()[: request["max_tokens"]])
    said = sum(len(str(message["content"]).split()) for message in request["messages"])
    body = {
        "id": "c",
        "object": "chat.completion",
        "model": request["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": asked}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": said, "completion_tokens": len(asked.split()), "total_tokens": said},
    }
    return json.dumps(body).encode()
