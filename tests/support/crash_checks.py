"""The data that a dead daemon has left behind, and the laws that must hold for it at any moment."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from roomtone.cli.commands.sinks import open_for_reading
from roomtone.journal.coverage import Summary, summarize
from roomtone.journal.database import Database
from roomtone.spans import Spans
from roomtone.spool.segment import parse_segment
from roomtone.testing.encoded_speech import Ear, numbers_in
from support.daemon import events, recordings

RATE = 8_000

COUNTER = '''"""Counts what it gets, one line for each event, as it comes."""

from pathlib import Path

from roomtone import hookimpl

COUNTED = Path(__file__).parents[1] / "counted"


@hookimpl
def event(event):
    with COUNTED.open("a") as file:
        file.write(f"{event.seq} {event.id}\\n")
'''


class Aftermath:
    """Looks at a folder again and again, and remembers what it saw: facts stay facts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: dict[int, str] = {}
        self.tapes: dict[str, bytearray] = {}
        self.known: dict[str, Spans] = {}
        self.looks = 0
        (folder / "plugins").mkdir()
        (folder / "plugins" / "counter.py").write_text(COUNTER)

    def look(self) -> None:
        """Assert what must hold now, though the daemon may have died in the middle of anything."""
        self.looks += 1
        with self.journal() as connection:
            rows = connection.execute("SELECT seq, id, kind FROM events ORDER BY seq").fetchall()
            cursors = dict(connection.execute("SELECT name, cursor FROM sinks").fetchall())
        assert len({row[1] for row in rows}) == len(rows), "ids are unique"
        for seq, identifier, _ in rows:
            assert self.ids.setdefault(seq, identifier) == identifier, "an event is never replaced by another"
        counted, logged = self.delivered()
        for seq, _, kind in rows:
            if seq <= cursors.get("counter", 0):
                assert seq in counted, f"event {seq} was acknowledged and never delivered"
            if seq <= cursors.get("log", 0) and kind != "audio":
                assert seq in logged, f"event {seq} was acknowledged and is not in the file"
        assert {*counted, *logged} <= {row[0] for row in rows}, "what was delivered is journalled"
        recordings(self.folder)  # raises for a file that is not a valid WAV file
        self._look_at_audio()

    def delivered(self) -> tuple[dict[int, str], dict[int, str]]:
        """The events of the counting sink and of the JSON lines: ids by seq, each of which never changes."""
        counted, logged = dict[int, str](), dict[int, str]()
        file = self.folder / "counted"
        for line in file.read_text().splitlines() if file.exists() else []:
            number, identifier = line.split()
            assert counted.setdefault(int(number), identifier) == identifier
        for event in events(self.folder):
            assert logged.setdefault(event["seq"], event["id"]) == event["id"]
        for seq, identifier in [*counted.items(), *logged.items()]:
            assert self.ids.setdefault(seq, identifier) == identifier
        return counted, logged

    @contextmanager
    def journal(self) -> Iterator[sqlite3.Connection]:
        """A copy of the journal: looking at it must not do for the daemon what recovery is there for."""
        copy = self.folder / "look"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for path in (self.folder / "state").glob("journal.sqlite*"):
            if "corrupt" not in path.name:
                shutil.copy(path, copy)
        with closing(sqlite3.connect(copy / "journal.sqlite")) as connection:
            # A daemon that died before it had made its tables has left an empty file.
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'marks'").fetchone():
                connection.executescript("CREATE TABLE events (seq, id, kind); CREATE TABLE sinks (name, cursor);")
            yield connection

    def _look_at_audio(self) -> None:
        """A position is never given to other audio."""
        for path in sorted((self.folder / "state" / "spool").glob("*/*.pcm")):
            segment = parse_segment(path, path.stat().st_size)
            assert segment is not None
            room, audio = path.parent.name, path.read_bytes()
            tape, known = self.tapes.setdefault(room, bytearray()), self.known.get(room, Spans())
            span = Spans([(segment.position, segment.end)])
            for start, end in span & known:
                was = tape[2 * start : 2 * end]
                assert was == audio[2 * (start - segment.position) :][: len(was)], f"{path.name} gives positions anew"
            tape.extend(bytes(max(0, 2 * segment.end - len(tape))))
            tape[2 * segment.position : 2 * segment.end] = audio[: 2 * segment.samples]
            self.known[room] = known | span

    def settle(self) -> None:
        """Assert what must hold in the end, when the daemon has stopped in order: all of it has arrived."""
        self.look()
        with self.journal() as connection:
            rows = connection.execute("SELECT seq, kind FROM events").fetchall()
        counted, logged = self.delivered()
        assert {seq for seq, _ in rows} == set(counted), "every journalled event is delivered"
        assert {seq for seq, kind in rows if kind != "audio"} == set(logged), "every journalled event is in the file"

    def summary(self, room: str) -> Summary:
        """The account of the room, in which nothing is unexplained."""
        with self.reading() as database:
            found = summarize(room, RATE, database.covers(room, 0))
        assert found is not None
        assert found.is_explained, found
        return found

    def reading(self) -> Any:
        return open_for_reading(self.folder / "state" / "journal.sqlite")

    def transcript(self, room: str) -> list[int]:
        """The numbers of all turns, in the order of their positions."""
        turns = [event for event in events(self.folder, "turn") if event["room"] == room]
        superseded = {turn.get("supersedes") for turn in turns}
        words = [word for turn in turns if turn["id"] not in superseded for word in turn["words"]]
        said = sorted((word["start"], word["text"]) for word in {json.dumps(word): word for word in words}.values())
        assert len(said) == len(words), "no word stands in two places"
        return [number for _, text in said for number in numbers_in(text)]

    def heard(self, room: str) -> list[int]:
        """The numbers that the recordings have, stretch by stretch: a word that was cut does not count."""
        found: list[int] = []
        for path, rate, audio in recordings(self.folder):
            if path.name.startswith(f"{room}_"):
                found += [word.number for word in Ear(rate).hear(audio)]
        return found


def covers_of(database: Database, room: str, state: str) -> list[Any]:
    return [cover for cover in database.covers(room, 0) if cover.state == state]
