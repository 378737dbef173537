"""Who comes in at a port of this machine that every local user, and every page in a local browser, can reach."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import trio

MAX_STRANGERS = 64
"""Connections at a time that have not yet shown what they want. An honest one needs milliseconds for that."""


class Door:
    """Bounds the connections of a listener that have not been let in: one more, and the oldest of them is closed.

    Rejected: to refuse the newest, or to accept none until one leaves. Both keep honest clients out for as long as
    somebody holds idle sockets.
    """

    def __init__(self, most: int = MAX_STRANGERS) -> None:
        self._most = most
        self._strangers: dict[trio.CancelScope, None] = {}

    @contextmanager
    def enter(self) -> Iterator[Callable[[], object]]:
        """The life of one connection, cancelled when it has to give way. Yields what lets it in: it stays from then on,
        and is the caller's to bound.
        """
        with trio.CancelScope() as scope:
            self._strangers[scope] = None
            if len(self._strangers) > self._most:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cancel()
            let_in = partial(self._strangers.pop, scope, None)
            try:
                yield let_in
            finally:
                let_in()


def is_local(host: str | None, origin: str | None) -> bool:
    """True if a request with these headers was meant for this machine. Pure.

    Any site can have a name that leads to 127.0.0.1: its page is then of the same origin as the port that listens
    there, and only the Host header tells. Neither an address nor a name without a dot, which only the own network has,
    is such a name. Programs send no Origin, or the host's.
    """
    try:
        name = urlsplit(f"//{host}").hostname if host is not None else "localhost"
    except ValueError:
        return False
    if not name or ("." in name and not name.endswith(".localhost") and not _is_address(name)):
        return False
    return is_same_origin(host, origin)


def is_same_origin(host: str | None, origin: str | None) -> bool:
    """True if no page of another site asks. Pure."""
    return origin is None or (host is not None and origin.partition("://")[2].lower() == host.lower())


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
