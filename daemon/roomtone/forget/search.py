"""The proof of forgetting: nothing by which it would be known is found in any file. A program of its own:
`python -m roomtone.forget.search` reads a SearchRequest as JSON from its standard input and writes a Search.

A process of its own because of SQLite's locks: POSIX drops all locks that a process has on a file when it closes any
descriptor of that file (https://sqlite.org/howtocorrupt.html, 2.2). A daemon that opened its journal to look into it
would unlock it, and the next process to close the journal would delete the log under the daemon. So a process that has
a database open never opens its files by hand: `tests/forget/test_open_databases.py` holds that.

What was forgotten is known by the ids of its events, which are in the world only once, by its words and longer texts,
and by pieces of its audio. Words and texts count where the events that are left do not have them too. Sound that a room
recorded at another time as well is not a remainder but a note. Compressed audio is not searched: it shows nothing.
"""

import gzip
import json
import re
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from roomtone.durable import SPOILED
from roomtone.events import Analysis, Answer, Durable, Turn
from roomtone.journal.words import MIN_TEXT_CHARS, texts_in, tokens
from roomtone.spool.segment import SAMPLE_BYTES, parse_segment

T = TypeVar("T")

MAX_TEXTS = 12
"""The limit of texts, spread over the stretch: each of them costs a reading of every file, all words one."""
MTIME_TOLERANCE = timedelta(hours=1)
"""A file's time may be this much older than the stretch, for clocks are set."""
PART_BYTES = 2**22
SEALED = (".flac", ".opus")
SOUND = (".pcm", ".wav")
"""Files that have nothing but audio, beside a few bytes of our own."""
BESIDE = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite puts beside a database."""

_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")

_TEXTS_BY_RIGHT = "SELECT body FROM events UNION ALL SELECT key FROM marks UNION ALL SELECT name FROM sinks"


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The needles to look for below `places`, in files that were written since `since`, for at most `seconds`.

    `journal` is the database whose events have every text that is still there by right. `spool` has the rooms'
    segments: `gone` gives room, first and last position of what is forgotten, and `rates` each room's rate in Hz.
    """

    places: tuple[str, ...]
    since: datetime
    seconds: float
    ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    words: tuple[bytes, ...] = ()
    sounds: tuple[bytes, ...] = ()
    journal: str = ""
    spool: str = ""
    gone: tuple[tuple[str, int, int], ...] = ()
    rates: dict[str, int] = {}


class Search(msgspec.Struct, frozen=True):
    """The result. `left` are the files that have something of it, `doubtful` those that have words of it, where
    the journal does not reach back to the first event, so that they may have them from an earlier time; `again` says by
    room when the same sound was recorded too. `sealed` counts files that show nothing, `unread` has those that could
    not be read, with the reason; `is_whole`: there was time for all of it.
    """

    files: int = 0
    size: int = 0
    sealed: int = 0
    left: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    again: tuple[tuple[str, datetime], ...] = ()
    is_whole: bool = True


def ids_of(events: Iterable[Durable]) -> tuple[str, ...]:
    """The ids of turns, answers and analyses. Pure."""
    return tuple(event.id for event in events if isinstance(event, Turn | Answer | Analysis))


def long_texts(events: Sequence[Durable]) -> tuple[str, ...]:
    """Texts that are long enough to be said only once, as they stand in JSON. Pure."""
    plain = [json.dumps(text, ensure_ascii=False)[1:-1] for text in texts_in(events)]
    return tuple(_spread([text for text in plain if len(text) >= MIN_TEXT_CHARS], MAX_TEXTS))


