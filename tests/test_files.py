"""Laws of `roomtone.files`: what others put into a folder is not written to, and every error names the file."""

import errno
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from roomtone import Forgotten, Turn
from roomtone.durable import alone, append, replace
from roomtone.events import encode
from roomtone.files import PRIVATE, create_file, named, open_file, sync_folder
from roomtone_jsonl.forgetting import rewrite
from roomtone_jsonl.line_file import LineFile
from roomtone_wav.files import open_wav

NOON = datetime(2026, 1, 1, tzinfo=UTC)
TURN = Turn(room="desk", position=0, at=NOON, session_id="s", turn_order=0, text="hello")
FORGOTTEN = Forgotten(room="desk", position=0, at=NOON, start=0, end=9, from_=NOON, until=NOON)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of another user, as far as its content goes."""
    path = tmp_path / "target"
    path.write_bytes(b"theirs")
    path.chmod(0o600)
    return path


def test_create_file(tmp_path: Path, target: Path) -> None:
    """A new file takes a planted name over, whatever is there, and nothing goes to where a link leads."""
    path = tmp_path / "new"
    plants: list[Callable[[], object]] = [
        path.touch,
        partial(path.symlink_to, target),
        partial(os.mkfifo, path),
        partial(path.hardlink_to, target),
    ]
    for plant in plants:
        path.unlink(missing_ok=True)
        plant()
        with os.fdopen(create_file(path), "wb") as file:
            file.write(b"ours")
        assert path.read_bytes() == b"ours"
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert target.read_bytes() == b"theirs"


def test_open_file(tmp_path: Path) -> None:
    """A file of ours is opened for reading and writing, or made, and never handed on to a child."""
    descriptor = open_file(tmp_path / "file", os.O_CREAT)
    try:
        os.write(descriptor, b"1234")
        assert os.pread(descriptor, 9, 0) == b"1234"
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda path: path.symlink_to("target"), "is a symbolic link; name the file that it leads to"),
        (lambda path: path.symlink_to("absent"), "is a symbolic link"),
        (os.mkfifo, "must name a regular file"),
        (lambda path: (path.touch(), path.chmod(0o666)), "chmod o-w"),
    ],
)
@pytest.mark.parametrize("flags", [0, os.O_CREAT | os.O_APPEND])
def test_what_is_not_opened(
    tmp_path: Path, target: Path, plant: Callable[[Path], object], said: str, flags: int
) -> None:
    """A link, a pipe and a file that everybody may write to are refused with what to do, and do not make us wait."""
    path = tmp_path / "planted"
    plant(path)

    with pytest.raises(OSError, match=said) as caught:
        open_file(path, flags)

    assert caught.value.filename == str(path)
    assert target.read_bytes() == b"theirs"
    assert not (tmp_path / "absent").exists()


def test_a_file_of_another_user(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, but where it is of the folder's owner: a mounted share says that of all of its files."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    os.close(open_file(target))  # of the folder's owner

    def stat_of_another(folder: Path) -> os.stat_result:
        status = list(os.stat(folder))  # noqa: PTH116 - Path.stat is what is replaced
        status[4] = os.getuid() + 2
        return os.stat_result(status)

    monkeypatch.setattr(Path, "stat", stat_of_another)
    with pytest.raises(OSError, match=f"belongs to user {os.getuid()}; remove it, or give it to user"):
        open_file(target)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The bytes are durable there and the name as far as it goes: a file is worth more than none."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)
    replace(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("work", ["sync_folder", "replace", "append"])
def test_every_error_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    """A disk that fails says so by descriptor, without a name; an operator has to know which file it was."""
    path = tmp_path / "file"
    path.write_bytes(b"")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    does: dict[str, Callable[[], object]] = {
        "sync_folder": lambda: sync_folder(tmp_path),
        "replace": lambda: replace(path, b"new"),
        "append": lambda: append(path, b"more", size=0),
    }
    with pytest.raises(OSError, match="Input/output error") as caught:
        does[work]()

    assert str(caught.value.filename).startswith(str(tmp_path))


def test_named_keeps_what_is_named(tmp_path: Path) -> None:
    """An error that names a file already, or says all in its text, is left as it is."""
    for error in (OSError(2, "gone", "other"), OSError("said")):
        with pytest.raises(OSError, match=r"other|said") as caught, named(tmp_path):
            raise error
        assert caught.value is error


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path, target: Path) -> None:
    """Nor are durable's other ways into a file."""
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"), alone(link):
        pass
    with pytest.raises(OSError, match="symbolic link"):
        append(link, b"more", size=6)
    replace(link, b"ours")

    assert target.read_bytes() == b"theirs"
    assert link.read_bytes() == b"ours"
    assert stat.S_IMODE(link.lstat().st_mode) == PRIVATE


def test_no_sink_writes_where_a_link_leads(tmp_path: Path, target: Path) -> None:
    """In a folder that others may write in, what they have planted gets no word and no sound."""
    link = tmp_path / "events.jsonl"
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        LineFile(link)
    with pytest.raises(OSError, match="symbolic link"), open_wav(str(link)):
        pass
    link.unlink()

    new = tmp_path / "events.jsonl.new"
    link.write_bytes(encode(TURN) + b"\n")
    new.symlink_to(target)
    rewrite(link, FORGOTTEN, {("s", 0)})

    assert link.read_bytes() == b""
    assert target.read_bytes() == b"theirs"
