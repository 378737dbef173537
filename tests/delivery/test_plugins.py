"""Laws of loading plugins: whatever is wrong with one is explained, and the others work."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from roomtone.delivery.plugins import PluginProblem, Plugins, load_plugins
from roomtone.sinks import Module, Sink

GOOD = """
from roomtone import Sink, hookimpl

class {name}(Sink, frozen=True, tag="{tag}"):
    path: str = "x"

@hookimpl
def register_sinks():
    return [{name}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of drop-in files."""
    (tmp_path / "plugins").mkdir(mode=0o755)
    return tmp_path / "plugins"


@pytest.fixture
def write(folder: Path) -> Callable[[str, str], Path]:
    def write_file(name: str, text: str) -> Path:
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
        return folder / name

    return write_file


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a distribution of one module with an entry point, as pip leaves it on disk."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install_package(name: str, text: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (site / f"{name}.py").write_text(text)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[roomtone]\n{name} = {name}\n")

    return install_package


def bundled() -> set[str]:
    return set(load_plugins().kinds)


def problems(plugins: Plugins) -> list[PluginProblem]:
    """Those of the plugins under test; what else is installed here is not their matter."""
    others = load_plugins().problems
    return [found for found in plugins.problems if found not in others]


def problem(plugins: Plugins) -> PluginProblem:
    (only,) = problems(plugins)
    return only


def test_drop_in_file_announces_its_kinds(write: Callable[[str, str], Path], folder: Path) -> None:
    """One file in the folder adds a kind of sink with its configuration."""
    write("archive.py", GOOD.format(name="Archive", tag="archive"))

    plugins = load_plugins([folder])

    assert not problems(plugins)
    assert set(plugins.kinds) == bundled() | {"archive"}
    assert msgspec.convert({"kind": "archive", "path": "y"}, plugins.kinds["archive"]) is not None
    assert not plugins.modules


def test_module_of_hooks_is_a_sink(write: Callable[[str, str], Path], folder: Path) -> None:
    """A file that has hooks only is a sink whose kind is the file's name; the hook `audio` makes it pin segments."""
    write("hello.py", "from roomtone import hookimpl\n@hookimpl\ndef turn(event):\n    print(event.text)\n")
    write("loud-1.py", "from roomtone import hookimpl\n@hookimpl\ndef audio(event):\n    pass\n")

    plugins = load_plugins([folder])

    assert not problems(plugins)
    assert set(plugins.modules) == {"hello", "loud-1"}
    assert plugins.kinds["hello"] is plugins.modules["hello"]
    assert issubclass(plugins.modules["hello"], Module)
    assert (plugins.modules["hello"].audio, plugins.modules["loud-1"].audio) == (False, True)
    sink = msgspec.convert({"kind": "hello", "rooms": ["desk"]}, plugins.kinds["hello"])
    assert (sink.rooms, sink.timeout) == (("desk",), 30.0)


def test_file_may_be_a_sink_and_announce_others(write: Callable[[str, str], Path], folder: Path) -> None:
    """Hooks and register_sinks may stand in one file."""
    write("both.py", GOOD.format(name="Other", tag="other") + "\n@hookimpl\ndef turn(event):\n    pass\n")

    plugins = load_plugins([folder])

    assert not problems(plugins)
    assert {"both", "other"} <= set(plugins.kinds)
    assert set(plugins.modules) == {"both"}


def test_installed_package_comes_through_the_same_door(install: Callable[[str, str], None]) -> None:
    """A package with an entry point of the group adds its kinds."""
    install("acme_sink", GOOD.format(name="Acme", tag="acme"))

    plugins = load_plugins()

    assert "acme" in plugins.kinds
    assert not [found for found in plugins.problems if found.plugin == "acme_sink"]


@pytest.mark.parametrize(
    "text",
    [
        "import a_module_that_is_absent",
        "def broken(:",
        "1 / 0",
        "raise SystemExit(3)",
        "from roomtone import hookimpl\n@hookimpl\ndef trun(event):\n    pass",
        "from roomtone import hookimpl\n@hookimpl\ndef register_sinks(what):\n    return []",
        "from roomtone import hookimpl\n@hookimpl\ndef register_sinks():\n    return 1 / 0",
        "from roomtone import hookimpl\n@hookimpl\nasync def register_sinks():\n    return []",
        "from roomtone import hookimpl\n@hookimpl\ndef register_sinks():\n    return None",
        "from roomtone import hookimpl\n@hookimpl\ndef register_sinks():\n    return [int, 'text']",
        "x = 1",
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_broken_plugin_costs_itself_only(
    install: Callable[[str, str], None], write: Callable[[str, str], Path], folder: Path, text: str, *, installed: bool
) -> None:
    """A plugin that cannot be used is a problem that names it and its file, and its neighbours load."""
    if installed:
        install("broken_one", text)
        install("good_one", GOOD.format(name="Good", tag="good"))
    else:
        write("broken_one.py", text)
        write("good_one.py", GOOD.format(name="Good", tag="good"))

    plugins = load_plugins([folder])

    assert "good" in plugins.kinds
    found = [each.text for each in plugins.problems if each.plugin == "broken_one"]
    assert found
    assert all("broken_one" in text for text in found)
    assert not [each for each in plugins.problems if each.plugin == "good_one"]


def test_error_names_the_line(write: Callable[[str, str], Path], folder: Path) -> None:
    """A file that does not run is explained with its line and what was raised, however deep it was raised."""
    file = write("deep.py", "import json\n\n\njson.loads('{')\n")

    text = problem(load_plugins([folder])).text

    assert text.startswith(f"{file}:4: JSONDecodeError: ")
    assert text.endswith("repair the file, or remove it from the folder")


def test_misspelt_hook_is_explained(write: Callable[[str, str], Path], folder: Path) -> None:
    """A hook that does not exist is named, with the line of the file and the one that was meant."""
    file = write("hello.py", "from roomtone import hookimpl\n\n@hookimpl\ndef trun(event):\n    pass\n")

    assert problem(load_plugins([folder])) == PluginProblem(
        "hello",
        "hooks",
        f"{file}:3: there is no hook trun; did you mean turn? (a function of your own needs no @hookimpl)",
        is_file=True,
    )


def test_misspelt_argument_is_explained(write: Callable[[str, str], Path], folder: Path) -> None:
    """A hook with an argument that there is not is explained with the line and the arguments that there are."""
    file = write("hello.py", "from roomtone import hookimpl\n@hookimpl\ndef turn(evnt, retries=3):\n    pass\n")

    assert problem(load_plugins([folder])).text == (
        f"{file}:2: turn has the argument evnt; a hook for events takes `event`; flush and register_sinks take nothing"
    )


@pytest.mark.parametrize(
    ("definition", "fault"),
    [
        ("class Wrong(Sink, frozen=False, tag='wrong'): pass", "it is not frozen"),
        ("class Wrong(Sink, frozen=True, tag='module'): pass", 'the kind "module" is reserved'),
        ("Wrong = Sink", 'the kind "Sink" is reserved'),
        ("class Wrong(Sink, frozen=True, tag=7): pass", "its kind must be text"),
        ("class Wrong(Sink, frozen=True, tag='wrong', tag_field='type'): pass", "its kind must be text"),
        ("class Wrong(Sink, frozen=True, tag='jsonl'): pass", 'the kind "jsonl" is taken by roomtone_jsonl'),
        ("class Wrong(Sink, frozen=True, tag='wrong'):\n    what: Absent", "its fields cannot be read from a table"),
        ("class Wrong(Sink, frozen=True, tag='wrong'):\n    a: dict[str, int] | dict[int, str]", "its fields cannot"),
        ("Wrong = Sink()", "it is not a class derived from roomtone.Sink"),
        ("class Wrong: pass", "it is not a class derived from roomtone.Sink"),
    ],
)
def test_class_that_is_no_kind_of_sink_is_refused(
    write: Callable[[str, str], Path], folder: Path, definition: str, fault: str
) -> None:
    """A class that would break the reading of the configuration for all is refused with the reason."""
    file = write(
        "wrong.py",
        "from __future__ import annotations\nfrom roomtone import Sink, hookimpl\n"
        f"{definition}\n@hookimpl\ndef register_sinks():\n    return [Wrong]\n",
    )

    plugins = load_plugins([folder])

    assert problem(plugins).plugin == "wrong"
    assert str(file) in problem(plugins).text
    assert fault in problem(plugins).text
    assert set(plugins.kinds) == bundled()


def test_kind_belongs_to_the_first(write: Callable[[str, str], Path], folder: Path) -> None:
    """Two plugins with one kind: the first has it, and the second is a problem that names the first."""
    write("a.py", GOOD.format(name="First", tag="same"))
    write("b.py", GOOD.format(name="Second", tag="same"))
    write("same.py", "from roomtone import hookimpl\n@hookimpl\ndef turn(event):\n    pass\n")

    plugins = load_plugins([folder])

    assert plugins.kinds["same"].__qualname__ == "First"
    second, third = problems(plugins)
    assert (second.plugin, third.plugin) == ("b", "same")
    assert 'the kind "same" is taken by a; give it another tag' in second.text
    assert third.text.endswith("give the file another name")
    assert not plugins.modules


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_file_that_others_may_change_is_not_run(
    write: Callable[[str, str], Path], folder: Path, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code that another user could have written does not run as the daemon; the problem has the remedy."""
    file = write("open.py", "print('run')\n" + GOOD.format(name="Open", tag="open"))
    file.chmod(mode)

    plugins = load_plugins([folder])

    assert "open" not in plugins.kinds
    assert problem(plugins).what == "unsafe"
    assert f"chmod go-w {file}" in problem(plugins).text
    assert capsys.readouterr().out == ""


def test_file_in_a_folder_that_others_may_change_is_not_run(write: Callable[[str, str], Path], folder: Path) -> None:
    """In a folder that others may write to, any file could be theirs tomorrow; a sticky folder protects its files."""
    write("open.py", GOOD.format(name="Open", tag="open"))
    folder.chmod(0o777)
    assert f"chmod go-w {folder}" in problem(load_plugins([folder])).text

    folder.chmod(0o1777)
    assert "open" in load_plugins([folder]).kinds


def test_file_of_another_user_is_not_run(write: Callable[[str, str], Path], folder: Path) -> None:
    """A file that belongs to neither root nor the daemon's user is not run."""
    file = write("theirs.py", GOOD.format(name="Theirs", tag="theirs"))
    try:
        os.chown(file, 12_345, -1)
    except PermissionError:
        pytest.skip("only root can give a file away")

    assert problem(load_plugins([folder])).text == (
        f"{file} belongs to user 12345, who could change code that runs as the daemon; "
        f"give it to root (chown root {file})"
    )


def test_link_to_a_file_is_judged_by_the_file(write: Callable[[str, str], Path], folder: Path, tmp_path: Path) -> None:
    """A link does not launder what it points to."""
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "real.py"
    real.write_text(GOOD.format(name="Real", tag="real"))
    real.chmod(0o666)
    (folder / "link.py").symlink_to(real)

    assert f"chmod go-w {real}" in problem(load_plugins([folder])).text


def test_absent_file_is_a_problem(folder: Path) -> None:
    """A file that the configuration names and that is not there is a problem that names it."""
    assert str(folder / "absent.py") in problem(load_plugins([folder / "absent.py"])).text


def test_only_plugin_files_of_a_folder_are_run(write: Callable[[str, str], Path], folder: Path) -> None:
    """Hidden files, files with an underscore, and what is no Python are left alone; nothing is written there."""
    write(".hidden.py", "1 / 0")
    write("_shared.py", "1 / 0")
    write("notes.txt", "1 / 0")
    write("good.py", GOOD.format(name="Good", tag="good"))

    plugins = load_plugins([folder])

    assert not problems(plugins)
    assert sorted(file.name for file in folder.iterdir()) == [".hidden.py", "_shared.py", "good.py", "notes.txt"]


def test_bundled_sinks_load() -> None:
    """The sinks that come with Roomtone have no privileges and no problems."""
    plugins = load_plugins()

    assert not plugins.problems
    assert {"wav", "jsonl", "webhook"} <= set(plugins.kinds)
    assert all(issubclass(kind, Sink) for kind in plugins.kinds.values())
