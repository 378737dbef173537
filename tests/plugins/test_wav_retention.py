"""roomtone_wav beyond the growing file: splits by the clock, FLAC and Opus, transcripts, captions, and retention."""

import os
import stat
import wave
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import soundfile
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.test_wav import NOON, Room, audio, hand
from roomtone import Durable, Forgotten, RecordingStopped, Turn, Word
from roomtone.durable import alone, remove
from roomtone_wav import Wav, compression, retention
from roomtone_wav.catalog import CATALOG, Catalog, open_catalog
from roomtone_wav.folder import RecordingFolder
from roomtone_wav.retention import RecordingJanitor
from support.journal import accept, context, deliver_all

RATE = 8000


def speaker(folder: Path, **settings: Any) -> Room:
    return Room(folder, **({"rate": RATE} | settings))


class Died(BaseException):
    """The daemon is killed."""


async def live(sink: Wav, folder: Path, events: Iterable[Durable], *, flush: bool = True, tend: bool = True) -> None:
    """One life of the sink, whose files are tended as far as they need it, as the daemon does in time; else it dies."""
    try:
        async with sink.open(context(folder)) as plugin:
            writer: Any = plugin
            hand(plugin, events)
            if flush:
                writer.flush()
            if not tend:
                raise Died  # noqa: TRY301 - as a kill does, in the middle
            tend_all(writer)
    except* Died:
        pass


def tend_all(writer: Any) -> None:
    while writer.maintain():
        pass


