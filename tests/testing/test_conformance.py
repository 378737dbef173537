"""The conformance kit: the bundled sinks pass it, and bad ones do not."""

import re
import sqlite3
import struct
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from roomtone import Context, Durable, Forgotten, Sink, hookimpl
from roomtone.testing import LAWS, LawBroken, check, conformance_tests
from roomtone.testing.conformance import SEGMENT_SAMPLES
from roomtone_command import CommandSink
from roomtone_jsonl import Jsonl
from roomtone_transcript import TranscriptSink
from roomtone_wav import Wav
from roomtone_webhook import Webhook
from support.receiver import Receiver, open_receiver

# The bundled sinks


def read_lines(folder: Path) -> list[str]:
    path = folder / "out.jsonl"
    events = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [event["id"] for event in events if event["kind"] in TEXTS]


TEXTS = ("turn", "notice", "answer")

test_jsonl = conformance_tests(lambda folder: Jsonl(path=str(folder / "out.jsonl")), read_lines, kinds=TEXTS)


def read_segments(folder: Path) -> list[int]:
    """The numbers of the segments, as their samples say; a hole between two files or in one has none."""
    found: list[int] = []
    for path in sorted((folder / "recordings").rglob("*.wav")):
        with wave.open(str(path)) as file:
            audio = file.readframes(file.getnframes())
        samples = struct.unpack(f"<{len(audio) // 2}h", audio)
        whole = [
            samples[start : start + SEGMENT_SAMPLES]
            for start in range(0, len(samples) - SEGMENT_SAMPLES + 1, SEGMENT_SAMPLES)
        ]
        assert all(len(set(segment)) == 1 for segment in whole), "a segment is torn"
        found += [segment[0] for segment in whole if segment[0]]
    return found


test_wav = conformance_tests(
    lambda folder: Wav(directory=str(folder / "recordings"), template="{position:09d}.wav"),
    read_segments,
    key=lambda event: event.position // SEGMENT_SAMPLES + 1,
    kinds=("audio",),
)

receivers: dict[Path, Receiver] = {}


@asynccontextmanager
async def webhook(folder: Path) -> AsyncIterator[Sink]:
    async with open_receiver() as receiver:
        receivers[folder] = receiver
        yield Webhook(url=receiver.url)
        del receivers[folder]


test_webhook = conformance_tests(
    webhook, lambda folder: [event["id"] for event in receivers[folder].events if event["kind"] == "turn"], keeps=False
)

PROGRAM = """
import json, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, kind TEXT)")
for line in sys.stdin:
    event = json.loads(line)
    database.execute("INSERT OR IGNORE INTO events VALUES (?, ?)", (event["id"], event["kind"]))
database.commit()
"""


def command(folder: Path) -> Sink:
    (folder / "program.py").write_text(PROGRAM)
    return CommandSink(argv=(sys.executable, "-S", str(folder / "program.py"), str(folder / "out.sqlite")))


def read_rows(folder: Path) -> list[str]:
    if not (folder / "out.sqlite").exists():
        return []
    with closing(sqlite3.connect(folder / "out.sqlite")) as database:
        return [row[0] for row in database.execute("SELECT id FROM events WHERE kind = 'turn' ORDER BY rowid")]


test_command = conformance_tests(command, read_rows, keeps=False)


def read_pages(folder: Path) -> list[str]:
    """The times of the turns on the pages: each has its own second."""
    pages = sorted((folder / "pages").rglob("*.md"))
    return [time for page in pages for time in re.findall(r"^\*\*(\d\d:\d\d:\d\d)", page.read_text(), re.MULTILINE)]


test_transcript = conformance_tests(
    lambda folder: TranscriptSink(directory=str(folder / "pages")),
    read_pages,
    key=lambda event: f"{event.at:%H:%M:%S}",
)


# Bad ones


class Bad(Sink, frozen=True, kw_only=True, tag="bad"):
    """A sink that writes its events' ids to a file, and has one fault."""

    path: str
    writer: ClassVar[type["Writer"]]

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        writer = self.writer(Path(self.path))
        yield writer
        writer.close()

    def holdings(self, context: Context) -> list[Path]:
        return [Path(self.path)] if self.writer.is_named else []


