"""roomtone_webhook: signed, in order, acknowledged by a 2xx and by nothing else, and silent about its secrets."""

import base64
import contextlib
import logging
import os
import ssl
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from standardwebhooks import Webhook as Verifier

from roomtone import Audio, Durable, Gap, Turn, Unprocessable, encode
from roomtone.sinks import LONGEST_WAIT
from roomtone_webhook import Webhook
from roomtone_webhook.address import Address
from roomtone_webhook.poster import Undelivered
from roomtone_webhook.response import describe, excerpt, retry_after
from support.journal import Numbering, accept, context, deliver_all
from support.receiver import NEVER, Answer, Post, open_receiver

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OLD_SECRET = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


def turns(count: int) -> list[Durable]:
    numbering = Numbering()
    return [
        numbering.commit(
            Turn(
                room="desk",
                position=16_000 * index,
                at=NOON + timedelta(seconds=index),
                session_id="s",
                turn_order=index,
                text=f"Grüße {index}",
            )
        )
        for index in range(count)
    ]


async def deliver(sink: Webhook, folder: Path, events: Iterable[Durable]) -> None:
    """One life of the sink with one batch."""
    async with sink.open(context(folder)) as plugin:
        poster: Any = plugin
        for event in events:
            await poster.event(event)
        await poster.flush()


async def test_one_event_is_one_post(tmp_path: Path) -> None:
    """Each event is posted as it is encoded, in order, over one connection, by a client that says who it is."""
    events = turns(3)
    async with open_receiver() as receiver:
        await deliver(Webhook(url=f"{receiver.url}?room=desk&k=1"), tmp_path, events)
        assert [post.body for post in receiver.accepted] == [encode(event) for event in events]
        assert receiver.connections == 1
    post = receiver.accepted[0]
    assert post.target == "/hook?room=desk&k=1"
    assert post.headers["content-type"] == "application/json"
    assert post.headers["user-agent"].startswith("roomtone/")
    assert post.headers["webhook-id"] == events[0].id
    assert "webhook-signature" not in post.headers


async def test_hooks_are_spelt_right(tmp_path: Path) -> None:
    """The daemon accepts every hook of the sink."""
    async with Webhook(url="http://localhost/").open(context(tmp_path)) as plugin:
        accept(plugin)


@pytest.mark.parametrize("batch", [1, 2])
async def test_a_receiver_can_verify(tmp_path: Path, batch: int) -> None:
    """The signature is the one of Standard Webhooks, with the new secret and the old while they change."""
    (tmp_path / "new").write_text(SECRET + "\n")
    (tmp_path / "new").chmod(0o600)
    (tmp_path / "old").write_text(OLD_SECRET.removeprefix("whsec_"))
    (tmp_path / "old").chmod(0o600)
    async with open_receiver() as receiver:
        await deliver(Webhook(url=receiver.url, batch=batch, secret_file=("new", "old")), tmp_path, turns(2))
    for post in receiver.accepted:
        for secret in (SECRET, OLD_SECRET):
            assert Verifier(secret).verify(post.body, post.headers) == msgspec.json.decode(post.body)
        assert len(post.headers["webhook-signature"].split()) == 2


async def test_audio_only_when_asked_for(tmp_path: Path) -> None:
    """Segments of audio are left out unless `kinds` names them."""
    audio = Audio(room="desk", position=0, at=NOON, samples=480_000, rate=16_000, file="/spool/0.pcm")
    event = Numbering().commit(audio)
    async with open_receiver() as receiver:
        await deliver(Webhook(url=receiver.url), tmp_path, [event])
        assert receiver.posts == []
        await deliver(Webhook(url=receiver.url, kinds=("audio",)), tmp_path, [event])
        assert [post["kind"] for post in receiver.events] == ["audio"]


async def test_arrays(tmp_path: Path) -> None:
    """With a batch of 3, seven events are three arrays, the last of them at the flush; the body names them all."""
    events = turns(7)
    async with open_receiver() as receiver:
        await deliver(Webhook(url=receiver.url, batch=3), tmp_path, events)
    assert [len(post.events) for post in receiver.accepted] == [3, 3, 1]
    assert receiver.events == [msgspec.json.decode(encode(event)) for event in events]