def _spread(things: Sequence[T], most: int) -> Sequence[T]:
    return things[:: max(1, -(-len(things) // most))]


def search(request: SearchRequest) -> Search:
    """Look into every file. Files that go meanwhile are as good as searched. Errors: sqlite3.Error of the journal."""
    return _Searcher(request).run()


class _Searcher:
    def __init__(self, request: SearchRequest) -> None:
        self._request = request
        self._ends = time.monotonic() + request.seconds
        self._ids = {id_.encode() for id_ in request.ids}
        self._texts = [text.encode(errors="replace") for text in request.texts]
        self._words = set(request.words)
        self._longest = max(map(len, (b"\0" * 256, *self._texts, *request.sounds)))
        self._named = set[bytes]()
        self._left = dict[str, None]()
        self._told = dict[str, set[bytes]]()
        self._heard = dict[str, set[bytes]]()
        self._again = dict[bytes, tuple[str, datetime]]()

    def run(self) -> Search:
        files = size = sealed = 0
        unread, is_whole = list[str](), True
        for path in _files(self._request.places):
            try:
                status = path.stat()
                # A database is written through its log, or by way of memory: its time proves nothing.
                if status.st_mtime < (self._request.since - MTIME_TOLERANCE).timestamp() and ".sqlite" not in path.name:
                    continue
                if path.suffix in SEALED:
                    sealed += 1
                    continue
                self._look_into(path)
            except FileNotFoundError:
                continue
            except TimeoutError:
                is_whole = False
                break
            except OSError as error:
                unread.append(f"{path}: {error.strerror}")
                continue
            files, size = files + 1, size + status.st_size
        left, doubtful = self._judged()
        again = tuple(sorted(set(self._again.values())))
        return Search(files, size, sealed, left, doubtful, tuple(unread), again, is_whole)

    def _look_into(self, path: Path) -> None:
        name, is_sound = str(path), path.suffix in SOUND
        self._named |= tokens(name.encode(errors="replace"))
        for begin, data in _parts(path, self._longest):
            if time.monotonic() > self._ends:
                raise TimeoutError
            for sound in self._request.sounds:
                if (place := data.find(sound)) >= 0:
                    self._hear(path, sound, begin + place)
            if is_sound:
                continue
            if not self._ids.isdisjoint(_ID.findall(data)):
                self._left[name] = None
            said = {text for text in self._texts if text in data} | (self._words & tokens(data))
            if said:
                self._told.setdefault(name, set()).update(said)

    def _hear(self, path: Path, sound: bytes, offset: int) -> None:
        """In the spool each byte has its position, and so its time; elsewhere a file has it, and no more is known."""
        is_segment = path.parent.parent == Path(self._request.spool)
        segment = parse_segment(path, path.stat().st_size) if is_segment else None
        if segment is None:
            self._heard.setdefault(str(path), set()).add(sound)
            return
        room, start = path.parent.name, segment.position + offset // SAMPLE_BYTES
        end = start + len(sound) // SAMPLE_BYTES
        if any(room == one and start < last and end > first for one, first, last in self._request.gone):
            self._left[str(path)] = None
        elif room in self._request.rates:
            self._again[sound] = room, segment.when(start, self._request.rates[room]).replace(microsecond=0)

    def _judged(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The files that have something of it for certain, and those of which that cannot be known."""
        everything = set[bytes]().union(*self._told.values())
        by_right, is_complete = self._by_right(everything) if everything else (set(), True)
        doubtful = dict[str, None]()
        for name, said in self._told.items():
            if remains := said - by_right:
                is_sure = is_complete or not remains.isdisjoint(self._texts)
                (self._left if is_sure else doubtful)[name] = None
        for name, sounds in self._heard.items():
            if sounds - self._again.keys():
                self._left[name] = None
        return tuple(sorted(self._left)), tuple(sorted(doubtful.keys() - self._left.keys()))

    def _by_right(self, said: set[bytes]) -> tuple[set[bytes], bool]:
        """Which of these the events have that are left, or the names of sinks, marks and files; and whether no event
        was pruned.
        """
        found, oldest = said & self._named, 1
        if self._request.journal:
            address = f"{Path(self._request.journal).absolute().as_uri()}?mode=ro"
            texts = said.intersection(self._texts)
            with closing(sqlite3.connect(address, uri=True, timeout=30)) as database:
                for (body,) in database.execute(_TEXTS_BY_RIGHT):
                    data = str(body).encode(errors="replace")
                    found |= said & tokens(data) | {text for text in texts if text in data}
                (oldest,) = database.execute("SELECT min(seq) FROM events").fetchone()
        return found, (oldest or 1) <= 1


def _files(places: Iterable[str]) -> Iterator[Path]:
    """Each file once, however the places overlap; with a database those that belong to it."""
    seen = set[Path]()
    for place in map(Path, places):
        beside = [place.with_name(place.name + end) for end in BESIDE]
        found = sorted(place.rglob("*")) if place.is_dir() else [place, *beside, place.with_suffix(SPOILED)]
        for path in found:
            if path.is_file() and not path.is_symlink() and (real := path.resolve()) not in seen:
                seen.add(real)
                yield path


def _parts(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """The file a part at a time, unpacked, each with as much of the one before as a needle may begin in; and where that
    begins.
    """
    held, begin = b"", 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while part := file.read(PART_BYTES):
                yield begin - len(held), held + part
                held = (held + part)[-longest:]
                begin += len(part)
    except (gzip.BadGzipFile, EOFError, zlib.error):  # no file of ours, or one that is just being written
        pass


def main() -> None:
    """The program."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=SearchRequest)
    sys.stdout.buffer.write(msgspec.json.encode(search(request)))


if __name__ == "__main__":
    main()
