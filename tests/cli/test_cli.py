"""Laws of the commands: what they print, how they end, and that nobody ever sees a traceback."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tomllib
import wave
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tomli_w
import trio
from click.testing import CliRunner, Result
from rich.console import Console
from rich.live import Live

from roomtone import cli, paths
from roomtone.capture.recovery import RateChanged
from roomtone.cli.commands.init import InitAnswers, compose
from roomtone.cli.demo_receiver import open_receiver
from roomtone.cli.display import METER_COLUMNS, METER_FLOOR_DB, Captions, LineDisplay, bar_of, describe
from roomtone.cli.exit_codes import CommandFailure, Exit, contain_known_errors
from roomtone.cli.recording_summary import Tally, coverage_of
from roomtone.config.toml_file import ConfigError
from roomtone.events import Audio, Gap, Level, Notice, RecordingStarted, Turn, Word
from roomtone.journal.journal import open_journal
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.journal.schema import JournalError

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, which is the current folder too, and no key."""
    for variable in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "ROOMTONE_CONFIG", "ASSEMBLYAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "PULSE_SERVER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str, answers: str | None = None) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli.group, arguments, input=answers)


def run(
    *arguments: str, environ: Mapping[str, str] | None = None, seconds: float = 110
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a script would run it."""
    return subprocess.run(
        [sys.executable, "-m", "roomtone", *arguments],
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def write_wav(path: Path, seconds: float = 1.0) -> Path:
    """A second of a quiet hum."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"".join((i % 100).to_bytes(2, "little") for i in range(round(seconds * 16_000))))
    return path


def write_config(folder: Path, **sinks: Mapping[str, object]) -> Path:
    """A configuration whose room is a file, with these sinks."""
    write_wav(folder / "talk.wav")
    source = {"kind": "file", "path": "talk.wav", "pace": "fast"}
    # An address where nobody answers: nothing here is about speech.
    streaming = {"endpoint": "ws://127.0.0.1:9"}
    path = folder / "roomtone.toml"
    path.write_text(tomli_w.dumps({"rooms": {"talk": {"source": source, "streaming": streaming}}, "sinks": sinks}))
    return path


LOG = {"kind": "jsonl", "path": "events.jsonl"}


# Help and exit codes


def test_help() -> None:
    """The help has every command, each with one line, and every exit code."""
    text = invoke("--help").output

    for name in cli.COMMANDS:
        assert f"\n  {name} " in text
    assert "..." not in text.replace("[ARGS]...", "")
    for code in Exit:
        assert f"\n  {code.value} " in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_each(name: str) -> None:
    """Every command explains itself."""
    result = invoke(name, "--help")

    assert result.exit_code == 0
    assert f"Usage: roomtone {name}" in result.output.replace("commands", "roomtone")


def test_version() -> None:
    """The version is the package's."""
    done = run("--version")

    assert (done.returncode, done.stdout.split()[0]) == (0, "roomtone,")


@pytest.mark.parametrize(
    ("word", "says"),
    [("rnu", "No such command 'rnu'. Did you mean 'run'?"), ("xyzzy", "No such command 'xyzzy'.\n")],
)
def test_misspelt(word: str, says: str) -> None:
    """A command that there is not is a mistake in the command line; the nearest one is named."""
    result = invoke(word)

    assert (result.exit_code, says in result.output) == (Exit.USAGE, True)


def test_usage() -> None:
    """A wrong command line ends with 2."""
    assert run("run", "--no-such-option").returncode == Exit.USAGE
    assert run("no-such-command").returncode == Exit.USAGE


def test_no_configuration(home: Path) -> None:
    """Without a configuration `run` says in three lines what to do next, and ends with 78."""
    done = run("run")

    assert done.returncode == Exit.CONFIG
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert "roomtone init" in lines[1]
    assert "roomtone demo" in lines[2]


def test_wrong_configuration(home: Path) -> None:
    """Each problem of the configuration is a line; the exit code is 78."""
    (home / "roomtone.toml").write_text("[rooms.desk]\nrate = 1\nsource = { kind = 'mic' }\n")

    done = run("run")

    assert done.returncode == Exit.CONFIG
    assert len(done.stderr.splitlines()) == 2
    assert all("roomtone.toml: [rooms.desk" in line for line in done.stderr.splitlines())


def test_missing_key(home: Path) -> None:
    """An endpoint that needs a key is refused without one, by every command that would use it."""
    path = write_config(home)
    path.write_text(path.read_text().replace("ws://127.0.0.1:9", "assemblyai"))

    for command in ("run", "check"):
        done = run(command)
        assert done.returncode == Exit.CONFIG
        assert "needs a key; set $ASSEMBLYAI_API_KEY" in done.stderr
        assert "Traceback" not in done.stderr


def test_state_in_use(home: Path) -> None:
    """A second daemon on the same state is told so."""
    write_config(home)

    with paths.lock(home / ".local" / "state" / "roomtone"):
        done = run("run")

    assert done.returncode == Exit.CANTCREAT
    assert "another roomtone runs with this state" in done.stderr
    assert "Traceback" not in done.stderr


def test_state_not_writable(home: Path) -> None:
    """A state folder that cannot be made is named, with what to do."""
    write_config(home)
    (home / "file").touch()

    done = run("run", environ={"XDG_STATE_HOME": str(home / "file")})

    assert done.returncode == Exit.CANTCREAT
    assert f"{home}/file/roomtone: the state cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), Exit.CONFIG),
        (RateChanged("x"), Exit.CONFIG),
        (paths.StateError("x"), Exit.CANTCREAT),
        (JournalError("x"), Exit.CANTCREAT),
        (OSError("x"), Exit.FAILED),
        (ExceptionGroup("", [ExceptionGroup("", [paths.StateInUse("x")])]), Exit.CANTCREAT),
        (ExceptionGroup("", [OSError("x"), OSError("x")]), Exit.FAILED),
    ],
)
def test_errors_of_users(error: Exception, code: Exit) -> None:
    """What a user can cause becomes its text and an exit code, however deep in groups it is."""
    with pytest.raises(CommandFailure) as caught, contain_known_errors():
        raise error

    assert caught.value.exit_code == code
    assert caught.value.message == "x"


