"""The spool: audio on disk first, each position once, nothing counted that is not there."""

import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone.spool.spool import Disk, Piece, Segment, Spool, open_spool
from roomtone.testing.inline import run_inline

RATE = 1000
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def at(position: int) -> datetime:
    return NOON + timedelta(seconds=position / RATE)


def tone(start: int, samples: int) -> bytes:
    """Audio that says of each sample where it belongs."""
    return b"".join(
        (position % 60_000 - 30_000).to_bytes(2, "little", signed=True) for position in range(start, start + samples)
    )


@asynccontextmanager
async def spool_of(folder: Path, **options: object) -> AsyncIterator[Spool]:
    async with open_spool(folder, rate=RATE, run_sync=run_inline, **options) as spool:  # type: ignore[arg-type]
        yield spool


async def speak(spool: Spool, samples: int, block: int = 200) -> None:
    for _ in range(samples // block):
        await spool.append(tone(spool.end, block), at(spool.end))


async def listen(spool: Spool, position: int = 0, limit: int = 333) -> list[Piece]:
    pieces = []
    while piece := await spool.read(position, limit):
        pieces.append(piece)
        position = piece.end
    return pieces


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


class FullDisk(Disk):
    """The fear: the disk takes a part of a block, or no new file, and says that it is full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def put(self, file: int, audio: memoryview, offset: int) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().put(file, audio[: self.room], offset)
        self.room -= written
        return written


class BrokenSync(Disk):
    """The fear: the disk does not say that data is durable."""

    def sync(self, file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class SlowDisk(Disk):
    """The fear: a write that takes as long as the test holds it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def write(self, file: int, audio: bytes, offset: int) -> None:
        self.begun.set()
        self.go.wait(30)
        super().write(file, audio, offset)


class SlowSync(SlowDisk):
    """The fear: a sync that takes as long as the test holds it."""

    def write(self, file: int, audio: bytes, offset: int) -> None:
        Disk.write(self, file, audio, offset)

    def sync(self, file: int) -> None:
        self.begun.set()
        self.go.wait(30)
        super().sync(file)


class CountingDisk(Disk):
    """Not a fear: tells how often data was made durable, and names."""

    def __init__(self) -> None:
        self.syncs = 0
        self.folders = 0

    def sync_folder(self, folder: Path) -> None:
        self.folders += 1
        super().sync_folder(folder)

    def sync(self, file: int) -> None:
        self.syncs += 1
        super().sync(file)


async def test_what_was_appended_is_read(tmp_path: Path) -> None:
    """Every sample comes back once and in its place, from memory and from the files."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 95_000)
        assert spool.end == 95_000
        assert b"".join(piece.audio for piece in await listen(spool)) == tone(0, 95_000)
        assert [segment.position for segment in spool.segments()] == [0, 30_000, 60_000]
    async with spool_of(tmp_path) as spool:
        assert b"".join(piece.audio for piece in await listen(spool)) == tone(0, 95_000)
        assert (spool.first, spool.end) == (0, 95_000)


async def test_files_tell_position_and_time_and_are_private(tmp_path: Path) -> None:
    """The folder alone can be recovered; no other user may read what was said in a room."""
    folder = tmp_path / "spool" / "desk"
    async with spool_of(folder) as spool:
        await speak(spool, 1000)
        await spool.cut(fresh=True, skip=500)
        await speak(spool, 200)
        await spool.cut()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "0000000000000000_20261122T120000.000000Z.pcm",
        "0000000000001500_20261122T120001.500000Z_fresh.pcm",
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


async def test_a_piece_never_spans_a_break(tmp_path: Path) -> None:
    """A reader gets audio without a hole inside, and is told where time without a source lies before it."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 400)
        await spool.cut(skip=100)
        await speak(spool, 400)
        await spool.cut(fresh=True)
        await speak(spool, 400)
        live = await listen(spool, limit=10_000)
    async with spool_of(tmp_path) as spool:
        later = await listen(spool, limit=10_000)
    assert [(piece.position, piece.end, piece.fresh) for piece in live] == [
        (0, 400, False),
        (500, 900, False),
        (900, 1300, True),
    ]
    assert later == live


async def test_reading_begins_at_the_first_recorded_sample(tmp_path: Path) -> None:
    """A read at a lost position returns the audio after it; a read at the end returns nothing."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 400)
        await spool.cut(skip=100)
        assert await spool.read(450, 10) is None
        await speak(spool, 400)
        assert await spool.read(450, 10) == Piece(500, tone(500, 10), fresh=False)
        assert await spool.read(499, 1) == Piece(500, tone(500, 1), fresh=False)
        assert await spool.read(900, 10) is None


async def test_readers_wait_for_growth(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """`wait_past` returns when there is audio to read, and at the end of data, not for a skipped position."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 200)
        assert await spool.wait_past(199)
        with trio.move_on_after(5) as waiting:
            await spool.cut(skip=50)
            await spool.wait_past(200)
        assert waiting.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spool.append, tone(250, 200), at(250))
            assert await spool.wait_past(200)
        spool.end_of_data()
        assert not await spool.wait_past(450)
        assert spool.ended


