"""The HTTP proxy that the environment sets for a URL, if any. Pure.

Sessions, webhooks and language models all use this, so that $HTTPS_PROXY and $NO_PROXY mean the same to each of them.
"""

import base64
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from roomtone.secret import Secret

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_VARIABLES = {"http": "HTTP_PROXY", "ws": "HTTP_PROXY", "https": "HTTPS_PROXY", "wss": "HTTPS_PROXY"}
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_WITH_PORT = re.compile(r"(\[.*\]|[^:]*):([0-9]+)")


class NetworkError(OSError):
    """A variable of the environment has an unusable value. The text names it, says what to do, and shows no
    password.
    """


class Proxy(NamedTuple):
    """An HTTP proxy, reached over TLS if `scheme` is https. `host` is without brackets."""

    variable: str
    scheme: str
    host: str
    port: int
    authorization: Secret | None = None
    """The value of `Proxy-Authorization`."""

    @property
    def url(self) -> str:
        """Its URL without user and password, for errors and logs."""
        return f"{self.scheme}://{join_authority(self.host, self.port)}"


def join_authority(host: str, port: int) -> str:
    """Host and port as the authority of a URL: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_authority(url: str) -> tuple[str, int]:
    """Host, without brackets, and port of an address. Raises ValueError where it has none."""
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        raise ValueError("the address has no host")
    return parts.hostname, port


def is_loopback(host: str) -> bool:
    """True if the host is this machine, by its address or as `localhost`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_proxy(url: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy for this URL, or None if it is reached directly, as this machine always is.

    A variable in lower case takes precedence over one in upper case. `ws` is `http` here, and `wss` is `https`.
    Raises NetworkError for a proxy that cannot be used, ValueError for an address without a host.
    """
    host, port = split_authority(url)
    if is_loopback(host) or host.endswith(".localhost") or _is_exempt(host, port, _read(environ, "NO_PROXY")):
        return None
    for variable in (_VARIABLES[urlsplit(url).scheme], "ALL_PROXY"):
        if value := _read(environ, variable):
            return _parse(variable, value)
    return None


def _read(environ: Mapping[str, str], variable: str) -> str:
    return environ.get(variable.lower(), environ.get(variable, "")).strip()


def _is_exempt(host: str, port: int, exempt: str) -> bool:
    """True if $NO_PROXY names the host: `*`, a name and all below it, an address, a network; each may have a port."""
    return any(_names(entry, host, port) for entry in re.split(r"[,\s]+", exempt.lower()) if entry)


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    found = _WITH_PORT.fullmatch(entry)
    name = found[1] if found else entry
    if found and found[2] != str(port):
        return False
    try:
        return ip_address(host) in ip_network(name.strip("[]"), strict=False)
    except ValueError:
        below = name.removeprefix("*").removeprefix(".")
        return host == name or host.endswith(f".{below}")


def _parse(variable: str, value: str) -> Proxy:
    """The proxy in this variable. Raises NetworkError for any other text, without quoting it: it may be a secret."""
    wrong = NetworkError(f"${variable} does not contain a proxy URL; write http://host:port")
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        authorization = _authorization(parts)
    except ValueError:
        raise wrong from None
    if scheme.startswith("socks"):
        raise NetworkError(f"${variable} names a SOCKS proxy, which is not supported; name an HTTP proxy there")
    if scheme not in {"http", "https"} or not (_HOST.fullmatch(host) or _is_address(host)) or not port:
        raise wrong
    return Proxy(variable, scheme, host, port, authorization)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _authorization(parts: SplitResult) -> Secret | None:
    if parts.username is None and parts.password is None:
        return None
    user, password = unquote_to_bytes(parts.username or ""), unquote_to_bytes(parts.password or "")
    return Secret(f"Basic {base64.b64encode(user + b':' + password).decode()}")