def contents(folder: Path) -> dict[str, bytes]:
    """The samples of each file of audio below the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".wav":
            with wave.open(str(path)) as file:
                found[str(path.relative_to(folder))] = file.readframes(file.getnframes())
        elif path.suffix in (".flac", ".opus"):
            with soundfile.SoundFile(path) as file:
                found[str(path.relative_to(folder))] = bytes(file.buffer_read(-1, "int16"))
    return found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.*") if path.is_file())


def sidecars(folder: Path) -> list[Any]:
    return [msgspec.json.decode(path.read_bytes()) for path in sorted(folder.rglob("*.json"))]


async def test_hooks_are_spelt_right(tmp_path: Path) -> None:
    """The daemon accepts every hook of the sink that transcribes too."""
    async with Wav(directory="wav", transcript=True, format="flac").open(context(tmp_path)) as plugin:
        accept(plugin)


@pytest.mark.parametrize(
    ("minutes", "begins", "expected"),
    [
        (15, datetime(2025, 3, 1, 12, 14, 59, tzinfo=UTC), ["121459", "121500"]),
        (60, datetime(2025, 3, 1, 12, 59, 59, tzinfo=UTC), ["125959", "130000"]),
        (7, datetime(2025, 3, 1, 23, 54, 59, tzinfo=UTC), ["235459", "235500"]),
        (7, datetime(2025, 3, 1, 23, 59, 59, tzinfo=UTC), ["235959", "000000"]),
        (1440, datetime(2025, 3, 1, 23, 59, 59, tzinfo=UTC), ["235959", "000000"]),
    ],
)
async def test_minutes_split_on_the_clock(tmp_path: Path, minutes: int, begins: datetime, expected: list[str]) -> None:
    """With a number of minutes a file ends at each multiple of them since midnight, at the sample, and with the day."""
    room = speaker(tmp_path, at=begins)
    room.says(2 * RATE)
    await live(Wav(directory="wav", split=minutes, template="{position:06}_{start:%H%M%S}.wav"), tmp_path, room.events)
    found = contents(tmp_path / "wav")
    assert [name[7:-4] for name in found] == expected
    assert b"".join(found.values()) == audio(0, 2 * RATE)
    assert len(found) == 1 or len(next(iter(found.values()))) == 2 * RATE


@pytest.mark.parametrize("form", ["flac", "opus"])
async def test_a_complete_file_is_compressed(tmp_path: Path, form: Any) -> None:
    """The file that is followed by another becomes FLAC or Opus of the same length; the one that grows stays WAV."""
    room = speaker(tmp_path)
    room.says(RATE + 7)
    room.is_away(60)
    room.says(RATE)
    await live(Wav(directory="wav", format=form), tmp_path, room.events)
    names = [f"desk_20250301T120000Z.{form}", "desk_20250301T120000Z.json"]
    assert files(tmp_path / "wav") == sorted([*names, "desk_20250301T120101Z.json", "desk_20250301T120101Z.wav"])
    first, second = contents(tmp_path / "wav").values()
    assert (len(first), second) == (2 * (RATE + 7), audio(RATE + 7, 2 * RATE + 7))
    assert form == "opus" or first == audio(0, RATE + 7)
    assert [facts["file"] for facts in sidecars(tmp_path / "wav")] == [names[0], "desk_20250301T120101Z.wav"]
    (path,) = (tmp_path / "wav").rglob(f"*.{form}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("reason", "gaps", "compressed"),
    [("stopping", "split", False), ("ended", "silence", True), ("muted", "split", True), ("muted", "silence", False)],
)
async def test_the_end_of_a_recording_completes_it(tmp_path: Path, reason: Any, gaps: Any, *, compressed: bool) -> None:
    """A recording is compressed immediately when its source has ended, or when its muted room would not continue the
    file; later audio begins another file.
    """
    room = speaker(tmp_path)
    room.says(RATE)
    stopped = RecordingStopped(room="desk", position=RATE, at=NOON, reason=reason)
    sink = Wav(directory="wav", format="flac", gaps=gaps)
    await live(sink, tmp_path, [*room.events, msgspec.structs.replace(stopped, seq=2, id="1")])
    assert [name.endswith(".flac") for name in contents(tmp_path / "wav")] == [compressed]
    room.says(RATE)
    await live(sink, tmp_path, room.events[1:])
    assert b"".join(contents(tmp_path / "wav").values()) == audio(0, 2 * RATE)
    assert len(contents(tmp_path / "wav")) == 1 + compressed


async def test_only_what_is_durable_is_compressed(tmp_path: Path) -> None:
    """A file with a successor in the catalog is not complete while its own samples may come again: compressed
    too early it would lose what a crash took.
    """
    room = speaker(tmp_path)
    room.says(RATE)
    room.says(RATE)
    room.is_away(60)
    room.says(RATE)
    sink = Wav(directory="wav", format="flac")
    await live(sink, tmp_path, room.events, flush=False)  # the successor is known, and no sample is durable
    (first, _) = sorted((tmp_path / "wav").rglob("*.wav"))
    os.truncate(first, 44)
    await live(sink, tmp_path, room.events[:1])
    assert [Path(name).suffix for name in contents(tmp_path / "wav")] == [".wav", ".wav"]
    await live(sink, tmp_path, room.events[1:])
    assert [Path(name).suffix for name in contents(tmp_path / "wav")] == [".flac", ".wav"]
    assert b"".join(contents(tmp_path / "wav").values()) == audio(0, 3 * RATE)


@pytest.mark.parametrize("moment", ["read back", "in place", "known", "removed"])
async def test_a_crash_at_any_moment_of_sealing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Killed before or after each step of the change from WAV to FLAC, the next life ends it: one file, all samples."""
    room = speaker(tmp_path)
    room.says(RATE)
    room.is_away(60)
    room.says(RATE)
    sink = Wav(directory="wav", format="flac")

    def die(*_: object, **__: object) -> None:
        raise Died

    place = {
        "read back": (compression, "put_compressed"),
        "in place": (Catalog, "put"),
        "known": (compression, "remove_others"),
        "removed": (Catalog, "set_todo"),
    }[moment]
    try:
        async with sink.open(context(tmp_path)) as plugin:
            writer: Any = plugin
            hand(plugin, room.events)
            writer.flush()
            monkeypatch.setattr(*place, die)
            tend_all(writer)
    except* Died:
        monkeypatch.undo()
    assert ".wav" in {Path(name).suffix for name in files(tmp_path / "wav")}
    await live(sink, tmp_path, [])
    assert [Path(name).suffix for name in contents(tmp_path / "wav")] == [".flac", ".wav"]
    assert b"".join(contents(tmp_path / "wav").values()) == audio(0, 2 * RATE)
    assert not [name for name in files(tmp_path / "wav") if name.endswith(".new")]
    await live(sink, tmp_path, room.events)  # and all of it again
    assert b"".join(contents(tmp_path / "wav").values()) == audio(0, 2 * RATE)