async def test_a_torn_sample_is_cut_off(tmp_path: Path) -> None:
    """A power cut between two bytes costs one sample, not the file."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 400)
    (path,) = files(tmp_path)
    with path.open("ab") as file:
        file.write(b"\x7f")
    async with spool_of(tmp_path) as spool:
        assert spool.end == 400
        assert await listen(spool, limit=1000) == [Piece(0, tone(0, 400), fresh=False)]
    assert path.stat().st_size == 800


async def test_empty_files_go_and_strangers_stay(tmp_path: Path) -> None:
    """Recovery removes segments without audio and touches nothing that it does not know."""
    (tmp_path / "0000000000000000_20261122T120000.000000Z.pcm").touch()
    (tmp_path / "0000000000000001_20261399T120000.000000Z.pcm").write_bytes(b"12")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "0000000000000007_20261122T120000.000000Z.pcm").mkdir()
    (tmp_path / "0000000000000009_20261122T120000.000000Z.pcm").symlink_to("/etc/hostname")
    async with spool_of(tmp_path) as spool:
        assert (spool.end, spool.segments()) == (0, ())
        await speak(spool, 200)
    assert len(files(tmp_path)) == 5


async def test_a_position_is_given_once_even_when_files_overlap(tmp_path: Path) -> None:
    """Of files that overlap the earlier one counts up to the later one."""
    (tmp_path / "0000000000000000_20261122T120000.000000Z.pcm").write_bytes(tone(0, 100))
    (tmp_path / "0000000000000050_20261122T120000.050000Z.pcm").write_bytes(tone(50, 100))
    async with spool_of(tmp_path) as spool:
        assert [(one.position, one.end) for one in spool.segments()] == [(0, 50), (50, 150)]
        assert b"".join(piece.audio for piece in await listen(spool)) == tone(0, 150)


async def test_audio_is_made_durable_once_per_interval(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A power cut costs one second; a disk without new audio is left alone."""
    disk = CountingDisk()
    async with spool_of(tmp_path, disk=disk) as spool:
        for _ in range(50):
            await speak(spool, 200)
            await trio.sleep(0.2)
        assert 9 <= disk.syncs <= 10
        await trio.sleep(60)
        assert disk.syncs <= 11


async def test_what_is_left_is_durable(tmp_path: Path) -> None:
    """Leaving makes the last second durable and closes its file, cancelled or not."""
    disk = CountingDisk()
    with trio.CancelScope() as scope:
        async with spool_of(tmp_path, disk=disk) as spool:
            await speak(spool, 200)
            scope.cancel()
            await trio.sleep_forever()
    assert disk.syncs == 1
    assert open_below(tmp_path) == 0


async def test_only_the_open_segment_is_an_open_file(tmp_path: Path) -> None:
    """Three thousand segments a day: a process has a thousand descriptors."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 95_000)
        await listen(spool)
        assert open_below(tmp_path) == 1


def open_below(folder: Path) -> int:
    """The descriptors of this process that lead into the folder."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this very listing
            found += descriptor.readlink().is_relative_to(folder)
    return found


async def test_only_the_first_segment_after_time_without_a_source_is_fresh(tmp_path: Path) -> None:
    """Each one would end a turn."""
    async with spool_of(tmp_path) as spool:
        await spool.cut(fresh=True)
        await speak(spool, 65_000)
        assert [segment.fresh for segment in spool.recorded()] == [True, False, False]


