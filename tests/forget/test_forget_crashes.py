"""A wish to forget that a crash interrupts is carried out at the next start, before any room is open."""

import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from roomtone.capture.records import audio_records
from roomtone.events import Forgotten, Interim, Level, Turn, Word
from roomtone.forget.room import ForgetRange, ForgetScope, RecordedSpan, closed, forget, locate, resume
from roomtone.journal.coverage import summarize
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.records import Mark, Record
from roomtone.live import Live
from roomtone.spool.disk import Disk
from roomtone.spool.spool import Spool, open_spool

RATE = 1000
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECONDS = 100


class Died(BaseException):
    """The process is gone."""


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def sound(second: int) -> bytes:
    """A second that is like no other."""
    return random.Random(second).randbytes(2 * RATE)


async def record(folder: Path) -> None:
    """A room in which a turn is said in each second. The last two segments are not in the journal yet."""
    async with (
        open_journal(folder / "journal.sqlite") as journal,
        open_spool(folder / "spool" / "desk", rate=RATE, segment_seconds=10) as spool,
    ):
        await journal.commit(Mark("room/desk/rate", RATE), Mark("room/desk/holes", [[35 * RATE, 45 * RATE]]))
        await journal.commit(Mark("room/desk/acknowledged", 44 * RATE))
        for second in range(SECONDS):
            segment = await spool.append(sound(second), at(second))
            facts: list[Record] = [turn(second)]
            if segment is not None and segment.end <= 80 * RATE:
                facts += audio_records("desk", RATE, segment)
            await journal.commit(*facts)


def turn(second: int) -> Turn:
    word = Word(text=f"said-{second:05}-here", start=second * RATE, end=second * RATE + 500)
    return Turn(
        room="desk",
        position=word.start,
        at=at(second),
        session_id="s",
        turn_order=second,
        text=word.text,
        words=(word,),
    )


def premises(folder: Path, journal: Journal) -> ForgetScope:
    return ForgetScope(journal, Live(), closed(folder / "spool"))


def left(folder: Path) -> tuple[set[int], set[int]]:
    """The seconds of which sound is in any file, and those of which text is: a tenth of a second is enough."""
    data = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    heard = {
        second
        for second in range(SECONDS)
        if any(sound(second)[place : place + 200] in one for one in data for place in range(0, 2 * RATE, 200))
    }
    return heard, {second for second in range(SECONDS) if any(f"said-{second:05}".encode() in one for one in data)}


