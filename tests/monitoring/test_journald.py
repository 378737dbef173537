"""Laws of log lines as entries of the journal, seen from a real journald."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from roomtone.monitoring import journald
from roomtone.monitoring.journald import MESSAGE_IDS, Entries, is_journal, render
from support.systemd_guest import booted
from support.systemd_lab import Guest

REPOSITORY = Path(__file__).parents[2]
CATALOG = REPOSITORY / "systemd" / "roomtone.catalog"


def fields(entry: bytes) -> dict[str, bytes]:
    """An entry as journald reads it: the reverse of the protocol's framing."""
    found = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, is_short, value = line.partition(b"=")
        if not is_short:
            length = struct.unpack("<Q", rest[:8])[0]
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        found[name.decode()] = value
        entry = rest
    return found


def test_a_line_reads_well_and_filters_well() -> None:
    """The message is the event with its key-values; room, session and sink are fields by their plain names."""
    entry = fields(
        render(None, "", {"event": "source.left", "level": "warning", "room": "desk", "reason": "it is gone", "n": 2})
    )

    assert entry["MESSAGE"] == b'source.left room=desk reason="it is gone" n=2'
    assert entry["PRIORITY"] == b"4"
    assert entry["SYSLOG_IDENTIFIER"] == b"roomtone"
    assert entry["EVENT"] == b"source.left"
    assert entry["MESSAGE_ID"] == MESSAGE_IDS["source.left"].encode()
    assert entry["ROOM"] == b"desk"
    assert entry["ROOMTONE_REASON"] == b"it is gone"


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", b"7"), ("info", b"6"), ("warning", b"4"), ("error", b"3"), ("critical", b"2")]
)
def test_levels_are_priorities(level: str, priority: bytes) -> None:
    """Levels are those of syslog, so that `journalctl -p warning` works."""
    assert fields(render(None, "", {"event": "a.b", "level": level}))["PRIORITY"] == priority


def test_a_traceback_stands_below_the_message() -> None:
    """Tracebacks and stacks belong to the message, on lines of their own, and are not fields beside it."""
    entry = fields(render(None, "", {"event": "a.b", "exception": "Traceback:\n  line", "stack": "Thread 1"}))

    assert entry["MESSAGE"] == b"a.b\nTraceback:\n  line\nThread 1"
    assert not any("EXCEPTION" in name or "STACK" in name for name in entry)


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none(), max_size=5))
def test_any_line_keeps_its_frame(line: dict[str, Any]) -> None:
    """Whatever keys and values hold, the entry has whole fields with names that journald takes, and no forged ones."""
    given_event = {"event": "a.b", **{key: value for key, value in line.items() if key not in journald._NOT_IN_MESSAGE}}
    entry = fields(render(None, "", given_event))

    assert {name for name in entry if not name.startswith("ROOMTONE_")} <= {
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT", "ROOM", "SESSION_ID", "SINK")
    }
    assert all(len(name) <= 64 and name[0].isalpha() and name.isascii() for name in entry)


def test_the_journal_is_found_by_its_stream(tmp_path: Path) -> None:
    """Entries are sent only when stderr is the journal's: the variable is inherited, the stream may not be."""
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

        assert is_journal(stream, environ, journal=tmp_path)
        assert not is_journal(stream, {}, journal=tmp_path)
        assert not is_journal(stream, {"JOURNAL_STREAM": "1:1"}, journal=tmp_path)
        assert not is_journal(stream, environ, journal=tmp_path / "absent")


def test_what_the_journal_does_not_take_is_counted(tmp_path: Path) -> None:
    """A journal that is away costs lines and no exception; the first line that it takes again says how many."""
    address = tmp_path / "socket"
    entries = Entries(address)
    for _ in range(3):
        entries.msg(b"MESSAGE=lost\n")
    assert entries.lost == 3

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        entries.msg(b"MESSAGE=here\n")
        assert fields(channel.recv(65536)) == {"MESSAGE": b"here", "ROOMTONE_LOST_BEFORE": b"3"}
    assert entries.lost == 0