async def test_what_is_being_written_is_erased_in_its_file(tmp_path: Path) -> None:
    """The open segment is read from memory: that its file holds nothing of it any more is seen there only."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 1000)
        await spool.erase(200, 400, journalled=0)
        (path,) = files(tmp_path)
        assert path.read_bytes() == tone(0, 200) + bytes(400) + tone(400, 600)


async def test_a_room_of_which_all_is_erased_goes_on_where_it_was(tmp_path: Path) -> None:
    """The newest segment stays, as zeros: from its name and size the next start knows the position."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 60_000)
        await spool.erase(0, 60_000, journalled=60_000)
    async with spool_of(tmp_path) as spool:
        assert spool.end == 60_000
        assert b"".join(piece.audio for piece in await listen(spool)) == bytes(60_000)


async def test_that_something_is_erased_is_durable(tmp_path: Path) -> None:
    """Names of what is gone come back after a power cut, where the folder was not made durable behind the last."""
    disk = CountingDisk()
    async with spool_of(tmp_path, disk=disk) as spool:
        await speak(spool, 95_000)
        before = disk.folders
        await spool.erase(0, 60_000, journalled=spool.end)
        assert [segment.position for segment in spool.segments()] == [60_000]
        assert disk.folders == before + 1


async def test_what_the_quota_took_meanwhile_is_erased(tmp_path: Path) -> None:
    """A file that is gone holds nothing."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 95_000)
        spool.segments()[0].path.unlink()
        await spool.erase(10_000, 40_000, journalled=spool.end)
        assert spool.segments()[1].path.read_bytes() == bytes(20_000) + tone(40_000, 20_000)


async def test_bytes_are_durable_and_so_are_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose folder was not synced may have no name after a power cut, or the one that it had before."""
    synced: list[str] = []

    def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
        def synchronize(file: int) -> None:
            path = Path(f"/proc/self/fd/{file}").readlink()
            synced.append("folder" if path == tmp_path else path.suffix)
            sync(file)

        return synchronize

    monkeypatch.setattr(os, "fsync", noting(os.fsync))
    monkeypatch.setattr(os, "fdatasync", noting(os.fdatasync))
    async with spool_of(tmp_path, sync_interval=1000) as spool:
        await spool.append(tone(0, 200), at(0) + timedelta(milliseconds=10))
        await spool.sync()
        assert synced == [".pcm", "folder"]
        await spool.append(tone(200, 200), at(200))  # which knows the time better, so that the name changes
        synced.clear()
        await spool.cut()
        assert synced == [".pcm", "folder"]
        synced.clear()
        await spool.erase(0, 100, journalled=0)
        assert synced == [".pcm", "folder"]


def test_a_new_segment_never_takes_the_place_of_another(tmp_path: Path) -> None:
    """That a name is there already is a mistake of ours, and no reason to lose what it holds."""
    (tmp_path / "a.pcm").write_bytes(b"audio")
    with pytest.raises(FileExistsError):
        Disk().create(tmp_path / "a.pcm")


async def test_a_full_disk_counts_nothing_and_heals(tmp_path: Path) -> None:
    """A block that does not fit is refused as a whole, in an old file and in a new one; the next that fits goes on."""
    disk = FullDisk(room=500)
    async with spool_of(tmp_path, disk=disk) as spool:
        await spool.append(tone(0, 200), at(0))
        with pytest.raises(OSError, match="No space left"):
            await spool.append(tone(200, 200), at(200))
        assert spool.end == 200
        assert [path.stat().st_size for path in files(tmp_path)] == [400]
        await spool.cut(skip=200)
        disk.room = 100
        with pytest.raises(OSError, match="No space left"):
            await spool.append(tone(400, 200), at(400))
        assert len(files(tmp_path)) == 1
        disk.room = 10_000
        await spool.append(tone(400, 200), at(400))
        assert [(piece.position, piece.audio) for piece in await listen(spool)] == [
            (0, tone(0, 200)),
            (400, tone(400, 200)),
        ]
    async with spool_of(tmp_path) as spool:
        assert [(one.position, one.samples) for one in spool.segments()] == [(0, 200), (400, 200)]


async def test_a_disk_that_fails_to_sync_stops_nothing(tmp_path: Path) -> None:
    """That data may not be durable is counted and logged; recording goes on."""
    async with spool_of(tmp_path, disk=BrokenSync()) as spool:
        await speak(spool, 400)
        await spool.sync()
        assert await spool.cut() is not None
        assert spool.unsynced == 2
        assert await listen(spool, limit=1000) == [Piece(0, tone(0, 400), fresh=False)]


