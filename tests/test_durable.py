"""Files that survive a power cut: what is durable, and in which order."""

import os
import stat
from pathlib import Path

import pytest

from roomtone.durable import make_folder, remove, replace


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The name of each thing that was made durable, and the files that there were beside or in it at that moment."""
    seen: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        folder = path if path.is_dir() else path.parent
        seen.append((path.name, sorted(one.name for one in folder.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return seen


def test_replace(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """The bytes are durable before they get the name, and the name is durable before this returns."""
    replace(tmp_path / "file", b"new")

    assert synced == [("file.new", ["file.new"]), (tmp_path.name, ["file"])]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_remove(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """A file that was removed does not come back; one that is not there takes nothing."""
    (tmp_path / "file").write_bytes(b"1234")

    assert (remove(tmp_path / "file"), remove(tmp_path / "file")) == (4, 0)
    assert synced == [(tmp_path.name, [])]


def test_make_folder(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    """Each folder that is made is named durably, and is for its user alone."""
    make_folder(tmp_path / "a" / "b")

    assert synced == [(tmp_path.name, ["a"]), ("a", ["b"])]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b")} == {0o700}
