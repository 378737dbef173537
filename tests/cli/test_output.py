"""Every way in which a command writes text of others: none of it is obeyed by a terminal, and JSON stays JSON.

A daemon that answers with hostile text stands in for all who have a say in it: what was said, a speech service, a
language model, a source, a sink, a file's name, a device's label.
"""

import ast
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w
from rich.console import Console
from rich.live import Live
from rich.text import Text

from roomtone import cli, events
from roomtone.capture.source_process import Listing
from roomtone.cli import display as screen
from roomtone.cli import output, print_sink
from roomtone.cli.commands import devices
from roomtone.cli.commands.analyze import _print_aside as tell_of_analysis
from roomtone.cli.exit_codes import CommandFailure
from roomtone.control.protocol import Done, Forgot, Refused
from roomtone.delivery.health import SinkStatus
from roomtone.events import (
    Analysis,
    Answer,
    Durable,
    Interim,
    Notice,
    RecordingStarted,
    RecordingStopped,
    SessionEnded,
    SessionStarted,
    Turn,
)
from roomtone.monitoring.report import DiskUsage, OpenGap, Report, RoomReport, SessionReport
from test_legible import is_harmless

EVIL = "\x1b]52;c;cm0=\x07\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066evil\u2069\x08\x7f\r\nFAULT [bold]forged[/bold]"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CLI = Path(cli.__file__).parent

TURN = Turn(room=EVIL, position=0, at=AT, session_id=EVIL, turn_order=0, text=EVIL, speaker=EVIL)
EVENTS: tuple[Durable, ...] = (
    RecordingStarted(room=EVIL, position=0, at=AT, source=EVIL, rate=16_000),
    SessionStarted(room=EVIL, position=0, at=AT, session_id=EVIL, endpoint=EVIL, speech_model=EVIL),
    TURN,
    Answer(
        room=EVIL, position=0, at=AT, session_id=EVIL, turn_order=0, turn="", text=EVIL, response={"content": EVIL}
    ),
    Analysis(
        room=EVIL, position=0, at=AT, name=EVIL, start=0, end=1, text=EVIL, response={}, model=EVIL, requests=1,
        input_tokens=1, output_tokens=1, cost=None,
    ),
    SessionEnded(room=EVIL, position=0, at=AT, session_id=EVIL, audio_seconds=1, session_seconds=1, reason=EVIL),
    Notice(room=EVIL, position=0, at=AT, severity="error", code="source.failed", text=EVIL),
    RecordingStopped(room=EVIL, position=0, at=AT, reason="stopping"),
)  # fmt: skip
REPORT = Report(
    version=EVIL,
    pid=1,
    since=AT,
    configuration=EVIL,
    state=EVIL,
    rooms=(
        RoomReport(
            name=EVIL,
            state="waiting",
            source=EVIL,
            rate=16_000,
            position=0,
            gap=OpenGap("device", 100.0, EVIL),
            session=SessionReport(EVIL, AT, EVIL),
            session_error=EVIL,
        ),
    ),
    sinks=(SinkStatus(EVIL, EVIL, "failing", 3, 0, EVIL),),
    disk=DiskUsage(1, 2, 3),
)


