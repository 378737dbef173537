"""The endpoints of a room's sessions: AssemblyAI, a URL that speaks v3, or the recognizer on this machine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import msgspec
import trio

from roomtone.journal.journal import Journal
from roomtone.protocol.close_codes import RetryAdvice
from roomtone.protocol.parameters import ENDPOINTS, LOCAL, build_query, resolve_endpoint
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.proxy import is_loopback
from roomtone.secret import Secret
from roomtone.speech.connection import Connection, open_connection
from roomtone.speech.recognizer_process import (
    Recognizer,
    RecognizerConfig,
    RecognizerUnavailable,
    open_recognizer,
)
from roomtone.speech.session_errors import SessionClosed


class Endpoint(msgspec.Struct, frozen=True):
    """Opens sessions for one room.

    A `remote` endpoint takes little more than real time and costs money while a session is open; the recognizer on this
    machine takes what it is sent at its own pace. `ping_timeout_s` is for the answer to a
    ping: a busy recognizer answers after the audio before it, a broken network never does.
    """

    name: str
    remote: bool
    ping_timeout_s: float
    open: Callable[[], AbstractAsyncContextManager[Connection]]


class Endpoints:
    """The endpoints of this daemon's rooms. Made by `open_endpoints`."""

    def __init__(self, recognizer: Recognizer, wanted: trio.Event) -> None:
        self._recognizer = recognizer
        self._wanted = wanted

    def choose(
        self, parameters: SessionParameters, rate: int, key: Secret | None, *, instead: str | None = None
    ) -> Endpoint:
        """The endpoint of a room, given the parameters of its sessions and its rate in Hz; or the one named `instead`.

        Each session is opened under the parameters that then hold. The first room that wants the recognizer starts it.
        """
        url = resolve_endpoint(instead or parameters.streaming.endpoint, has_key=key is not None)
        if url != LOCAL:
            return _remote(url, parameters, rate, key)
        self._wanted.set()
        return _local(self._recognizer, parameters, rate)


@asynccontextmanager
async def open_endpoints(config: RecognizerConfig, journal: Journal) -> AsyncIterator[Endpoints]:
    """Resources: one recognizer process for all rooms that want one, from the first of them to the context's end."""
    wanted = trio.Event()
    async with open_recognizer(config, report=journal.commit, wanted=wanted) as recognizer:
        yield Endpoints(recognizer, wanted)


def _remote(url: str, parameters: SessionParameters, rate: int, key: Secret | None) -> Endpoint:
    headers = [("Authorization", key.reveal())] if key is not None and _may_see_key(url) else []

    def open_remote() -> AbstractAsyncContextManager[Connection]:
        return open_connection(f"{url}?{build_query(parameters.streaming, rate)}", headers=headers)

    return Endpoint(name=_show(url), remote=True, ping_timeout_s=10.0, open=open_remote)


def _may_see_key(url: str) -> bool:
    """True if the key may be sent: over TLS, or to this machine. Otherwise it could be read on the way."""
    parts = urlsplit(url)
    return parts.scheme == "wss" or is_loopback(parts.hostname or "")


def _show(url: str) -> str:
    return next((name for name, address in ENDPOINTS.items() if address == url), url)


def _local(recognizer: Recognizer, parameters: SessionParameters, rate: int) -> Endpoint:
    @asynccontextmanager
    async def open_local() -> AsyncIterator[Connection]:
        try:
            url, headers = await recognizer.address()
        except RecognizerUnavailable as unavailable:
            # Only the operator can correct this: until then the room is recorded, and transcribed later.
            raise SessionClosed(None, str(unavailable), RetryAdvice.FATAL, refused=True) from None
        async with open_connection(f"{url}?{build_query(parameters.streaming, rate)}", headers=headers) as session:
            yield session

    return Endpoint(name=LOCAL, remote=False, ping_timeout_s=120.0, open=open_local)
