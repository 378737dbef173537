"""roomtone_wav: every sample at its place, in files that are valid at any moment."""

import errno
import os
import shutil
import stat
import time
import wave
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone import Audio, Durable, Forgotten, Gap, RecordingStopped
from roomtone_wav import Wav
from roomtone_wav.recording import HEADER_BYTES, MAX_SAMPLES, PositionSpan, Recording, header, united
from support.journal import Numbering, accept, context, deliver_all

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
RATE = 1000


class Room:
    """A room whose samples are their own positions, so that any sample in a file says where it belongs."""

    def __init__(
        self, folder: Path, *, room: str = "desk", rate: int = RATE, era: int = 1, at: datetime = NOON
    ) -> None:
        self._folder = folder
        self._numbering = Numbering(era)
        self._room, self._rate, self._at = room, rate, at
        self._fresh = False
        self.position = 0
        self.events: list[Durable] = []

    def says(self, samples: int, *, file: bool = True) -> None:
        """A segment is closed."""
        path = self._folder / f"{self._room}_{self.position}.pcm"
        path.write_bytes(audio(self.position, self.position + samples))
        fact = Audio(
            room=self._room,
            position=self.position,
            at=self._at,
            samples=samples,
            rate=self._rate,
            file=str(path) if file else None,
            fresh=self._fresh,
        )
        self.events.append(self._numbering.commit(fact))
        self._fresh = False
        self.position += samples
        self._at += timedelta(seconds=samples / self._rate)

    def loses(self, samples: int) -> None:
        """An overrun: the position moves on by what is lost."""
        until = self._at + timedelta(seconds=samples / self._rate)
        self._gap(self.position + samples, until, "overrun")

    def is_away(self, seconds: float) -> None:
        """The device is gone for so long: the position stands still."""
        self._gap(self.position, self._at + timedelta(seconds=seconds), "device")
        self._fresh = True

    def forgets(self, start: int, end: int) -> None:
        fact = Forgotten(room=self._room, position=start, at=NOON, start=start, end=end, from_=NOON, until=NOON)
        self.events.append(self._numbering.commit(fact))

    def stops(self) -> None:
        fact = RecordingStopped(room=self._room, position=self.position, at=self._at, reason="stopping")
        self.events.append(self._numbering.commit(fact))

    def _gap(self, end: int, until: datetime, cause: Any) -> None:
        fact = Gap(
            room=self._room,
            position=self.position,
            at=self._at,
            start=self.position,
            end=end,
            from_=self._at,
            until=until,
            cause=cause,
        )
        self.events.append(self._numbering.commit(fact))
        self.position, self._at = end, until


def audio(start: int, end: int) -> bytes:
    """The samples at these positions: never zero, and telling."""
    return b"".join((position % 30_000 + 1).to_bytes(2, "little") for position in range(start, end))


def hand(plugin: Any, events: Iterable[Durable]) -> None:
    """Call the hooks as the delivery does, those that are there."""
    for event in events:
        hook = getattr(plugin, str(event.__struct_config__.tag), None)
        if hook is not None:
            hook(event)


async def deliver(sink: Wav, folder: Path, events: Iterable[Durable], *, flush: bool = True) -> None:
    """One life of the sink: opened, given these events, and left, with or without the flush."""
    async with sink.open(context(folder)) as plugin:
        hand(plugin, events)
        if flush:
            plugin.flush()  # type: ignore[attr-defined]  # a plugin is any object


def contents(folder: Path) -> dict[str, bytes]:
    """The samples of each WAV file below the folder, as the standard library reads them."""
    found = {}
    for path in sorted(folder.rglob("*.wav")):
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            found[str(path.relative_to(folder))] = file.readframes(file.getnframes())
            assert len(found[str(path.relative_to(folder))]) == 2 * file.getnframes()
    return found


def sidecar(folder: Path) -> Any:
    (path,) = folder.rglob("*.json")
    return msgspec.json.decode(path.read_bytes())


