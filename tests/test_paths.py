"""Laws of `roomtone.paths`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roomtone.paths import StateError, find_configuration, lock, private_folder, sinks_folder, state_folder


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_search_order(tmp_path: Path) -> None:
    """The file beside you comes before the one of your user; what is named comes before both."""
    here = tmp_path / "here"
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert find_configuration(None, environ, here) in (None, Path("/etc/roomtone/roomtone.toml"))

    user = touch(tmp_path / "xdg" / "roomtone" / "roomtone.toml")
    assert find_configuration(None, environ, here) == user

    beside = touch(here / "roomtone.toml")
    assert find_configuration(None, environ, here) == beside

    named = environ | {"ROOMTONE_CONFIG": "/named.toml"}
    assert find_configuration(None, named, here) == Path("/named.toml")
    assert find_configuration(Path("given.toml"), named, here) == Path("given.toml")


def test_state(tmp_path: Path) -> None:
    """[service] state comes before $STATE_DIRECTORY, that before the XDG folder, that before the one below home."""
    systemd = {"STATE_DIRECTORY": "/var/lib/roomtone:/var/lib/other"}
    xdg = {"XDG_STATE_HOME": "/xdg", "HOME": "/home/u"}

    assert state_folder("state", tmp_path, systemd | xdg) == tmp_path / "state"
    assert state_folder("/srv/state", tmp_path, systemd | xdg) == Path("/srv/state")
    assert state_folder(None, tmp_path, systemd | xdg) == Path("/var/lib/roomtone")
    assert state_folder(None, tmp_path, xdg) == Path("/xdg/roomtone")
    assert state_folder(None, tmp_path, {"HOME": "/home/u"}) == Path("/home/u/.local/state/roomtone")
    assert state_folder(None, tmp_path, {"XDG_STATE_HOME": "relative", "HOME": "/home/u"}) == Path(
        "/home/u/.local/state/roomtone"
    )


def test_sinks(tmp_path: Path) -> None:
    """A service writes below its state directory, everybody else beside the configuration."""
    assert sinks_folder(tmp_path, {"STATE_DIRECTORY": "/var/lib/roomtone"}) == Path("/var/lib/roomtone")
    assert sinks_folder(tmp_path, {}) == tmp_path


def test_private(tmp_path: Path) -> None:
    """State is readable by its user only."""
    with lock(tmp_path / "a" / "state"):
        assert (tmp_path / "a" / "state").stat().st_mode & 0o777 == 0o700
    assert private_folder(tmp_path / "sinks" / "log").stat().st_mode & 0o777 == 0o700


def test_one_daemon(tmp_path: Path) -> None:
    """A second daemon is refused, with the folder's name; after the first one has ended, it may run."""
    with lock(tmp_path), pytest.raises(StateError, match=f"{tmp_path}: another roomtone runs"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_killed_daemon(tmp_path: Path) -> None:
    """The lock of a killed daemon blocks no other."""
    program = (
        "import sys, pathlib; from roomtone.paths import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "held\n"
        with pytest.raises(StateError), lock(tmp_path):
            pass
        daemon.kill()

    with lock(tmp_path):
        pass


def test_unusable_state(tmp_path: Path) -> None:
    """A folder that cannot be made is named, with what to do."""
    (tmp_path / "file").touch()

    with pytest.raises(StateError, match=r"file/state.*\[service\] state"), lock(tmp_path / "file" / "state"):
        pass


def test_errors_within(tmp_path: Path) -> None:
    """An error inside of the lock is not reported as an error of the lock."""
    with pytest.raises(BlockingIOError), lock(tmp_path):
        raise BlockingIOError


def test_a_state_folder_whose_name_no_event_could_tell(tmp_path: Path) -> None:
    """Each segment's event names its file: a name that cannot be encoded is refused before anything is recorded."""
    state = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(StateError, match=r"caf\\udce9: the name of the state folder is not UTF-8"), lock(state):
        pass
    assert not state.exists()