class Writer:
    """A correct sink: every event is in the file when `flush` returns, until it is forgotten."""

    is_named: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []

    def add(self, event: Durable) -> None:
        self.waiting.append(event.id)

    def write(self) -> None:
        # In one write, which is whole or, on a full disk, taken back.
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            data = "".join(f"{id_}\n" for id_ in self.waiting).encode()
            if _wrote(file, data) != len(data):
                file.truncate(size)
                raise OSError("the disk is full")
        self.waiting = []

    def close(self) -> None:
        pass

    @hookimpl
    def turn(self, event: Durable) -> None:
        self.add(event)

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        # Of these ids the last figures are the number, from which the position follows.
        kept = [
            line for line in self.lines() if not event.start <= (int(line[-12:], 16) - 1) * SEGMENT_SAMPLES < event.end
        ]
        self.path.write_text("".join(f"{id_}\n" for id_ in kept))

    def lines(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []

    @hookimpl
    def flush(self) -> None:
        self.write()


def _wrote(file: Any, data: bytes) -> int:
    """Returns the bytes written; a full disk may take a part, or nothing with an error."""
    try:
        return int(file.write(data))
    except OSError:
        return 0


class Loses(Writer):
    """Loses one event in seven."""

    count = 0

    def add(self, event: Durable) -> None:
        self.count += 1
        if self.count % 7:
            super().add(event)


class Reorders(Writer):
    """Writes the events of a batch backwards."""

    def write(self) -> None:
        self.waiting.reverse()
        super().write()


class AcknowledgesEarly(Writer):
    """Returns from flush and writes when it is closed."""

    @hookimpl
    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.write()


class Blocks(Writer):
    """Sleeps in the loop."""

    @hookimpl
    async def flush(self) -> None:  # type: ignore[override]  # asynchronous, which is its fault
        time.sleep(1.1)  # noqa: ASYNC251 - that is its fault
        self.write()


class Leaks(Writer):
    """Leaks an open file at each opening."""

    files: ClassVar[list[Any]] = []

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.files.append(path.open("ab"))


class Remembers(Writer):
    """Hears that something is to be forgotten, and keeps it."""

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        pass


class Deaf(Writer):
    """Has no hook for it."""

    forgotten = None  # type: ignore[assignment]  # its fault


class Hides(Writer):
    """Says of no file that it keeps one."""

    is_named = False


@pytest.fixture
def _closed() -> Iterator[None]:
    yield
    for file in Leaks.files:
        file.close()
    Leaks.files.clear()


def read_ids(folder: Path) -> list[str]:
    path = folder / "ids"
    return path.read_text().split() if path.exists() else []


def broken(writer: type[Writer], folder: Path, laws: Sequence[str]) -> dict[str, str]:
    """The laws that a sink with this writer breaks, and what the kit says of each."""
    found = {}
    kind = type("Made", (Bad,), {"writer": writer}, tag="bad", frozen=True, kw_only=True)
    for law in laws:
        place = folder / law
        place.mkdir()
        try:
            check(law, lambda folder: kind(path=str(folder / "ids")), read_ids, place)
        except LawBroken as error:
            found[law] = str(error)
    return found


def test_good_one_passes(tmp_path: Path) -> None:
    """The correct sink passes, so that the others fail because of their faults."""
    assert broken(Writer, tmp_path, list(LAWS)) == {}


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize(
    ("writer", "law", "said"),
    [
        (Loses, "keeps_the_order", "missing"),
        (Reorders, "keeps_the_order", "in another order"),
        (AcknowledgesEarly, "has_what_it_acknowledges", "acknowledged before"),
        (Blocks, "leaves_the_loop_alone", "blocks the loop"),
        (Leaks, "leaves_nothing_behind", "descriptors"),
        (Remembers, "forgets_when_told", "of 3 events to forget it still has 3"),
        (Deaf, "forgets_when_told", "no hook `forgotten`"),
        (Hides, "names_its_files", "`holdings` does not name it"),
    ],
)
def test_bad_ones_fail(writer: type[Writer], law: str, said: str, tmp_path: Path) -> None:
    """Each of the faults is found by the law that it breaks, and named."""
    assert said in broken(writer, tmp_path, [law])[law]


def test_kit_needs_no_pytest() -> None:
    """Importing `roomtone.testing`, and the kit, does not import pytest: other test tools can use it too."""
    program = "import sys, roomtone.testing as t; t.check, t.open_room; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
