"""`roomtone sinks new`: what it writes works as it stands, installed like anybody's package, in the real daemon."""

import os
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from roomtone import cli
from roomtone.cli.exit_codes import Exit
from support.daemon import DEMO, run

TABLE = """
[service]
state = "state"
grace = 6.0
[rooms.desk]
source = {{ kind = "file", path = "{demo}/meeting.flac", pace = "fast" }}
[sinks.mine]
kind = "{kind}"
path = "mine.sqlite"
start = "oldest"
"""


def turns(folder: Path) -> list[str]:
    if not (folder / "mine.sqlite").exists():
        return []
    with closing(sqlite3.connect(folder / "mine.sqlite", timeout=30)) as database:
        return [row[0] for row in database.execute("SELECT text FROM turns ORDER BY rowid")]


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.group, ["sinks", "new", *arguments])
    return result.exit_code, result.output


def run_in(environment: Path, *arguments: str, folder: Path) -> str:
    """A program of that environment, which must succeed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [str(environment / "bin" / "python"), *arguments],
        cwd=folder,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_project_works_as_it_stands(tmp_path: Path) -> None:
    """Written, installed into a fresh environment, tested by its own test, and delivered to by the daemon there."""
    project, environment = tmp_path / "word-book", tmp_path / "venv"
    assert invoke("word-book", "--directory", str(project))[0] == 0
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=60)
    # What Roomtone itself needs comes from the environment of this test: nothing is fetched.
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "roomtone-of-the-test.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    run_in(environment, "-m", "pip", "install", *options, str(project), folder=tmp_path)
    assert "13 passed" in run_in(
        environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project), folder=project
    )

    (tmp_path / "roomtone.toml").write_text(TABLE.format(demo=DEMO, kind="word-book"))
    run_in(environment, "-m", "roomtone", "sinks", "test", "mine", folder=tmp_path)
    assert "word-book" in run_in(environment, "-m", "roomtone", "sinks", folder=tmp_path)
    (tmp_path / "mine.sqlite").unlink()
    run_in(environment, "-m", "roomtone", "run", folder=tmp_path)
    assert len(turns(tmp_path)) >= 3


def test_a_file_works_as_it_stands(tmp_path: Path) -> None:
    """One file in the folder of plugins is enough."""
    assert invoke("word_book", "--file", "--directory", str(tmp_path / "plugins"))[0] == 0
    with run(tmp_path, TABLE.format(demo=DEMO, kind="word_book")) as daemon:
        daemon.wait_for(lambda: turns(tmp_path))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log


@pytest.mark.parametrize("name", ["My-Sink", "1st", "turn", "level", "module", "a b", "../x", "-x", "x-"])
def test_a_name_that_cannot_be_one(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name becomes a package, a kind and a class: what cannot be one is refused before anything is written."""
    monkeypatch.chdir(tmp_path)
    assert invoke("--", name)[0] == Exit.USAGE
    assert not list(tmp_path.iterdir())


def test_what_comes_next_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says to install is this folder: a bare name would be a package that pip fetches from wherever."""
    monkeypatch.chdir(tmp_path)
    assert "next: pip install ./word-book, " in invoke("word-book")[1]
    assert f"next: pip install {tmp_path}/away, " in invoke("word-book", "--directory", str(tmp_path / "away"))[1]


def test_nothing_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there stays as it is."""
    monkeypatch.chdir(tmp_path)
    assert invoke("mine", "--file")[0] == 0
    (tmp_path / "plugins" / "mine.py").write_text("precious")
    code, output = invoke("mine", "--file")
    assert (code, (tmp_path / "plugins" / "mine.py").read_text()) == (Exit.CANTCREAT, "precious")
    assert "already exists" in output


def test_names_are_replaced_everywhere(tmp_path: Path) -> None:
    """Nothing in what is written is called as in the template."""
    invoke("word-book", "--directory", str(tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path)) for path in files) == [
        "README.md",
        "pyproject.toml",
        "tests/test_word_book.py",
        "word_book/__init__.py",
    ]
    for path in files:
        text = path.read_text()
        assert not any(word in text for word in ("my-sink", "my_sink", "MySink"))
        assert any(word in text for word in ("word-book", "word_book", "WordBook"))
