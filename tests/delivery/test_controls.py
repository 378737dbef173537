"""Laws of controls: the operator can pause, resume and replay a sink, with or without a daemon, and nothing is lost."""

import json
import signal
from pathlib import Path

import msgspec
import pytest
import structlog
import trio
from click.testing import CliRunner, Result

from delivery.test_runner import NOW, Received, open_delivery, opens, sink
from roomtone import cli
from roomtone.delivery.controls import Pause, Retry, SinkControls, cancel_mark, control_mark, controls_of
from roomtone.events import Durable, Turn
from roomtone.journal.journal import open_journal
from roomtone.journal.records import Mark
from roomtone.sinks import Unprocessable, hookimpl
from support.daemon import DEMO, Run, events, run

PAUSE = control_mark("made", Pause(NOW, "person", "for a test"))


def test_orders_are_read_as_they_were_written() -> None:
    """Each control can be read from its mark; a foreign value is not a control."""
    orders = (Pause(NOW, "person", "why"), 7, Retry(0, 9))
    marks = {mark.key: mark.value for mark in (control_mark("made", order) for order in orders)}
    assert controls_of("made", marks) == SinkControls(*orders)
    assert controls_of("other", marks) == SinkControls()
    assert controls_of("made", marks | {"sink/made/paused": "nonsense"}) == SinkControls()
    assert cancel_mark("made", "paused") == Mark("sink/made/paused", None)


# In delivery


async def test_paused_sink_gets_nothing_until_it_is_resumed(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Paused, a sink gets nothing and loses nothing; over a restart too. Resumed, it goes on where it was."""
    received = Received()
    async with open_delivery(tmp_path) as around:
        delivery = around.deliver(sink(opens(received)))
        await around.commit(2)
        await trio.sleep(1)
        await around.journal.commit(PAUSE)
        delivery.check_controls()
        await around.commit(2)
        await trio.sleep(100)
        status = delivery.status()
        assert (status.state, status.behind, status.error) == ("paused", 2, "for a test")
    assert received.seqs == [1, 2]
    async with open_delivery(tmp_path) as around:
        delivery = around.deliver(sink(opens(received)))
        await trio.sleep(1)
        assert received.seqs == [1, 2]
        await around.journal.commit(cancel_mark("made", "paused"))
        delivery.check_controls()
        await around.acknowledged(4)
        assert delivery.status().state == "active"
    assert received.seqs == [1, 2, 3, 4]


async def test_failing_sink_can_be_paused_and_is_tried_at_once_when_resumed(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A pause and its end do not wait for a back-off to be over; another sink's order changes nothing."""
    calls: list[float] = []

    class Failing:
        @hookimpl
        async def event(self, event: Durable) -> None:
            calls.append(trio.current_time())
            raise OSError("away")

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opens(Failing())))
            await around.commit(1)
            await trio.sleep(2000)
            count = len(calls)
            delivery.check_controls()
            await trio.sleep(0.1)
            assert len(calls) - count <= 1
            await around.journal.commit(PAUSE)
            delivery.check_controls()
            await trio.sleep(0.1)
            count = len(calls)
            await trio.sleep(1000)
            assert len(calls) == count
            await around.journal.commit(cancel_mark("made", "paused"))
            delivery.check_controls()
            await trio.sleep(0.1)
            assert len(calls) > count
            await around.journal.commit(PAUSE)


@pytest.mark.parametrize("running", [True, False])
async def test_replay_brings_everything_again_in_order(
    tmp_path: Path, autojump_clock: trio.abc.Clock, *, running: bool
) -> None:
    """From an event on everything comes again, in order and before what is new, now or at the next start."""
    received, order = Received(), control_mark("made", 2)
    async with open_delivery(tmp_path) as around:
        delivery = around.deliver(sink(opens(received)))
        await around.commit(5)
        await around.acknowledged(5)
        if running:
            await around.journal.commit(order)
            delivery.check_controls()
            await around.commit(1)
            await trio.sleep(1)
            assert await around.journal.mark("sink/made/rewind") is None
    if not running:
        async with open_delivery(tmp_path) as around:
            await around.journal.commit(order)
            await around.commit(1)
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(received)))
    assert received.seqs == [1, 2, 3, 4, 5, 3, 4, 5, 6]