async def test_a_wav_that_cannot_be_compressed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or an encoder that writes something else, costs no recording and stops none."""
    room = speaker(tmp_path)
    room.says(RATE)
    room.is_away(60)
    room.says(RATE)
    opening = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".flac.new"):
            raise OSError(28, os.strerror(28), str(path))
        return opening(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    await live(Wav(directory="wav", format="flac"), tmp_path, room.events)
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "buffer_write", lambda *_: None)
        await live(Wav(directory="wav", format="flac"), tmp_path, [])
    assert list(contents(tmp_path / "wav").values()) == [audio(0, RATE), audio(RATE, 2 * RATE)]
    assert {Path(name).suffix for name in files(tmp_path / "wav")} == {".wav", ".json"}
    await live(Wav(directory="wav", format="flac"), tmp_path, [])
    assert [Path(name).suffix for name in contents(tmp_path / "wav")] == [".flac", ".wav"]


async def test_opened_beside_another_it_leaves_the_files(tmp_path: Path) -> None:
    """`roomtone sinks test` opens it beside the daemon: two that compress the same file would spoil it."""
    room, sink = speaker(tmp_path), Wav(directory="wav", format="flac", keep_days=1)
    room.says(RATE)
    room.is_away(60)
    room.says(RATE)
    with alone(context(tmp_path).state / "recordings.lock") as is_alone:
        assert is_alone
        await live(sink, tmp_path, room.events)
        assert {Path(name).suffix for name in contents(tmp_path / "wav")} == {".wav"}
        assert len(contents(tmp_path / "wav")) == 2
    await live(sink, tmp_path, [])
    assert ".wav" not in {Path(name).suffix for name in list(contents(tmp_path / "wav"))[:-1]}


@pytest.mark.parametrize("form", ["flac", "opus"])
async def test_what_is_forgotten_is_zero_in_a_compressed_file(tmp_path: Path, form: Any) -> None:
    """Forgetting opens a compressed file up, erases, and compresses it again; no other form of it is left."""
    room = speaker(tmp_path)
    room.says(RATE)
    room.is_away(60)
    room.says(RATE)
    sink = Wav(directory="wav", format=form)
    await live(sink, tmp_path, room.events)
    room.forgets(1000, 5000)
    await live(sink, tmp_path, room.events[-1:], tend=False)
    assert {Path(name).suffix for name in files(tmp_path / "wav")} == {".wav", ".json"}
    opened = next(iter(contents(tmp_path / "wav").values()))
    assert (len(opened), opened[2000:10_000]) == (2 * RATE, bytes(8000))
    assert form == "opus" or opened == audio(0, 1000) + bytes(8000) + audio(5000, RATE)
    await live(sink, tmp_path, [])
    assert [Path(name).suffix for name in contents(tmp_path / "wav")] == [f".{form}", ".wav"]
    sealed = next(iter(contents(tmp_path / "wav").values()))
    assert form == "opus" or sealed == opened
    assert sidecars(tmp_path / "wav")[0]["forgotten"] == [{"start": 1000, "end": 5000}]


async def test_forgetting_while_it_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch forgotten while its file is being compressed is not in the compressed file."""
    monkeypatch.setattr(retention, "_SLICE_S", 1e-9)
    room = speaker(tmp_path)
    for _ in range(20):
        room.says(RATE)
    room.is_away(60)
    room.says(RATE)
    async with Wav(directory="wav", format="flac").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        hand(plugin, room.events)
        writer.flush()
        assert writer.maintain()
        assert writer.maintain()
        room.forgets(0, 1000)
        writer.forgotten(room.events[-1])
        writer.flush()
        tend_all(writer)
    assert [Path(name).suffix for name in contents(tmp_path / "wav")] == [".flac", ".wav"]
    assert next(iter(contents(tmp_path / "wav").values())) == bytes(2000) + audio(1000, 20 * RATE)


