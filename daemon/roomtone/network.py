"""Connections to other machines: trusted certificates, HTTP clients, and streams.

Every component opens its connections here, when it needs them: an unusable environment fails that component alone, and
is read again at its next attempt. `roomtone check` uses `find_fault`.
"""

import math
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from urllib.parse import urlsplit

import h11
import httpx2
import trio

from roomtone.concurrency import leaves_of
from roomtone.proxy import NetworkError, Proxy, find_proxy, join_authority, split_authority

ENCRYPTED = frozenset({"https", "wss"})


class ProxyFailed(OSError):  # noqa: N818 - it says what is true of the proxy
    """The proxy does not connect to the host. `status` is its answer, or None."""

    def __init__(self, proxy: Proxy, text: str, status: int | None = None) -> None:
        super().__init__(f"the proxy {proxy.url} {text}")
        self.status = status


def read_trust(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """The certificates of the system, and those that $SSL_CERT_FILE and $SSL_CERT_DIR name. It reads files: call it in
    a thread. Raises NetworkError.
    """
    variable, context = "", httpx2.create_ssl_context(trust_env=False)
    try:
        if file := environ.get(variable := "SSL_CERT_FILE"):
            context.load_verify_locations(cafile=file)
        if folders := environ.get(variable := "SSL_CERT_DIR"):
            if not any(map(os.path.isdir, folders.split(os.pathsep))):
                raise NotADirectoryError(0, "is not a folder")
            context.load_verify_locations(capath=folders)
    except ssl.SSLError:
        raise NetworkError(f"${variable} names a file without a certificate in PEM; correct or unset it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NetworkError(f"${variable} cannot be used: {reason}; correct or unset it") from None
    return context


async def _trust(url: str, proxy: Proxy | None) -> ssl.SSLContext:
    """The certificates for this URL; none, and no file is read, if neither it nor the proxy is encrypted."""
    if urlsplit(url).scheme in ENCRYPTED or (proxy is not None and proxy.scheme in ENCRYPTED):
        return await trio.to_thread.run_sync(read_trust)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def read_certificates(path: Path) -> ssl.SSLContext:
    """Only the certificates in this file (PEM). Raises OSError, ssl.SSLError among them."""
    # Not `ssl.create_default_context`, which opens a file for $SSLKEYLOGFILE too.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=path)
    return context


async def find_fault(url: str) -> str | None:
    """The reason why the environment prevents connections to this URL, or None. It does not connect."""
    try:
        await _trust(url, find_proxy(url))
    except (NetworkError, ValueError) as error:
        return str(error)
    return None


@asynccontextmanager
async def open_client(
    url: str,
    *,
    headers: Mapping[str, str],
    timeout: httpx2.Timeout | None,
    auth: tuple[str, str] | None = None,
    trust: ssl.SSLContext | None = None,
) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client for this URL. It trusts `trust`, or else the certificates of the environment.

    Resources: the connections. Raises NetworkError.
    """
    proxy = find_proxy(url)
    if trust is None:
        trust = await _trust(url, proxy)
    async with httpx2.AsyncClient(
        auth=auth,
        headers={**headers, "accept-encoding": "identity"},
        verify=trust,
        timeout=timeout,
        follow_redirects=False,  # a redirect might carry a secret elsewhere
        proxy=None if proxy is None else _as_option(proxy, url, trust),
        # Cookies are not used, and the library's parser fails with an error that quotes them.
        cookies=CookieJar(DefaultCookiePolicy(netscape=False, rfc2965=False)),
        trust_env=False,  # the library refuses a client for whatever is wrong in the environment, needed or not
    ) as client:
        yield client


def _as_option(proxy: Proxy, url: str, trust: ssl.SSLContext) -> httpx2.Proxy:
    host, _ = split_authority(url)
    if ":" in host and urlsplit(url).scheme in ENCRYPTED:
        # httpcore2 2.16 asks for `CONNECT 2001:db8::1:443`, without the brackets.
        raise NetworkError(f"${proxy.variable}: its proxy is not used for an IPv6 address; list that in $NO_PROXY")
    secret = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization.reveal()}
    return httpx2.Proxy(proxy.url, headers=secret, ssl_context=trust if proxy.scheme in ENCRYPTED else None)


async def read_content(response: httpx2.Response, limit: int, timeout_s: float = math.inf) -> bytes:
    """The body as it came, or its beginning: all that came within `timeout_s`, and little more than `limit` bytes.

    Raises httpx2.HTTPError.
    """
    body = bytearray()  # bytes that grow by one byte would be copied for each
    with trio.move_on_after(timeout_s) as enough:
        async for part in response.aiter_raw():
            body += part
            if len(body) > limit:
                enough.cancel()  # leaving the loop instead would leave the library's generators half way
            # The library has no checkpoint between the chunks that it has read, which may be thousands of one byte.
            await trio.lowlevel.cancel_shielded_checkpoint()
    return bytes(body)


async def open_stream(url: str) -> trio.abc.Stream:
    """A stream to the address's host, through the proxy where there is one, with TLS where the scheme says so.

    Raises OSError, of which NetworkError and ProxyFailed are kinds.
    """
    host, port = split_authority(url)
    proxy = find_proxy(url)
    trust = await _trust(url, proxy)
    try:
        host = host.encode("idna").decode()
    except UnicodeError:
        raise OSError(f"{host!r} is not a valid host name") from None
    stream: trio.abc.Stream = await _connect_to(proxy, trust) if proxy else await trio.open_tcp_stream(host, port)
    try:
        if proxy is not None:
            await _tunnel(stream, proxy, join_authority(host, port))
        return await _encrypt(stream, host, trust) if urlsplit(url).scheme in ENCRYPTED else stream
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _connect_to(proxy: Proxy, trust: ssl.SSLContext) -> trio.abc.Stream:
    try:
        stream = await trio.open_tcp_stream(proxy.host, proxy.port)
        return await _encrypt(stream, proxy.host, trust) if proxy.scheme in ENCRYPTED else stream
    except (OSError, UnicodeError, trio.BrokenResourceError) as error:
        raise ProxyFailed(proxy, f"cannot be reached: {'; '.join(causes(error))}") from None


async def _encrypt(stream: trio.abc.Stream, host: str, trust: ssl.SSLContext) -> trio.abc.Stream:
    secure = trio.SSLStream(stream, trust, server_hostname=host, https_compatible=True)
    try:
        # Not left to the first write: there a bad certificate would pass for a lost connection.
        await secure.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error.__cause__, ssl.SSLError):
            raise error.__cause__ from None
        raise
    return secure


async def _tunnel(stream: trio.abc.Stream, proxy: Proxy, target: str) -> None:
    """Ask the proxy for a connection to the target (RFC 9110, 9.3.6). Raises ProxyFailed."""
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", target), ("User-Agent", "roomtone")]
    if proxy.authorization is not None:
        headers.append(("Proxy-Authorization", proxy.authorization.reveal()))
    asked = connection.send(h11.Request(method="CONNECT", target=target, headers=headers)) or b""
    try:
        await stream.send_all(asked + (connection.send(h11.EndOfMessage()) or b""))
        while not isinstance(event := connection.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                data = await stream.receive_some(4096)
                if not data:
                    raise ProxyFailed(proxy, "closed the connection")
                connection.receive_data(bytes(data))
            elif not isinstance(event, h11.InformationalResponse):
                raise ProxyFailed(proxy, "does not answer like a proxy")
    except h11.RemoteProtocolError:
        raise ProxyFailed(proxy, "does not answer like a proxy") from None
    except trio.BrokenResourceError:
        raise ProxyFailed(proxy, "closed the connection") from None
    status = event.status_code
    if not 200 <= status < 300:
        advice = f"; check the user and password in ${proxy.variable}" if status in {401, 407} else ""
        raise ProxyFailed(proxy, f"answered {status} to the request for {target}{advice}", status)
    if connection.trailing_data[0]:
        raise ProxyFailed(proxy, "sends more than its answer")


def causes(error: BaseException) -> list[str]:
    """The reasons for a failed connection: trio tries each address of a name, and reports only that all failed."""
    if error.__cause__ is None:
        return [str(error) or type(error).__name__]
    return sorted({str(leaf) for leaf in leaves_of(error.__cause__)})