async def test_pruning_waits_for_a_replay(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Events to be replayed are not pruned between the command and its effect."""
    async with open_delivery(tmp_path) as around:
        await around.commit(10)
        await around.journal.advance("made", 10)
        await around.journal.commit(control_mark("made", 4))
        assert await around.journal.prune(9) == 4
        assert (await around.journal.read(0))[0].seq == 5


class Picky(Received):
    """Refuses every third event for as long as it is told to."""

    refuses = True

    @hookimpl
    async def event(self, event: Durable) -> None:
        if event.seq % 3 == 0 and self.refuses:
            raise Unprocessable(f"no {event.seq}")
        await super().event(event)


async def test_refused_events_are_tried_again_first(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Refused events come again by seq before all that is new; what is accepted is refused no more."""
    picky = Picky()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opens(picky)))
            await around.commit(9)
            await around.acknowledged(9)
            assert delivery.status().refused == 3
            picky.refuses = False
            await around.journal.commit(control_mark("made", Retry(0, 6)))
            delivery.check_controls()
            await around.commit(1)
            await around.acknowledged(10)
            assert delivery.status().refused == 1
            assert [each.seq for each in await around.journal.refused("made")] == [9]
            assert await around.journal.mark("sink/made/retry") is None
    assert picky.seqs == [1, 2, 4, 5, 7, 8, 3, 6, 10]


async def test_refused_again_is_refused_still(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """An event refused again keeps its newest reason, and the others go on; it is retried only once."""

    class Stubborn(Picky):
        tries = 0

        @hookimpl
        async def event(self, event: Durable) -> None:
            self.tries += 1
            if event.seq == 3:
                raise Unprocessable(f"try {self.tries}")
            await super().event(event)

    stubborn = Stubborn()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opens(stubborn)))
            await around.commit(6)
            await around.acknowledged(6)
            stubborn.refuses = False
            await around.journal.commit(control_mark("made", Retry(0, 6)))
            delivery.check_controls()
            await trio.sleep(100)
            assert [(each.seq, each.reason) for each in await around.journal.refused("made")] == [(3, "try 7")]
    assert stubborn.tries == 8


