"""Which way leads to an address: the environment's variables, whatever stands in them."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.proxy import NetworkError, Proxy, find_proxy, is_loopback, join_authority, split_authority

WSS = "wss://streaming.example.org/v3/ws"
HTTP, HTTPS = Proxy("HTTP_PROXY", "http", "a", 1), Proxy("HTTPS_PROXY", "http", "b", 2)


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        (WSS, {}, None),
        (WSS, {"HTTPS_PROXY": "http://b:2", "HTTP_PROXY": "http://a:1"}, HTTPS),
        ("https://example.org/x", {"https_proxy": "b:2", "HTTPS_PROXY": "http://c:3"}, HTTPS),
        ("ws://example.org", {"HTTP_PROXY": "http://a:1"}, HTTP),
        ("http://example.org:8080", {"HTTP_PROXY": "http://a:1/"}, HTTP),
        (WSS, {"HTTP_PROXY": "http://a:1"}, None),
        (WSS, {"ALL_PROXY": "http://b:2"}, HTTPS._replace(variable="ALL_PROXY")),
        (WSS, {"https_proxy": "", "HTTPS_PROXY": "http://b:2"}, None),
        (WSS, {"HTTPS_PROXY": " "}, None),
        (WSS, {"HTTPS_PROXY": "https://b"}, Proxy("HTTPS_PROXY", "https", "b", 443)),
        (WSS, {"HTTPS_PROXY": "http://[::1]:8080"}, Proxy("HTTPS_PROXY", "http", "::1", 8080)),
        ("ws://localhost:1", {"HTTP_PROXY": "http://a:1"}, None),
        ("ws://app.localhost:1", {"HTTP_PROXY": "http://a:1"}, None),
        ("ws://127.0.0.2:1", {"HTTP_PROXY": "http://a:1"}, None),
        ("http://[::1]:8080/", {"HTTP_PROXY": "http://a:1"}, None),
    ],
)
def test_the_proxy_of_an_address(url: str, environ: dict[str, str], proxy: Proxy | None) -> None:
    """By its scheme, in lower case first; none for this machine, and none where the variable is empty."""
    assert find_proxy(url, environ) == proxy


@pytest.mark.parametrize(
    ("exempt", "url", "is_direct"),
    [
        ("*", WSS, True),
        ("example.org", WSS, True),
        (".example.org", WSS, True),
        ("*.example.org", WSS, True),
        ("EXAMPLE.org", WSS, True),
        ("a.b, streaming.example.org", WSS, True),
        ("a.b streaming.example.org", WSS, True),
        ("streaming.example.org:443", WSS, True),
        ("streaming.example.org:80", WSS, False),
        ("ample.org", WSS, False),
        (".streaming.example.org", WSS, False),
        ("10.0.0.0/8", "ws://10.1.2.3:80", True),
        ("10.0.0.0/8", "ws://11.1.2.3:80", False),
        ("10.1.2.3", "ws://10.1.2.3:80", True),
        ("fd00::/8", "ws://[fd00::1]:80", True),
        ("[fd00::1]", "ws://[fd00::1]:80", True),
        ("[fd00::1]:80", "ws://[fd00::1]:80", True),
        ("[fd00::1]:81", "ws://[fd00::1]:80", False),
        ("fd00::1", "ws://[fd00::1]:80", True),
        (",, ,", WSS, False),
        ("443:" * 30_000, WSS, False),
    ],
)
def test_what_no_proxy_exempts(exempt: str, url: str, *, is_direct: bool) -> None:
    """A name and all below it, an address, a network, each with a port or without; commas or spaces between them."""
    environ = {"NO_PROXY": exempt, "ALL_PROXY": "http://a:1"}
    assert (find_proxy(url, environ) is None) == is_direct


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("socks5://127.0.0.1:1080", "ALL_PROXY names a SOCKS proxy"),
        ("socks5h://joe:hidden@127.0.0.1:1080", "not supported; name an HTTP proxy"),
        ("socks://127.0.0.1", "SOCKS"),
        ("ftp://joe:hidden@x", "does not contain a proxy URL; write http://host:port"),
        ("http://joe:hidden@[::1", "proxy URL"),
        ("http://joe:hidden@x:99999", "proxy URL"),
        ("http://joe:hidden", "proxy URL"),
        ("http://joe:hid/den@x:1", "proxy URL"),
        ("http://", "proxy URL"),
        ("http://exa mple:1", "proxy URL"),
        ("http://[::1%lo]:1", "proxy URL"),
        ("\x1b[2J", "proxy URL"),
        ("://", "proxy URL"),
    ],
)
def test_a_proxy_that_cannot_be_used(value: str, says: str) -> None:
    """The error names the variable and what to do, and shows nothing of what stands in it."""
    with pytest.raises(NetworkError, match=says) as refused:
        find_proxy(WSS, {"ALL_PROXY": value})
    assert "hid" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
_MADE = st.lists(st.sampled_from(["http://", "joe", ":", "@", "[", "]", "::1", "/", "%2", "8080", ",", "*", "."])).map(
    "".join
)


@given(_TEXT | _MADE, _TEXT | _MADE)
def test_any_environment_is_a_way_or_an_error(value: str, exempt: str) -> None:
    """Whatever the variables hold, there is a proxy, or none, or one error that says so."""
    proxy = None
    with contextlib.suppress(NetworkError):
        proxy = find_proxy(WSS, {"HTTPS_PROXY": value, "NO_PROXY": exempt})
    assert proxy is None or split_authority(proxy.url) == (proxy.host, proxy.port)


def test_credentials_show_themselves_to_nobody() -> None:
    """User and password are decoded for the proxy, and are in nothing that is printed."""
    proxy = find_proxy(WSS, {"HTTPS_PROXY": "http://joe%40x:hid%2Fden%20%C3%BC@proxy:3128"})

    assert proxy is not None
    assert proxy.authorization is not None
    scheme, encoded = proxy.authorization.reveal().split()
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", "joe@x:hid/den ü")
    assert proxy.url == "http://proxy:3128"
    assert encoded not in repr(proxy) + str(proxy)


def test_hosts_and_ports() -> None:
    """An address is divided and put together with the brackets of IPv6 where they belong."""
    assert split_authority("ws://[::1]:8080/v3/ws") == ("::1", 8080)
    assert split_authority("https://example.org") == ("example.org", 443)
    assert join_authority(*split_authority("http://[fd00::1]")) == "[fd00::1]:80"
    assert [is_loopback(host) for host in ("::1", "127.9.9.9", "localhost", "10.0.0.1", "localhost.org")] == [
        True,
        True,
        True,
        False,
        False,
    ]