async def test_a_cancelled_append_is_completed(tmp_path: Path) -> None:
    """Shutdown in the middle of a write neither doubles nor loses a sample."""
    disk = SlowDisk()
    async with open_spool(tmp_path, rate=RATE, disk=disk) as spool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spool.append, tone(0, 200), at(0))
            await trio.to_thread.run_sync(disk.begun.wait)
            nursery.cancel_scope.cancel()
            disk.go.set()
        assert spool.end == 200
        assert await spool.read(0, 1000) == Piece(0, tone(0, 200), fresh=False)
    async with spool_of(tmp_path) as again:
        assert again.end == 200


async def test_a_cancelled_append_still_tells_of_the_segment_that_it_closed(tmp_path: Path) -> None:
    """A writer that is cancelled in the middle of a write still returns the completed segment."""
    disk = SlowDisk()
    closed: list[Any] = []
    async with open_spool(tmp_path, rate=RATE, disk=disk, segment_seconds=0.2) as spool, trio.open_nursery() as nursery:

        async def append() -> None:
            closed.append(await spool.append(tone(0, 200), at(0)))

        nursery.start_soon(append)
        await trio.to_thread.run_sync(disk.begun.wait)
        nursery.cancel_scope.cancel()
        disk.go.set()
    assert [(one.position, one.end) for one in closed] == [(0, 200)]


