"""The proof of forgetting finds what is there, wherever it lies."""

import gzip
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from roomtone import remains
from roomtone.remains import Needle, search

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NEEDLE = Needle(b"xylophone")


def find(folder: Path) -> list[str]:
    return [path.name for path, _ in search([folder], [NEEDLE], NOW, 60).found]


def write(path: Path, data: bytes, age: float = 0.0) -> None:
    path.write_bytes(data)
    os.utime(path, (NOW.timestamp() - age, NOW.timestamp() - age))


def test_files(tmp_path: Path) -> None:
    """Anywhere in a file that may have been written since then; a database is looked into whatever its time says."""
    write(tmp_path / "a.pcm", b"a xylophone")
    write(tmp_path / "b.txt", b"nothing")
    write(tmp_path / "old.txt", b"xylophone", age=86_400)
    write(tmp_path / "journal.sqlite-wal", b"xylophone", age=86_400)

    assert find(tmp_path) == ["a.pcm", "journal.sqlite-wal"]


def test_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what was packed, also where it lies across two parts of the reading."""
    monkeypatch.setattr(remains, "PART", 8)
    write(tmp_path / "a.gz", gzip.compress(b"1234 xylophone 1234"))
    write(tmp_path / "b.gz", gzip.compress(b"nothing"))

    assert "a.gz" in find(tmp_path)
    assert "b.gz" not in find(tmp_path)
