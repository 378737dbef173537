"""roomtone_jsonl: lines that are whole, durable, private and not doubled."""

import fcntl
import gzip
import os
import resource
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone import Audio, Durable, Gap, Notice, Turn, encode
from roomtone_jsonl import Jsonl, line_file
from roomtone_jsonl.line_file import LineFile
from support.journal import Numbering, accept, context, deliver_all

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def turns(count: int, *, era: int = 1) -> list[Durable]:
    numbering = Numbering(era)
    return [
        numbering.commit(
            Turn(
                room="desk",
                position=16_000 * index,
                at=NOON + timedelta(seconds=index),
                session_id="s",
                turn_order=index,
                text=f"Grüße {index}\nzwei",
            )
        )
        for index in range(count)
    ]


async def deliver(sink: Jsonl, folder: Path, events: Iterable[Durable], *, flush: bool = True) -> None:
    """One life of the sink: opened, given these events, and left, with or without the flush."""
    async with sink.open(context(folder)) as plugin:
        writer: Any = plugin
        for event in events:
            writer.event(event)
        if flush:
            writer.flush()


async def test_a_line_is_the_encoded_event(tmp_path: Path) -> None:
    """Each event is one line, exactly as `encode` writes it, in the order of delivery."""
    events = turns(3)
    await deliver(Jsonl(path="text/events.jsonl"), tmp_path, events)
    assert (tmp_path / "text/events.jsonl").read_bytes() == b"".join(encode(event) + b"\n" for event in events)


async def test_hooks_are_spelt_right(tmp_path: Path) -> None:
    """The daemon accepts every hook of the sink."""
    async with Jsonl(path="events.jsonl").open(context(tmp_path)) as plugin:
        accept(plugin)