async def test_a_cancelled_cut_is_completed(tmp_path: Path) -> None:
    """A writer that is cancelled while a segment is closed leaves it closed, at the right position."""
    disk = SlowSync()
    async with open_spool(tmp_path, rate=RATE, disk=disk, sync_interval=1000) as spool:
        await spool.append(tone(0, 200), at(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: spool.cut(skip=50))
            await trio.to_thread.run_sync(disk.begun.wait)
            nursery.cancel_scope.cancel()
            disk.go.set()
        assert spool.end == 250
        assert [(one.position, one.end) for one in spool.segments()] == [(0, 200)]


async def test_an_append_that_was_cancelled_before_it_began_is_not_counted(tmp_path: Path) -> None:
    """Cancellation comes before a block or after it."""
    async with spool_of(tmp_path) as spool:
        with trio.CancelScope() as scope:
            scope.cancel()
            await spool.append(tone(0, 200), at(0))
        assert spool.end == 0
        assert files(tmp_path) == []


async def test_a_block_that_knows_better_corrects_the_time_of_its_segment(tmp_path: Path) -> None:
    """The first read was late; what later reads tell of the beginning stands in the name when the segment is closed."""
    async with spool_of(tmp_path) as spool:
        await spool.append(tone(0, 200), at(0) + timedelta(milliseconds=250))
        await spool.append(tone(200, 200), at(200) + timedelta(milliseconds=10))
        await spool.append(tone(400, 200), at(400) + timedelta(milliseconds=90))
        segment = await spool.cut()
        assert segment is not None
        assert segment.at == at(0) + timedelta(milliseconds=10)
        assert [path.name for path in files(tmp_path)] == ["0000000000000000_20261122T120000.010000Z.pcm"]
        assert spool.at(300) == at(300) + timedelta(milliseconds=10)
        assert segment.path.read_bytes() == tone(0, 600)


async def test_times_come_from_the_segment_and_go_on_outside(tmp_path: Path) -> None:
    """A position has the time of its own segment; before, between and after them the nearest earlier one counts."""
    async with spool_of(tmp_path) as spool:
        with pytest.raises(LookupError):
            spool.at(0)
        spool.date(500, NOON)
        assert spool.at(400) == NOON - timedelta(seconds=0.1)
        await spool.cut(skip=1000)
        await spool.append(tone(1000, 200), NOON)
        await spool.cut(fresh=True)
        await spool.append(tone(1200, 200), NOON + timedelta(hours=1))
        assert spool.at(900) == NOON - timedelta(seconds=0.1)
        assert spool.at(1100) == NOON + timedelta(seconds=0.1)
        assert spool.at(1200) == NOON + timedelta(hours=1)
        assert spool.at(2200) == NOON + timedelta(hours=1, seconds=1)


async def test_removed_segments_are_skipped(tmp_path: Path) -> None:
    """Removed audio is not read any more, neither from disk nor from memory."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 95_000)
        await spool.remove(spool.segments()[0])
        await spool.remove(spool.segments()[-1])
        pieces = await listen(spool, limit=50_000)
        assert [(piece.position, piece.end) for piece in pieces] == [(30_000, 60_000), (90_000, 95_000)]
        assert spool.first == 30_000


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(0, 8_000),
    st.integers(1, 8_000),
    st.booleans(),
    st.integers(0, 8_000),
)
@settings(max_examples=60, deadline=None)
def test_what_is_erased_is_nowhere_and_nothing_else_is_touched(
    runs: list[int], start: int, length: int, journalled: bool, late: int
) -> None:
    """No sample of the stretch is left in memory or in any file, every other one reads as before, immediately and after
    the next opening, and the room goes on at the same position.
    """

    async def check(folder: Path) -> None:
        async with spool_of(folder, segment_seconds=1) as spool:
            for blocks in runs:
                await speak(spool, 200 * blocks)
                await spool.cut(skip=200)
            await speak(spool, late // 200 * 200)
            end = min(start + length, spool.end)
            heard = samples_of(await listen(spool))
            await spool.erase(start, end, journalled=spool.end if journalled else 0)
            expected = {place: sample for place, sample in heard.items() if not start <= place < end}
            assert kept(samples_of(await listen(spool)), start, end) == expected
            went_on = spool.end
            await spool.append(tone(spool.end, 200), at(spool.end))
        async with spool_of(folder, segment_seconds=1) as spool:
            assert spool.end == went_on + 200
            left = kept(samples_of(await listen(spool)), start, end)
            assert {place: sample for place, sample in left.items() if place < went_on} == expected

    with tempfile.TemporaryDirectory() as folder:
        trio.run(check, Path(folder))


def samples_of(pieces: list[Piece]) -> dict[int, bytes]:
    return {
        piece.position + n: piece.audio[2 * n : 2 * n + 2] for piece in pieces for n in range(len(piece.audio) // 2)
    }


def kept(heard: dict[int, bytes], start: int, end: int) -> dict[int, bytes]:
    """The audio without the zeros in the stretch: there may be nothing else there."""
    assert all(sample == bytes(2) for place, sample in heard.items() if start <= place < end)
    return {place: sample for place, sample in heard.items() if not start <= place < end}


async def test_an_unreadable_file_does_not_stop_the_rest(tmp_path: Path) -> None:
    """A segment that vanished or shrank behind our back is left out."""
    async with spool_of(tmp_path) as spool:
        await speak(spool, 155_000)
        first, second, *_ = spool.segments()
        first.path.unlink()
        os.truncate(second.path, 1001)
        pieces = await listen(spool, limit=50_000)
        assert [(piece.position, piece.end) for piece in pieces][:2] == [(30_000, 30_500), (60_000, 90_000)]


@pytest.mark.parametrize("gone", ["spool", "spool/desk"])
async def test_a_folder_that_was_cleaned_away_is_made_again(tmp_path: Path, gone: str) -> None:
    """Somebody's cleaning costs what was in the folder, and not the segment that was open, nor any later one."""
    folder = tmp_path / "spool" / "desk"
    async with spool_of(folder, segment_seconds=1) as spool:
        await speak(spool, 1200)
        shutil.rmtree(tmp_path / gone)
        await speak(spool, 2400)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [segment.position for segment in await recovered(folder)] == [1000, 2000, 3000]


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
async def test_an_open_segment_that_somebody_takes_away_is_restored(tmp_path: Path, how: str) -> None:
    """Its audio is in the file that is still open: it is closed whole, under its name."""
    folder = tmp_path / "desk"
    async with spool_of(folder, segment_seconds=2) as spool:
        await spool.append(tone(0, 200), at(1))  # a late read: the next one knows better, and the name changes
        await speak(spool, 800)
        (path,) = files(folder)
        path.rename(tmp_path / "elsewhere") if how == "moved" else path.unlink()
        if how == "replaced":
            path.write_bytes(b"other")
        await speak(spool, 1000)
        (segment,) = spool.segments()
        assert segment.path.read_bytes() == tone(0, 2000)
        assert (segment.samples, segment.at) == (2000, NOON)
    assert await recovered(folder) == (segment,)


class StubbornDisk(Disk):
    """The fear: a file cannot be renamed."""

    def rename(self, path: Path, new: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_a_segment_that_cannot_be_renamed_is_read(tmp_path: Path) -> None:
    """It keeps the time of the name that it has: its audio is worth more than a better time."""
    async with spool_of(tmp_path, segment_seconds=1, disk=StubbornDisk()) as spool:
        await spool.append(tone(0, 200), at(1))
        await speak(spool, 40_000 - 200)
        first = spool.segments()[0]
        assert first.path.exists()
        assert first.at == at(1)
        assert (await listen(spool))[0].position == 0


async def test_what_somebody_removes_is_told_once(tmp_path: Path) -> None:
    """A file that is gone before anybody read it, one that is gone when it is read, and none that is here or went by
    the spool's own hand.
    """
    async with spool_of(tmp_path, segment_seconds=1) as spool:
        await speak(spool, 60_000)
        first, second, third, fourth, *_ = spool.segments()
        await spool.remove(first)
        second.path.unlink()
        third.path.unlink()
        await spool.read(third.position, 100)
        assert await spool.missing(0, 100) == [third, second]
        fourth.path.unlink()
        assert await spool.missing(fourth.end, 100) == []
        assert await spool.missing(0, 100) == [fourth]
        assert await spool.missing(0, 100) == []


async def test_a_state_folder_that_is_away_is_not_made(tmp_path: Path) -> None:
    """It may be a disk that is not mounted: what would be written in its place would fill another one."""
    state = tmp_path / "state"
    async with spool_of(state / "spool" / "desk", segment_seconds=1) as spool:
        await speak(spool, 1000)
        shutil.rmtree(state)
        with pytest.raises(FileNotFoundError):
            await speak(spool, 200)
        assert not state.exists()


async def recovered(folder: Path) -> tuple[Segment, ...]:
    async with spool_of(folder) as spool:
        return spool.segments()


async def test_half_a_sample_is_refused(tmp_path: Path) -> None:
    """A block is whole samples, or it is a mistake of the caller's."""
    async with spool_of(tmp_path) as spool:
        for audio in (b"", b"123"):
            with pytest.raises(ValueError, match="whole 16-bit samples"):
                await spool.append(audio, NOON)
        with pytest.raises(ValueError, match="never goes back"):
            await spool.cut(skip=-1)


async def test_it_works_in_threads(tmp_path: Path) -> None:
    """A writer and a concurrent reader, with the disk in worker threads: the reader gets every sample once."""
    heard = bytearray()

    async def read(spool: Spool) -> None:
        position = 0
        while await spool.wait_past(position):
            piece = await spool.read(position, 150)
            assert piece is not None
            heard.extend(piece.audio)
            position = piece.end

    async with (
        open_spool(tmp_path, rate=RATE, segment_seconds=0.5, sync_interval=0.01) as spool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, spool)
        await speak(spool, 20_000)
        spool.end_of_data()
    assert bytes(heard) == tone(0, 20_000)


Step = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 400)),
    st.tuples(st.just("cut"), st.integers(0, 50)),
    st.tuples(st.just("fresh"), st.just(0)),
    st.tuples(st.just("full"), st.integers(0, 399)),
    st.tuples(st.just("reopen"), st.integers(0, 1)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(Step, max_size=30), limit=st.integers(1, 700))