async def test_an_arrays_id_is_of_its_events(tmp_path: Path) -> None:
    """The same events again have the same id; the first of them with others have not, else these would be taken for
    doubled and thrown away.
    """
    events = turns(3)
    async with open_receiver() as receiver:
        for chosen in (events[:2], events[:2], events[:3], events[:1]):
            await deliver(Webhook(url=receiver.url, batch=10), tmp_path, chosen)
    one, again, longer, alone = (post.headers["webhook-id"] for post in receiver.accepted)
    assert one == again
    assert len({one, longer, alone}) == 3
    assert alone == events[0].id
    assert "." not in one + longer  # what is signed is divided by full stops


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_acknowledges(tmp_path: Path, status: int) -> None:
    """Whatever kind of success, and whatever is in its body."""
    async with open_receiver() as receiver:
        receiver.script(Answer(status, body=b"thank you" if status != 204 else b""))
        await deliver(Webhook(url=receiver.url), tmp_path, turns(1))


async def test_an_answer_without_an_end_acknowledges(tmp_path: Path) -> None:
    """A 200 whose body is cut off, or long, was a 200."""

    async def cut_off(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65_536)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + bytes(500_000))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, cut_off, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        await deliver(Webhook(url=url), tmp_path, turns(2))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_refused_for_ever(tmp_path: Path, status: int) -> None:
    """A status about the event sets it aside, with the receiver's own words, short and printable."""
    async with open_receiver() as receiver:
        receiver.script(Answer(status, body=b"no\tsuch \x1b[31mroom\r\n" + b"x" * 5000))
        with pytest.raises(Unprocessable, match=rf"answered {status}: no such \[31mroom x+$") as caught:
            await deliver(Webhook(url=receiver.url), tmp_path, turns(1))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("status", [302, 308, 401, 403, 404, 405, 408, 409, 410, 425, 429, 500, 502, 503, 504])
async def test_refused_for_now(tmp_path: Path, status: int) -> None:
    """A status about the endpoint loses no event: it raises, and the event comes again."""
    async with open_receiver() as receiver:
        receiver.script(Answer(status, headers=(("location", "/elsewhere"),), body=b"sorry"))
        with pytest.raises(Undelivered, match=rf"127\.0\.0\.1:\d+/hook answered {status}") as caught:
            await deliver(Webhook(url=receiver.url), tmp_path, turns(1))
    assert "sorry" not in str(caught.value), "the body may quote what was said"
    assert caught.value.__notes__ == ["sorry"]
    assert len(receiver.posts) == 1, "a redirect was followed"


async def test_nobody_is_set_aside_for_another(tmp_path: Path) -> None:
    """Of a refused array it is not known which event is meant, so none is set aside; alone, the flush may."""
    async with open_receiver() as receiver:
        receiver.otherwise(lambda _: Answer(422, body=b"bad"))
        with pytest.raises(Undelivered, match="answered 422"):
            await deliver(Webhook(url=receiver.url, batch=10), tmp_path, turns(2))
        with pytest.raises(Unprocessable, match="answered 422"):
            await deliver(Webhook(url=receiver.url, batch=10), tmp_path, turns(1))


async def test_what_failed_is_not_flushed(tmp_path: Path) -> None:
    """After an array has failed, a flush that returns has sent what had returned before it, and nothing else: or events
    would be acknowledged that the receiver does not have, or come twice.
    """
    events = turns(2)
    async with open_receiver() as receiver:
        receiver.script(Answer(500), Answer(500))
        async with Webhook(url=receiver.url, batch=2).open(context(tmp_path)) as plugin:
            poster: Any = plugin
            await poster.event(events[0])
            with pytest.raises(Undelivered):
                await poster.event(events[1])
            with pytest.raises(Undelivered):
                await poster.flush()
            await poster.flush()
        assert [event["id"] for event in receiver.events] == [events[0].id]