async def test_one_recording_is_one_file(tmp_path: Path) -> None:
    """Segments that follow each other become one file, named by its room and its first sample's time."""
    room = Room(tmp_path)
    for _ in range(3):
        room.says(500)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert contents(tmp_path / "wav") == {"desk/2025-03-01/desk_20250301T120000Z.wav": audio(0, 1500)}
    facts = sidecar(tmp_path / "wav")
    assert (facts["room"], facts["rate"], facts["first"], facts["end"], facts["samples"]) == (
        "desk",
        1000,
        0,
        1500,
        1500,
    )
    assert (facts["start"], facts["until"]) == ("2025-03-01T12:00:00Z", "2025-03-01T12:00:01.500000Z")


async def test_hooks_are_spelt_right(tmp_path: Path) -> None:
    """The daemon accepts every hook of the sink."""
    async with Wav(directory="wav").open(context(tmp_path)) as plugin:
        accept(plugin)


async def test_lost_samples_are_zeros_at_their_place(tmp_path: Path) -> None:
    """An overrun moves the position on, and the file with it; the sidecar says why."""
    room = Room(tmp_path)
    room.says(300)
    room.loses(200)
    room.says(300)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300) + bytes(400) + audio(500, 800)]
    (gap,) = sidecar(tmp_path / "wav")["gaps"]
    assert (gap["start"], gap["end"], gap["cause"]) == (300, 500, "overrun")
    assert (gap["from"], gap["until"]) == ("2025-03-01T12:00:00.300000Z", "2025-03-01T12:00:00.500000Z")


async def test_time_without_a_source_begins_a_file(tmp_path: Path) -> None:
    """A break of time ends the file, and the next begins at its own time and position."""
    room = Room(tmp_path)
    room.says(300)
    room.is_away(60)
    room.says(300)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert contents(tmp_path / "wav/desk/2025-03-01") == {
        "desk_20250301T120000Z.wav": audio(0, 300),
        "desk_20250301T120100Z.wav": audio(300, 600),
    }


async def test_time_without_a_source_as_silence(tmp_path: Path) -> None:
    """With `gaps = "silence"` the file goes on after zeros of the break's length, and the sidecar lists them."""
    room = Room(tmp_path)
    room.says(300)
    room.is_away(2)
    room.says(300)
    await deliver(Wav(directory="wav", gaps="silence"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300) + bytes(4000) + audio(300, 600)]
    (silence,) = sidecar(tmp_path / "wav")["silences"]
    assert (silence["position"], silence["samples"]) == (300, 2000)
    assert (silence["from"], silence["until"]) == ("2025-03-01T12:00:00.300000Z", "2025-03-01T12:00:02.300000Z")


async def test_silence_counts_what_the_position_moved_on_once(tmp_path: Path) -> None:
    """After an unclean stop the position jumps and time passes: jump and silence together are the time that passed."""
    room = Room(tmp_path)
    room.says(300)
    room.loses(2000)
    room.is_away(3)
    room.says(300)
    await deliver(Wav(directory="wav", gaps="silence"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300) + bytes(2 * 5000) + audio(2300, 2600)]


async def test_several_breaks_in_one_absence(tmp_path: Path) -> None:
    """Muted, then the daemon was down: one silence of the whole length."""
    room = Room(tmp_path)
    room.says(300)
    room.is_away(1)
    room.is_away(1.5)
    room.says(300)
    await deliver(Wav(directory="wav", gaps="silence"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300) + bytes(2 * 2500) + audio(300, 600)]


async def test_a_silence_is_put_in_once(tmp_path: Path) -> None:
    """A break that is delivered again adds no second silence, even when the clock was set back in between."""
    room = Room(tmp_path)
    room.says(300)
    room.is_away(2)
    room.says(300)
    room._at -= timedelta(hours=1)
    room.says(300)
    await deliver(Wav(directory="wav", gaps="silence"), tmp_path, room.events)
    await deliver(Wav(directory="wav", gaps="silence"), tmp_path, room.events[1:])
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300) + bytes(4000) + audio(300, 900)]