GONE = set(range(33, 68))
STEPS = {
    "nothing is erased": (Spool, "erase", 1),
    "some is erased": (Spool, "remove", 2),
    "an edge is erased": (Disk, "erase", 2),
    "the audio is gone": (Journal, "forget", 1),
    "the events are gone": (Journal, "compact", 1),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Wherever it dies, the next start leaves nothing of the stretch, all of the rest, and one tombstone."""
    alive, dead = tmp_path / "alive", tmp_path / "dead"
    await record(alive)
    kind, name, times = STEPS[step]
    counter = iter(range(1, 100))
    original: Any = getattr(kind, name)

    def die(*arguments: Any, **named: Any) -> Any:
        if next(counter) == times:
            shutil.copytree(alive, dead)  # what a killed process leaves, before anything is closed in order
            raise Died
        return original(*arguments, **named)

    monkeypatch.setattr(kind, name, die)
    try:
        async with open_journal(alive / "journal.sqlite") as journal:
            await forget("desk", RATE, at(33), at(68), premises(alive, journal))
        pytest.fail("it did not die")
    except* Died:
        monkeypatch.undo()
    assert left(dead)[1] & GONE

    async with open_journal(dead / "journal.sqlite") as journal:
        await resume(premises(dead, journal))
        await resume(premises(dead, journal))
        assert [type(event) for event in await journal.read(0) if isinstance(event, Forgotten)] == [Forgotten]
        assert await journal.mark("room/desk/forgetting") is None
    everything = set(range(SECONDS))
    assert left(dead) == (everything - GONE, everything - GONE)


async def test_nobody_is_to_transcribe_what_is_gone(tmp_path: Path) -> None:
    """Holes lose what is forgotten, the transcript stands behind it, and the account is whole."""
    await record(tmp_path)
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        done = await forget("desk", RATE, at(40), at(50), premises(tmp_path, journal))
        assert done is not None
        assert await journal.mark("room/desk/holes") == [[35 * RATE, 40 * RATE]]
        assert await journal.mark("room/desk/acknowledged") == 50 * RATE
        summary = summarize("desk", RATE, await journal.covered("desk"))
        assert summary is not None
        assert summary.is_explained
        assert summary.forgotten == 10 * RATE


async def test_a_segment_that_the_journal_does_not_know_stays_in_its_place(tmp_path: Path) -> None:
    """Audio that recovery has yet to journal is made silent, and not removed: else it would count as lost."""
    await record(tmp_path)
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await forget("desk", RATE, at(75), at(100), premises(tmp_path, journal))
    async with open_spool(tmp_path / "spool" / "desk", rate=RATE) as spool:
        assert spool.end == SECONDS * RATE
        assert [one.position // RATE for one in spool.segments()] == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


async def test_a_time_of_which_nothing_was_recorded(tmp_path: Path) -> None:
    """Nothing is there to forget: no tombstone, no mark, and nothing changes."""
    await record(tmp_path)
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        tip = journal.tip
        assert await forget("desk", RATE, at(-50), at(-10), premises(tmp_path, journal)) is None
        assert journal.tip == tip


async def test_the_live_feed_is_cleared(tmp_path: Path) -> None:
    """Text that is not final yet is dropped."""
    await record(tmp_path)
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        here = premises(tmp_path, journal)
        with here.live.subscribe() as captions:
            position = 99 * RATE
            here.live.publish(
                Interim(room="desk", position=position, at=at(99), session_id="s", turn_order=99, text="said")
            )
            await forget("desk", RATE, at(90), at(100), here)
            here.live.publish(Level(room="desk", position=0, at=NOON, rms=-50, peak=-40))
            assert isinstance(await anext(captions), Level)


async def test_sound_that_is_on_its_way_is_waited_for(tmp_path: Path) -> None:
    """Audio that was heard before the command and has not come to the spool yet is forgotten too."""
    async with (
        open_journal(tmp_path / "journal.sqlite") as journal,
        open_spool(tmp_path / "spool" / "desk", rate=RATE) as spool,
        trio.open_nursery() as nursery,
    ):
        await journal.commit(Mark("room/desk/rate", RATE))
        await spool.append(sound(0), at(0))

        async def arrive() -> None:
            await trio.sleep(0.1)
            await spool.append(sound(1), at(1))

        nursery.start_soon(arrive)
        here = ForgetScope(journal, Live(), lambda *_: _Open(spool))
        done = await forget("desk", RATE, at(0), at(1.8), here)
        assert done is not None
        assert (done.stretch.start, done.stretch.end, done.is_late) == (0, 1800, False)
        await spool.append(sound(2), at(2))
    heard, _ = left(tmp_path)
    assert heard == {1, 2}
    assert sound(1)[: 2 * 800] not in b"".join(_files(tmp_path))


class _Open:
    """A room's spool that is open already."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    async def __aenter__(self) -> Spool:
        return self._spool

    async def __aexit__(self, *_: object) -> None:
        pass


def _files(folder: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in (folder / "spool").rglob("*.pcm"))


def test_times_are_positions_rounded_outward() -> None:
    """A stretch reaches from the first to the last sample that was heard in it; one without samples does not exist."""
    heard = [RecordedSpan(0, 1000, at(0)), RecordedSpan(1000, 1000, at(3600))]
    assert locate(heard, RATE, at(-5), at(7200)) == ForgetRange(0, 2000, at(0), at(3601))
    assert locate(heard, RATE, at(0.1), at(0.3001)) == ForgetRange(100, 301, at(0.1), at(0.301))
    assert locate(heard, RATE, at(0.5), at(3600.5)) == ForgetRange(500, 1500, at(0.5), at(3600.5))
    assert locate(heard, RATE, at(2), at(3)) is None


async def test_a_room_that_nobody_records_is_not_waited_for(tmp_path: Path) -> None:
    """Without a daemon nothing is on its way: now is the last sample, and the answer does not ask for another try."""
    await record(tmp_path)
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        done = await forget("desk", RATE, at(90), at(SECONDS + 50), premises(tmp_path, journal))
        assert done is not None
        assert (done.stretch.end, done.is_late) == (SECONDS * RATE, False)