async def test_no_answer(tmp_path: Path) -> None:
    """A receiver that takes the request and says nothing costs read_timeout, and the error says so."""
    async with open_receiver() as receiver:
        receiver.otherwise(lambda _: NEVER)
        with pytest.raises(Undelivered, match="no answer within read_timeout"):
            await deliver(Webhook(url=receiver.url, read_timeout=0.2), tmp_path, turns(1))


async def test_down_and_back(tmp_path: Path) -> None:
    """Down, reset, and back at the same port: errors in between, then the same event with the same id."""
    events = turns(1)
    async with open_receiver() as receiver:
        receiver.script(Answer(reset=True))
        sink = Webhook(url=receiver.url)
        with pytest.raises(Undelivered, match=r"127\.0\.0\.1:\d+/hook: \w+"):
            await deliver(sink, tmp_path, events)
    with pytest.raises(Undelivered, match="ConnectError"):
        await deliver(sink, tmp_path, events)
    async with open_receiver(port=receiver.port) as back:
        await deliver(sink, tmp_path, events)
    assert back.accepted[0].headers["webhook-id"] == receiver.posts[0].headers["webhook-id"] == events[0].id


async def test_a_wish_is_handed_over(tmp_path: Path) -> None:
    """When a receiver says when to come again, the error says it to the delivery; 410 alone means: in an hour."""
    wishes = []
    async with open_receiver() as receiver:
        later = ("retry-after", "7")
        receiver.script(Answer(429, headers=(later,)), Answer(503, headers=(later,)), Answer(500), Answer(410))
        for _ in range(4):
            with pytest.raises(Undelivered) as caught:
                await deliver(Webhook(url=receiver.url), tmp_path, turns(1))
            wishes.append(caught.value.retry_after)
    assert wishes == [7.0, 7.0, 0.0, LONGEST_WAIT]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("1000000", 3600.0),
        ("9" * 500, 3600.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("soon", 0.0),
        ("Sat, 01 Mar 2025 12:01:30 GMT", 90.0),
        ("Sat, 01 Mar 2025 12:01:30 -0000", 90.0),
        ("Fri, 28 Feb 2025 12:00:00 GMT", 0.0),
        ("Fri, 99 Feb 2025 12:00:00 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    """Seconds or a date, at most an hour; nonsense is as if nothing had been said."""
    assert retry_after(503, value, NOON) == seconds


async def test_secrets_are_seen_by_the_receiver_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """User, password and query of the address, and headers from files, arrive; no log or error line has them."""
    caplog.set_level(logging.DEBUG)
    (tmp_path / "token").write_text("Bearer hidden-token\n")
    (tmp_path / "token").chmod(0o600)
    errors = []
    async with open_receiver() as receiver:
        address = receiver.url.replace("http://", "http://joe:hidden-word@") + "?key=hidden-key"
        sink = Webhook(url=address, header_files={"X-Token": "token"})
        await deliver(sink, tmp_path, turns(1))
        for answer in (Answer(500), Answer(422), Answer(302, headers=(("location", "/x"),)), Answer(reset=True)):
            receiver.script(answer)
            with pytest.raises((Undelivered, Unprocessable)) as caught:
                await deliver(sink, tmp_path, turns(1))
            errors.append(str(caught.value) + repr(caught.value.__cause__))
    with pytest.raises(Undelivered) as caught:
        await deliver(sink, tmp_path, turns(1))
    errors.append(str(caught.value) + repr(caught.value.__cause__))
    post = receiver.accepted[0]
    assert post.target == "/hook?key=hidden-key"
    assert base64.b64decode(post.headers["authorization"].removeprefix("Basic ")) == b"joe:hidden-word"
    assert post.headers["x-token"] == "Bearer hidden-token"
    assert "HTTP Request: POST" in caplog.text, "the library does not log addresses any more"
    assert "hidden" not in caplog.text + "".join(errors) + repr(sink) + repr(Address(address))


async def test_the_address_itself_as_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An address from a file is shown up to its host, for its path is the password."""
    caplog.set_level(logging.DEBUG)
    async with open_receiver() as receiver:
        (tmp_path / "address").write_text(receiver.url.replace("/hook", "/services/hidden/path") + "\n")
        (tmp_path / "address").chmod(0o600)
        sink = Webhook(url_file="address")
        await deliver(sink, tmp_path, turns(1))
        receiver.script(Answer(500))
        with pytest.raises(Undelivered, match=r"^http://127\.0\.0\.1:\d+/ answered 500") as caught:
            await deliver(sink, tmp_path, turns(1))
    assert receiver.accepted[0].target == "/services/hidden/path"
    assert "hidden" not in caplog.text + str(caught.value)


async def test_loopback_has_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy is used, but not for this machine, which it could not reach."""
    async with open_receiver() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with open_receiver() as receiver:
            await deliver(Webhook(url=receiver.url), tmp_path, turns(1))
            await deliver(Webhook(url=receiver.url.replace("127.0.0.1", "localhost")), tmp_path, turns(1))
            assert len(receiver.accepted) == 2
        await deliver(Webhook(url="http://recorder.invalid/hook?key=1"), tmp_path, turns(1))
    assert [post.target for post in proxy.posts] == ["http://recorder.invalid/hook?key=1"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = [*make.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", "-", "-out", "-"]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    path.write_bytes(done.stdout)
    return path


async def test_tls_with_an_own_certificate(tmp_path: Path, certificate: Path) -> None:
    """`ca_file` makes a certificate of one's own trusted; without it nothing is sent."""
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(certificate)
    async with open_receiver(trust=trust) as receiver:
        with pytest.raises(Undelivered, match="CERTIFICATE_VERIFY_FAILED"):
            await deliver(Webhook(url=receiver.url), tmp_path, turns(1))
        assert receiver.posts == []
        await deliver(Webhook(url=receiver.url, ca_file=str(certificate)), tmp_path, turns(1))
        assert len(receiver.accepted) == 1


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({}, "url"),
        ({"url": "https://a/", "url_file": "b"}, "url"),
        ({"url": "joe:hidden@host/path"}, "url"),
        ({"url": "ftp://joe:hidden@host/"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://joe:hidden@host:port/"}, "url"),
        ({"url": "https://joe:hidden@host:65536/"}, "url"),
        ({"url": "https://joe:hidden@host name/"}, "url"),
        ({"url": "https://a/", "read_timeout": 30}, "timeout"),
        ({"url": "https://a/", "batch": 0}, "batch"),
        ({"url": "https://a/", "header_files": {"X Y": "f"}}, "header_files"),
        ({"url": "https://a/", "header_files": {"Webhook-Id": "f"}}, "header_files"),
        ({"url": "https://a/", "secret": "hidden"}, "secret"),
    ],
)
def test_wrong_tables_are_refused(table: dict[str, Any], named: str) -> None:
    """A mistake is named by its key, before anything runs, and secrets are not repeated."""
    with pytest.raises(msgspec.ValidationError, match=named) as caught:
        msgspec.convert({"kind": "webhook"} | table, Webhook)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ({"url": "http://a/", "secret_file": "file"}, "hidden secret!"),
        ({"url": "http://a/", "secret_file": "file"}, ""),
        ({"url": "http://a/", "secret_file": "file"}, None),
        ({"url": "http://a/", "header_files": {"X-Token": "file"}}, "hidden\nX-Injected: 1"),
        ({"url": "http://a/", "ca_file": "file"}, "hidden"),
        ({"url": "http://a/", "ca_file": "file"}, None),
        ({"url_file": "file"}, "hidden"),
        ({"url_file": "file"}, None),
    ],
)
async def test_wrong_files_are_named(tmp_path: Path, table: dict[str, Any], content: str | None) -> None:
    """A file that is missing or holds something else is named with its key when the sink opens, and not quoted."""
    if content is not None:
        (tmp_path / "file").write_text(content)
        (tmp_path / "file").chmod(0o600)
    sink = msgspec.convert({"kind": "webhook"} | table, Webhook)
    key = list(table)[-1]
    with pytest.raises((OSError, ValueError), match=rf"{key}.*{os.sep}file") as caught:
        await deliver(sink, tmp_path, [])
    assert "hidden" not in str(caught.value)


