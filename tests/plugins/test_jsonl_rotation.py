"""roomtone_jsonl.rotation and .packer: each line once, in the file of its day or size, over every crash."""

import contextlib
import gzip
import os
import stat
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone import Durable, Notice, encode
from roomtone_jsonl import Jsonl, packer
from roomtone_jsonl.rotation import time_of
from support.journal import context, deliver_all

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def notice(number: int, committed: datetime, *, size: int = 0, at: datetime = NOON) -> Durable:
    """An event as the journal numbers it: the id has the time of its commit."""
    milliseconds = f"{round(committed.timestamp() * 1000):012x}"
    return Notice(
        seq=number,
        id=f"{milliseconds[:8]}-{milliseconds[8:]}-7000-8000-{number:012x}",
        room="desk",
        position=number,
        at=at,
        severity="info",
        code="test.made",
        text="x" * size,
    )


def days(*counts: int) -> list[Durable]:
    """So many events on each day from the first of March on."""
    committed = [NOON + timedelta(days=day, minutes=minute) for day, n in enumerate(counts) for minute in range(n)]
    return [notice(number, at) for number, at in enumerate(committed, 1)]


async def deliver(sink: Jsonl, folder: Path, events: Iterable[Durable]) -> None:
    """One life of the sink with one batch."""
    async with sink.open(context(folder)) as plugin:
        writer: Any = plugin
        for event in events:
            writer.event(event)
        writer.flush()


def numbers(folder: Path) -> dict[str, list[int]]:
    """The seqs in each file of lines, packed or not."""
    found = {}
    for path in sorted(folder.glob("events*.jsonl*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found[path.name] = [msgspec.json.decode(line)["seq"] for line in data.splitlines()]
    return found


def test_the_time_of_an_id() -> None:
    """The first 48 bits of a UUIDv7 are milliseconds; anything else has no time, without an error."""
    assert time_of(notice(1, NOON).id) == NOON
    assert [time_of(text) for text in ("", "nonsense", "ffffffff-ffff-7000-8000-000000000000")] == [None] * 3


async def test_a_day_is_a_file(tmp_path: Path) -> None:
    """Lines go into the file of the day of their commit, whenever what they tell of was; today's keeps its name."""
    events = [*days(2, 3), notice(6, NOON + timedelta(days=1, hours=1), at=NOON - timedelta(days=9))]
    await deliver(Jsonl(path="events.jsonl", rotate="daily"), tmp_path, events[:1])
    await deliver(Jsonl(path="events.jsonl", rotate="daily"), tmp_path, events[1:])
    assert numbers(tmp_path) == {"events-2025-03-01.jsonl": [1, 2], "events.jsonl": [3, 4, 5, 6]}


async def test_a_full_file_is_closed(tmp_path: Path) -> None:
    """No file is larger than its megabytes, except one that has only one line; none is empty."""
    sizes = [400_000, 400_000, 400_000, 3_000_000, 100, 999_400, 100]
    events = [notice(number, NOON, size=size) for number, size in enumerate(sizes, 1)]
    await deliver(Jsonl(path="events.jsonl", rotate=1), tmp_path, events)
    assert sorted(numbers(tmp_path).values()) == [[1, 2], [3], [4], [5, 6], [7]]
    assert sorted(numbers(tmp_path)) == [
        "events-20250301T120000Z.jsonl",
        *(f"events-20250301T120000Z_{n}.jsonl" for n in (2, 3, 4)),
        "events.jsonl",
    ]
    sizes_on_disk = [(tmp_path / name).stat().st_size for name in numbers(tmp_path)]
    assert sorted(size > 1_000_000 for size in sizes_on_disk) == [False, False, False, False, True]


async def test_closed_files_are_packed(tmp_path: Path) -> None:
    """A closed file is packed with the batch after the one that closed it, is private, and unpacks to itself."""
    events = days(2, 2, 2)
    async with Jsonl(path="events.jsonl", rotate="daily", compress=True).open(context(tmp_path)) as plugin:
        writer: Any = plugin
        for event in events:
            writer.event(event)
        writer.flush()
        plain = (tmp_path / "events-2025-03-01.jsonl").read_bytes()
        assert sorted(numbers(tmp_path)) == ["events-2025-03-01.jsonl", "events-2025-03-02.jsonl", "events.jsonl"]
        writer.flush()
    assert numbers(tmp_path) == {
        "events-2025-03-01.jsonl.gz": [1, 2],
        "events-2025-03-02.jsonl.gz": [3, 4],
        "events.jsonl": [5, 6],
    }
    packed = tmp_path / "events-2025-03-01.jsonl.gz"
    assert gzip.decompress(packed.read_bytes()) == plain
    assert stat.S_IMODE(packed.stat().st_mode) == 0o600


async def test_a_crash_while_packing_costs_nothing(tmp_path: Path) -> None:
    """Killed in the middle of packing, or between the packed file and the removal of the plain one: it is done anew."""
    events = days(5, 1, 1)
    sink = Jsonl(path="events.jsonl", rotate="daily", compress=True)
    await deliver(sink, tmp_path, events[:6])
    (tmp_path / "events-2025-03-01.jsonl.gz").write_bytes(b"from a crash")
    (tmp_path / "events-2025-03-01.jsonl.gz.new").write_bytes(b"from a crash")
    async with sink.open(context(tmp_path)) as plugin:
        writer: Any = plugin
        writer.event(events[6])
        writer.flush()
        writer.flush()
    assert numbers(tmp_path) == {
        "events-2025-03-01.jsonl.gz": [1, 2, 3, 4, 5],
        "events-2025-03-02.jsonl.gz": [6],
        "events.jsonl": [7],
    }
    assert not (tmp_path / "events-2025-03-01.jsonl.gz.new").exists()


def test_packing_that_is_left_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the sink in the middle of a file leaves the file and no half of another."""
    monkeypatch.setattr(packer, "_SLICE_S", 0.0)
    path = tmp_path / "events-2025-03-01.jsonl"
    path.write_bytes(bytes(packer._READ_BYTES * 3))
    with contextlib.closing(packer.Packer()) as packing:
        packing.add([path])
        packing._work = packer._pack(path)
        next(packing._work)
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == [path]


async def test_what_cannot_be_packed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk for the compressed file, or a file that was removed, stops no line."""
    events = days(1, 1, 1, 1)
    opening = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".gz.new"):
            raise OSError(28, os.strerror(28), str(path))
        return opening(path, flags, mode)

    async with Jsonl(path="events.jsonl", rotate="daily", compress=True).open(context(tmp_path)) as plugin:
        writer: Any = plugin
        for event in events[:3]:
            writer.event(event)
        writer.flush()
        (tmp_path / "events-2025-03-01.jsonl").unlink()
        monkeypatch.setattr(os, "open", refuse)
        writer.event(events[3])
        writer.flush()
    assert numbers(tmp_path) == {
        "events-2025-03-02.jsonl": [2],
        "events-2025-03-03.jsonl": [3],
        "events.jsonl": [4],
    }


async def test_renamed_by_somebody_else(tmp_path: Path) -> None:
    """A file that logrotate took away is not closed a second time, and the next one begins."""
    events = days(1, 1)
    async with Jsonl(path="events.jsonl", rotate="daily").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        writer.event(events[0])
        writer.flush()
        (tmp_path / "events.jsonl").rename(tmp_path / "events.jsonl.1")
        writer.event(events[1])
        writer.flush()
    assert numbers(tmp_path) == {"events.jsonl": [2], "events.jsonl.1": [1]}


@pytest.mark.parametrize(("fsync", "expected"), [("batch", True), ("never", False)])
async def test_the_policy_of_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Any, *, expected: bool
) -> None:
    """With "batch" a flush returns after the disk has it; with "never" it does not ask."""
    async with Jsonl(path="events.jsonl", fsync=fsync).open(context(tmp_path)) as plugin:
        writer: Any = plugin
        writer.event(days(1)[0])
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", synced.append)
        writer.flush()
    assert bool(synced) == expected


