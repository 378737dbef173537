"""How fast the bundled sinks empty a journal, and what memory that takes: `python tests/bench/sinks.py [events]`.

The whole way is in it: the journal on disk, the delivery, the sink, and the durable cursor. The webhook's receiver is a
process of its own, which answers as soon as it can; what it cannot do is in the figure too.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from roomtone import Context, Sink, Turn, Word
from roomtone.delivery.runner import SinkRunner
from roomtone.journal.journal import Journal, open_journal
from roomtone.live import Live
from roomtone.monitoring import logs
from roomtone_command import CommandSink
from roomtone_jsonl import Jsonl
from roomtone_transcript import TranscriptSink
from roomtone_webhook import Webhook

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "has", "said", "so"]

# Reads requests with a length and answers 204, over connections that stay: the least that is HTTP.
RECEIVER = """
import asyncio

async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0]))
            writer.write(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
    except asyncio.IncompleteReadError:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def open_receiver() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/hook"
        finally:
            process.kill()


def turn(number: int) -> Turn:
    words = tuple(Word(text, number + at, number + at + 1, 0.9) for at, text in enumerate(WORDS))
    return Turn(
        room="desk",
        position=number,
        at=NOW,
        session_id="s",
        turn_order=number,
        text=" ".join(WORDS),
        words=words,
        language="en",
    )


async def fill(journal: Journal, events: int) -> None:
    for first in range(0, events, 1000):
        await journal.commit(*map(turn, range(first, min(first + 1000, events))))


def peak() -> float:
    """The most memory that this process has ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@asynccontextmanager
async def filled(events: int) -> AsyncIterator[tuple[Journal, Path]]:
    with tempfile.TemporaryDirectory() as name:
        async with open_journal(Path(name, "journal.db")) as journal:
            await fill(journal, events)
            yield journal, Path(name)


async def drain(name: str, sink: Sink, journal: Journal, folder: Path) -> None:
    context = Context(name=name, folder=folder, state=folder, rates={"desk": 16_000})
    before, began = peak(), time.perf_counter()
    runner = SinkRunner(sink, context, journal=journal, live=Live())
    runner.finish()
    await runner.run()
    rate = journal.tip / (time.perf_counter() - began)
    assert await journal.cursor(name) == journal.tip
    print(
        f"{name:24} {journal.tip:9,} events {rate:9,.0f} a second, memory {before:.0f} to {peak():.0f} MB", flush=True
    )


async def main(events: int) -> None:
    with open_receiver() as url:
        async with filled(events) as (journal, folder):
            print(f"{'journal':24} {journal.tip:9,} events, memory {peak():.0f} MB", flush=True)
            await drain("jsonl", Jsonl(path="a.jsonl", start="oldest"), journal, folder)
            await drain("webhook, batch 1000", Webhook(url=url, batch=1000, start="oldest"), journal, folder)
            await drain("command", CommandSink(argv=("sh", "-c", "cat > /dev/null"), start="oldest"), journal, folder)
        async with filled(min(events, 10_000)) as (journal, folder):
            rotated = Jsonl(path="b.jsonl", rotate=1, compress=True, fsync="never", start="oldest")
            await drain("jsonl, 1 MB, packed", rotated, journal, folder)
            await drain("webhook", Webhook(url=url, start="oldest"), journal, folder)
            await drain("transcript", TranscriptSink(directory="pages", start="oldest"), journal, folder)


if __name__ == "__main__":
    logs.configure("warning", sys.stderr)
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