async def test_a_silence_too_long_for_the_file_begins_another(tmp_path: Path) -> None:
    """A clock that was set for the first time, years later, does not fill the disk with zeros."""
    room = Room(tmp_path, at=datetime(1970, 1, 1, tzinfo=UTC))
    room.says(300)
    room.is_away(55 * 365 * 86_400)
    room.says(300)
    await deliver(Wav(directory="wav", gaps="silence"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300), audio(300, 600)]


async def test_hours_split_at_the_sample(tmp_path: Path) -> None:
    """With `split = "hour"` a file ends with the last sample before the clock hour, inside a segment if need be."""
    room = Room(tmp_path, at=NOON - timedelta(milliseconds=299.5))
    room.says(1000)
    await deliver(Wav(directory="wav", split="hour"), tmp_path, room.events)
    assert contents(tmp_path / "wav/desk/2025-03-01") == {
        "desk_20250301T115959Z.wav": audio(0, 300),
        "desk_20250301T120000Z.wav": audio(300, 1000),
    }


@pytest.mark.parametrize(
    ("hour", "names"),
    [
        (datetime(2025, 3, 30, 1, tzinfo=UTC), ["2025-03-30 00:59:59", "2025-03-30 01:00:00"]),
        (datetime(2025, 10, 26, 1, tzinfo=UTC), ["2025-10-26 00:59:59", "2025-10-26 01:00:00"]),
        (datetime(2026, 1, 1, tzinfo=UTC), ["2025-12-31 23:59:59", "2026-01-01 00:00:00"]),
    ],
)
async def test_hours_are_of_no_time_zone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hour: datetime, names: Sequence[str]
) -> None:
    """Where the machine's clocks change, and at midnight, an hour is an hour, and no name comes twice."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        room = Room(tmp_path, at=hour - timedelta(seconds=1))
        room.says(1500)
        await deliver(
            Wav(directory="wav", split="hour", template="{start:%Y-%m-%d %H:%M:%S}.wav"), tmp_path, room.events
        )
    finally:
        monkeypatch.undo()
        time.tzset()
    assert contents(tmp_path / "wav") == {
        f"{names[0]}.wav": audio(0, 1000),
        f"{names[1]}.wav": audio(1000, 1500),
    }


async def test_an_hour_begins_once(tmp_path: Path) -> None:
    """A clock corrected by a moment, back over the hour, begins no second file and moves no sample."""
    room = Room(tmp_path, at=NOON - timedelta(milliseconds=300))
    room.says(301)
    room._at -= timedelta(milliseconds=5)
    room.says(500)
    await deliver(Wav(directory="wav", split="hour"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300), audio(300, 801)]


async def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    """Before 4 GB, the most that RIFF can count, a new file begins with the very next sample."""
    room = Room(tmp_path)
    room.says(100)
    room.loses(MAX_SAMPLES - 150)  # zeros that were never written take no room on the disk
    room.says(100)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    full, following = sorted((tmp_path / "wav").rglob("*.wav"))
    assert full.stat().st_size == HEADER_BYTES + 2 * MAX_SAMPLES <= 2**32 + 7
    with wave.open(str(full)) as file:
        assert file.getnframes() == MAX_SAMPLES
        file.setpos(MAX_SAMPLES - 50)
        assert file.readframes(60) == audio(MAX_SAMPLES - 50, MAX_SAMPLES)
    assert following.read_bytes()[HEADER_BYTES:] == audio(MAX_SAMPLES, MAX_SAMPLES + 50)


async def test_rooms_do_not_mix(tmp_path: Path) -> None:
    """Each room has its own positions and its own files."""
    desk, hall = Room(tmp_path), Room(tmp_path, room="hall", rate=500)
    for room in (desk, hall):
        room.says(400)
        room.says(400)
    events = [event for pair in zip(desk.events, hall.events, strict=True) for event in pair]
    await deliver(Wav(directory="wav"), tmp_path, events)
    assert contents(tmp_path / "wav") == {
        "desk/2025-03-01/desk_20250301T120000Z.wav": audio(0, 800),
        "hall/2025-03-01/hall_20250301T120000Z.wav": audio(0, 800),
    }


async def test_rooms_whose_files_are_called_the_same(tmp_path: Path) -> None:
    """Rooms that begin in the same second under a template without `room` do not write into each other's files."""
    desk, hall = Room(tmp_path), Room(tmp_path, room="hall")
    for room in (desk, hall):
        room.says(100)
        room.says(50)
    events = [event for pair in zip(desk.events, hall.events, strict=True) for event in pair]
    await deliver(Wav(directory="wav", template="{start:%H%M%S}.wav"), tmp_path, events)
    assert contents(tmp_path / "wav") == {"120000.wav": audio(0, 150), "120000_2.wav": audio(0, 150)}