@pytest.mark.parametrize(("kinds", "expected"), [((), ["notice"]), (("audio", "notice"), ["audio", "notice"])])
async def test_audio_only_when_asked_for(tmp_path: Path, kinds: tuple[str, ...], expected: list[str]) -> None:
    """Segments of audio are left out unless `kinds` names them."""
    numbering = Numbering()
    events: list[Durable] = [
        numbering.commit(Audio(room="desk", position=0, at=NOON, samples=480_000, rate=16_000, file="/spool/0.pcm")),
        numbering.commit(Notice(room="", position=0, at=NOON, severity="info", code="daemon.started", text="Up.")),
    ]
    await deliver(Jsonl(path="events.jsonl", kinds=kinds), tmp_path, events)
    written = [msgspec.json.decode(line)["kind"] for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert written == expected


async def test_the_envelope_of_a_gap_is_flat(tmp_path: Path) -> None:
    """A gap says `from`, as the design names it, beside its envelope."""
    gap = Gap(room="desk", position=5, at=NOON, start=5, end=5, from_=NOON, until=NOON, cause="device")
    await deliver(Jsonl(path="events.jsonl"), tmp_path, [Numbering().commit(gap)])
    line = msgspec.json.decode((tmp_path / "events.jsonl").read_bytes())
    assert line["from"] == "2025-03-01T12:00:00Z"
    assert {"kind", "seq", "id", "room", "position", "at", "start", "end", "until", "cause"} < line.keys()


async def test_private(tmp_path: Path) -> None:
    """Nobody but the daemon's user can read what was said, whatever the umask."""
    before = os.umask(0o000)
    try:
        await deliver(Jsonl(path="a/b/events.jsonl"), tmp_path, turns(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a/b/events.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@given(cut=st.integers(min_value=0), acknowledged=st.integers(min_value=0, max_value=6))
@settings(max_examples=60, deadline=None)
def test_a_crash_anywhere_is_healed(tmp_path_factory: pytest.TempPathFactory, cut: int, acknowledged: int) -> None:
    """Cut the unacknowledged end off at any byte, deliver again from the cursor: each line is there once, in order."""
    import trio

    folder = tmp_path_factory.mktemp("crash")
    path, sink, events = folder / "events.jsonl", Jsonl(path="events.jsonl"), turns(6)
    trio.run(deliver, sink, folder, events)
    whole = path.read_bytes()
    durable = sum(len(encode(event)) + 1 for event in events[:acknowledged])
    os.truncate(path, durable + cut % (len(whole) - durable + 1))

    trio.run(deliver, sink, folder, events[acknowledged:])
    assert path.read_bytes() == whole


async def test_zeros_of_a_power_cut_go(tmp_path: Path) -> None:
    """Zeros that a file system left at the end are not a line, and are removed."""
    path, events = tmp_path / "events.jsonl", turns(2)
    path.write_bytes(encode(events[0]) + b"\n" + bytes(4096))
    await deliver(Jsonl(path="events.jsonl"), tmp_path, events)
    assert path.read_bytes() == b"".join(encode(event) + b"\n" for event in events)


async def test_opened_while_another_writes_it_waits(tmp_path: Path) -> None:
    """`roomtone sinks test` opens the file beside the daemon: half a line is not torn while its writer is working."""
    path = tmp_path / "a.jsonl"
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"id":"1","te')
        with ThreadPoolExecutor() as other:
            opening = other.submit(LineFile, path)
            with pytest.raises(TimeoutError):
                opening.result(0.2)
            file.write(b'xt":"whole"}\n')
            fcntl.flock(file, fcntl.LOCK_UN)
            opening.result(60)
    assert path.read_bytes() == b'{"id":"1","text":"whole"}\n'


async def test_a_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    """A whole event whose newline is missing was left by an editor, and is not taken for torn."""
    path, events = tmp_path / "events.jsonl", turns(2)
    path.write_bytes(encode(events[0]))
    await deliver(Jsonl(path="events.jsonl"), tmp_path, events)
    assert path.read_bytes() == b"".join(encode(event) + b"\n" for event in events)


async def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    """A path to another document by mistake does not damage it: the error names the file."""
    path = tmp_path / "events.jsonl"
    path.write_text("Dear Aunt,\nI wri")
    with pytest.raises(OSError, match=r"events\.jsonl") as caught:
        await deliver(Jsonl(path="events.jsonl"), tmp_path, turns(1))
    assert "move it away" in str(caught.value)
    assert path.read_text() == "Dear Aunt,\nI wri"


async def test_a_new_journal_is_written_from_its_first_event(tmp_path: Path) -> None:
    """Sequence numbers that begin again after the journal was lost leave no event out."""
    await deliver(Jsonl(path="events.jsonl"), tmp_path, turns(5))
    await deliver(Jsonl(path="events.jsonl"), tmp_path, turns(5, era=2))
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 10


async def test_a_renamed_file_is_left_to_its_new_name(tmp_path: Path) -> None:
    """After a rotation by renaming the next batch begins a new file, and no line is in both or in none."""
    path, events = tmp_path / "events.jsonl", turns(4)
    async with Jsonl(path="events.jsonl").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        for event in events[:2]:
            writer.event(event)
        writer.flush()
        (tmp_path / "events.jsonl.1.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        for event in events[2:]:
            writer.event(event)
        writer.flush()
    rotated = gzip.decompress((tmp_path / "events.jsonl.1.gz").read_bytes())
    assert (rotated + path.read_bytes()).splitlines() == [encode(event) for event in events]


async def test_deleted_while_written_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that went into a file deleted at that moment raise, and come again into a new one."""
    path, events = tmp_path / "events.jsonl", turns(1)
    fsync = os.fsync

    def delete_then_sync(descriptor: int) -> None:
        path.unlink(missing_ok=True)
        fsync(descriptor)

    async with Jsonl(path="events.jsonl").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        writer.event(events[0])
        monkeypatch.setattr(os, "fsync", delete_then_sync)
        with pytest.raises(FileNotFoundError, match=r"events\.jsonl"):
            writer.flush()
        monkeypatch.undo()
        writer.flush()
    assert path.read_bytes() == encode(events[0]) + b"\n"


async def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A write that the disk refuses half way raises, leaves no torn line, and comes again."""
    path, events = tmp_path / "events.jsonl", turns(4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with Jsonl(path="events.jsonl").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        writer.event(events[0])
        writer.flush()
        for event in events[1:]:
            writer.event(event)
        # The limit on a file's size is the disk's end as far as write() can tell (SIGXFSZ is ignored by Python).
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
        try:
            with pytest.raises(OSError, match=r"events\.jsonl"):
                writer.flush()
            assert path.read_bytes() == encode(events[0]) + b"\n"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.flush()
    assert path.read_bytes().splitlines() == [encode(event) for event in events]


@pytest.mark.parametrize("made", [os.mkdir, os.mkfifo])
async def test_what_is_no_file_is_named(tmp_path: Path, made: Any) -> None:
    """A path that is a folder or a pipe is refused when the sink opens, by name, and does not hang it."""
    made(tmp_path / "events.jsonl")
    with pytest.raises(OSError, match=r"events\.jsonl"):
        await deliver(Jsonl(path="events.jsonl"), tmp_path, turns(1))


def test_an_empty_path_is_refused() -> None:
    """An empty path is an error of the configuration that names the key."""
    with pytest.raises(msgspec.ValidationError, match="path"):
        msgspec.convert({"kind": "jsonl", "path": ""}, Jsonl)


async def test_a_long_file_costs_only_its_tail(tmp_path: Path) -> None:
    """However long the file has become, opening reads its last megabytes; what is written is still known."""
    path, events = tmp_path / "events.jsonl", turns(3)
    filler = encode(turns(1, era=9)[0]) + b"\n"
    path.write_bytes(
        filler * (line_file.MAX_TAIL_BYTES // len(filler) + 10) + b"".join(encode(event) + b"\n" for event in events)
    )
    size = path.stat().st_size
    await deliver(Jsonl(path="events.jsonl"), tmp_path, events)
    assert path.stat().st_size == size


async def test_by_the_daemons_delivery(tmp_path: Path) -> None:
    """Through the journal and the delivery: every line once and in order, over a restart."""
    sink = Jsonl(path="events.jsonl", start="oldest")
    assert await deliver_all(sink, tmp_path, turns(1500)) == []
    await deliver_all(sink, tmp_path, turns(2))
    written = [msgspec.json.decode(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert [line["seq"] for line in written] == list(range(1, 1503))
    assert [line["turn_order"] for line in written] == [*range(1500), 0, 1]