@contextmanager
def answering(path: Path, answer: Any, *lines: bytes, status: Report = REPORT) -> Iterator[None]:
    """A daemon at this path that answers each request but Status with these lines."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    if asked := connection.recv(65_536):
                        said = status if json.loads(asked)["ask"] == "status" else answer
                        connection.sendall(b"".join(line + b"\n" for line in (msgspec.json.encode(said), *lines)))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def written(*arguments: str, folder: Path) -> tuple[str, str]:
    """What the command writes to its standard output and its standard error, which are pipes."""
    environ = {key: value for key, value in os.environ.items() if "XDG" not in key and "DIRECTORY" not in key}
    command = (sys.executable, "-m", "roomtone", *arguments)
    done = subprocess.run(
        command, cwd=folder, env=environ | {"HOME": str(folder)}, capture_output=True, check=False, timeout=100
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode(), done.stderr.decode()


def assert_harmless(*texts: str) -> None:
    for text in texts:
        assert all(is_harmless(line) for line in text.split("\n")), text
        assert not any(line.startswith("FAULT [bold]") for line in text.split("\n")), text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tables = {
        "service": {"state": "state"},
        "rooms": {"desk": {"source": {"kind": "command", "argv": ["cat", "/dev/zero"]}}},
    }
    (tmp_path / "roomtone.toml").write_text(tomli_w.dumps(tables))
    (tmp_path / "state").mkdir(mode=0o700)
    return tmp_path


ANSWERS: dict[str, Any] = {
    "status": REPORT,
    "health": REPORT,
    "sinks": REPORT,
    "mute": Done((EVIL,)),
    "unmute": Done((EVIL,)),
    "rotate": Done((EVIL,)),
    "reload": Refused((EVIL, EVIL)),
}


@pytest.mark.parametrize("command", ANSWERS)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_a_daemon_says(command: str, options: Sequence[str], folder: Path) -> None:
    """Reports, refusals and what was done, for people and as JSON, into a pipe."""
    if options and command not in {"status", "health", "sinks"}:
        return
    with answering(folder / "state" / "control", ANSWERS[command]):
        out, err = written(command, *options, folder=folder)
    assert_harmless(out, err)
    if options:
        (line,) = out.splitlines()
        assert isinstance(json.loads(line), dict)
    elif command != "sinks":
        assert r"\u001b]52;c;cm0=\u0007" in out + err


def test_what_a_daemon_says_of_forgetting(folder: Path) -> None:
    """`forget` asks which daemon it is, and then to forget: what was done, and what is left."""
    report = msgspec.structs.replace(REPORT, state=str(folder / "state"))
    with answering(folder / "state" / "control", Forgot((EVIL,), (EVIL,)), status=report):
        out, err = written("forget", "--last", "10m", "--yes", folder=folder)
    assert_harmless(out, err)
    assert "owned" in out
    assert "owned" in err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_tail(options: Sequence[str], folder: Path) -> None:
    """Events come as lines that are harmless, one for each."""
    with answering(folder / "state" / "control", Done(()), *map(events.encode, EVENTS)):
        out, err = written("tail", *options, folder=folder)
    assert_harmless(out, err)
    shown = out.splitlines()
    assert len(shown) == len(EVENTS)
    if options:
        assert [json.loads(line)["room"] for line in shown] == [EVIL] * len(EVENTS)


def test_the_terminal_of_tail() -> None:
    """On a terminal, where rich draws, captions and events are harmless too, and no markup is obeyed."""
    console = Console(record=True, width=200, height=50, force_terminal=False)
    with Live(console=console, auto_refresh=False) as live:
        display = screen.Captions(live)
        display.caption(Interim(room=EVIL, position=0, at=AT, session_id=EVIL, turn_order=0, text=EVIL))
        drawn = live.get_renderable()
        assert isinstance(drawn, Text)
        assert_harmless(drawn.plain.replace("FAULT", ""))
        for event in EVENTS:
            display.show(event)
    text = console.export_text()
    assert_harmless(text)
    assert "[bold]forged[/bold]" in text


def test_run_print(capsys: pytest.CaptureFixture[str]) -> None:
    """`run --print`: events, a line each, and answers, which alone have lines of their own."""
    for event in EVENTS:
        for line in print_sink.lines(event, "USD"):
            output.say(line if isinstance(event, Answer | Analysis) else f"{line} ")
    out = capsys.readouterr().out
    assert_harmless(out.replace("\nFAULT [bold]forged[/bold]\n", ""))
    assert r"Heard from \u001b]52" in out


def test_sinks_and_sources_that_fail(folder: Path) -> None:
    """What a drop-in raises when it is opened, and what a command says on its standard error, in `check` and
    `sinks test`.
    """
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o755)
    (plugins / "bad.py").write_text(
        "from contextlib import asynccontextmanager\nfrom roomtone import Sink, hookimpl\n\n\n"
        'class Bad(Sink, frozen=True, kw_only=True, tag="bad"):\n    @asynccontextmanager\n'
        f"    async def open(self, context):\n        raise ValueError({EVIL!r} + chr(0xD800))\n        yield\n\n\n"
        "@hookimpl\ndef register_sinks():\n    return [Bad]\n"
    )
    (plugins / "worse.py").write_text(f"raise ValueError({EVIL!r} + chr(0xD800))\n")
    tables = {
        "service": {"state": "state", "plugins": ["plugins"]},
        "rooms": {
            "desk": {
                "source": {"kind": "command", "argv": ["sh", "-c", f"printf '%s' '{EVIL}' >&2; exit 3"]},
                "streaming": {"endpoint": "ws://127.0.0.1:1"},
            }
        },
        "sinks": {"bad": {"kind": "bad"}},
    }
    (folder / "roomtone.toml").write_text(tomli_w.dumps(tables))
    for arguments in (("check", "--sources"), ("check", "--sources", "--json"), ("sinks", "test", "bad"), ("sinks",)):
        out, err = written(*arguments, folder=folder)
        assert_harmless(out, err)
        assert "owned" in out + err
        if "--json" in arguments:
            assert json.loads(out)["ok"] is False


def test_configurations(folder: Path) -> None:
    """Keys, names and values of a configuration, in its errors and in what `config` shows."""
    for tables in (
        {"rooms": {EVIL: {"source": {"kind": EVIL}}}, EVIL: {EVIL: EVIL}},
        {"rooms": {"desk": {"source": {"kind": "command", "argv": ["cat"]}}}, "sinks": {EVIL: {"kind": EVIL}}},
        {"rooms": {"desk": {"source": {"kind": "command", "argv": ["cat", EVIL]}}}},
    ):
        (folder / "roomtone.toml").write_text(tomli_w.dumps(tables))
        for command in ("config", "check", "sinks", "coverage", "status", "run"):
            if command == "run" and "argv" in str(tables) and "sinks" not in tables:
                continue  # this one would run
            out, err = written(command, folder=folder)
            assert_harmless(out.replace("\nFAULT", "\n FAULT"), err)  # a text of several lines is one in TOML too


def test_names_of_files(folder: Path) -> None:
    """A folder whose name is no UTF-8, and has escapes in it."""
    hostile = os.fsdecode(b"\x1b[2J caf\xe9\x9b")
    (folder / hostile).mkdir()
    (folder / "roomtone.toml").rename(folder / hostile / "roomtone.toml")
    for command in (("config",), ("check",), ("check", "--json"), ("coverage",), ("status",), ("sinks", "--json")):
        out, err = written(*command, "--config", str(folder / hostile / "roomtone.toml"), folder=folder)
        assert_harmless(out, err)
        if "--json" in command and out:
            json.loads(out)


def test_devices_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    """Labels of devices, failures of several lines, what is said of analyses: each line keeps its beginning."""
    output.say(*devices.table(Listing(((EVIL, EVIL),), (EVIL,))))
    CommandFailure(EVIL).show()
    tell_of_analysis(EVIL)
    output.say_json({"name": EVIL + "\ud800"})
    shown = capsys.readouterr()
    assert_harmless(shown.out, shown.err)
    assert json.loads(shown.out.splitlines()[-1])["name"].startswith(EVIL)


FAILING = """
import sys, threading
from roomtone.cli import output
output.install_traceback_hooks()