@pytest.mark.parametrize("room", ["../../etc", "..", "a/b"])
async def test_a_room_is_no_path(tmp_path: Path, room: str) -> None:
    """Whatever a room is called, its files stay below the directory."""
    speaker = Room(tmp_path)
    speaker.says(10)
    event = msgspec.structs.replace(speaker.events[0], room=room)
    await deliver(Wav(directory="in/wav"), tmp_path, [event])
    assert list(contents(tmp_path / "in/wav")) == [str(Path(name).relative_to("in/wav")) for name in contents(tmp_path)]


async def test_a_segment_that_the_quota_took_is_silence(tmp_path: Path) -> None:
    """`file = null` leaves zeros at the segment's place, and the sidecar says what is missing."""
    room = Room(tmp_path)
    room.says(100)
    room.says(100, file=False)
    room.says(100, file=False)
    room.says(100)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 100) + bytes(400) + audio(300, 400)]
    assert sidecar(tmp_path / "wav")["missing"] == [{"start": 100, "end": 300}]


async def test_a_vanished_or_short_segment_stops_nothing(tmp_path: Path) -> None:
    """A segment's file that is gone or torn leaves zeros for what it lacks, and what follows comes."""
    room = Room(tmp_path)
    for _ in range(3):
        room.says(100)
    (tmp_path / "desk_0.pcm").unlink()
    os.truncate(tmp_path / "desk_100.pcm", 101)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [bytes(200) + audio(100, 150) + bytes(100) + audio(200, 300)]
    assert sidecar(tmp_path / "wav")["missing"] == [{"start": 0, "end": 100}, {"start": 150, "end": 200}]


async def test_the_last_samples_missing_are_there_as_zeros(tmp_path: Path) -> None:
    """A file is as long as its header says even where nothing was written at its end."""
    room = Room(tmp_path)
    room.says(100)
    room.says(100, file=False)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 100) + bytes(200)]


async def test_forgotten_audio_is_zero(tmp_path: Path) -> None:
    """A forgotten stretch becomes zeros in every file that has a part of it, and the rest stays."""
    room = Room(tmp_path)
    room.says(300)
    room.is_away(60)
    room.says(300)
    room.forgets(200, 350)
    room.forgets(5000, 6000)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    one, two = contents(tmp_path / "wav").values()
    assert one == audio(0, 200) + bytes(200)
    assert two == bytes(100) + audio(350, 600)
    assert [
        msgspec.json.decode(path.read_bytes())["forgotten"] for path in sorted((tmp_path / "wav").rglob("*.json"))
    ] == [
        [{"start": 200, "end": 300}],
        [{"start": 300, "end": 350}],
    ]


async def test_what_was_forgotten_before_it_came_is_noted(tmp_path: Path) -> None:
    """A wish can come before the segment that it silences: the sidecar accounts for those zeros too."""
    room = Room(tmp_path)
    room.says(300)
    room.forgets(200, 450)
    room.says(300)
    room.says(300)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    (sidecar,) = (msgspec.json.decode(path.read_bytes()) for path in (tmp_path / "wav").rglob("*.json"))
    assert sidecar["forgotten"] == [{"start": 200, "end": 450}]


async def test_half_written_files_go_with_what_is_forgotten(tmp_path: Path) -> None:
    """Half-written sidecars and compressed files of a crash may contain it too."""
    room = Room(tmp_path)
    room.says(300)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    (path,) = (tmp_path / "wav").rglob("*.wav")
    for name in (f"{path.stem}.flac.new", f"{path.stem}.json.new"):
        path.with_name(name).write_bytes(b"half")
    room.forgets(0, 100)
    await deliver(Wav(directory="wav"), tmp_path, room.events[-1:])
    assert not list((tmp_path / "wav").rglob("*.new"))