async def test_a_file_that_has_ended_is_finished_at_the_end(tmp_path: Path) -> None:
    """A source that was played to its end is compressed before the daemon ends, if that takes only a moment."""
    room = speaker(tmp_path)
    room.says(RATE)
    ended = RecordingStopped(id="1", room="desk", position=RATE, at=NOON, reason="ended")
    async with Wav(directory="wav", format="opus").open(context(tmp_path)) as plugin:
        writer: Any = plugin
        hand(plugin, [*room.events, ended])
        writer.flush()
    assert [Path(name).suffix for name in contents(tmp_path / "wav")] == [".opus"]


def test_the_machine_and_the_rates_are_checked() -> None:
    """Opus at a rate that it does not have is refused when the sink opens, by room and rate."""
    compression.check("flac", {"desk": 44_100})
    with pytest.raises(ValueError, match=r"format: Opus does not support 44100 Hz.*room desk"):
        compression.check("opus", {"hall": 16_000, "desk": 44_100})


def said(second: float, text: str, **facts: Any) -> Turn:
    position = round(second * RATE)
    words = (Word(text, position, position + RATE // 2),)
    facts = {"id": text, "words": words} | facts
    return Turn(room="desk", position=position, at=NOON, session_id="s", turn_order=0, text=text, **facts)


def transcript(folder: Path) -> list[list[str]]:
    return [[turn["text"] for turn in facts["transcript"]] for facts in sidecars(folder)]


def long_turn(second: float, text: str, **facts: Any) -> Turn:
    """A turn whose words are a second each."""
    begin = round(second * RATE)
    words = [Word(word, begin + at * RATE, begin + (at + 1) * RATE) for at, word in enumerate(text.split())]
    return msgspec.structs.replace(said(second, text), words=tuple(words), **facts)


@pytest.mark.parametrize(("turn_first", "start", "end"), [(False, 1, 2), (True, 4, 5)])
async def test_a_turn_in_two_files_stands_beside_both(tmp_path: Path, turn_first: bool, start: int, end: int) -> None:
    """Each file has the words that begin in it, in transcript and captions, timed for it; a correction changes both,
    and what is forgotten of either is gone from both.
    """
    room = speaker(tmp_path, at=NOON - timedelta(seconds=3))
    room.says(3 * RATE)
    room.says(4 * RATE)
    sink = Wav(directory="wav", split="hour", transcript=True, captions=("vtt",))
    turn = long_turn(1, "one two three four five")
    for events in ([turn], room.events) if turn_first else (room.events, [turn]):
        await live(sink, tmp_path, events)

    assert transcript(tmp_path / "wav") == [["one two"], ["three four five"]]
    assert [each["transcript"][0]["position"] for each in sidecars(tmp_path / "wav")] == [RATE, 3 * RATE]
    captions = [path.read_text() for path in sorted((tmp_path / "wav").rglob("*.vtt"))]
    assert "00:00:01.000 --> 00:00:03.000\none two\n" in captions[0]
    assert "00:00:00.000 --> 00:00:03.000\nthree four five\n" in captions[1]

    better = long_turn(1, "one two three four six", id="better", supersedes=turn.id)
    await live(sink, tmp_path, [better])
    assert transcript(tmp_path / "wav") == [["one two"], ["three four six"]]

    await live(sink, tmp_path, [long_turn(1, "one", id="short", supersedes="better")])
    assert transcript(tmp_path / "wav") == [["one"], []]

    await live(sink, tmp_path, [msgspec.structs.replace(turn, id="again", supersedes="short")])
    gone = Forgotten(room="desk", position=0, at=NOON, start=start * RATE, end=end * RATE, from_=NOON, until=NOON)
    await live(sink, tmp_path, [gone])
    assert transcript(tmp_path / "wav") == [[], []]
    assert all("-->" not in path.read_text() for path in (tmp_path / "wav").rglob("*.vtt"))


async def test_the_sidecar_has_the_transcript(tmp_path: Path) -> None:
    """Turns stand beside the file that their first sample is in, whether they come before it or long after, by
    position, and a correction in the place of what it corrects.
    """
    room = speaker(tmp_path)
    room.says(2 * RATE)
    room.is_away(60)
    room.says(2 * RATE)
    one, two = room.events[0], room.events[-1]
    sink = Wav(directory="wav", transcript=True, format="flac")
    await live(sink, tmp_path, [said(1, "early"), one])
    assert transcript(tmp_path / "wav") == [["early"]]
    await live(sink, tmp_path, [said(3, "of the next"), two])
    await live(sink, tmp_path, [said(0.5, "repaired"), said(1.2, "right", supersedes="early"), said(9, "to come")])
    assert transcript(tmp_path / "wav") == [["repaired", "right"], ["of the next"]]
    assert [facts["file"][-4:] for facts in sidecars(tmp_path / "wav")] == ["flac", ".wav"]
    gone = Forgotten(room="desk", position=0, at=NOON, start=0, end=RATE, from_=NOON, until=NOON)
    await live(sink, tmp_path, [gone])
    assert transcript(tmp_path / "wav") == [["right"], ["of the next"]]
    assert b"repaired" not in (tmp_path / "state/archive/recordings.sqlite").read_bytes()


async def test_captions_are_timed_for_the_file(tmp_path: Path) -> None:
    """Captions beside a recording count from its first sample, silence that was put in included."""
    room = speaker(tmp_path)
    room.position = 7 * RATE
    room.says(2 * RATE)
    room.is_away(60)
    room.says(2 * RATE)
    sink = Wav(directory="wav", captions=("srt", "vtt"), gaps="silence")
    await live(sink, tmp_path, [*room.events, said(8, "one"), said(10, "two")])
    (srt,) = (path.read_text() for path in (tmp_path / "wav").rglob("*.srt"))
    assert srt == "1\n00:00:01,000 --> 00:00:01,700\none\n\n2\n00:01:03,000 --> 00:01:03,700\ntwo\n"
    assert len(list((tmp_path / "wav").rglob("*.vtt"))) == 1


async def test_old_files_are_removed(tmp_path: Path) -> None:
    """With `keep_days` what ended before goes, with all beside it and its folder; a room's newest file never does."""
    old = speaker(tmp_path, at=datetime.now(UTC) - timedelta(days=40))
    for _ in range(2):
        old.says(RATE)
        old.is_away(86_400)
    old.is_away(37.9 * 86_400)
    for _ in range(2):
        old.says(RATE)
        old.is_away(60)
    rare = speaker(tmp_path, room="rare", at=datetime(2001, 1, 1, tzinfo=UTC))
    rare.says(RATE)
    sink = Wav(directory="wav", format="flac", transcript=True, captions=("srt",), keep_days=30)
    await live(sink, tmp_path, [*old.events, *rare.events, said(0, "old"), said(2, "new")])
    found = contents(tmp_path / "wav")
    assert [name.split("/")[0] for name in found] == ["desk", "desk", "rare"]
    assert b"".join(list(found.values())[:2]) == audio(2 * RATE, 4 * RATE)
    assert transcript(tmp_path / "wav") == [["new"], [], []]
    assert len(files(tmp_path / "wav")) == 9
    assert len([path for path in (tmp_path / "wav").rglob("*") if path.is_dir()]) <= 5


async def test_a_clock_that_jumps_ahead_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong clock makes no recording old before it has gone on like that for a day, over restarts too."""
    monkeypatch.setattr(retention, "_RETAIN_INTERVAL_S", 0.0)
    room = speaker(tmp_path)
    for _ in range(3):
        room.says(RATE)
        room.is_away(60)
    await live(Wav(directory="wav"), tmp_path, room.events)

    def look(*times: tuple[float, float]) -> list[int]:
        """The number of recordings left after each pair of clock (days) and uptime (hours)."""
        left = []
        with open_catalog(context(tmp_path).state / CATALOG) as catalog:
            at = [0.0, 0.0]
            keeper = RecordingJanitor(
                catalog,
                RecordingFolder(tmp_path / "wav", Wav(directory="wav").template, print),
                lambda _: None,
                keep_days=30,
                keep_gb=None,
                read_clocks=lambda: (NOON + timedelta(days=at[0]), 3600 * at[1]),
            )
            for at[:] in times:
                keeper.advance()
                left.append(len(contents(tmp_path / "wav")))
        return left

    assert look((0, 0), (3650, 1), (3650, 2)) == [3, 3, 3]
    assert look((3650, 0), (3651, 23)) == [3, 3]
    assert look((1, 0), (25, 24 * 24), (32, 24 * 31)) == [3, 3, 1]


async def test_the_oldest_of_too_much_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `keep_gb` the oldest files are removed until the rest fits, never the newest; the log has their number."""
    room = speaker(tmp_path)
    for _ in range(5):
        room.says(RATE)
        room.is_away(60)
    size = 44 + 2 * RATE
    await live(Wav(directory="wav", keep_gb=2.5 * size / 1e9), tmp_path, room.events)
    assert list(contents(tmp_path / "wav").values()) == [audio(3 * RATE, 4 * RATE), audio(4 * RATE, 5 * RATE)]
    assert f"bytes={3 * size} files=3 why=size" in capsys.readouterr().out
    await live(Wav(directory="wav", keep_gb=1e-9), tmp_path, [])
    assert list(contents(tmp_path / "wav").values()) == [audio(4 * RATE, 5 * RATE)]


async def test_what_somebody_deleted_does_not_count(tmp_path: Path) -> None:
    """Files that are gone already make room: no other goes for them."""
    room = speaker(tmp_path)
    for _ in range(5):
        room.says(RATE)
        room.is_away(60)
    await live(Wav(directory="wav"), tmp_path, room.events)
    for path in sorted((tmp_path / "wav").rglob("*.wav"))[1:3]:
        remove(path)
    await live(Wav(directory="wav", keep_gb=3.5 * (44 + 2 * RATE) / 1e9), tmp_path, [])
    assert len(contents(tmp_path / "wav")) == 3


def test_a_look_at_years_of_files_reads_few_of_them(tmp_path: Path) -> None:
    """A year has 105,120 files of five minutes: what is asked every few seconds goes by an index, not through all."""
    asked: list[str] = []
    with open_catalog(tmp_path / "recordings.sqlite") as catalog:
        catalog._database.set_trace_callback(asked.append)
        catalog.todo("remove")
        catalog.todo("encode")
        catalog.finished(NOON)
        catalog.size()
        catalog.newest("desk")
        catalog._database.set_trace_callback(None)
        plans = [
            [step for *_, step in catalog._database.execute(f"EXPLAIN QUERY PLAN {statement}")] for statement in asked
        ]
    indexes = ["recordings_to_do", "recordings_to_do", "recordings_by_end", "recordings_by_end", "PRIMARY KEY"]
    assert [index for index, plan in zip(indexes, plans, strict=True) if index not in plan[0]] == [], plans


async def test_files_of_a_spoiled_catalog_are_still_removed(tmp_path: Path) -> None:
    """The recordings of a damaged catalog are found again by their sidecars, and removed in their time."""
    room = speaker(tmp_path)
    for _ in range(4):
        room.says(RATE)
        room.is_away(60)
    await live(Wav(directory="wav", format="flac", keep_days=36_500), tmp_path, room.events)
    (tmp_path / "wav" / "notes.json").write_text('{"file": "of another program"}')
    (tmp_path / "wav" / "torn.json").write_text('{"file": ')
    (tmp_path / "state/archive/recordings.sqlite").write_bytes(b"spoiled" * 2000)
    anew = speaker(tmp_path, era=2)
    anew.says(RATE)
    await live(Wav(directory="wav", format="flac", keep_days=36_500), tmp_path, anew.events)
    assert len(contents(tmp_path / "wav")) == 5
    await live(Wav(directory="wav", format="flac", keep_gb=1e-9), tmp_path, [])
    assert files(tmp_path / "wav") == [
        "desk_20250301T120000Z_2.json",
        "desk_20250301T120000Z_2.wav",
        "notes.json",
        "torn.json",
    ]


async def test_files_of_a_lost_journal_are_still_kept_and_removed(tmp_path: Path) -> None:
    """Positions that begin again make the old files strangers to new audio, but not to compression and retention."""
    (tmp_path / "old").mkdir()
    room, anew = speaker(tmp_path / "old"), speaker(tmp_path, era=2)
    room.says(3 * RATE)
    anew.says(RATE)
    sink = Wav(directory="wav", format="flac")
    await live(sink, tmp_path, room.events)
    await live(sink, tmp_path, anew.events)
    assert sorted(contents(tmp_path / "wav").values(), key=len) == [audio(0, RATE), audio(0, 3 * RATE)]
    assert sorted(Path(name).suffix for name in contents(tmp_path / "wav")) == [".flac", ".wav"]
    await live(Wav(directory="wav", keep_gb=1e-9), tmp_path, [])
    assert list(contents(tmp_path / "wav").values()) == [audio(0, RATE)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("split", 0), ("split", 1441), ("split", "day"), ("format", "mp3"), ("keep_days", 0), ("keep_gb", -1)],
)
def test_wrong_tables_are_refused(key: str, value: object) -> None:
    """A mistake is named by its key."""
    with pytest.raises(msgspec.ValidationError, match=key):
        msgspec.convert({"kind": "wav", "directory": "wav", key: value}, Wav)


lives = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["died", "flushed", "acknowledged"]), st.booleans()), max_size=6
)


