"""Where a room's sessions are opened: AssemblyAI, an address that speaks v3, or the recognizer on this machine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import msgspec
import trio

from roomtone.journal.journal import Journal
from roomtone.protocol import parameters
from roomtone.protocol.messages import RetryAdvice
from roomtone.protocol.parameters import LOCAL
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.proxy import is_loopback
from roomtone.secret import Key
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
    machine takes what it is sent at its own pace. `patience` is how many seconds an answer to a ping may take: a busy
    recognizer answers after the audio before it, a network that is gone never does.
    """

    name: str
    remote: bool
    patience: float
    open: Callable[[], AbstractAsyncContextManager[Connection]]


class Endpoints:
    """Where the sessions of this daemon's rooms are opened. Made by `open_endpoints`."""

    def __init__(self, recognizer: Recognizer, wanted: trio.Event) -> None:
        self._recognizer = recognizer
        self._wanted = wanted

    def choose(self, terms: SessionParameters, rate: int, key: Key | None, *, instead: str | None = None) -> Endpoint:
        """The endpoint of a room, given the terms of its sessions and its rate in Hz; or the one named `instead`.

        Each session is opened under the terms that then hold. The first room that wants the recognizer starts it.
        """
        url = parameters.resolve(instead or terms.streaming.endpoint, has_key=key is not None)
        if url != LOCAL:
            return _remote(url, terms, rate, key)
        self._wanted.set()
        return _local(self._recognizer, terms, rate)


@asynccontextmanager
async def open_endpoints(config: RecognizerConfig, journal: Journal) -> AsyncIterator[Endpoints]:
    """Resources: one recognizer process for all rooms that want one, from the first of them to the context's end."""
    wanted = trio.Event()
    async with open_recognizer(config, report=journal.commit, wanted=wanted) as recognizer:
        yield Endpoints(recognizer, wanted)


def _remote(url: str, terms: SessionParameters, rate: int, key: Key | None) -> Endpoint:
    headers = [("Authorization", key.reveal())] if key is not None and _may_see_key(url) else []

    def open_remote() -> AbstractAsyncContextManager[Connection]:
        return open_connection(f"{url}?{parameters.query(terms.streaming, rate)}", headers=headers)

    return Endpoint(name=_show(url), remote=True, patience=10.0, open=open_remote)


def _may_see_key(url: str) -> bool:
    """The key is for its owner's hosts over TLS, and for this machine; nobody else on the way may read it."""
    parts = urlsplit(url)
    return parts.scheme == "wss" or is_loopback(parts.hostname or "")


def _show(url: str) -> str:
    return next((name for name, address in parameters.ENDPOINTS.items() if address == url), url)


def _local(recognizer: Recognizer, terms: SessionParameters, rate: int) -> Endpoint:
    @asynccontextmanager
    async def open_local() -> AsyncIterator[Connection]:
        try:
            url, headers = await recognizer.address()
        except RecognizerUnavailable as unavailable:
            # Waiting mends it only where a person does: the room is recorded, and is transcribed when there is one.
            raise SessionClosed(None, str(unavailable), RetryAdvice.FATAL, refused=True) from None
        async with open_connection(f"{url}?{parameters.query(terms.streaming, rate)}", headers=headers) as session:
            yield session

    return Endpoint(name=LOCAL, remote=False, patience=120.0, open=open_local)