@pytest.mark.parametrize("error", [ZeroDivisionError(), ExceptionGroup("", [OSError("x"), ZeroDivisionError()])])
def test_errors_of_ours(error: Exception) -> None:
    """What nobody foresaw keeps its traceback, for the report."""
    with pytest.raises(type(error)), contain_known_errors():
        raise error


@contextmanager
def at_terminal(*arguments: str, terminal: int, output: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A command of ours, which does not outlive a test that fails: leaving would wait for it, for ever."""
    command = [sys.executable, "-m", "roomtone", *arguments]
    with subprocess.Popen(command, stdin=terminal, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_interrupted(home: Path) -> None:
    """Ctrl-C at a question ends without a traceback, with 130."""
    # A shell starts what runs in the background with Ctrl-C ignored, and every program hands that on to its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    primary, secondary = pty.openpty()
    try:
        with at_terminal("init", terminal=secondary, output=secondary) as process:
            os.close(secondary)
            shown = os.read(primary, 4096)  # the question
            process.send_signal(signal.SIGINT)
            # One that comes a moment before the read that it should end does nothing; one too many ends the ending.
            while not select.select([primary], [], [], 5)[0]:
                process.send_signal(signal.SIGINT)
            with suppress(OSError):  # EIO: nobody has the terminal any more
                while part := os.read(primary, 4096):
                    shown += part
            process.wait(60)
    finally:
        os.close(primary)
        signal.signal(signal.SIGINT, before)

    assert process.returncode == Exit.INTERRUPTED
    assert b"Traceback" not in shown


# init


def test_init(home: Path) -> None:
    """Without a terminal `init` takes the defaults; what it writes is private and loads."""
    result = invoke("init")

    path = home / "roomtone.toml"
    assert result.exit_code == 0, result.output
    assert path.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(path.read_text()) == {
        "rooms": {"desk": {"source": {"kind": "microphone", "device": "default"}}},
        "sinks": {
            "archive": {"kind": "wav", "directory": "recordings"},
            "log": {"kind": "jsonl", "path": "events.jsonl"},
        },
    }
    assert invoke("config").exit_code == 0


def test_init_flags(home: Path) -> None:
    """Every answer has a flag. A file's path is relative to the configuration, or absolute."""
    write_wav(home / "talk.wav")
    flags = ["--room", "talk", "--source-file", "talk.wav", "--endpoint", "local", "--directory", "archive"]
    more = ["--webhook", "https://example.org/x", "--yes"]

    assert invoke("init", *flags, *more, "--output", "conf/here.toml").exit_code == 0

    path = home / "conf" / "here.toml"
    tables = tomllib.loads(path.read_text())
    assert tables["rooms"]["talk"]["source"] == {"kind": "file", "path": str(home / "talk.wav")}
    assert tables["rooms"]["talk"]["streaming"] == {"endpoint": "local"}
    assert tables["sinks"]["archive"]["directory"] == "archive"
    assert tables["sinks"]["hook"] == {"kind": "webhook", "url": "https://example.org/x"}

    assert invoke("init", *flags, "--yes").exit_code == 0
    assert tomllib.loads((home / "roomtone.toml").read_text())["rooms"]["talk"]["source"]["path"] == "talk.wav"


def test_init_asks(home: Path) -> None:
    """On a terminal it asks for what no flag gives."""
    primary, secondary = pty.openpty()
    with at_terminal("init", "--device", "default", terminal=secondary, output=subprocess.PIPE) as process:
        os.close(secondary)
        os.write(primary, b"kitchen\nlocal\ntapes\n\n")
        output, errors = process.communicate(timeout=60)
    os.close(primary)

    assert process.returncode == 0, errors
    assert b"room's name" in output
    tables = tomllib.loads((home / "roomtone.toml").read_text())
    assert tables["rooms"]["kitchen"]["streaming"]["endpoint"] == "local"
    assert tables["sinks"]["archive"]["directory"] == "tapes"
    assert "hook" not in tables["sinks"]


def test_init_asks_again(home: Path) -> None:
    """An answer that cannot be used gets a line, and the question comes again: no other answer is lost."""
    primary, secondary = pty.openpty()
    with at_terminal("init", "--device", "default", terminal=secondary, output=subprocess.PIPE) as process:
        os.close(secondary)
        os.write(primary, b"Front Desk\nfront-desk\nfoo\nlocal\n\nexample.org\nhttp://127.0.0.1:8080/\n")
        output, errors = process.communicate(timeout=60)
    os.close(primary)

    assert process.returncode == 0, errors
    said = output.decode()
    for wrong in (
        '[rooms."Front Desk"]: a name',
        'endpoint = "foo": is not an endpoint',
        'url = "example.org": must begin',
    ):
        assert wrong in said
    tables = tomllib.loads((home / "roomtone.toml").read_text())
    assert tables["rooms"]["front-desk"]["streaming"]["endpoint"] == "local"
    assert tables["sinks"]["hook"]["url"] == "http://127.0.0.1:8080/"


def test_init_never_overwrites(home: Path) -> None:
    """A file that is there stays as it is, unless --force says otherwise; then others cannot read it any more."""
    path = home / "roomtone.toml"
    path.write_text("mine")
    (home / ".roomtone.toml.new").touch(0o644)  # left by one that was killed

    refused = invoke("init")
    assert refused.exit_code == Exit.CANTCREAT
    assert "--force" in refused.output
    assert path.read_text() == "mine"

    assert invoke("init", "--force").exit_code == 0
    assert "rooms" in tomllib.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o640


def test_init_refuses(home: Path) -> None:
    """What would not load is not written."""
    assert invoke("init", "--room", "Front Desk").exit_code == Exit.CONFIG
    assert invoke("init", "--endpoint", "http://x").exit_code == Exit.CONFIG
    assert invoke("init", "--source-file", "absent.wav").exit_code == Exit.FAILED
    assert invoke("init", "--source-file", "x", "--device", "y").exit_code == Exit.USAGE
    assert not (home / "roomtone.toml").exists()


def test_compose_is_valid() -> None:
    """What the answers make is a configuration, the rarest of them included."""
    answers = InitAnswers(room="a", source={"kind": "microphone"}, endpoint=None, directory="x", webhook=None)

    assert "streaming" not in compose(answers)["rooms"]["a"]


# check, sinks, config, devices


def test_check(home: Path) -> None:
    """What would run is said, and every sink is opened and closed; then the exit code is 0, and no file is left."""
    write_config(home, log=LOG, archive={"kind": "wav", "directory": "recordings"})

    done = run("check", "--sources")

    assert done.returncode == 0, done.stderr + done.stdout
    for said in (
        "roomtone.toml",
        "file talk.wav, 16000 Hz",
        "samples arrived",
        "ws://127.0.0.1:9",
        "sink log",
        "sink archive",
    ):
        assert said in done.stdout
    assert done.stderr == ""
    assert not (home / "events.jsonl").exists()
    assert not (home / "recordings").exists()


async def test_check_of_a_rate_that_the_room_does_not_have(home: Path) -> None:
    """`check` reports a room that was recorded at another rate: the start would fail. The journal stays as it is."""
    state = home / ".local" / "state" / "roomtone"
    state.mkdir(parents=True)
    async with open_journal(state / "journal.sqlite") as journal:
        await journal.commit(Mark("room/talk/rate", 8000))
    write_config(home)
    before = (state / "journal.sqlite").read_bytes()

    done = await trio.to_thread.run_sync(run, "check")

    assert done.returncode == 1
    (fault,) = [line for line in done.stdout.splitlines() if "8000 Hz before" in line]
    assert fault.startswith("FAULT")
    assert "Set rate = 8000" in fault
    assert (state / "journal.sqlite").read_bytes() == before
    assert {path.name for path in state.iterdir()} <= {"journal.sqlite", "lock", "sinks"}


def test_check_of_a_journal_that_is_broken(home: Path) -> None:
    """A file that is not a journal is a finding, and not a traceback."""
    state = home / ".local" / "state" / "roomtone"
    state.mkdir(parents=True)
    (state / "journal.sqlite").write_bytes(b"not a database, by far" * 100)
    write_config(home)

    done = run("check")

    assert done.returncode == 1
    assert "FAULT  journal" in done.stdout
    assert "Traceback" not in done.stderr


def test_check_faults(home: Path) -> None:
    """A sink that does not open, a source that gives nothing and a plugin that does not load are faults; the exit code
    is 1, and the JSON says which.
    """
    write_config(home, log={"kind": "jsonl", "path": "talk.wav/x"}, good=LOG)
    (home / "talk.wav").write_text("no sound")
    (home / "plugins").mkdir()
    (home / "plugins" / "broken.py").write_text("import no_such_module\n")

    done = run("check", "--sources", "--json")

    assert done.returncode == Exit.FAILED
    report = json.loads(done.stdout)
    assert not report["ok"]
    faults = {finding["subject"] for finding in report["findings"] if finding.get("fault")}
    assert faults == {"sink log", "room talk", "plugin broken"}
    assert done.stderr == "roomtone: 3 of these would not run\n"


def test_check_of_an_open_without_its_decorator(home: Path) -> None:
    """What an author forgets most easily is said as the daemon says it, and not in Python's words."""
    (home / "plugins").mkdir()
    (home / "plugins" / "bare.py").write_text(
        "from roomtone import Sink, hookimpl\n"
        'class Bare(Sink, frozen=True, tag="bare"):\n'
        "    async def open(self, context):\n        yield self\n"
        "@hookimpl\ndef register_sinks():\n    return [Bare]\n"
    )
    write_config(home, bare={"kind": "bare"})

    done = run("check")

    assert "Bare.open returns no async context manager; put @asynccontextmanager above it" in done.stdout


def test_check_opens_files(home: Path) -> None:
    """A file that is a source is opened unasked, for that disturbs nobody; the line names it."""
    write_config(home, log=LOG)
    (home / "talk.wav").unlink()

    done = run("check")

    assert done.returncode == Exit.FAILED
    assert f"file {home / 'talk.wav'} is not there" in done.stdout


def test_check_of_a_budget(home: Path) -> None:
    """What takes over when the budget is spent is tried too: nobody wants to learn then that it is not installed."""
    path = write_config(home, log=LOG)
    given = path.read_text()
    path.write_text(f"[budget]\ndaily = 5.0\n{given}")
    assert "on this machine, for when the budget is spent" in run("check").stdout
    path.write_text(f'[budget]\ndaily = 5.0\nat_cap = "record"\n{given}')
    assert "recognizer" not in run("check").stdout


def test_check_finds_programs(home: Path) -> None:
    """A command whose program is not there is a fault, although the command is not run."""
    (home / "roomtone.toml").write_text("""
        [rooms.door]
        source = { kind = "command", argv = ["no-such-program", "-q"] }
        streaming = { endpoint = "ws://127.0.0.1:9" }
        [rooms.desk]
        source = { kind = "command", argv = ["true"] }
        streaming = { endpoint = "ws://127.0.0.1:9" }
        """)

    report = json.loads(run("check", "--json").stdout)

    door, desk = (finding for finding in report["findings"] if "command" in finding["what"])
    assert door["fault"] == "the program no-such-program does not exist or is not executable"
    assert desk["note"] == "not opened; --sources opens it"


def test_check_beside_the_daemon(home: Path) -> None:
    """While the daemon runs its sinks are left alone."""
    write_config(home, log=LOG)

    with paths.lock(home / ".local" / "state" / "roomtone"):
        done = run("check")

    assert done.returncode == 0
    assert "not opened here" in done.stdout
    assert not (home / "events.jsonl").exists()


async def _fill(journal: Path) -> None:
    """Three events, of which sink `log` has the first, and has refused the second."""
    journal.parent.mkdir(parents=True)
    async with open_journal(journal) as opened:
        notices = [Notice(room="", position=0, at=AT, severity="info", code="x.y", text=str(i)) for i in range(3)]
        await opened.commit(*notices)
        await opened.advance("log", 1)
        await opened.refuse("log", 2, "no")
        await opened.advance("deaf", 1)


def test_sinks(home: Path) -> None:
    """Each sink's standing comes from the journal: how many events that it wants wait for it, and how many it
    refused.
    """
    write_config(home, log=LOG, new=LOG, deaf={**LOG, "kinds": ["turn"]})
    trio.run(_fill, home / ".local" / "state" / "roomtone" / "journal.sqlite")

    report = json.loads(run("sinks", "--json").stdout)

    assert {"jsonl", "wav"} <= {kind["kind"] for kind in report["kinds"]}
    assert report["sinks"] == [
        {"name": "log", "kind": "jsonl", "status": "stopped", "behind": 1, "refused": 1},
        {"name": "new", "kind": "jsonl", "status": "new", "behind": None, "refused": None},
        {"name": "deaf", "kind": "jsonl", "status": "stopped", "behind": 0, "refused": 0},
    ]
    text = run("sinks").stdout
    assert "behind by 1, refused 1" in text
    assert "has not run yet" in text


def test_sinks_without_configuration(home: Path) -> None:
    """The kinds can be asked before there is a configuration, and before anything has run."""
    assert "jsonl" in invoke("sinks").output
    write_config(home, log=LOG)
    assert "has not run yet" in invoke("sinks").output
    assert not (home / ".local").exists()


def test_broken_plugin(home: Path) -> None:
    """A plugin that does not load is named, with where and why; the others work."""
    write_config(home, log=LOG)
    (home / "plugins").mkdir()
    (home / "plugins" / "broken.py").write_text("import no_such_module\n")

    result = invoke("sinks")

    assert result.exit_code == 0
    assert "broken.py:1: ModuleNotFoundError" in result.output


def test_config(home: Path) -> None:
    """The configuration in effect loads again as the same one."""
    path = write_config(home, log=LOG)

    shown = invoke("config").output

    assert str(path) in shown.splitlines()[0]
    assert tomllib.loads(shown)["rooms"]["talk"]["frame_ms"] == 200
    path.write_text(shown)
    assert invoke("config").output == shown


def test_reference() -> None:
    """The reference and the schema come with the program."""
    assert "[rooms.desk.streaming]" in invoke("config", "--reference").output
    assert json.loads(invoke("config", "--schema").output)["title"] == "Roomtone"


def test_no_devices(home: Path) -> None:
    """A machine without a microphone gets one line and the exit code 1, and JSON that can be read all the same."""
    done = run("devices", "--json", environ={"PULSE_SERVER": "unix:/nonexistent", "ALSA_CONFIG_PATH": "/dev/null"})

    report = json.loads(done.stdout)
    if not report["devices"]:  # this machine's own cards are not to be hidden
        assert done.returncode == Exit.FAILED
        assert "no microphone was found" in done.stderr
    assert "Traceback" not in done.stderr


# What the demo is made of


def cover(start: int, end: int, state: str) -> CoverageSpan:
    return CoverageSpan("a", start, end, state, None, AT, AT)  # type: ignore[arg-type]  # one of the four states


def test_coverage() -> None:
    """Each sample is counted once, whoever claims it twice; what lies outside is not counted."""
    covers = [
        cover(0, 200, "captured"),
        cover(150, 160, "lost"),
        cover(90, 130, "transcribed"),
        cover(120, 140, "transcribed"),
        cover(130, 200, "silent"),
    ]

    coverage = coverage_of(covers, 100, 200)

    assert (coverage.samples, coverage.captured, coverage.lost) == (100, 100, 10)
    assert (coverage.transcribed, coverage.silent) == (40, 60)
    assert coverage.share(100) == "100.0 %"


def test_share_is_honest() -> None:
    """100.0 % means every single sample."""
    assert coverage_of([], 0, 1_000_000).share(999_999) == "99.9 %"
    assert coverage_of([], 0, 0).share(0) == "0.0 %"


def test_tally() -> None:
    """Words are counted by the turns' words, samples from the start of the recording to its last segment."""
    tally = Tally()
    words = (Word("a", 0, 1), Word("b", 1, 2))
    tally.add(RecordingStarted(room="a", position=50, at=AT, rate=16_000, source="x"))
    tally.add(Turn(room="a", position=50, at=AT, session_id="s", turn_order=0, text="a b", words=words))
    tally.add(Audio(room="a", position=50, at=AT, samples=100, rate=16_000, file=None))
    tally.add(Gap(room="a", position=150, at=AT, start=150, end=160, from_=AT, until=AT, cause="overrun"))

    assert (tally.start, tally.end, tally.words, tally.rate) == (50, 160, 2, 16_000)
    assert tally.causes == ["overrun"]


@pytest.mark.parametrize(
    ("rms", "peak"), [(METER_FLOOR_DB, METER_FLOOR_DB), (0.0, 0.0), (-96.3, -96.3), (-30.0, -20.0), (-30.0, 0.0)]
)
def test_bar(rms: float, peak: float) -> None:
    """The meter has the same width at every level."""
    assert len(bar_of(Level(room="a", position=0, at=AT, rms=rms, peak=peak))) == 40


def test_lines() -> None:
    """Where there is no terminal each event is one line."""
    lines: list[str] = []
    gap = Gap(room="a", position=0, at=AT, start=0, end=8, from_=AT, until=AT, cause="device")

    LineDisplay(lines.append).show(gap)

    assert len(lines) == 1
    assert "gap" in lines[0]
    assert "device: 8 samples" in describe(gap)


@pytest.mark.parametrize(("width", "indent"), [(60, 29), (120, 29), (40, 0)])
def test_captions_wrap(width: int, indent: int) -> None:
    """On a terminal a long text goes on below its own beginning, unless there is no room for that; nothing is lost."""
    output = io.StringIO()
    console = Console(file=output, width=width, color_system=None)
    words = tuple(Word(text=f"word{i}", start=i, end=i) for i in range(30))
    text = " ".join(word.text for word in words)

    with Live(console=console) as live:
        Captions(live).show(Turn(room="a", position=0, at=AT, session_id="s", turn_order=0, text=text, words=words))

    shown = output.getvalue().replace(METER_COLUMNS * " ", "")
    lines = [line for line in shown.splitlines() if "word" in line]
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert all(line.startswith(" " * indent + "w") for line in lines[1:])
    assert " ".join(" ".join(lines).split()).endswith(text)


async def test_receiver() -> None:
    """The receiver takes POSTs one after the other on one connection, and nothing else; noise on another harms none."""
    async with open_receiver() as receiver:
        port = int(receiver.url.split(":")[2].split("/")[0])
        async with await trio.open_tcp_stream("127.0.0.1", port) as noise:
            await noise.send_all(b"\x00\xff no http\r\n\r\n")
            assert await noise.receive_some() == b""
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            for method, status in (("POST", b"204"), ("POST", b"204"), ("GET", b"405")):
                head = f"{method} /events HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}"
                await stream.send_all(head.encode())
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 " + status)
    assert receiver.posts == 2


@pytest.mark.timeout(660)  # twenty seconds of a processor for each, and it may have to be shared
def test_demo(home: Path) -> None:
    """The demo writes its files into its folder, posts its events, and every sample is recorded and heard. A second
    time it is a new recording.
    """
    pytest.importorskip("pocketsphinx", reason="the engine is an extra")
    for _ in range(2):
        done = run("demo", "--fast", "--directory", "here", environ={"STATE_DIRECTORY": "/nonexistent"}, seconds=320)

        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        assert "turn" in done.stdout
        (recorded,) = (line for line in done.stdout.splitlines() if line.startswith("recorded"))
        (heard,) = (line for line in done.stdout.splitlines() if line.startswith("heard"))
        assert "100.0 % of 513,280 samples" in recorded
        assert "100.0 %:" in heard
    assert len(list((home / "here" / "recordings").rglob("*.wav"))) == 2
    posts = [line for line in done.stdout.splitlines() if line.startswith("webhook")]
    assert int(posts[0].split()[1]) >= 5