def test_an_answer_for_a_person() -> None:
    """An answer is shown in one line with what to do about it."""
    assert describe(401) == "answered 401 (check secret_file and header_files)"
    assert describe(301) == "answered 301 (set url to the address that it redirects to)"
    assert describe(500) == "answered 500"
    assert excerpt(b"Moved\n\nhere") == "Moved here"
    assert excerpt(b"\xff\xfe broken") == "\ufffd\ufffd broken"


async def test_the_receiver_of_these_tests_counts_once(tmp_path: Path) -> None:
    """The fake itself: an event that comes twice is one event to who waits, and stands twice in what came."""
    gap = Gap(room="desk", position=5, at=NOON, start=5, end=5, from_=NOON, until=NOON, cause="device")
    async with open_receiver() as receiver:
        sink = Webhook(url=receiver.url)
        for _ in range(2):
            await deliver(sink, tmp_path, [Numbering().commit(gap)])
        await receiver.wait_accepted(1)
        await receiver.wait_posts(2)
        assert len(receiver.events) == 2


@pytest.mark.parametrize("batch", [1, 4])
async def test_by_the_daemons_delivery(tmp_path: Path, batch: int) -> None:
    """Through the journal and the delivery: all in order, and only the event that is refused is set aside."""

    def judge(post: Post) -> Answer:
        return Answer(422 if any(event["turn_order"] == 5 for event in post.events) else 200)

    async with open_receiver() as receiver:
        receiver.otherwise(judge)
        receiver.script(Answer(503), Answer(reset=True))
        sink = Webhook(url=receiver.url, batch=batch, start="oldest")
        assert await deliver_all(sink, tmp_path, turns(4)) == []
        (refusal,) = await deliver_all(sink, tmp_path, turns(9))
    assert (refusal.seq, refusal.reason) == (4 + 6, f"{receiver.url} answered 422")
    # An array that came and was not acknowledged may come again; without these the order is that of the journal.
    seen = list(dict.fromkeys(event["seq"] for event in receiver.events))
    assert seen == [seq for seq in range(1, 14) if seq != 10]