async def test_forgetting_is_done_years_later(tmp_path: Path) -> None:
    """The catalog finds old files, passes over those that were deleted since, and erases across a silence."""
    room = Room(tmp_path)
    room.says(300)
    room.is_away(1)
    room.says(300)
    await deliver(Wav(directory="wav", gaps="silence"), tmp_path, room.events)
    before = len(room.events)
    room.forgets(250, 310)
    await deliver(Wav(directory="elsewhere", gaps="silence"), tmp_path, room.events[before:])
    (samples,) = contents(tmp_path / "wav").values()
    assert samples == audio(0, 250) + bytes(100 + 2000 + 20) + audio(310, 600)
    shutil.rmtree(tmp_path / "wav")
    await deliver(Wav(directory="wav"), tmp_path, room.events[before:])


async def test_private(tmp_path: Path) -> None:
    """Nobody but the daemon's user can listen, whatever the umask."""
    room = Room(tmp_path)
    room.says(10)
    before = os.umask(0o000)
    try:
        await deliver(Wav(directory="a/wav"), tmp_path, room.events)
    finally:
        os.umask(before)
    for path in (tmp_path / "a").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state/archive").iterdir()} == {0o600}


async def test_valid_between_write_and_flush(tmp_path: Path) -> None:
    """A reader of the file during a batch sees the file as of the previous batch."""
    room = Room(tmp_path)
    room.says(300)
    room.says(300)
    async with Wav(directory="wav").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        hand(plugin, room.events[:1])
        assert list(contents(tmp_path / "wav").values()) == [b""]
        writer.flush()
        assert list(contents(tmp_path / "wav").values()) == [audio(0, 300)]
        hand(plugin, room.events[1:])
        assert list(contents(tmp_path / "wav").values()) == [audio(0, 300)]
        writer.flush()
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 600)]


async def test_samples_are_durable_before_the_header_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header on the disk never speaks of samples that are not: fdatasync lies between, and after."""
    room, order = Room(tmp_path), []
    room.says(300)
    write, sync = os.pwrite, os.fdatasync

    def noting_write(descriptor: int, data: Any, offset: int) -> int:
        order.append("header" if offset == 0 else "samples")
        return write(descriptor, data, offset)

    def noting_sync(descriptor: int) -> None:
        order.append("sync")
        sync(descriptor)

    monkeypatch.setattr(os, "pwrite", noting_write)
    monkeypatch.setattr(os, "fdatasync", noting_sync)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert order == ["samples", "sync", "header", "sync"]


async def test_a_full_disk_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the disk refuses raises by name; what returned before it is flushed, and the rest comes later."""
    room = Room(tmp_path)
    room.says(300)
    room.says(300)
    write = os.pwrite

    def refuse(descriptor: int, data: Any, offset: int) -> int:
        if offset > HEADER_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    async with Wav(directory="wav").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        monkeypatch.setattr(os, "pwrite", refuse)
        writer.audio(room.events[0])
        with pytest.raises(OSError, match=r"No space left.*desk_20250301T120000Z\.wav"):
            writer.audio(room.events[1])
        writer.flush()
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300)]
    monkeypatch.undo()
    await deliver(Wav(directory="wav"), tmp_path, room.events[1:])
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 600)]


