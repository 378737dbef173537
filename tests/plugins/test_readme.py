"""plugins/README.md: every example runs as it stands, and every hook, kind and field is on the page."""

import re
import sqlite3
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import trio
from click.testing import CliRunner

from roomtone import Answer as AnswerEvent
from roomtone import Audio, Durable, Forgotten, Interim, Level, Sink, Turn, Word, cli, encode
from roomtone.cli.commands.sinks import command as sinks_command
from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.config.loader import load
from roomtone.delivery.hooks import validate_hooks
from roomtone.delivery.plugins import Plugins, load_plugins
from roomtone.delivery.runner import SinkRunner
from roomtone.events import Live as LiveEvent
from roomtone.journal.journal import open_journal
from roomtone.live import Live
from roomtone.sinks import Hooks, Registry
from roomtone.testing import LAWS
from support.journal import context, deliver_all
from support.receiver import Answer, open_receiver

PAGE = (Path(__file__).parents[2] / "plugins" / "README.md").read_text()
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
TURN = Turn(room="desk", position=0, at=NOON, session_id="s", turn_order=0, text="Hello there.")
ANSWER = AnswerEvent(room="desk", position=0, at=NOON, session_id="s", turn_order=0, text="Hi.", response={})
ENVELOPE = {"kind", "seq", "id", "room", "position", "at"}


