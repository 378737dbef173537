"""roomtone_command: lines in, an exit status out, and nothing of the program left in the end."""

import os
import stat
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from roomtone import Audio, Durable, Turn, Unprocessable, encode
from roomtone_command import CommandSink
from roomtone_command.feeder import CommandFailed
from support.journal import Numbering, accept, context, deliver_all

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def turns(count: int, *, text: str = "Grüße") -> list[Durable]:
    numbering = Numbering()
    return [
        numbering.commit(
            Turn(
                room="desk",
                position=16_000 * index,
                at=NOON + timedelta(seconds=index),
                session_id="s",
                turn_order=index,
                text=f"{text} {index}",
            )
        )
        for index in range(count)
    ]


def shell(script: str, **settings: Any) -> CommandSink:
    """A sink whose program is this script, begun in the test's folder."""
    return CommandSink(argv=("sh", "-c", script), **settings)


async def deliver(sink: CommandSink, folder: Path, events: Iterable[Durable]) -> None:
    """One life of the sink with one batch."""
    async with sink.open(context(folder)) as plugin:
        feeder: Any = plugin
        for event in events:
            await feeder.event(event)
        await feeder.flush()


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


async def test_hooks_are_spelt_right(tmp_path: Path) -> None:
    """The daemon accepts every hook of the sink."""
    async with shell("true").open(context(tmp_path)) as plugin:
        accept(plugin)


@pytest.mark.parametrize(("batch", "runs"), [(1, 5), (2, 3), (1000, 1)])
async def test_a_batch_is_lines_on_standard_input(tmp_path: Path, batch: int, runs: int) -> None:
    """Each run gets at most `batch` events as they are encoded, a line each, and then the end of its input."""
    events = turns(5)
    await deliver(shell("cat >> got; echo >> runs", batch=batch), tmp_path, events)
    assert lines(tmp_path / "got") == [encode(event) + b"\n" for event in events]
    assert len(lines(tmp_path / "runs")) == runs


async def test_audio_only_when_asked_for(tmp_path: Path) -> None:
    """Segments of audio are left out unless `kinds` names them; with nothing to hand over, nothing is run."""
    audio = Audio(room="desk", position=0, at=NOON, samples=480_000, rate=16_000, file="/spool/0.pcm")
    event = Numbering().commit(audio)
    await deliver(shell("cat >> got"), tmp_path, [event])
    assert not (tmp_path / "got").exists()
    await deliver(shell("cat >> got", kinds=("audio",)), tmp_path, [event])
    assert lines(tmp_path / "got") == [encode(event) + b"\n"]


async def test_any_other_status_is_no_acknowledgement(tmp_path: Path) -> None:
    """A program that fails gets its events again, and the error has name and status; a note has its last words."""
    sink = shell("echo >&2 first; printf 'no\\033[31m such\\ttable\\n' >&2; exit 3")
    with pytest.raises(CommandFailed, match=r"^sh exited with 3") as caught:
        await deliver(sink, tmp_path, turns(2))
    assert str(caught.value) == "sh exited with 3"
    assert caught.value.__notes__ == ["first no[31m such table"]
    with pytest.raises(CommandFailed, match=r"^sh was ended by SIGSEGV$"):
        await deliver(shell("kill -SEGV $$"), tmp_path, turns(1))


async def test_only_the_last_words_are_shown(tmp_path: Path) -> None:
    """A program that talks without end costs neither memory nor a page of log: the end of it is kept."""
    with pytest.raises(CommandFailed, match=r"the end$") as caught:
        await deliver(shell("yes talk | head -c 3000000 >&2; echo the end >&2; exit 1"), tmp_path, turns(1))
    assert len(str(caught.value)) < 300


async def test_a_flood_without_end_is_ended(tmp_path: Path) -> None:
    """A program that writes to both outputs without end, and reads nothing, is ended after its time."""
    flood = "echo $$ > leader; yes out & echo $! > child; yes err >&2"
    with trio.fail_after(30), pytest.raises(CommandFailed, match=r"took longer than .* s and was killed\n.*err err"):
        await deliver(shell(flood, timeout=2.0), tmp_path, turns(200, text="x" * 5000))
    for name in ("leader", "child"):
        await wait_dead(int((tmp_path / name).read_text()))


async def test_data_error_sets_one_event_aside(tmp_path: Path) -> None:
    """Exit status 65 refuses the one event of a run; of several it is not known which, so none is set aside."""
    sink = shell("echo wrong >&2; exit 65")
    with pytest.raises(Unprocessable, match=r"^sh exited with 65: wrong$"):
        await deliver(sink, tmp_path, turns(1))
    with pytest.raises(CommandFailed, match="exited with 65"):
        await deliver(sink, tmp_path, turns(2))


async def test_what_failed_is_not_flushed(tmp_path: Path) -> None:
    """After a run has failed, a flush that returns has handed over what had returned before it, and nothing else."""
    events = turns(2)
    async with shell("test -e ready || exit 1; cat >> got", batch=2).open(context(tmp_path)) as plugin:
        feeder: Any = plugin
        await feeder.event(events[0])
        with pytest.raises(CommandFailed):
            await feeder.event(events[1])
        (tmp_path / "ready").touch()
        await feeder.flush()
    assert lines(tmp_path / "got") == [encode(events[0]) + b"\n"]


async def test_a_program_need_not_read(tmp_path: Path) -> None:
    """A program that exits with 0 without having read everything has everything; with another status, nothing."""
    events = turns(200, text="x" * 5000)  # more than a pipe holds
    await deliver(shell("head -n 1 > /dev/null"), tmp_path, events)
    with pytest.raises(CommandFailed, match="exited with 9"):
        await deliver(shell("exit 9"), tmp_path, events)