@given(
    steps=st.lists(st.tuples(st.sampled_from([0, 0, 1, 900]), st.integers(1, 3000)), min_size=1, max_size=8),
    lives=lives,
    split=st.sampled_from(["recording", 7]),
)
@settings(max_examples=20, deadline=None)
def test_crashes_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory,
    steps: Sequence[tuple[int, int]],
    lives: Sequence[tuple[int, str, bool]],
    split: Any,
) -> None:
    """However often it dies, before or after a flush or its compressing, and gets events again, what is in the files is
    what was heard, and all of them but the last are compressed.
    """
    folder = tmp_path_factory.mktemp("lives")
    room = Room(folder, rate=10, at=NOON - timedelta(seconds=100))
    for away, samples in steps:
        if away:
            room.is_away(away)
        room.says(samples)
    sink = Wav(directory="wav", format="flac", split=split, template="{position:012}.wav")
    acknowledged = 0
    for count, end, tend in lives:
        batch = room.events[acknowledged : acknowledged + count]

        async def one(batch: Sequence[Durable] = batch, flush: bool = end != "died", tend: bool = tend) -> None:
            await live(sink, folder, batch, flush=flush, tend=tend)

        trio.run(one)
        acknowledged += len(batch) if end == "acknowledged" else 0
    trio.run(live, sink, folder, room.events[acknowledged:])
    found = contents(folder / "wav")
    assert b"".join(found.values()) == audio(0, room.position)
    assert [Path(name).suffix for name in found] == [".flac"] * (len(found) - 1) + [".wav"]


async def test_by_the_daemons_delivery(tmp_path: Path) -> None:
    """Through the journal and the delivery, tended in the background: every sample, in files that are compressed."""
    room = speaker(tmp_path)
    for _ in range(3):
        room.says(RATE)
        room.is_away(60)
    sink = Wav(directory="wav", format="flac", start="oldest", transcript=True)
    facts = [msgspec.structs.replace(event, seq=0, id="") for event in room.events]
    assert await deliver_all(sink, tmp_path, facts) == []
    assert await deliver_all(sink, tmp_path, []) == []
    assert b"".join(contents(tmp_path / "wav").values()) == audio(0, 3 * RATE)
