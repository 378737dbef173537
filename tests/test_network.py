"""The way to other machines: through a real proxy, by the certificates of the environment, and past what is broken."""

import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from roomtone import Turn
from roomtone.llm.client import LLMClient, RequestFailed, Retryability, Route
from roomtone.network import find_fault, open_stream, read_trust
from roomtone.protocol.close_codes import RetryAdvice as Ending
from roomtone.proxy import NetworkError
from roomtone.speech.connection import open_connection
from roomtone.speech.session_errors import SessionClosed
from roomtone.testing import fake_gateway as fake
from roomtone.testing.encoded_speech import speak
from roomtone.testing.fake_service import open_service
from roomtone_webhook import Webhook
from roomtone_webhook.poster import Undelivered
from support.daemon import COMMAND, SINKS, events, recordings, run, write_wav
from support.journal import Numbering, context
from support.proxy import BEHIND, TinyProxy, make_certificate, open_proxy
from support.receiver import open_receiver

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
PASSWORD = "hid.den"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[TinyProxy]:
    with open_proxy(tmp_path, user=f"joe {PASSWORD}") as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), f"IP:{BEHIND},DNS:localhost")


def listening(certificate: Path) -> ssl.SSLContext:
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificate)
    return trust


@asynccontextmanager
async def serve(
    handle: Callable[[trio.abc.Stream], Awaitable[None]], trust: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server on loopback, with TLS if there is a `trust`; yields its port."""

    async def contained(stream: trio.abc.Stream) -> None:
        try:
            async with stream:
                await handle(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    listeners: list[Any] = list(await trio.open_tcp_listeners(0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    if trust is not None:
        listeners = [trio.SSLListener(one, trust, https_compatible=True) for one in listeners]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, contained, listeners)
        yield port
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def speech_service(certificate: Path) -> AsyncIterator[str]:
    """The fake service behind TLS, at an address that a proxy is asked for."""
    async with open_service(port=None) as service, serve(service.serve, listening(certificate)) as port:
        yield f"wss://{BEHIND}:{port}/v3/ws?sample_rate=16000&encoding=pcm_s16le&speech_model=universal-3-5-pro"


async def begin(url: str) -> SessionClosed | None:
    """The failure of a session there, or None if it begins."""
    try:
        async with open_connection(url):
            return None
    except SessionClosed as over:
        return over


# --- sessions --------------------------------------------------------------------------------------------------------


async def test_a_session_through_a_proxy(proxy: TinyProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that wants a password leads a session over TLS to its host, and one without TLS too."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for variable in ("HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(variable, f"http://joe:hid%2Eden@127.0.0.1:{proxy.port}")
    async with speech_service(certificate) as url, open_service() as plain:
        open_url = f"{plain.url.replace('127.0.0.1', BEHIND)}?{url.partition('?')[2]}"
        assert await begin(url) is None
        assert await begin(open_url) is None
        hosts = [address.split("/")[2] for address in (url, open_url)]
        assert proxy.asked == [f"CONNECT {host} HTTP/1.1" for host in hosts]
        monkeypatch.setenv("NO_PROXY", f"{BEHIND}/32")
        assert await begin(url) is None
        assert len(proxy.asked) == 2


async def test_a_session_through_a_proxy_behind_tls(
    proxy: TinyProxy, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https:// in the variable is TLS to the proxy, and in it that to the service."""

    async def relay(stream: trio.abc.Stream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as far, trio.open_nursery() as nursery:

            async def pump(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
                async for data in source:
                    await target.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, stream, far)
            nursery.start_soon(pump, far, stream)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with (
        serve(relay, listening(certificate)) as port,
        speech_service(certificate) as url,
        open_receiver(trust=listening(certificate)) as receiver,
    ):
        monkeypatch.setenv("https_proxy", f"https://joe:hid%2Eden@localhost:{port}")
        assert await begin(url) is None
        await deliver(receiver.url.replace("localhost", BEHIND), tmp_path)
        assert [line.split()[0] for line in proxy.asked] == ["CONNECT", "CONNECT"]
        monkeypatch.delenv("SSL_CERT_FILE")
        over = await begin(url)
    assert over is not None
    assert over.text.startswith(f"the proxy https://localhost:{port} cannot be reached: ")
    assert "CERTIFICATE_VERIFY_FAILED" in over.text


async def test_a_proxy_that_refuses(proxy: TinyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password is for the operator, an unreachable host is retried; neither text shows a password."""
    url = f"ws://{BEHIND}:9/v3/ws"
    monkeypatch.setenv("HTTP_PROXY", f"http://joe:hidden@127.0.0.1:{proxy.port}")
    over = await begin(url)
    assert over is not None
    assert (over.code, over.advice) == (401, Ending.FATAL)  # tinyproxy's answer where others have 407
    assert str(over).startswith(
        f"401: the proxy http://127.0.0.1:{proxy.port} answered 401 to the request for {BEHIND}:9; check the user"
    )
    monkeypatch.setenv("HTTP_PROXY", f"http://joe:hid%2Eden@127.0.0.1:{proxy.port}")
    passing = await begin(url)
    assert passing is not None
    assert (passing.code, passing.advice) == (500, Ending.BACK_OFF)
    assert "hid" not in str(over) + str(passing)


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is about the proxy, and not about the service."""
    monkeypatch.setenv("HTTP_PROXY", "http://joe:hidden@127.0.0.1:9")
    over = await begin(f"ws://{BEHIND}/v3/ws")
    assert over is not None
    assert over.advice is Ending.BACK_OFF
    assert over.text.startswith("the proxy http://127.0.0.1:9 cannot be reached: ")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200", "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not answer like a proxy"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "does not answer like a proxy"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999999\r\n\r\n", "does not answer like a proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n", "sends more than its answer"),
        (b"HTTP/1.1 999 No\r\nRetry-After: " + b"9" * 5000 + b"\r\n\r\n", "answered 999"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 1000\r\n\r\n", "answered 403"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\n\r\n", "answered 503"),
    ],
)
async def test_a_proxy_that_is_none(answer: bytes, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a proxy answers ends as a session that is over."""

    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    async with serve(handle) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        over = await begin(f"ws://{BEHIND}/v3/ws")
    assert over is not None
    assert says in over.text


async def test_a_silent_proxy(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """The proxy's answer is a part of the ten seconds that a session may take to begin."""

    async def handle(_: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with serve(handle) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        begun = trio.current_time()
        over = await begin(f"ws://{BEHIND}/v3/ws")
    assert over is not None
    assert trio.current_time() == begun + 10


# --- webhooks and language models ------------------------------------------------------------------------------------


async def test_requests_through_a_proxy(
    proxy: TinyProxy, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Webhooks and language models go the same way, with TLS and without."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("ALL_PROXY", f"http://joe:hid%2Eden@127.0.0.1:{proxy.port}")
    request = {"model": "one", "messages": [{"role": "user", "content": "Say this."}], "max_tokens": 10}
    async with (
        open_receiver() as plain,
        open_receiver(trust=listening(certificate)) as secure,
        fake.open_gateway() as models,
    ):
        await deliver(plain.url.replace("127.0.0.1", BEHIND), tmp_path)
        await deliver(secure.url.replace("localhost", BEHIND), tmp_path)
        answer = await LLMClient(10).ask(Route(models.url.replace("127.0.0.1", BEHIND), {}), request)
    assert answer.text == "Say this."
    assert [len(receiver.accepted) for receiver in (plain, secure)] == [1, 1]
    assert [line.split()[0] for line in proxy.asked] == ["POST", "CONNECT", "POST"]


async def test_a_webhook_at_an_ipv6_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in brackets is posted to, whether or not the environment has a proxy for others."""
    async with open_receiver(host="::1") as receiver:
        assert receiver.url.startswith("http://[::1]:")
        await deliver(receiver.url, tmp_path)
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        await deliver(receiver.url, tmp_path)
    assert [post.headers["host"] for post in receiver.accepted] == [f"[::1]:{receiver.port}"] * 2


async def test_a_language_model_at_an_ipv6_address() -> None:
    """The same for the endpoint of a language model."""
    async with fake.open_gateway(host="::1") as models:
        assert models.url.startswith("http://[::1]:")
        request = {"model": "one", "messages": [{"role": "user", "content": "Say this."}], "max_tokens": 10}
        assert (await LLMClient(10).ask(Route(models.url, {}), request)).text == "Say this."


async def test_a_session_at_an_ipv6_address() -> None:
    """The same for a session."""
    async with open_service(port=None) as service:
        listeners = await trio.open_tcp_listeners(0, host="::1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, service.serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            query = "sample_rate=16000&encoding=pcm_s16le&speech_model=universal-3-5-pro"
            assert await begin(f"ws://[::1]:{port}/v3/ws?{query}") is None
            nursery.cancel_scope.cancel()


# --- an environment that cannot be used ------------------------------------------------------------------------------


@pytest.fixture(params=["socks", "no CA file", "no CA", "no CA folder", "a folder as the CA file"])
def broken(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set one variable to what cannot be used; gives its name."""
    (tmp_path / "not.pem").write_text("no certificate")
    variable, value = {
        "socks": ("ALL_PROXY", "socks5://joe:hidden@127.0.0.1:1080"),
        "no CA file": ("SSL_CERT_FILE", "/nonexistent"),
        "no CA": ("SSL_CERT_FILE", str(tmp_path / "not.pem")),
        "no CA folder": ("SSL_CERT_DIR", "/nonexistent:/neither"),
        "a folder as the CA file": ("SSL_CERT_FILE", str(tmp_path)),
    }[request.param]
    monkeypatch.setenv(variable, value)
    return variable


async def test_an_environment_that_cannot_be_used(broken: str, tmp_path: Path) -> None:
    """It fails each component by itself, with the name of the variable; what is mended holds from the next attempt."""
    over = await begin(f"wss://{BEHIND}:9/v3/ws")
    assert over is not None
    assert over.advice is Ending.FATAL
    with pytest.raises(RequestFailed) as failed:
        await LLMClient(5).ask(Route(f"https://{BEHIND}:9/v1", {}), {})
    assert failed.value.verdict is Retryability.FATAL
    with pytest.raises(NetworkError) as refused:
        await deliver(f"https://{BEHIND}:9/", tmp_path)
    fault = await find_fault(f"https://{BEHIND}:9/")
    assert fault is not None
    for text in (str(over), str(failed.value), str(refused.value), fault):
        assert f"${broken} " in text
        assert "hidden" not in text


@pytest.mark.usefixtures("broken")
async def test_this_machine_needs_no_environment(tmp_path: Path, certificate: Path) -> None:
    """A broken environment does not concern an address of this machine without TLS, nor a sink with a CA of its own."""
    async with (
        open_receiver() as receiver,
        open_receiver(trust=listening(certificate)) as secure,
        open_service() as service,
    ):
        assert await find_fault(service.url) is None
        assert await begin(f"{service.url}?sample_rate=16000&encoding=pcm_s16le&speech_model=universal-3-5-pro") is None
        await deliver(receiver.url, tmp_path)
        await deliver(secure.url, tmp_path, ca_file=str(certificate))


async def test_variables_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of other programs are ignored."""
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE", "FTP_PROXY"):
        monkeypatch.setenv(variable, "/nonexistent/file")
    monkeypatch.setenv("NO_PROXY", "http://[::1, 999.0.0.0/99, ::1]")
    assert await find_fault(f"wss://{BEHIND}:9/v3/ws") is None
    with pytest.raises(Undelivered):
        await deliver("https://127.0.0.1:9/", tmp_path)


def test_certificates_of_the_environment(certificate: Path) -> None:
    """They are believed beside those of the system."""
    system = len(read_trust({}).get_ca_certs())
    assert len(read_trust({"SSL_CERT_FILE": str(certificate)}).get_ca_certs()) == system + 1
    assert len(read_trust({"SSL_CERT_DIR": f"/nonexistent:{certificate.parent}"}).get_ca_certs()) == system


async def test_a_host_that_is_none() -> None:
    """A name that no host can have is an OSError as any other."""
    for host in ("a..b", "x" * 64, "ä" * 70):
        with pytest.raises(OSError, match="is not a valid host name"):
            await open_stream(f"ws://{host}:80/")


# --- bodies ----------------------------------------------------------------------------------------------------------


async def test_a_body_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body in chunks of one byte takes time in proportion to its length, and the loop turns meanwhile."""
    pieces = 20_000
    body = b"1\r\nx\r\n" * pieces + b"0\r\n\r\n"

    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with serve(handle) as port, trio.open_nursery() as nursery:
        nursery.start_soon(count)
        with pytest.raises(RequestFailed, match="no JSON"):
            await LLMClient(60).ask(Route(f"http://127.0.0.1:{port}/", {}), {})
        nursery.cancel_scope.cancel()
    assert turns >= pieces


# --- the daemon ------------------------------------------------------------------------------------------------------

PROMPT = """
[analysis.summary]
prompt = "Sum up: {{transcript}}"
model = "one"
"""
OWN = '[gateway]\nendpoint = "https://models.example.org/"\nkey_file = "absent.key"\n'


@pytest.mark.parametrize(
    ("tables", "environ", "subject", "says"),
    [
        (PROMPT, {}, "analysis summary", "needs a key; set $ASSEMBLYAI_API_KEY"),
        (PROMPT + OWN, {}, "analysis summary", "key_file: "),
        (PROMPT, {"ASSEMBLYAI_API_KEY": "k", "ALL_PROXY": "socks5://127.0.0.1:1080"}, "analysis summary", "$ALL_PROXY"),
        (PROMPT, {"ASSEMBLYAI_API_KEY": "k", "SSL_CERT_FILE": "/nonexistent"}, "analysis summary", "$SSL_CERT_FILE"),
        (
            '[rooms.hall]\nsource = { kind = "file", path = "talk.wav" }\n[rooms.hall.streaming]\nendpoint = "wss://x.example.org"\n',
            {"HTTPS_PROXY": "socks5://joe:hidden@127.0.0.1:1080"},
            "room hall",
            "$HTTPS_PROXY names a SOCKS proxy",
        ),
    ],
    ids=["no key", "no key file", "SOCKS", "no CA file", "SOCKS for a session"],
)
async def test_a_way_that_cannot_be_gone_stops_no_recording(
    tables: str, environ: dict[str, str], subject: str, says: str, tmp_path: Path
) -> None:
    """The daemon records, transcribes and delivers what it can; `roomtone check` finds what will not work before."""
    audio = speak([1, 2, 3], 16_000)
    write_wav(tmp_path / "talk.wav", audio)
    async with open_service() as service:
        room = '[rooms.desk]\nsource = { kind = "file", path = "talk.wav", pace = "fast" }\n'
        room += f'[rooms.desk.streaming]\nendpoint = "{service.url}"\n'
        with run(tmp_path, room + SINKS + tables, env=environ) as daemon:
            # Rooms that are files end by themselves, but for one whose words wait for a session.
            while daemon.process.poll() is None and not (  # noqa: ASYNC110 - another process changes it
                events(tmp_path, "turn") and notices(tmp_path, subject)
            ):
                await trio.sleep(0.05)
            daemon.process.send_signal(signal.SIGTERM)
            # It may just have ended by itself, and be past its handlers.
            assert await trio.to_thread.run_sync(daemon.finish) in {0, -signal.SIGTERM}
            log = daemon.log
    assert notices(tmp_path, subject)
    assert events(tmp_path, "turn")
    assert audio in [recorded for _, _, recorded in recordings(tmp_path)]
    checked = await trio.run_process(
        [*COMMAND, "check", "--config", str(tmp_path / "roomtone.toml")],
        env={**os.environ, **environ},
        check=False,
        capture_stdout=True,
    )
    faults = [line for line in checked.stdout.decode().splitlines() if line.startswith("FAULT")]
    assert checked.returncode == 1
    assert [subject in line and says in line for line in faults] == [True]
    assert "hidden" not in log + checked.stdout.decode()


def notices(folder: Path, subject: str) -> bool:
    """True if the trouble with this subject was reported."""
    code = "analysis.refused" if subject.startswith("analysis") else "session.refused"
    return code in {event["code"] for event in events(folder, "notice")}


async def deliver(url: str, folder: Path, **options: str) -> None:
    """One event to this address."""
    turn = Turn(
        room="desk", position=0, at=datetime(2025, 3, 1, tzinfo=UTC), session_id="s", turn_order=0, text="hello"
    )
    async with Webhook(url=url, **options).open(context(folder)) as plugin:  # type: ignore[arg-type] # keys of the table
        await plugin.event(Numbering().commit(turn))  # type: ignore[attr-defined] # a Poster
        await plugin.flush()  # type: ignore[attr-defined] # as above