class Sad:
    def __del__(self):
        int(sys.argv[1])

thread = threading.Thread(target=int, args=[sys.argv[1]])
thread.start()
thread.join()
Sad()
{}[sys.argv[1] + chr(27) + "[2J" + chr(0xD800)]
"""


def test_tracebacks_of_python_itself() -> None:
    """What nobody foresaw, what fails in a thread of a plugin's, and what cannot be raised: their texts stand on a
    terminal only, for in a log they would stay.
    """
    command = (sys.executable, "-c", FAILING, "words that were said")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("ValueError") == 2
    assert done.stderr.count("KeyError") == 1
    assert "words" not in done.stderr

    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs) as end:
        subprocess.run(command, stderr=end, check=False, timeout=60)
        shown = terminal.read(100_000).decode()
    assert_harmless(shown.replace("\r\n", "\n"))
    assert "words that were said" in shown


WRITERS = {
    "output.py": "the one door",
    "__init__.py": "an empty line after Ctrl-C",
    "schema.py": "our own schema, from the build",
}


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_there_is_one_door(path: Path) -> None:
    """No command writes but through `output`: not by click, not by print, not to a stream."""
    if path.name in WRITERS:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"}
            if called == "Text" or called.endswith(("console.print", "add_task")):
                given = " ".join(map(ast.unparse, node.args))
                names = {name.id for arg in node.args for name in ast.walk(arg) if isinstance(name, ast.Name)}
                assert not names - {"begin", "first", "line", "Padding"} or "legible" in given or _is_ours(given), given


def _is_ours(argument: str) -> bool:
    return argument in {
        "timeline",
        "'nothing has been recorded' + (' since then' if since else ' yet')",
        "'  ' + '   '.join((f'{MARKS[state][0]} {state}' for state in shown))",
        "Padding(line, (0, 0, 0, len(begin)))",
    }
