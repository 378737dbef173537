"""Laws of `roomtone.monitoring.logs`."""

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from roomtone.legible import legible
from roomtone.monitoring import logs
from test_legible import is_harmless


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the process's: each test leaves it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json() -> None:
    """Without a terminal, a line is one JSON object with its time, level and event."""
    stream = io.StringIO()
    logs.configure("info", stream)

    structlog.get_logger().info("sink.opened", sink="archive", behind=3)

    (line,) = lines(stream)
    assert line.pop("at")
    assert line == {"event": "sink.opened", "level": "info", "sink": "archive", "behind": 3}


def test_level() -> None:
    """Lines below the level are not written."""
    stream = io.StringIO()
    logs.configure("warning", stream)

    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")

    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal lines are colored, unless NO_COLOR is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    logs.configure("info", stream)
    structlog.get_logger().info("sink.opened", sink="archive")
    assert "\x1b[" in stream.getvalue()

    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    logs.configure("info", plain)
    structlog.get_logger().info("sink.opened", sink="archive")
    assert "\x1b[" not in plain.getvalue()
    assert "sink=archive" in plain.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_exception(kind: type[io.StringIO]) -> None:
    """An exception comes as a plain traceback, without the values of variables: those may be what was said."""
    stream = kind()
    logs.configure("info", stream)
    said = "spoken words"
    try:
        int(said.strip(said))
    except ValueError:
        structlog.get_logger().exception("sink.failed")

    assert "ValueError" in stream.getvalue()
    assert said not in stream.getvalue()


def test_libraries() -> None:
    """Warnings of libraries become our lines, without the passwords in addresses; their other records do not."""
    stream = io.StringIO()
    logs.configure("debug", stream)

    logging.getLogger("trio-websocket").info("connected")
    logging.getLogger("trio-websocket").warning("lost %s", "wss://user:word@host/v3/ws?token=abc")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    first, second = lines(stream)
    assert first["event"] == "library.said"
    assert first["library"] == "trio-websocket"
    assert first["text"] == "lost wss://***@host/v3/ws?token=***"
    assert "DeprecationWarning: old" in str(second["text"])


def test_reader_gone() -> None:
    """A log whose reader is gone ends nothing."""
    logs.configure("info", Gone())

    structlog.get_logger().info("sink.opened")


def test_no_rich() -> None:
    """The daemon's process does not load rich, which structlog would: 6 MB for nothing."""
    program = (
        "import sys; from roomtone import cli; cli._import_structlog_without_rich()\n"
        "from roomtone.monitoring import logs; logs.configure('info', sys.stderr)\n"
        "import structlog; structlog.get_logger().info('x')\n"
        "assert not any(name.split('.')[0] == 'rich' for name in sys.modules)\n"
        "import rich"
    )

    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.PIPE)


class Nameless:
    """An object of a plugin's that has no text."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


class Ascii(io.StringIO):
    """A stream of a locale that has only ASCII."""

    def write(self, text: str) -> int:
        return super().write(text.encode("ascii").decode())


class Terse(Exception):  # noqa: N818 - it has no text
    """An exception that raises when it is shown."""

    __str__ = Nameless.__str__


def broken_syntax() -> SyntaxError:
    """An error that the traceback module cannot show: an attribute of it has the wrong type."""
    error = SyntaxError("bad")
    error.filename, error.lineno, error.text = "x", 1, 7  # type: ignore[assignment]
    return error


SURROGATE = "bad \ud800"
LISTED = os.fsdecode(b"caf\xe9.txt")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (SURROGATE, "bad \\ud800"),
        (LISTED, "caf\\udce9.txt"),
        (Path(LISTED), "caf\\udce9.txt"),
        (2**70, str(2**70)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (b"\xff", "b'\\xff'"),
        (Nameless(), "<Nameless without a text>"),
        ([SURROGATE], ["bad \\ud800"]),
        ({SURROGATE: SURROGATE}, {"bad \\ud800": "bad \\ud800"}),
        ([Nameless()], ["<Nameless without a text>"]),
        (float("nan"), None),
    ],
)
@pytest.mark.parametrize("kind", [io.StringIO, Terminal, Ascii])
def test_whatever_is_logged_is_shown(kind: type[io.StringIO], value: object, shown: object) -> None:
    """A log call never raises, whatever it is given, and shows what cannot be encoded as escapes."""
    stream = kind()
    logs.configure("info", stream)

    structlog.get_logger().info("sink.failed", error=value)
    structlog.get_logger().info("next")

    *_, line, after = stream.getvalue().splitlines()
    line.encode()
    assert "next" in after
    if not isinstance(stream, Terminal):
        assert json.loads(line)["error"] == shown


@pytest.mark.parametrize("error", [ValueError(SURROGATE), OSError(2, "gone", LISTED), Terse(), broken_syntax()])
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_every_traceback_is_shown(kind: type[io.StringIO], error: Exception) -> None:
    """The traceback of an exception whose text cannot be encoded, or that raises when it is shown, ends nothing."""
    stream = kind()
    logs.configure("info", stream)

    structlog.get_logger().error("sink.traceback", exc_info=error)

    assert "sink.traceback" in stream.getvalue()
    assert type(error).__name__ in stream.getvalue() or "cannot be shown" in stream.getvalue()
    stream.getvalue().encode()


def test_a_closed_stream() -> None:
    """A log whose stream a plugin has closed ends nothing."""
    stream = io.StringIO()
    logs.configure("info", stream)
    stream.close()

    structlog.get_logger().info("sink.opened")


def test_a_library_that_logs_badly() -> None:
    """A library's log call with the wrong arguments ends nothing of the library's."""
    stream = io.StringIO()
    logs.configure("info", stream)

    logging.getLogger("httpx2").warning("%d of them", "many")

    assert lines(stream)[0]["text"] == "%d of them"


EVIL = '\x1b]52;c;cm0=\x07\x1b[2J\x9b31m\u202eevil\u2069\x08\r\n{"event": "forged"}\n12:00:00 [error] forged \ud800'


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_no_reader_of_a_log_is_obeyed(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrusted text is one line, and does nothing to the reader's terminal, in a file or live."""
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure("info", stream)
    structlog.get_logger().error("sink.failed", error=EVIL, path=Path(EVIL[:-1]), errors=[EVIL], sink=EVIL, n=3)
    logging.getLogger("library").warning("%s", EVIL)

    (first, second) = stream.getvalue().splitlines()
    assert is_harmless(first)
    assert is_harmless(second)
    if not stream.isatty():
        assert json.loads(first)["error"] == legible(EVIL)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_a_traceback_quotes_nothing(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback in the log has places and classes, and not what an error says: it may be what was said in a room."""
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure("debug", stream)
    words = "the words " + EVIL
    for given in (True, None):
        try:
            int(words)
        except ValueError as error:
            structlog.get_logger().error("sink.traceback", exc_info=given or error)
    structlog.get_logger().error("no.traceback", exc_info=True)

    text = stream.getvalue()
    assert text.count("ValueError") == 2
    assert "test_logs.py" in text
    assert "the words" not in text.replace('words = "the words', "")
    assert all(is_harmless(line) for line in text.splitlines())