def test_a_journal_that_does_not_read_is_waited_for_once(tmp_path: Path) -> None:
    """A journal that hangs holds up one line for a moment, and none of the thousands after it."""
    address = tmp_path / "socket"
    entries = Entries(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        for _ in range(5000):
            entries.msg(b"MESSAGE=x\n")

    assert entries.lost > 4000


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with booted(tmp_path_factory.mktemp("guest")) as guest:
        yield guest


@pytest.fixture
def log(guest: Guest) -> Iterator[Callable[..., Any]]:
    """A log whose lines go to the guest's journald, from here."""
    journal = guest.path("/run/systemd/journal/socket")
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, *journald.processors()], logger_factory=Entries(journal)
    )
    yield structlog.get_logger()
    structlog.reset_defaults()


def test_journalctl_finds_by_field(guest: Guest, log: structlog.typing.FilteringBoundLogger) -> None:
    """`journalctl ROOM=desk` and `EVENT=` find a line, with the place in the code that wrote it."""
    log.warning("source.left", room="desk", reason="unplugged")
    log.warning("source.left", room="kitchen", reason="unplugged")
    [entry] = guest.journal("ROOM=desk", "EVENT=source.left")

    assert entry["MESSAGE"] == "source.left room=desk reason=unplugged"
    assert entry["PRIORITY"] == "4"
    assert entry["_TRANSPORT"] == "journal"
    assert entry["CODE_FILE"] == __file__
    assert entry["CODE_FUNC"] == "test_journalctl_finds_by_field"


def test_a_large_entry_arrives_whole(guest: Guest, log: structlog.typing.FilteringBoundLogger) -> None:
    """A stack of many tasks is larger than a datagram may be; it comes as a sealed file."""
    log.error("loop.stalled", room="large", stack="frame\n" * 200_000)
    [entry] = guest.journal("ROOM=large")
    message = entry["MESSAGE"]

    assert len(message) == len("loop.stalled room=large\n") + 1_200_000


def test_values_may_have_several_lines(guest: Guest, log: structlog.typing.FilteringBoundLogger) -> None:
    """A value with newlines arrives as it is, in one entry."""
    log.info("session.warned", room="lines", text="one\ntwo=2\nMESSAGE=forged")
    [entry] = guest.journal("ROOM=lines")

    assert entry["ROOMTONE_TEXT"] == "one\ntwo=2\nMESSAGE=forged"
    assert entry["MESSAGE"] == 'session.warned room=lines text="one\\ntwo=2\\nMESSAGE=forged"'


def test_the_catalog_explains_what_matters(guest: Guest, log: structlog.typing.FilteringBoundLogger) -> None:
    """`journalctl -x` shows the explanation below the line."""
    guest.write("/usr/lib/systemd/catalog/roomtone.catalog", CATALOG.read_text())
    guest.run("journalctl", "--update-catalog")
    log.warning("source.left", room="explained", reason="unplugged")
    guest.run("journalctl", "--sync")
    shown = guest.run("journalctl", "--catalog", "--no-pager", "ROOM=explained").stdout

    assert "Subject: Room explained has lost its source" in shown


def test_the_catalog_and_the_table_agree() -> None:
    """Each id of the table has an entry in the catalog, and the catalog has no other; no id stands twice."""
    ids = [line.removeprefix("-- ") for line in CATALOG.read_text().splitlines() if line.startswith("-- ")]

    assert sorted(ids) == sorted(MESSAGE_IDS.values())
    assert len(set(ids)) == len(ids)


def test_every_id_is_of_an_event_that_is_logged() -> None:
    """The table names events as the daemon logs them: a renamed event must not lose its id in silence."""
    code = "\n".join(path.read_text() for path in (REPOSITORY / "daemon").rglob("*.py") if path.stem != "journald")

    assert [event for event in MESSAGE_IDS if f'"{event}"' not in code] == []


def test_a_program_below_systemd_logs_to_the_journal(guest: Guest) -> None:
    """The daemon's own logging chooses the journal when systemd has connected its stderr to it, and only then."""
    program = "import sys, structlog; from roomtone.monitoring import logs; logs.configure('info', sys.stderr); "
    program += "structlog.get_logger().info('service.started', room='chosen')"
    packages = ":".join(path for path in sys.path if path)
    run = ["systemd-run", "--quiet", "--wait", "--collect", f"--setenv=PYTHONPATH={packages}", "--service-type=exec"]
    guest.run(*run, sys.executable, "-c", program)
    [entry] = guest.journal("ROOM=chosen")
    assert entry["_TRANSPORT"] == "journal"
    assert entry["MESSAGE_ID"] == MESSAGE_IDS["service.started"]

    redirected = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert '"event":"service.started"' in redirected.stderr