@pytest.mark.parametrize(("key", "value"), [("rotate", 0), ("rotate", "hourly"), ("fsync", "always"), ("compress", 1)])
def test_wrong_tables_are_refused(key: str, value: object) -> None:
    """A mistake is named by its key."""
    with pytest.raises(msgspec.ValidationError, match=key):
        msgspec.convert({"kind": "jsonl", "path": "e.jsonl", key: value}, Jsonl)


lives = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 5000)), max_size=6)


@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=4), lives=lives, compress=st.booleans())
@settings(max_examples=40, deadline=None)
def test_crashes_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory,
    counts: Sequence[int],
    lives: Sequence[tuple[int, int, int]],
    *,
    compress: bool,
) -> None:
    """However often it dies in a batch, before its acknowledgement and with the file's end torn, each line is there
    once, in order, in the file of its day.
    """
    folder = tmp_path_factory.mktemp("lives")
    events = days(*counts)
    sink = Jsonl(path="events.jsonl", rotate="daily", compress=compress)
    done = 0
    for count, acknowledged, torn in lives:
        active = folder / "events.jsonl"
        before = active.read_bytes() if active.exists() else b""
        trio.run(deliver, sink, folder, events[done : done + count])
        done += min(acknowledged, len(events[done : done + count]))
        # What was acknowledged is durable; of the rest any part may be, if it is in the file that is written.
        kept = sum(len(encode(event)) + 1 for event in events[:done] if _day(event) == _last_day(active))
        size = active.stat().st_size
        os.truncate(active, max(size - torn, min(kept, size), len(before) if not before else 0))
    trio.run(deliver, sink, folder, events[done:])
    found = numbers(folder)
    assert [seq for seqs in found.values() for seq in seqs] == [event.seq for event in events]
    assert all(len({_day(events[seq - 1]) for seq in seqs}) <= 1 for seqs in found.values())


def _day(event: Durable) -> str:
    at = time_of(event.id)
    assert at is not None
    return f"{at:%d}"


def _last_day(path: Path) -> str | None:
    lines = path.read_bytes().splitlines()
    return _day(msgspec.json.decode(lines[-1], type=Notice)) if lines else None


async def test_by_the_daemons_delivery(tmp_path: Path) -> None:
    """Through the journal and the delivery, over a restart: every line once and in order, whatever is closed."""
    sink = Jsonl(path="events.jsonl", rotate=1, compress=True, start="oldest")
    facts: list[Durable] = [
        Notice(room="", position=0, at=NOON, severity="info", code="test.made", text="x" * 1000) for _ in range(1500)
    ]
    await deliver_all(sink, tmp_path, facts)
    await deliver_all(sink, tmp_path, facts)
    found = numbers(tmp_path)
    assert len(found) == 4
    assert sorted(seq for seqs in found.values() for seq in seqs) == list(range(1, 3001))
