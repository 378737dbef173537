"""A forgotten event is in no line of any file, whatever has become of its file."""

import gzip
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from roomtone import Answer, Durable, Forgotten, Turn, Word, encode
from roomtone_jsonl import Jsonl
from roomtone_jsonl.forgetting import family
from support.journal import Numbering, context

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def turn(number: int, start: int, end: int, *, supersedes: str | None = None) -> Turn:
    word = Word(text=f"word{number}", start=start, end=end)
    return Turn(
        room="desk",
        position=start,
        at=at(start),
        session_id="s",
        turn_order=number,
        text=word.text,
        words=(word,),
        supersedes=supersedes,
    )


def answer(number: int, position: int) -> Answer:
    text = f"about word{number}"
    return Answer(room="desk", position=position, at=NOON, session_id="s", turn_order=number, text=text, response={})


GONE = Forgotten(room="desk", position=100, at=at(100), start=100, end=200, from_=at(100), until=at(200))
SAID = (turn(1, 0, 90), turn(2, 90, 101), turn(3, 199, 210), turn(4, 200, 230), answer(1, 0), answer(2, 90))


async def write(sink: Jsonl, folder: Path, events: Sequence[Durable], *, flush: bool = True) -> None:
    """Hand the events to the sink as the daemon does: the hook of a kind before that of all."""
    async with sink.open(context(folder)) as plugin:
        writer: Any = plugin
        for event in events:
            if isinstance(event, Forgotten):
                writer.forgotten(event)
            writer.event(event)
        if flush:
            writer.flush()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def lines(path: Path) -> list[bytes]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.splitlines()


@pytest.mark.parametrize(
    "name", ["events.jsonl", "events.jsonl.1", "events-2025-03-01.jsonl", "events.jsonl-20250301.gz"]
)
async def test_lines_go_from_every_file(tmp_path: Path, name: str) -> None:
    """From the file, from closed, renamed and packed ones: the turns that went on then, with what was made of them; and
    every other line stays as it is, byte for byte. That it was forgotten is a line.
    """
    numbering = Numbering()
    events = [numbering.commit(event) for event in SAID]
    text = b"".join(encode(event) + b"\n" for event in events) + b"no line of ours\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)

    if name == "events.jsonl":
        path.write_bytes(text.removesuffix(b"no line of ours\n"))
    await write(Jsonl(path="events.jsonl"), tmp_path, [gone := numbering.commit(GONE)])

    kept = [encode(events[n]) for n in (0, 3, 4)]
    if name == "events.jsonl":
        assert lines(path) == [*kept, encode(gone)]
    else:
        assert lines(path) == [*kept, b"no line of ours"]
        assert path.stat().st_mode & 0o077 == 0
    assert not [each for each in names(tmp_path) if each.endswith(".new")]


async def test_lines_that_wait_are_not_written(tmp_path: Path) -> None:
    """An event in one batch with `forgotten` never reaches the disk; coming again, it changes nothing."""
    numbering = Numbering()
    events = [numbering.commit(event) for event in (*SAID, GONE)]
    for _ in range(2):
        await write(Jsonl(path="events.jsonl"), tmp_path, events)
    expected = [encode(events[n]) for n in (0, 3, 4, 6)]
    assert lines(tmp_path / "events.jsonl") == expected


async def test_a_correction_goes_with_what_it_corrects(tmp_path: Path) -> None:
    """Wherever its words lie now."""
    numbering = Numbering()
    first = numbering.commit(turn(1, 90, 110))
    events: list[Durable] = [first, numbering.commit(turn(1, 80, 90, supersedes=first.id)), numbering.commit(GONE)]
    await write(Jsonl(path="events.jsonl"), tmp_path, events[:2])
    await write(Jsonl(path="events.jsonl"), tmp_path, events[2:])
    assert lines(tmp_path / "events.jsonl") == [encode(events[2])]


async def test_an_answer_goes_with_its_turn_whatever_file_that_is_in(tmp_path: Path) -> None:
    """The file may have been closed between the two."""
    numbering = Numbering()
    events: list[Durable] = [numbering.commit(event) for event in (turn(1, 90, 110), answer(1, 90), GONE)]
    (tmp_path / "events.jsonl.1").write_bytes(encode(events[0]) + b"\n")
    await write(Jsonl(path="events.jsonl"), tmp_path, events[1:2])
    await write(Jsonl(path="events.jsonl"), tmp_path, events[2:])
    assert lines(tmp_path / "events.jsonl") == [encode(events[2])]
    assert lines(tmp_path / "events.jsonl.1") == []


async def test_half_written_files_go(tmp_path: Path) -> None:
    """Half-written files of a crash may contain it too."""
    (tmp_path / "events.jsonl-20250301.gz.new").write_bytes(b"half")
    await write(Jsonl(path="events.jsonl"), tmp_path, [Numbering().commit(GONE)])
    assert names(tmp_path) == ["events.jsonl"]


async def test_packing_begins_anew(tmp_path: Path) -> None:
    """A file that is just being packed does not get its old lines by way of that."""
    numbering = Numbering()
    events = [numbering.commit(event) for event in SAID]
    closed = tmp_path / "events-2025-03-01.jsonl"
    async with Jsonl(path="events.jsonl", compress=True).open(context(tmp_path)) as plugin:
        writer: Any = plugin
        packer = writer._lines._packer
        closed.write_bytes(b"".join(encode(event) + b"\n" for event in events))
        packer.add([closed])
        packer._work = packing = _begun(closed)
        writer.forgotten(GONE)
        assert packing.gi_frame is None, "it is left"
        packer.advance()
    assert lines(tmp_path / "events-2025-03-01.jsonl.gz") == [encode(events[n]) for n in (0, 3, 4)]


def _begun(path: Path) -> Any:
    from roomtone_jsonl.packer import _pack

    packing = _pack(path)
    next(packing)
    return packing


async def test_old_files_and_those_of_others_are_left_alone(tmp_path: Path) -> None:
    """A file that was last written before it was said cannot have it; one with another name is not ours."""
    text = b"".join(encode(Numbering().commit(event)) + b"\n" for event in SAID)
    old, other = tmp_path / "events.jsonl.7", tmp_path / "notes.jsonl"
    for path in (old, other):
        path.write_bytes(text)
    os.utime(old, (0, NOON.timestamp() - 3 * 86_400))
    await write(Jsonl(path="events.jsonl"), tmp_path, [Numbering().commit(GONE)])
    assert old.read_bytes() == other.read_bytes() == text
    assert other not in family(tmp_path / "events.jsonl")
