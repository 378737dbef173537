"""The difference between two configurations."""

from pathlib import Path

from roomtone.config import loader
from roomtone.config.model import Config
from roomtone.control.reload import Changes, compare
from roomtone.delivery.plugins import Plugins, load_plugins

FILE = """
[rooms.desk]
source = {{ kind = "microphone" }}
[rooms.{room}]
source = {{ kind = "file", path = "talk.wav" }}
[sinks.log]
kind = "jsonl"
path = "{path}"
[sinks.{sink}]
kind = "notes"
"""
HOOKS = """
from roomtone import hookimpl
@hookimpl
def turn(event):
    {body}
"""


def read(folder: Path, *, room: str = "door", path: str = "a", sink: str = "notes", body: str = "pass") -> Config:
    file, plugin = folder / "roomtone.toml", folder / "plugins" / "notes.py"
    plugin.parent.mkdir(exist_ok=True)
    file.write_text(FILE.format(room=room, path=path, sink=sink))
    plugin.write_text(HOOKS.format(body=body))
    return loader.load(file, plugins_of(plugin))


def plugins_of(path: Path) -> Plugins:
    plugins = load_plugins([path])
    assert not plugins.problems
    return plugins


def test_the_same_file_changes_nothing(tmp_path: Path) -> None:
    """Read again, every sink is the one that it was: the class of a drop-in file too."""
    changes = compare(read(tmp_path), read(tmp_path))
    assert set(changes.rooms_kept) == {"desk", "door"}
    assert not any(
        (changes.rooms_gone, changes.rooms_new, changes.sinks_gone, changes.sinks_new, changes.sinks_changed)
    )


def test_a_changed_plugin_is_a_changed_sink(tmp_path: Path) -> None:
    """Though its table is the same: what it does is another thing."""
    assert compare(read(tmp_path), read(tmp_path, body="print()")).sinks_changed == ("notes",)


def test_each_difference_is_found(tmp_path: Path) -> None:
    """Rooms and sinks that come, go, and change."""
    assert compare(read(tmp_path), read(tmp_path, room="attic", path="b", sink="diary")) == Changes(
        rooms_gone=("door",),
        rooms_new=("attic",),
        rooms_kept=("desk",),
        sinks_gone=("notes",),
        sinks_new=("diary",),
        sinks_changed=("log",),
    )