async def test_nothing_comes_twice_that_was_answered(tmp_path: Path) -> None:
    """Through the delivery, one event to a post, past every sort of bad answer: in order, and none is accepted twice,
    for each success was heard. What was posted in vain came again with its own id.
    """
    bad = [Answer(500), Answer(429, headers=(("retry-after", "1"),)), Answer(reset=True), NEVER, Answer(503)]
    async with open_receiver() as receiver:
        receiver.script(Answer(), *bad[:2], Answer(), Answer(), *bad[2:])
        sink = Webhook(url=receiver.url, start="oldest", read_timeout=3.0)
        assert await deliver_all(sink, tmp_path, turns(8)) == []
    assert [event["seq"] for event in receiver.events] == list(range(1, 9))
    assert [post.events[0]["seq"] for post in receiver.posts] == [1, 2, 2, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8]
    assert all(post.headers["webhook-id"] == post.events[0]["id"] for post in receiver.posts)


async def test_what_was_accepted_before_a_failed_flush_is_not_sent_again(tmp_path: Path) -> None:
    """When a later array and the flush fail, nothing of the batch is acknowledged: the earlier array comes again and
    is known, over a restart, until an event after it has been accepted.
    """
    events = turns(7)
    async with open_receiver() as receiver:
        receiver.script(Answer(), Answer(500), Answer(500))
        with pytest.raises(Undelivered):
            await deliver(Webhook(url=receiver.url, batch=2), tmp_path, events[:3])
        async with Webhook(url=receiver.url, batch=2).open(context(tmp_path)) as plugin:
            poster: Any = plugin
            for event in events[:3]:
                await poster.event(event)
            with pytest.raises(Undelivered):
                await poster.flush()
        await deliver(Webhook(url=receiver.url, batch=2), tmp_path, events)
        assert [event["id"] for event in receiver.events] == [event.id for event in events]
        assert not (tmp_path / "state/archive/accepted.json").exists()
        await deliver(Webhook(url=receiver.url), tmp_path, events[:1])  # a replay
        assert len(receiver.events) == 8