async def test_a_file_that_could_not_be_made_is_made_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file that the disk refuses, when the catalog knows of it already, is made under the same name later."""
    room = Room(tmp_path)
    room.says(300)
    opening = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".wav.new"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return opening(path, flags, mode)

    async with Wav(directory="wav").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="No space left"):
            writer.audio(room.events[0])
        writer.flush()
    monkeypatch.undo()
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert contents(tmp_path / "wav") == {"desk/2025-03-01/desk_20250301T120000Z.wav": audio(0, 300)}


async def test_a_stop_and_a_start_go_on(tmp_path: Path) -> None:
    """A file source goes on where it was after a restart, with no time lost: so does its file."""
    room = Room(tmp_path)
    room.says(300)
    room.stops()
    room.says(300)
    await deliver(Wav(directory="wav"), tmp_path, room.events[:2])
    await deliver(Wav(directory="wav"), tmp_path, room.events[2:])
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 600)]


async def test_a_deleted_file_is_not_brought_back(tmp_path: Path) -> None:
    """A file that a user deleted while it grew is gone; the next sample begins another."""
    room = Room(tmp_path)
    room.says(300)
    room.says(300)
    await deliver(Wav(directory="wav"), tmp_path, room.events[:1])
    shutil.rmtree(tmp_path / "wav")
    await deliver(Wav(directory="wav"), tmp_path, room.events[1:])
    assert contents(tmp_path / "wav") == {"desk/2025-03-01/desk_20250301T120000Z.wav": audio(300, 600)}


async def test_deleted_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """A file deleted between its write and the flush is not acknowledged: its samples come again, into another."""
    room = Room(tmp_path)
    room.says(300)
    async with Wav(directory="wav").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        hand(plugin, room.events)
        shutil.rmtree(tmp_path / "wav")
        with pytest.raises(FileNotFoundError, match="desk"):
            writer.flush()
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300)]


async def test_a_new_journal_overwrites_nothing(tmp_path: Path) -> None:
    """Positions that begin again, because the journal was lost, begin new files beside the old ones."""
    (tmp_path / "old").mkdir()
    room, anew = Room(tmp_path / "old"), Room(tmp_path, era=2)
    for _ in range(3):
        room.says(300)
    anew.says(100)
    anew.says(100)
    await deliver(Wav(directory="wav"), tmp_path, room.events)
    await deliver(Wav(directory="wav"), tmp_path, anew.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 900), audio(0, 200)]


async def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    """Two files of one second, or a template without room, never write over each other."""
    room = Room(tmp_path)
    for _ in range(3):
        room.says(10)
        room.is_away(0.001)
    await deliver(Wav(directory="wav", template="{start:%Y}.wav"), tmp_path, room.events)
    assert contents(tmp_path / "wav") == {
        "2025.wav": audio(0, 10),
        "2025_2.wav": audio(10, 20),
        "2025_3.wav": audio(20, 30),
    }


async def test_a_spoiled_catalog_is_put_aside(tmp_path: Path) -> None:
    """A catalog that the disk has spoiled stops nothing: new files begin, the old ones stay as they are."""
    room = Room(tmp_path)
    room.says(300)
    room.says(300)
    await deliver(Wav(directory="wav"), tmp_path, room.events[:1])
    (tmp_path / "state/archive/recordings.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 50)
    await deliver(Wav(directory="wav"), tmp_path, room.events[1:])
    assert list(contents(tmp_path / "wav").values()) == [audio(0, 300), audio(300, 600)]


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error when the sink opens names the directory and says what it needs."""
    (tmp_path / "wav").write_text("in the way")
    with pytest.raises(OSError, match="wav"):
        await deliver(Wav(directory="wav/below"), tmp_path, [])
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=r"ReadWritePaths.*other"):
        await deliver(Wav(directory="other"), tmp_path, [])


@pytest.mark.parametrize(
    "template",
    ["{speaker}.wav", "{room}.mp3", "/{room}.wav", "../{room}.wav", "{room.wav", "{}.wav", "{room.nothing}.wav"],
)
def test_a_wrong_template_is_refused(template: str) -> None:
    """A template that cannot name a WAV file below the directory is an error of the configuration."""
    with pytest.raises(msgspec.ValidationError, match="template"):
        msgspec.convert({"kind": "wav", "directory": "wav", "template": template}, Wav)


class Step(NamedTuple):
    lost: int
    away: int
    samples: int
    file: bool


steps = st.lists(
    st.builds(
        Step,
        lost=st.sampled_from([0, 0, 0, 7, 400]),
        away=st.sampled_from([0, 0, 0, 1, 900, 5000]),
        samples=st.integers(1, 3000),
        file=st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=8,
)
lives = st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["died", "flushed", "acknowledged"])), max_size=6)


