"""`roomtone forget` says what it has not done: what is left, who was not told, and that nothing was there to forget."""

import os
import pty
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from roomtone.cli.commands.sinks_new import written
from roomtone.cli.exit_codes import Exit
from roomtone.durable import open_sqlite
from roomtone.events import Notice, Turn, Word
from roomtone.journal.journal import open_journal
from roomtone.journal.records import Mark
from roomtone.spool.spool import open_spool
from support.daemon import COMMAND, run

RATE = 8000
SECONDS = 20
BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)

ROOM = """
[rooms.desk]
source = { kind = "command", argv = ["sleep", "100"] }
rate = 8000
"""
SINK = '[sinks.mine]\nkind = "mine"\nstart = "oldest"\n'


def at(second: float) -> datetime:
    return BEGAN + timedelta(seconds=second)


def word(second: int) -> str:
    return f"said{'abcdefghij'[second // 10]}xylo{'abcdefghij'[second % 10]}phone"


def turn(second: int) -> Turn:
    spoken = Word(text=word(second), start=second * RATE, end=second * RATE + 500)
    return Turn(
        room="desk",
        position=spoken.start,
        at=at(second),
        session_id="s",
        turn_order=second,
        text=spoken.text,
        words=(spoken,),
    )


def record(folder: Path, *notices: Notice) -> None:
    """A room in which a word is said in each second, and only the journal knows of it."""

    async def work() -> None:
        async with (
            open_journal(folder / "state" / "journal.sqlite") as journal,
            open_spool(folder / "state" / "spool" / "desk", rate=RATE) as spool,
        ):
            await journal.commit(Mark("room/desk/rate", RATE))
            for second in range(SECONDS):
                await spool.append(os.urandom(2 * RATE), at(second))
            await journal.commit(*map(turn, range(SECONDS)), *notices)

    trio.run(work)


def configure(folder: Path, text: str = "") -> None:
    (folder / "roomtone.toml").write_text(f'[service]\nstate = "state"\n{ROOM}{text}')


