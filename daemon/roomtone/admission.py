"""Admission to a port of this machine: every local user, and every page in a local browser, can reach it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import trio

MAX_PENDING = 64
"""Connections at a time that were not admitted yet. An honest one needs milliseconds for that."""


class Door:
    """Bounds the connections of a listener that were not admitted yet: one more, and the oldest of them is closed.

    Rejected: refusing the newest, or accepting none until one leaves. Both lock honest clients out while an attacker
    holds idle sockets.
    """

    def __init__(self, limit: int = MAX_PENDING) -> None:
        self._limit = limit
        self._pending: dict[trio.CancelScope, None] = {}

    @contextmanager
    def enter(self) -> Iterator[Callable[[], object]]:
        """One connection, which is cancelled when it must give way. Yields a function that admits it: then it stays,
        and the caller bounds it.
        """
        with trio.CancelScope() as scope:
            self._pending[scope] = None
            if len(self._pending) > self._limit:
                oldest = next(iter(self._pending))
                del self._pending[oldest]
                oldest.cancel()
            admit = partial(self._pending.pop, scope, None)
            try:
                yield admit
            finally:
                admit()


def is_local(host: str | None, origin: str | None) -> bool:
    """True if a request with these headers was meant for this machine. Pure.

    Any site can have a name that leads to 127.0.0.1. Its page then has the same origin as the port that listens there,
    and only the Host header shows the difference. An address is never such a name, nor is a name without a dot, which
    exists only in the local network. Programs send no Origin, or the host's.
    """
    try:
        name = urlsplit(f"//{host}").hostname if host is not None else "localhost"
    except ValueError:
        return False
    if not name or ("." in name and not name.endswith(".localhost") and not _is_address(name)):
        return False
    return is_same_origin(host, origin)


def is_same_origin(host: str | None, origin: str | None) -> bool:
    """True if the request is not from a page of another site. Pure."""
    return origin is None or (host is not None and origin.partition("://")[2].lower() == host.lower())


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