@given(
    steps=steps, lives=lives, split=st.sampled_from(["recording", "hour"]), gaps=st.sampled_from(["split", "silence"])
)
@settings(max_examples=60, deadline=None)
def test_crashes_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory,
    steps: Sequence[Step],
    lives: Sequence[tuple[int, str]],
    split: Any,
    gaps: Any,
) -> None:
    """However often it dies, before or after a flush, and gets events again, the files are those of one quiet life."""
    folder = tmp_path_factory.mktemp("lives")
    room = Room(folder, rate=1, at=NOON - timedelta(seconds=1000))
    for step in steps:
        if step.lost:
            room.loses(step.lost)
        if step.away:
            room.is_away(step.away)
        room.says(step.samples, file=step.file)
    (folder / "quiet").mkdir()
    (folder / "hard").mkdir()
    sink = Wav(directory="wav", split=split, gaps=gaps)
    trio.run(deliver, sink, folder / "quiet", room.events)

    acknowledged = 0
    for count, end in lives:
        batch = room.events[acknowledged : acknowledged + count]

        async def live(batch: Sequence[Durable] = batch, flush: bool = end != "died") -> None:
            await deliver(sink, folder / "hard", batch, flush=flush)

        trio.run(live)
        acknowledged += len(batch) if end == "acknowledged" else 0
    trio.run(deliver, sink, folder / "hard", room.events[acknowledged:])

    quiet, hard = contents(folder / "quiet/wav"), contents(folder / "hard/wav")
    assert hard == quiet
    samples = b"".join(quiet.values())
    heard = b"".join(audio(e.position, e.position + e.samples) for e in room.events if isinstance(e, Audio) and e.file)
    assert _without_zeros(samples) == heard


def _without_zeros(samples: bytes) -> bytes:
    return b"".join(
        samples[place : place + 2] for place in range(0, len(samples), 2) if samples[place : place + 2] != b"\0\0"
    )


def test_stretches_unite() -> None:
    """Stretches stay in order, and those that touch are one, however often one comes."""
    stretches: tuple[PositionSpan, ...] = ()
    for start, end in [(10, 20), (30, 40), (20, 30), (0, 5), (12, 18), (0, 5)]:
        stretches = united(stretches, start, end)
    assert stretches == (PositionSpan(0, 5), PositionSpan(10, 40))


def test_the_largest_header_fits() -> None:
    """The longest file's sizes fit into RIFF's 32 bits, with one sample to spare for nothing."""
    assert len(header(MAX_SAMPLES, 48_000)) == HEADER_BYTES
    with pytest.raises(Exception, match="format requires"):
        header(MAX_SAMPLES + 1, 48_000)


def test_an_hour_ends_at_the_first_sample_in_the_next() -> None:
    """The boundary is the first sample that is not before the hour, to the sample, at any rate."""
    for rate in (8000, 11_025, 16_000, 44_100, 48_000):
        start = NOON - timedelta(microseconds=7)
        recording = Recording(room="desk", rate=rate, first=0, start=start, path="", end=0, until=start, last="")
        boundary = recording.boundary(0, start, "hour")
        assert (boundary - 1) / rate < 7e-6 <= boundary / rate


async def test_by_the_daemons_delivery(tmp_path: Path) -> None:
    """Through the journal and the delivery: every sample once, over a restart, with a segment that the quota took."""
    room = Room(tmp_path)
    for _ in range(3):
        room.says(300)
    room.loses(100)
    room.says(300)
    (tmp_path / "desk_300.pcm").unlink()
    sink = Wav(directory="wav", start="oldest")
    assert await deliver_all(sink, tmp_path, room.events[:2]) == []
    await deliver_all(sink, tmp_path, room.events[2:])
    expected = audio(0, 300) + bytes(600) + audio(600, 900) + bytes(200) + audio(1000, 1300)
    assert list(contents(tmp_path / "wav").values()) == [expected]
    assert sidecar(tmp_path / "wav")["missing"] == [{"start": 300, "end": 600}]