async def test_failure_while_trying_again_goes_on_where_it_was(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A receiver that goes away in the middle of the second try gets the rest later, nothing is dropped."""
    picky = Picky()

    class Away(Received):
        failures = 2

        @hookimpl
        async def event(self, event: Durable) -> None:
            if event.seq == 6 and self.failures:
                self.failures -= 1
                raise OSError("away")
            await super().event(event)

    away = Away()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(picky)))
            await around.commit(9)
            await around.acknowledged(9)
            await around.journal.commit(control_mark("made", Retry(0, 9)))
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opens(away)))
            await trio.sleep(1000)
            assert await around.journal.refused("made") == []
    assert away.seqs == [3, 6, 9]


# The commands, with a daemon and without


def roomtone(folder: Path, *arguments: str) -> Result:
    """The command in this process; the daemon, where there is one, is another."""
    result = CliRunner().invoke(cli.group, ["sinks", *arguments, "--config", str(folder / "roomtone.toml")])
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def ids(folder: Path, name: str) -> list[int]:
    path = folder / name
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()] if path.exists() else []


PLAIN = """
import json
from roomtone import encode, hookimpl

@hookimpl
def event(event):
    with open("{folder}/plain", "ab") as file:
        file.write(encode(event) + b"\\n")
    print("plain has", event.kind)
"""

CONFIG = """
[service]
state = "state"
grace = 6.0
[rooms.desk]
source = {{ kind = "file", path = "{demo}/meeting.flac" }}
streaming = {{ endpoint = "ws://127.0.0.1:9" }}
[sinks.log]
kind = "jsonl"
path = "events.jsonl"
start = "oldest"
"""


def prepare(folder: Path) -> str:
    (folder / "plugins").mkdir(mode=0o755)
    (folder / "plugins" / "plain.py").write_text(PLAIN.format(folder=folder))
    (folder / "plugins" / "plain.py").chmod(0o644)
    return CONFIG.format(demo=DEMO)


def standing(folder: Path, name: str) -> dict[str, object]:
    report = json.loads(roomtone(folder, "--json").stdout)
    (found,) = [sink for sink in report["sinks"] if sink["name"] == name]
    return dict(found)


def test_commands_and_a_daemon(tmp_path: Path) -> None:
    """Pause, resume and replay reach a daemon that runs, within moments, and one that does not, at its next start."""
    config = prepare(tmp_path)
    with run(tmp_path, config) as daemon:
        daemon.wait_for(lambda: ids(tmp_path, "plain"))
        daemon.wait_for(lambda: "plain has recording_started\n" in daemon.log)
        assert roomtone(tmp_path, "pause", "plain", "--reason", "for a while").exit_code == 0
        daemon.wait_for(lambda: standing(tmp_path, "plain")["status"] == "paused")
        before = ids(tmp_path, "plain")
        assert standing(tmp_path, "plain")["reason"] == "for a while"
        _replayed(tmp_path, daemon, before)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    count = len(ids(tmp_path, "plain"))
    assert "gets event 1 and all later events again" in roomtone(tmp_path, "replay", "plain", "--from", "1").stdout
    with run(tmp_path, config) as daemon:
        daemon.wait_for(lambda: ids(tmp_path, "plain")[count : count + 3] == [1, 2, 3])
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert "Traceback" not in daemon.log


def _replayed(folder: Path, daemon: Run, before: list[int]) -> None:
    assert roomtone(folder, "resume", "plain").exit_code == 0
    assert roomtone(folder, "replay", "plain", "--from", "1").exit_code == 0
    daemon.wait_for(lambda: ids(folder, "plain")[len(before) :].count(1) == 1)
    daemon.wait_for(lambda: standing(folder, "plain")["status"] == "active")
    after = ids(folder, "plain")[len(before) :]
    again = after[after.index(1) :]
    assert again == list(range(1, len(again) + 1))


def test_a_drop_in_that_no_longer_loads_keeps_its_place(tmp_path: Path) -> None:
    """A typo saved into the file of a sink that runs: a reload says so, and so does the list; nothing is forgotten of
    it, and repaired it goes on with the next event after its last.
    """
    config = prepare(tmp_path)
    file = tmp_path / "plugins" / "plain.py"
    with run(tmp_path, config) as daemon:
        daemon.wait_for(lambda: ids(tmp_path, "plain"))
        file.write_text("from roomtone import hookimpl\n@hookimpl\ndef event(event)\n")
        said = CliRunner().invoke(cli.group, ["reload", "--config", str(tmp_path / "roomtone.toml")])
        assert "sink plain gets nothing" in said.output
        assert "plain.py:3" in said.output
        daemon.wait_for(lambda: standing(tmp_path, "plain")["status"] == "load error")
        assert "is still configured" in roomtone(tmp_path, "forget", "plain").output
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    with run(tmp_path, config) as daemon:
        daemon.wait_for(lambda: len(unloaded(tmp_path)) == 2)
        file.write_text(PLAIN.format(folder=tmp_path))
        CliRunner().invoke(cli.group, ["reload", "--config", str(tmp_path / "roomtone.toml")])
        daemon.wait_for(lambda: standing(tmp_path, "plain")["status"] == "active")
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    had = ids(tmp_path, "plain")
    assert had == list(range(had[0], had[-1] + 1))
    assert set(unloaded(tmp_path)) < set(had)


def unloaded(folder: Path) -> list[int]:
    return [event["seq"] for event in events(folder, "notice") if event["code"] == "sink.unloaded"]


async def _fill(folder: Path) -> None:
    async with open_journal(folder / "state" / "journal.sqlite") as journal:
        for number in range(5):
            turn = Turn(room="desk", position=number, at=NOW, session_id="s", turn_order=number, text="x")
            await journal.commit(turn)
        await journal.advance("log", 5)
        await journal.advance("gone", 1)
        await journal.refuse("log", 2, "no")


def test_commands_alone(tmp_path: Path) -> None:
    """Each command says what it has done, or what is wrong and what to do; nothing is a traceback."""
    (tmp_path / "roomtone.toml").write_text(prepare(tmp_path))
    assert "the journal does not exist yet" in roomtone(tmp_path, "pause", "log").output
    trio.run(_fill, tmp_path)
    said = {
        ("pause", "log"): "log is paused",
        ("resume", "log"): "log resumes after event 5",
        ("replay", "log", "--refused"): "log gets 1 refused event again",
        ("replay", "log", "--from", "9"): "has not reached event",
        ("replay", "log", "--from", "2020-01-01"): "log gets event 1 and all later events again",
        ("replay", "log"): "--from TIME, --from SEQ, or --refused",
        ("replay", "log", "--from", "9" * 30): "has not reached event",
        ("replay", "log", "--from", "0001-01-01T00:00Z"): "log gets event 1 and all later events again",
        ("replay", "log", "--from", "0001-01-01T00:00+23:00"): "neither the number of an event nor a time",
        ("replay", "log", "--from", "yesterday"): "neither the number of an event nor a time",
        ("pause", "logs"): 'unknown sink "logs", did you mean "log"?',
        ("pause", "plain"): "has not run yet",
        ("forget", "log"): "[sinks.log] is still configured",
        ("forget", "gone"): "gone is forgotten",
    }
    assert standing(tmp_path, "gone")["status"] == "removed"
    for arguments, text in said.items():
        done = roomtone(tmp_path, *arguments)
        assert text in done.output, arguments
    assert not [sink for sink in json.loads(roomtone(tmp_path, "--json").stdout)["sinks"] if sink["name"] == "gone"]


@pytest.mark.parametrize(
    ("table", "code", "said"),
    [
        ('kind = "jsonl"\npath = "out.jsonl"', 0, "has acknowledged the test: notice"),
        ('kind = "jsonl"\npath = "out.jsonl"\nkinds = ["turn"]', 0, "has acknowledged the test: turn"),
        ('kind = "jsonl"\npath = "out.jsonl"\nkinds = ["gap"]', 0, "nothing was sent"),
        ('kind = "jsonl"\npath = "plugins"', 1, "plugins: Is a directory"),
        ('kind = "picky"', 0, "has refused the test"),
        ('kind = "jsnl"\npath = "x"', 78, "did you mean"),
    ],
)
def test_a_test_event(tmp_path: Path, table: str, code: int, said: str) -> None:
    """`roomtone sinks test` sends one marked event to any sink and says what came of it."""
    config = prepare(tmp_path) + f"[sinks.mine]\n{table}\n"
    (tmp_path / "plugins" / "picky.py").write_text(
        "from roomtone import Unprocessable, hookimpl\n@hookimpl\ndef event(event):\n    raise Unprocessable('never')\n"
    )
    (tmp_path / "roomtone.toml").write_text(config)
    done = roomtone(tmp_path, "test", "mine")
    assert said in done.output
    assert done.exit_code == code
    if "acknowledged" in said:
        (line,) = (tmp_path / "out.jsonl").read_bytes().splitlines()
        assert b"sink.test" in line


@pytest.mark.parametrize("kind", ["wav", "transcript"])
def test_a_test_event_is_not_kept(tmp_path: Path, kind: str) -> None:
    """A test turn is neither on a page nor beside a recording, nor does it wait for the first one."""
    keys = "transcript = true\n" if kind == "wav" else ""
    config = prepare(tmp_path) + f'[sinks.mine]\nkind = "{kind}"\ndirectory = "kept"\n{keys}'
    (tmp_path / "roomtone.toml").write_text(config)
    done = roomtone(tmp_path, "test", "mine")
    assert "has acknowledged the test: turn" in done.output
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"This is a test" in path.read_bytes()]
    assert kept == []
    assert list((tmp_path / "kept").iterdir()) == []


def test_statuses(tmp_path: Path) -> None:
    """Every sink is listed with its state; a broken one does not stop the others."""
    config = prepare(tmp_path) + '[sinks.off]\nkind = "jsonl"\npath = "x"\ndisabled = true\n'
    (tmp_path / "plugins" / "lamp.py").write_text("import no_such_bulb\n")
    broken = config + '[sinks.lamp]\nkind = "lamp"\n'
    (tmp_path / "roomtone.toml").write_text(broken + '[sinks.bad]\nkind = "jsonl"\n')
    report = json.loads(roomtone(tmp_path, "--json").stdout)
    assert {sink["name"]: sink["status"] for sink in report["sinks"]} == {
        "log": "new",
        "off": "disabled",
        "lamp": "load error",
        "bad": "configuration error",
        "plain": "new",
    }
    with run(tmp_path, broken) as daemon:
        daemon.wait_for(lambda: events(tmp_path, "notice"))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    (notice,) = [event for event in events(tmp_path, "notice") if event["code"] == "sink.unloaded"]
    assert "no_such_bulb" in notice["text"]
    text = roomtone(tmp_path).stdout
    assert "stopped, has everything" in text
    assert "disabled" in text
    assert msgspec.json.decode(roomtone(tmp_path, "--json").stdout)