def is_alive(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False


async def wait_dead(pid: int) -> None:
    with trio.fail_after(30):
        while is_alive(pid):  # noqa: ASYNC110 - a process that is not a child wakes no task
            await trio.sleep(0.01)


STUBBORN = "trap '' TERM; sleep 1000 & echo $! > child; echo $$ > leader; echo stuck >&2; wait; sleep 1000"


async def test_a_run_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    """At the timeout the whole process group ends, also where it ignores SIGTERM, and the hook says so."""
    with trio.fail_after(30), pytest.raises(CommandFailed, match=r"sh took longer than .* s and was killed\nstuck"):
        await deliver(shell(STUBBORN, timeout=2.0), tmp_path, turns(1))
    for name in ("leader", "child"):
        await wait_dead(int((tmp_path / name).read_text()))


async def test_cancellation_leaves_nothing(tmp_path: Path) -> None:
    """A hook that is cancelled, as at the end of the daemon, ends the program and its children too."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver, shell(STUBBORN, timeout=5.0), tmp_path, turns(1))
        while not (tmp_path / "leader").exists() or not (tmp_path / "leader").read_text():  # noqa: ASYNC110 - a file
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    for name in ("leader", "child"):
        await wait_dead(int((tmp_path / name).read_text()))


async def test_a_child_may_go_on(tmp_path: Path) -> None:
    """A background process of the program, even with its pipes, does not block the hook, and is not ended."""
    with trio.fail_after(30):
        await deliver(shell("cat > got; sleep 100 & echo $! > child"), tmp_path, turns(1))
    child = int((tmp_path / "child").read_text())
    assert is_alive(child)
    os.kill(child, 9)


async def test_the_environment_is_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sees what it needs, what was asked for, and the secrets that were meant for it; argv has none."""
    for name in ("ASSEMBLYAI_API_KEY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LD_PRELOAD_OF_MINE"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("ASKED_FOR", "yes")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    (tmp_path / "token").write_text("hunter2\n")
    (tmp_path / "token").chmod(0o600)
    sink = shell("env > got", environment=("ASKED_FOR", "NOT_THERE"), environment_files={"TOKEN": "token"})
    await deliver(sink, tmp_path, turns(1))
    seen = dict(line.split("=", 1) for line in (tmp_path / "got").read_text().splitlines())
    assert (seen["TOKEN"], seen["ASKED_FOR"], seen["LC_ALL"]) == ("hunter2", "yes", "C.UTF-8")
    assert (seen["ROOMTONE_SINK"], seen["PATH"]) == ("archive", os.environ["PATH"])
    assert "hidden" not in seen.values()
    assert "NOT_THERE" not in seen


async def test_a_relative_program_begins_where_paths_do(tmp_path: Path) -> None:
    """A program with a slash begins at the folder of the sinks' paths, which is also where it runs."""
    program = tmp_path / "bin/take"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nopen('got', 'w').write(sys.argv[1] + sys.stdin.read())\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (event,) = turns(1)
    await deliver(CommandSink(argv=("bin/take", "it: ")), tmp_path, [event])
    assert (tmp_path / "got").read_bytes() == b"it: " + encode(event) + b"\n"


@pytest.mark.parametrize("name", ["no-such-program", "./no-such-program", "/etc/passwd"])
async def test_a_missing_program_is_named_at_opening(tmp_path: Path, name: str) -> None:
    """A program that cannot be run is reported when the sink opens, by key and name, before an event waits for it."""
    with pytest.raises(FileNotFoundError, match=rf"argv.*{name}"):
        await deliver(CommandSink(argv=(name,)), tmp_path, [])


@pytest.mark.parametrize("content", [None, "", b"\xff\xfe", "a\0b"])
async def test_wrong_files_are_named(tmp_path: Path, content: str | bytes | None) -> None:
    """A file of a secret that is missing or holds something else is named with its key, and not quoted."""
    if content is not None:
        (tmp_path / "token").write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "token").chmod(0o600)
    with pytest.raises((OSError, ValueError), match=r"environment_files: TOKEN.*token"):
        await deliver(shell("true", environment_files={"TOKEN": "token"}), tmp_path, [])


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": ["a", "b\0"]}, "argv"),
        ({"argv": "cat"}, "argv"),
        ({"argv": ["cat"], "batch": 0}, "batch"),
        ({"argv": ["cat"], "environment": ["A=B"]}, "environment"),
        ({"argv": ["cat"], "environment_files": {"A B": "f"}}, "environment_files"),
    ],
)
def test_wrong_tables_are_refused(table: dict[str, Any], named: str) -> None:
    """A mistake is named by its key, before anything runs."""
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert({"kind": "command"} | table, CommandSink)


async def test_by_the_daemons_delivery(tmp_path: Path) -> None:
    """Through the journal and the delivery: all in order, over a restart, and only the refused event set aside."""
    script = "cat > batch; if grep -q order.:5 batch; then echo five >&2; exit 65; fi; cat batch >> got"
    sink = shell(script, batch=4, start="oldest")
    assert await deliver_all(sink, tmp_path, turns(4)) == []
    (refusal,) = await deliver_all(sink, tmp_path, turns(9))
    assert (refusal.seq, refusal.reason) == (4 + 6, "sh exited with 65: five")
    seen = list(dict.fromkeys(msgspec.json.decode(line)["seq"] for line in lines(tmp_path / "got")))
    assert seen == [seq for seq in range(1, 14) if seq != 10]
