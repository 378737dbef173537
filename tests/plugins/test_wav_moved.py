"""The wav sink whose directory is another one than it was: it begins there, and nothing waits for the old place."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugins.test_wav import NOON, RATE, Room, audio, contents, hand
from roomtone import Turn
from roomtone_wav import Wav
from roomtone_wav.recording import header
from support.journal import context

OLD = Wav(directory="old", transcript=True)
NEW = Wav(directory="new", transcript=True)


async def life(sink: Wav, folder: Path, room: Room, since: int) -> list[str]:
    """One life of the sink with the room's events from `since` on. Returns what it has warned of."""
    warnings: list[str] = []
    told = msgspec.structs.replace(context(folder), warn=warnings.append)
    async with sink.open(told) as plugin:
        hand(plugin, room.events[since:])
        plugin.flush()  # type: ignore[attr-defined]  # a plugin is any object
    return warnings


def gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old directory is gone, like a disk that was removed."""
    (folder / "old").rename(folder / "elsewhere")


def hidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old place may not even be looked at."""
    _refuse(folder, monkeypatch, "stat", errno.EACCES)
    _refuse(folder, monkeypatch, "open", errno.EACCES)


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old place can be read: no ReadWritePaths= names it any more."""
    _refuse(folder, monkeypatch, "open", errno.EROFS)


def _refuse(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    whole: Callable[..., Any] = getattr(os, call)

    def refuse(path: Any, *arguments: Any, **settings: Any) -> Any:
        if str(path).startswith(f"{folder}/old"):
            raise OSError(code, os.strerror(code), str(path))
        return whole(path, *arguments, **settings)

    monkeypatch.setattr(os, call, refuse)


def words(start: int) -> Turn:
    return Turn(room="desk", position=start, at=NOON, session_id="s", turn_order=start, text="late", id=f"turn-{start}")


@pytest.mark.parametrize("unreachable", [gone, hidden, read_only, None])
async def test_it_begins_at_the_new_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreachable: Callable[[Path, pytest.MonkeyPatch], None] | None
) -> None:
    """The next sample begins a file there; what comes late for the old one is written or said, and stops nothing."""
    room = Room(tmp_path)
    room.says(3000)
    await life(OLD, tmp_path, room, 0)
    before = contents(tmp_path / "old")
    if unreachable:
        unreachable(tmp_path, monkeypatch)
    room.is_away(10)
    room.events.append(words(1000))
    room.says(500)
    room.forgets(100, 200)
    room.says(500)
    warnings = await life(NEW, tmp_path, room, 1)
    monkeypatch.undo()

    new = contents(tmp_path / "new")
    assert b"".join(new.values()) == audio(3000, 4000)
    if unreachable is None:
        (file,) = contents(tmp_path / "old").values()
        assert file == audio(0, 100) + bytes(200) + audio(200, 3000)
    elif unreachable is not gone:
        assert contents(tmp_path / "old") == before
    expected: dict[Any, list[str]] = {
        None: [],
        gone: ["finished"],
        hidden: ["finished", "forgotten"],
        read_only: ["finished", "forgotten", "written to"],
    }
    assert [warning.partition("could not be ")[2].partition(":")[0] for warning in warnings] == expected[unreachable]
    assert all(str(tmp_path / "old") in warning for warning in warnings)


async def test_what_comes_again_is_not_doubled(tmp_path: Path) -> None:
    """Samples that the old file shows are not put into the new one; those that it does not show are."""
    room = Room(tmp_path)
    room.says(3000)
    await life(OLD, tmp_path, room, 0)
    room.says(1000)
    await life(NEW, tmp_path, room, 0)
    assert list(contents(tmp_path / "new").values()) == [audio(3000, 4000)]

    for path in (tmp_path / "old").rglob("*.wav"):
        with path.open("r+b") as file:  # killed before the flush
            file.write(header(0, RATE))
    await life(Wav(directory="newest"), tmp_path, room, 0)
    assert list(contents(tmp_path / "newest").values()) == [audio(0, 3000)]


async def test_what_is_finished_later_is_given_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that can neither be compressed nor removed any more are one notice in a life of the sink."""
    room = Room(tmp_path)
    for _ in range(3):
        room.says(100)
        room.is_away(60)
    await life(Wav(directory="old"), tmp_path, room, 0)
    read_only(tmp_path, monkeypatch)
    _refuse(tmp_path, monkeypatch, "unlink", errno.EROFS)
    room.says(100)
    warnings: list[str] = []
    told = msgspec.structs.replace(context(tmp_path), warn=warnings.append)
    async with Wav(directory="new", keep_days=1).open(told) as plugin:
        hand(plugin, room.events[-1:])
        plugin.flush()  # type: ignore[attr-defined]  # a plugin is any object
        for _ in range(3):
            plugin.maintain()  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert ["could not be removed" in warning for warning in warnings] == [False, True]
    assert len(contents(tmp_path / "old")) == 3