def test_the_spool_is_a_list_of_samples(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], limit: int
) -> None:
    """Whatever is appended, cut, skipped, refused by a full disk, reopened and torn: the samples that were counted come
    back in their places, and no others.
    """
    trio.run(_check, tmp_path_factory.mktemp("spool"), steps, limit)


async def _check(folder: Path, steps: list[tuple[str, int]], limit: int) -> None:
    expected: dict[int, bytes] = {}
    rest = list(steps)
    end = 0
    while True:
        disk = FullDisk(room=10**9)
        async with spool_of(folder, disk=disk, segment_seconds=0.7) as spool:
            await spool.cut(skip=end - spool.end)
            torn = await _play(spool, disk, rest, expected)
            end = spool.end
            heard = {
                piece.position + place: piece.audio[2 * place : 2 * place + 2]
                for piece in await listen(spool, limit=limit)
                for place in range(len(piece.audio) // 2)
            }
            assert heard == expected
        if torn is None:
            return
        for path in files(folder)[-1:]:
            with path.open("ab") as file:
                file.write(b"x" * torn)


async def _play(spool: Spool, disk: FullDisk, steps: list[tuple[str, int]], expected: dict[int, bytes]) -> int | None:
    while steps:
        step, number = steps.pop(0)
        if step == "reopen":
            return number
        if step in {"append", "full"}:
            audio, start = tone(spool.end, 400 if step == "full" else number), spool.end
            disk.room = number if step == "full" else 10**9
            try:
                await spool.append(audio, at(start))
            except OSError:
                assert spool.end == start
            else:
                expected.update({start + place: audio[2 * place : 2 * place + 2] for place in range(len(audio) // 2)})
        else:
            await spool.cut(fresh=step == "fresh", skip=number)
    return None