def forget(folder: Path, *options: str, runtime: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ROOMTONE"))}
    return subprocess.run(
        [*COMMAND, "forget", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        env=environ | ({"RUNTIME_DIRECTORY": str(runtime)} if runtime else {}),
        stdin=subprocess.DEVNULL,
    )


def forget_seconds(folder: Path, first: float, last: float) -> "subprocess.CompletedProcess[str]":
    return forget(folder, "--yes", "--from", at(first).isoformat(), "--to", at(last).isoformat())


def files_with(folder: Path, seconds: Sequence[int]) -> set[str]:
    files = [(path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    return {path.name for path, data in files for second in seconds if word(second).encode() in data}


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_nothing_was_ever_recorded(tmp_path: Path) -> None:
    """A configuration whose state has no journal is reported, is not a success, and looking leaves nothing behind."""
    configure(tmp_path)
    before = everything(tmp_path)
    done = forget(tmp_path, "--last", "10m", "--yes")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert f"there are no recordings in {tmp_path}/state, the state of {tmp_path}/roomtone.toml" in done.stderr
    assert "a stopped service has a state folder of its own" in done.stderr
    assert everything(tmp_path) == before


def test_the_folder_has_a_configuration_of_its_own(tmp_path: Path) -> None:
    """Where the daemon that answers has another configuration, that is named, and nothing is made or removed."""
    here, there, runtime = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    for folder in (here, there, runtime):
        folder.mkdir()
    record(there)
    configure(here)
    with run(there, ROOM, env={"RUNTIME_DIRECTORY": str(runtime)}) as daemon:
        daemon.wait_for((runtime / "control").exists)
        before = everything(here)
        done = forget(here, "--last", "2d", "--yes", runtime=runtime)
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert f"runs with {there}/roomtone.toml: name that with --config" in done.stderr
    assert everything(here) == before
    assert files_with(there, range(SECONDS))


def test_nothing_was_recorded_in_that_time(tmp_path: Path) -> None:
    """It is reported, and is not a success."""
    record(tmp_path)
    configure(tmp_path)
    done = forget(tmp_path, "--last", "10m", "--yes")
    assert done.returncode == Exit.FAILED
    assert "desk: nothing was recorded then" in done.stdout
    assert "nothing was recorded in that time, so nothing was forgotten" in done.stderr


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("0001-01-01T00:00Z", None),
        ("0001-01-01", "9999-12-31T23:59:59Z"),
        ("0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"),
    ],
)
def test_from_the_first_day_that_there_is(tmp_path: Path, since: str, until: str | None) -> None:
    """The ends of the calendar are times like others."""
    record(tmp_path)
    configure(tmp_path)
    done = forget(tmp_path, "--yes", "--from", since, *(["--to", until] if until else []))
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert f"{SECONDS} events" in done.stdout
    assert not files_with(tmp_path, range(SECONDS))


def test_what_is_to_come_cannot_be_forgotten(tmp_path: Path) -> None:
    """In one line, also on the last day that there is."""
    configure(tmp_path)
    done = forget(tmp_path, "--yes", "--from", "9999-12-31T23:59:59-14:00")
    assert done.returncode == Exit.USAGE
    assert "the future cannot be forgotten" in done.stderr


def test_it_asks_or_refuses(tmp_path: Path) -> None:
    """Without a terminal the user cannot confirm: then nothing goes unless --yes is given. At one, it asks."""
    record(tmp_path)
    configure(tmp_path)
    done = forget(tmp_path, "--last", "2d")
    assert done.returncode == Exit.USAGE
    assert "add --yes" in done.stderr
    ours, theirs = pty.openpty()
    os.write(ours, b"n\n")
    asked = subprocess.run(
        [*COMMAND, "forget", "--last", "2d"], check=False, capture_output=True, cwd=tmp_path, stdin=theirs, timeout=60
    )
    os.close(ours)
    os.close(theirs)
    assert asked.returncode == Exit.INTERRUPTED
    assert b"Permanently forget" in asked.stdout + asked.stderr
    assert files_with(tmp_path, range(SECONDS))


FORGOTTEN = "    @hookimpl\n    def forgotten"
HOLDINGS = "    def holdings"


def test_the_template_forgets(tmp_path: Path) -> None:
    """The sink that `sinks new` writes has nothing left of it, in its table and in its file's bytes."""
    deliver(tmp_path)
    done = forget_seconds(tmp_path, 5, 10)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert "nothing of it is left" in done.stdout
    assert not files_with(tmp_path, range(5, 10))
    assert said(tmp_path) == [word(second) for second in range(1, SECONDS) if not 5 <= second < 10]


def test_a_sink_that_does_not_forget_is_found_out(tmp_path: Path) -> None:
    """It has no hook for it, and its file is searched: that is named, though the text of a turn is short."""
    deliver(tmp_path, without=[FORGOTTEN])
    done = forget_seconds(tmp_path, 5, 10)
    assert done.returncode == Exit.FAILED
    assert done.stderr == f"roomtone: {tmp_path}/mine.sqlite still has some of it\n"
    assert "something is left" in done.stdout


def test_a_sink_that_was_neither_told_nor_searched_is_named(tmp_path: Path) -> None:
    """It has neither the hook nor files that it names; and so has one whose table is gone."""
    deliver(tmp_path, without=[FORGOTTEN, HOLDINGS])
    done = forget_seconds(tmp_path, 5, 10)
    assert done.returncode == Exit.FAILED
    assert "sink mine has no hook `forgotten`, and names no files in `holdings`: it was neither" in done.stderr
    assert "something is left" in done.stdout
    configure(tmp_path)
    (tmp_path / "plugins" / "mine.py").unlink()
    done = forget_seconds(tmp_path, 10, 12)
    assert done.returncode == Exit.FAILED
    assert "sink mine is not configured: it was neither notified nor searched" in done.stderr


def deliver(folder: Path, without: Sequence[str] = ()) -> None:
    """Recorded events lie in the store of a sink that `sinks new --file` has written, but for these methods."""
    [(path, text)] = written("mine", as_file=True)
    for begin in without:
        start = text.index(begin)
        ends = [text.find(following, start + 25) for following in ("\n    @", "\n    def ", "\n\n\nclass")]
        end = min(place for place in ends if place > 0)
        text = text[:start] + text[end + 1 :].lstrip("\n")
    (folder / "plugins").mkdir()
    (folder / "plugins" / path).write_text(text)
    configure(folder, SINK)
    record(folder)
    forget_seconds(folder, 0, 1)  # which has it all delivered, but for what went first
    assert len(said(folder)) >= SECONDS - 1


def said(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "mine.sqlite")) as database:
        return [text for (text,) in database.execute("SELECT text FROM turns ORDER BY rowid")]


def test_damaged_databases_go_as_a_whole(tmp_path: Path) -> None:
    """The journal's and a sink's that were put aside may have some of it: they are removed and named. Those that were
    put aside before it are left.
    """
    record(tmp_path)
    configure(tmp_path)
    state = tmp_path / "state"
    asides = [
        state / "journal.sqlite.corrupt-20260101T000000Z",
        state / "journal.sqlite.corrupt-20260101T000000Z-wal",
        state / "sinks" / "pages" / "entries.spoiled",
    ]
    for path in asides:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(word(6))
    done = forget_seconds(tmp_path, 5, 10)
    assert done.returncode == Exit.OK, done.stderr
    for path in asides:
        assert f"removed {path}: a damaged database" in done.stdout
        assert not path.exists()
    assert not files_with(tmp_path, range(5, 10))


def test_a_store_that_is_spoiled_while_it_is_used_goes_too(tmp_path: Path) -> None:
    """`durable.open_sqlite` puts it aside under the name that is looked for."""
    record(tmp_path)
    configure(tmp_path)
    store = tmp_path / "state" / "sinks" / "pages" / "entries.sqlite"
    store.parent.mkdir(parents=True)
    store.write_bytes(word(6).encode() * 1000)
    with open_sqlite(store, "CREATE TABLE IF NOT EXISTS a (b)"):
        pass
    assert files_with(store.parent, [6])
    assert forget_seconds(tmp_path, 5, 10).returncode == Exit.OK
    assert not files_with(tmp_path, [6])


def test_what_an_older_version_has_put_into_notices_goes(tmp_path: Path) -> None:
    """Words in a notice of a later time too; one of ours stays."""
    quoting = f"sink hook fails: HTTP 500: cannot take '{word(7)}'"
    texts = [(quoting, 4000), ("sink hook fails: HTTP 500", 4000), (f"{word(7)[:-1]}…", 7.5)]
    record(tmp_path, *(_notice(text, at(second)) for text, second in texts))
    configure(tmp_path)
    done = forget_seconds(tmp_path, 5, 10)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert not files_with(tmp_path, range(5, 10))
    with closing(sqlite3.connect(tmp_path / "state" / "journal.sqlite")) as database:
        left = database.execute("SELECT body ->> 'text' FROM events WHERE kind = 'notice'").fetchall()
    assert left == [("sink hook fails: HTTP 500",)]


def _notice(text: str, moment: datetime) -> Notice:
    return Notice(room="", position=0, at=moment, severity="warning", code="sink.failing", text=text)