def examples(language: str) -> dict[str, str]:
    """The page's examples in a language, by the file name in the first line of each."""
    blocks = re.findall(rf"^```{language}\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == PAGE.count(f"```{language}\n"), "an example does not begin with its file's name"
    return dict(blocks)


DROP_INS = sorted(name for name in examples("python") if not name.startswith("test_"))


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    """All the page's plugins, dropped into a folder."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    for name in DROP_INS:
        (folder / name).write_text(examples("python")[name])
        (folder / name).chmod(0o644)
    return load_plugins([folder])


def made(plugins: Plugins, kind: str, **fields: Any) -> Sink:
    """A sink of this kind that begins at the oldest event, as a table would make it."""
    return plugins.kinds[kind](start="oldest", **fields)


def test_every_example_loads(plugins: Plugins) -> None:
    """Each plugin of the page is accepted as it stands, its hooks and its table."""
    names = {Path(name).stem for name in DROP_INS}
    assert not [problem for problem in plugins.problems if problem.plugin in names]
    assert names <= plugins.kinds.keys()


def test_the_table_loads(plugins: Plugins, tmp_path: Path) -> None:
    """The page's table is accepted by the daemon, and every key of every sink is in it."""
    table = examples("toml")["roomtone.toml"]
    path = tmp_path / "roomtone.toml"
    path.write_text(f'[rooms.desk]\nsource = {{ kind = "microphone" }}\n{table}')
    sink = load(path, plugins).sinks["minutes"]
    assert (sink.rooms, sink.kinds, sink.start, sink.timeout) == (("desk",), ("turn",), "oldest", 60.0)
    assert set(Sink.__struct_fields__) <= tomllib.loads(table)["sinks"]["minutes"].keys()


def test_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed as the page's project says, the page's module brings its kind."""
    project = tomllib.loads(examples("toml")["pyproject.toml"])
    (module,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    (tmp_path / module).write_text(examples("python")[module])
    entries = project["project"]["entry-points"]["roomtone"]
    info = tmp_path / "roomtone_notes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['project']['name']}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[roomtone]\n" + "".join(f"{name} = {entries[name]}\n" for name in entries))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "notes", raising=False)
    assert load_plugins().kinds["notes"].__module__ == "notes"
    sys.modules.pop("notes")


async def test_the_example_of_a_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own test is one."""
    (tmp_path / "notes.py").write_text(examples("python")["notes.py"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "notes", raising=False)
    module: dict[str, Any] = {}
    exec(examples("python")["test_notes.py"], module)
    tests = [value for name, value in module.items() if name.startswith("test_")]
    for test in tests:
        await test(tmp_path)
    assert tests
    sys.modules.pop("notes")


def test_the_example_of_the_kit_passes(tmp_path: Path) -> None:
    """The page's use of the conformance kit is one that passes, law by law."""
    module: dict[str, Any] = {}
    exec(examples("python")["test_minutes.py"], module)
    for law in LAWS:
        (tmp_path / law).mkdir()
        module["test_conformance"](law, tmp_path / law)


def test_the_commands_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line of the page is understood, and no command is missing on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roomtone.toml").write_text(
        '[service]\nstate = "state"\n[rooms.desk]\nsource = { kind = "microphone" }\n'
        '[sinks.mine]\nkind = "jsonl"\npath = "events.jsonl"\n'
    )
    lines = [line.split("#")[0].split() for line in PAGE.splitlines() if line.startswith("roomtone sinks")]
    assert {line[2] for line in lines if len(line) > 2} == set(sinks_command.commands)
    for line in lines:
        result = CliRunner().invoke(cli.group, line[1:])
        assert result.exit_code != Exit.USAGE, (line, result.output)
        assert result.exception is None or isinstance(result.exception, SystemExit | CommandFailure), line


async def test_spoken(plugins: Plugins, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first example prints every turn, by the daemon's delivery."""
    await deliver_all(made(plugins, "spoken"), tmp_path, [TURN])
    assert capsys.readouterr().out == "2025-03-01 12:00:00+00:00 Hello there.\n"


async def test_notes(plugins: Plugins, tmp_path: Path) -> None:
    """The example with a table writes what it was given, once, over a restart."""
    sink = made(plugins, "notes", path=Path("minutes.md"))
    await deliver_all(sink, tmp_path, [TURN])
    await deliver_all(sink, tmp_path, [msgspec.structs.replace(TURN, speaker="Ada", text="Bye.")])
    assert (tmp_path / "minutes.md").read_text() == "# Notes\n\n12:00 desk: Hello there.\n\n12:00 Ada: Bye.\n"


async def test_ticket(plugins: Plugins, tmp_path: Path) -> None:
    """The example of a receiver repeats an event that is refused for now, and sets aside a final refusal."""
    async with open_receiver() as receiver:
        receiver.script(Answer(503), Answer(422), Answer(201))
        refused = await deliver_all(made(plugins, "ticket", url=receiver.url), tmp_path, [ANSWER, ANSWER])
    assert [refusal.reason for refusal in refused] == ["the ticket system says "]
    assert [post.headers["idempotency-key"] for post in receiver.accepted] == [receiver.events[0]["id"]]


async def test_tally(plugins: Plugins, tmp_path: Path) -> None:
    """The example that remembers counts each turn once, over a restart, and not what is forgotten."""
    sink = made(plugins, "tally")
    wish = Forgotten(room="desk", position=0, at=NOON, start=0, end=9, from_=NOON, until=NOON)
    await deliver_all(sink, tmp_path, [TURN, msgspec.structs.replace(TURN, position=9, speaker="Ada"), wish])
    await deliver_all(sink, tmp_path, [msgspec.structs.replace(TURN, position=19, speaker="Ada", text="Bye.")])
    with closing(sqlite3.connect(tmp_path / "state/archive/tally.sqlite")) as database:
        rows = database.execute("SELECT speaker, sum(words) FROM turns GROUP BY speaker").fetchall()
    assert rows == [("Ada", 3)]


async def test_loudest(plugins: Plugins, tmp_path: Path) -> None:
    """The example of audio reads segments, and lives with one that the quota took."""
    segments: list[Durable] = []
    for position, samples in enumerate((b"\x00\x70", b"\x00\x01", None)):
        file = tmp_path / f"{position}.pcm"
        if samples is not None:
            file.write_bytes(samples)
        segments.append(Audio(room="desk", position=position, at=NOON, samples=1, rate=16_000, file=str(file)))
    sink = made(plugins, "loudest", path=Path("loud.txt"))
    assert await deliver_all(sink, tmp_path, segments) == []
    assert sink.audio
    assert (tmp_path / "loud.txt").read_text() == "2025-03-01T12:00:00+00:00 desk 28672\n"


async def test_captions(plugins: Plugins, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The live example gets interim text."""
    live = Live()
    said = Interim(room="desk", position=0, at=NOON, session_id="s", turn_order=0, text="Hel")
    shown = ""
    async with open_journal(tmp_path / "journal.sqlite") as journal, trio.open_nursery() as nursery:
        runner = SinkRunner(made(plugins, "captions"), context(tmp_path), journal=journal, live=live)
        nursery.start_soon(runner.run)
        with trio.fail_after(60):
            while "Hel\r" not in shown:
                live.publish(said)  # again, until the sink is open: this is the live feed
                await trio.sleep(0.01)
                shown += capsys.readouterr().out
        runner.finish()


async def test_relay(plugins: Plugins, tmp_path: Path) -> None:
    """The asynchronous example sends each event as a line."""
    received = bytearray()

    async def listen(stream: trio.SocketStream) -> None:
        async for part in stream:
            received.extend(part)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, listen, [listener])
        port = listener.socket.getsockname()[1]
        await deliver_all(made(plugins, "relay", port=port), tmp_path, [TURN, ANSWER])
        with trio.fail_after(60):
            while received.count(b"\n") < 2:  # noqa: ASYNC110 - the example's listener is a plain socket
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert [msgspec.json.decode(line)["kind"] for line in received.splitlines()] == ["turn", "answer"]


async def test_every_example_opens(plugins: Plugins, tmp_path: Path) -> None:
    """Each example opens an object with valid hooks; only `relay` needs a listener."""
    fields: dict[str, dict[str, Any]] = {
        "notes": {"path": Path("n.md")},
        "ticket": {"url": "http://x"},
        "loudest": {"path": Path("l.txt")},
    }
    for kind in {Path(name).stem for name in DROP_INS} - {"relay"}:
        async with made(plugins, kind, **fields.get(kind, {})).open(context(tmp_path, name=kind)) as plugin:
            validate_hooks(plugin, name=kind)


def rows(heading: str) -> Iterator[tuple[str, ...]]:
    """The cells of each row of the table below a heading, without the table's own head."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return (tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:])


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_hook_is_on_the_page() -> None:
    """The page has each hook of the contract with the argument that it gets, and no other."""
    written = {names(hook)[0]: names(argument) for hook, argument, _ in rows("Every hook")}
    specified = [*vars(Hooks).items(), *vars(Registry).items()]
    expected = {
        name: list(spec.__code__.co_varnames[1 : spec.__code__.co_argcount])
        for name, spec in specified
        if not name.startswith("_")
    }
    assert written == expected


def test_every_kind_and_field_is_on_the_page() -> None:
    """The page has each kind with the fields that its JSON has, in their order, and no other."""
    written = {names(kind)[0]: names(fields) for kind, fields, _ in rows("Every field")}
    expected = {}
    for struct in (*get_args(Durable), *get_args(LiveEvent)):
        fields = [field.encode_name for field in msgspec.structs.fields(struct)]
        expected[str(struct.__struct_config__.tag)] = [name for name in fields if name not in ENVELOPE]
    assert written == expected
    assert {"kind", *msgspec.json.decode(encode(TURN))} - set(expected["turn"]) == ENVELOPE
    assert all(hasattr(TURN, name) for name in ENVELOPE)
    assert (TURN.kind, hasattr(Interim, "kind"), hasattr(Level, "kind")) == ("turn", True, True)
    assert all(f"`{name}`" in PAGE for name in (*ENVELOPE, *Word.__struct_fields__))


def test_the_causes_and_reasons_are_on_the_page() -> None:
    """Each value that a field can only have is named."""
    for struct in get_args(Durable):
        for field in msgspec.structs.fields(struct):
            for value in get_args(field.type):
                if isinstance(value, str):
                    assert f"`{value}`" in PAGE, (struct, field.name)
