"""The whole way to a receiver that fails in every manner: each event at least once, in order, doubled only where an
answer was lost; and a backlog that does not live in memory.
"""

import base64
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio
from standardwebhooks import Webhook as Verifier

from roomtone import Notice, Sink
from roomtone.delivery.runner import SinkRunner
from roomtone.journal.journal import Journal, open_journal
from roomtone.live import Live
from roomtone_jsonl import Jsonl
from roomtone_webhook import Webhook
from support.journal import context
from support.receiver import NEVER, Answer, Post, Receiver, open_receiver

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def notice(text: str = "") -> Notice:
    return Notice(room="desk", position=0, at=NOON, severity="info", code="test.made", text=text)


@asynccontextmanager
async def delivered(sink: Sink, folder: Path, journal: Journal, *, name: str = "archive") -> AsyncIterator[None]:
    """The daemon's delivery to the sink; leaving waits until the sink has everything."""
    runner = SinkRunner(sink, context(folder, name=name), journal=journal, live=Live())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        yield
        runner.finish()


def seqs(posts: list[Post]) -> list[int]:
    return [event["seq"] for post in posts for event in post.events]


def assert_in_order(receiver: Receiver, count: int) -> None:
    """Every event was accepted, for the first time in the order of the journal, whatever came again in between."""
    assert list(dict.fromkeys(seqs(receiver.accepted))) == list(range(1, count + 1))
    for before, after in pairwise(dict.fromkeys(seqs(receiver.posts))):
        assert before < after


TROUBLE = (
    Answer(500),
    Answer(429, headers=(("retry-after", "0"),)),
    Answer(reset=True),
    Answer(503, headers=(("retry-after", "1"),)),
    Answer(302, headers=(("location", "/elsewhere"),)),
    Answer(200, delay=0.3),
    NEVER,
    Answer(401),
)


@pytest.mark.parametrize("batch", [1, 5])
async def test_a_receiver_that_fails_in_every_manner(tmp_path: Path, batch: int) -> None:
    """Down, slow, silent, reset, 500, 429, redirects, and back at the same port: all 60 events, each verified by the
    receiver's own library, and not one accepted twice, for no answer that was given was lost.
    """
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    async with open_receiver() as first:
        url, port = first.url, first.port
    sink = Webhook(
        url=url, secret_file="secret", batch=batch, start="oldest", connect_timeout=0.5, read_timeout=0.5, timeout=1.5
    )
    async with open_journal(tmp_path / "journal.db") as journal:
        await journal.commit(*[notice(str(number)) for number in range(30)])
        with trio.fail_after(250):
            async with delivered(sink, tmp_path, journal):
                await trio.sleep(0.2)  # down
                async with open_receiver(port=port) as receiver:
                    receiver.script(*(answer for trouble in TROUBLE for answer in (trouble, Answer())))
                    await journal.commit(*[notice(str(number)) for number in range(30)])
                    await receiver.wait_accepted(60)
    assert_in_order(receiver, 60)
    assert len(seqs(receiver.accepted)) == 60
    assert len(receiver.posts) == len(receiver.accepted) + len(TROUBLE) - 1  # all but the slow one
    for post in receiver.posts:
        assert Verifier(SECRET).verify(post.body, post.headers) == msgspec.json.decode(post.body)


async def test_gone_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """410 sets nothing aside: the events wait for as long as the delivery grants, and all come in the end."""
    monkeypatch.setattr("roomtone.delivery.errors.LONGEST_WAIT", 0.3)  # the hour, shortened
    async with open_receiver() as receiver, open_journal(tmp_path / "journal.db") as journal:
        receiver.script(Answer(), Answer(410), Answer(410))
        await journal.commit(*[notice() for _ in range(5)])
        with trio.fail_after(60):
            async with delivered(Webhook(url=receiver.url, start="oldest"), tmp_path, journal):
                await receiver.wait_accepted(5)
        assert_in_order(receiver, 5)
        assert seqs(receiver.posts) == [1, 2, 2, 2, 3, 4, 5]
        assert await journal.refused("archive") == []


@pytest.mark.parametrize("batch", [1, 4])
async def test_doubled_only_where_an_answer_was_lost(tmp_path: Path, batch: int) -> None:
    """A receiver that has taken a request and is reset before its answer gets this one again, with the same id."""
    async with open_receiver() as receiver, open_journal(tmp_path / "journal.db") as journal:
        receiver.script(Answer(), Answer(reset=True))
        await journal.commit(*[notice() for _ in range(12)])
        with trio.fail_after(60):
            async with delivered(Webhook(url=receiver.url, batch=batch, start="oldest"), tmp_path, journal):
                await receiver.wait_accepted(12)
    assert_in_order(receiver, 12)
    lost = receiver.posts[1]
    again = {seq for seq in seqs(receiver.posts) if seqs(receiver.posts).count(seq) > 1}
    assert again == set(seqs([lost]))
    if batch == 1:
        assert [post.headers["webhook-id"] for post in receiver.posts].count(lost.headers["webhook-id"]) == 2


def _peak() -> int:
    """The most memory that this process has ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_a_backlog_does_not_live_in_memory(tmp_path: Path) -> None:
    """50,000 events of 2 kB, 100 MB, wait in the journal and go to a file and a receiver in far less memory than they
    are; the million is in tests/bench/sinks.py.
    """
    count, accepted = 50_000, 0

    def count_them(post: Post) -> Answer:
        nonlocal accepted
        accepted += post.body.count(b'"seq":')
        return Answer()

    async with open_receiver() as receiver, open_journal(tmp_path / "journal.db") as journal:
        receiver.otherwise(count_them)
        receiver.posts = receiver.accepted = _Nothing()
        event = notice("x" * 1800)
        for _ in range(0, count, 500):
            await journal.commit(*[event] * 500)
        before = _peak()
        with trio.fail_after(250):
            async with delivered(Jsonl(path="events.jsonl", start="oldest"), tmp_path, journal):
                pass
            async with delivered(Webhook(url=receiver.url, batch=1000, start="oldest"), tmp_path, journal, name="hook"):
                pass
    assert (tmp_path / "events.jsonl").stat().st_size > 95_000_000
    assert accepted >= count
    assert _peak() - before < 50_000_000


class _Nothing(list[Post]):
    """Keeps no requests: it is the sender's memory that is measured, and both are in this process."""

    def append(self, post: Post) -> None:
        pass
