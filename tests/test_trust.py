"""Whose word counts: a configuration, a plugin and a daemon of another user are not obeyed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roomtone.control.client import find_socket
from roomtone.control.unix_socket import ControlError, check_peer
from roomtone.delivery.plugins import load_plugins
from roomtone.paths import foreign_hand

MALLORY = 65_533
BOB = 65_532

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")

CONFIG = '[service]\nstate = "state"\n[rooms.desk]\nsource = { kind = "command", argv = ["touch", "obeyed"] }\n'


@pytest.fixture
def lair(tmp_path: Path) -> Path:
    """A folder of Mallory's, with a configuration and a plugin."""
    folder = tmp_path / "lair"
    (folder / "plugins").mkdir(parents=True, mode=0o755)
    (folder / "roomtone.toml").write_text(CONFIG)
    (folder / "plugins" / "evil.py").write_text(
        "from pathlib import Path\nfrom roomtone import hookimpl\n\nPath('obeyed').touch()\n\n\n"
        "@hookimpl\ndef turn(event):\n    pass\n"
    )
    for path in (folder, *folder.rglob("*")):
        os.chown(path, MALLORY, MALLORY)
    return folder


def run(folder: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environ = {key: value for key, value in os.environ.items() if "XDG" not in key and "DIRECTORY" not in key}
    return subprocess.run(
        (sys.executable, "-m", "roomtone", *arguments),
        cwd=folder,
        env=environ | {"HOME": str(folder), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@needs_root
@pytest.mark.parametrize(
    "command",
    [
        "run", "check --sources", "status", "health", "tail", "mute", "unmute", "rotate", "reload", "sinks",
        "sinks pause x", "sinks test x", "forget --last 10m --yes", "coverage", "transcribe --from 1h",
        "analyze --prompt x --from 1h",
        "config",
    ],
)  # fmt: skip
def test_a_found_configuration_of_another_user_is_refused(command: str, lair: Path) -> None:
    """Root, standing in a folder of another user's, does not do what that says, and is told how to if it is meant."""
    done = run(lair, *command.split())
    assert done.returncode == 78, done
    assert f"belongs to user {MALLORY}" in done.stderr
    assert "--config" in done.stderr
    assert not (lair / "obeyed").exists()


@needs_root
def test_a_named_configuration_is_obeyed(lair: Path) -> None:
    """Who names it means it, on the command line or in the environment. Its plugins are another matter."""
    for named in (run(lair, "config", "-c", "roomtone.toml"), run(lair, "config", ROOMTONE_CONFIG="roomtone.toml")):
        assert (named.returncode, named.stderr) == (0, "")
    assert not (lair / "obeyed").exists()
    assert f"belongs to user {MALLORY}" in run(lair, "check", "-c", "roomtone.toml").stdout


@needs_root
def test_one_in_the_home_folder_of_another_user(lair: Path) -> None:
    """`sudo` that keeps HOME finds the configuration of whoever called it."""
    home = lair / ".config" / "roomtone"
    home.mkdir(parents=True)
    (lair / "roomtone.toml").rename(home / "roomtone.toml")
    assert run(lair, "config").returncode == 78


@needs_root
@pytest.mark.parametrize(
    ("place", "owner", "mode", "says"),
    [
        ("roomtone.toml", MALLORY, 0o600, f"belongs to user {MALLORY}"),
        ("roomtone.toml", 0, 0o666, "may be changed by everybody"),
        (".", MALLORY, 0o755, f"belongs to user {MALLORY}"),
        (".", 0, 0o777, "may be changed by everybody"),
        ("..", 0, 0o777, "may be changed by everybody"),
        (".", 0, 0o1777, None),
        ("roomtone.toml", 0, 0o644, None),
        ("roomtone.toml", 0, 0o664, None),
    ],
)
def test_every_hand_counts(tmp_path: Path, place: str, owner: int, mode: int, says: str | None) -> None:
    """The file, its folder and all above: who can change one of them can change what is read."""
    path = tmp_path / "a" / "b" / "roomtone.toml"
    path.parent.mkdir(parents=True, mode=0o755)
    path.write_text("")
    changed = path if place == "roomtone.toml" else path.parent / place
    os.chown(changed, owner, 0)
    changed.chmod(mode)
    found = foreign_hand(path)
    assert found is None if says is None else says in str(found)


@needs_root
def test_groups_and_links(tmp_path: Path) -> None:
    """A group of others' may not write either; a link says where it leads, and whoever made it chose that."""
    path = tmp_path / "roomtone.toml"
    path.write_text("")
    os.chown(path, 0, BOB)
    path.chmod(0o664)
    assert f"may be changed by group {BOB}" in str(foreign_hand(path))
    path.chmod(0o644)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert foreign_hand(link) is None
    os.chown(link, MALLORY, MALLORY, follow_symlinks=False)
    assert f"belongs to user {MALLORY}" in str(foreign_hand(link))


@needs_root
@pytest.mark.parametrize("above", [1, 2])
def test_plugins_below_a_folder_of_another_user(tmp_path: Path, above: int) -> None:
    """Who owns a folder above the plugins can put others in their place."""
    folder = tmp_path / "one" / "two" / "plugins"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "mine.py").write_text("from roomtone import hookimpl\n\n\n@hookimpl\ndef turn(event):\n    pass\n")
    assert "mine" in load_plugins([folder]).modules
    os.chown(folder.parents[above - 1], MALLORY, MALLORY)
    found = load_plugins([folder])
    assert "mine" not in found.modules
    assert [problem.what for problem in found.problems] == ["unsafe"]
    assert f"belongs to user {MALLORY}" in found.problems[0].text


@contextmanager
def answering_as(user: int, path: Path) -> Iterator[None]:
    """A process of this user listens at the path."""
    code = (
        "import os, socket, sys\nlistening = socket.socket(socket.AF_UNIX)\nlistening.bind(sys.argv[1])\n"
        "os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\nlistening.listen()\nprint('here', flush=True)\n"
        "while True:\n    connection, _ = listening.accept()\n"
        '    connection.recv(9999)\n    connection.sendall(b\'{"answer":"done","lines":["muted"]}\\n\')\n'
    )
    command = (sys.executable, "-c", code, str(path), str(user))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            yield
        finally:
            process.kill()


@needs_root
@pytest.mark.parametrize(
    ("peer", "owner", "mode", "is_trusted"),
    [
        (0, 0, 0o700, True),
        (BOB, BOB, 0o700, True),  # the service's user, to whom root has given the folder
        (MALLORY, 0, 0o755, False),
        (MALLORY, BOB, 0o755, False),
        (MALLORY, MALLORY, 0o777, False),
    ],
)
def test_who_answers(tmp_path: Path, peer: int, owner: int, mode: int, *, is_trusted: bool) -> None:
    """Root, the caller, and the user of the service may answer; nobody else is asked."""
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "control"
    with answering_as(peer, path):
        os.chown(folder, owner, owner)
        folder.chmod(mode)
        if is_trusted:
            assert find_socket([path]) == path
            return
        with pytest.raises(ControlError, match=f"user {MALLORY} answers there"):
            find_socket([path])


@needs_root
def test_a_folder_that_anybody_could_have_made(tmp_path: Path) -> None:
    """In a folder that is everybody's, the owner of one in it is nobody's choice."""
    public = tmp_path / "public"
    (public / "state").mkdir(parents=True)
    public.chmod(0o1777)
    os.chown(public / "state", MALLORY, MALLORY)
    with (
        answering_as(MALLORY, public / "state" / "control"),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(public / "state" / "control"))
        with pytest.raises(ControlError, match="nothing was sent"):
            check_peer(client, public / "state" / "control")


@needs_root
def test_another_daemon_is_not_muted(tmp_path: Path) -> None:
    """The whole way: `mute` asks nobody who has no business there, and says so."""
    (tmp_path / "roomtone.toml").write_text(CONFIG)
    (tmp_path / "state").mkdir()
    with answering_as(MALLORY, tmp_path / "state" / "control"):
        done = run(tmp_path, "mute")
    assert done.returncode == 69
    assert "muted" not in done.stdout
    assert f"user {MALLORY} answers there" in done.stderr
