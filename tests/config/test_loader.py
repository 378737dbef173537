"""Laws of `roomtone.config.model` and `roomtone.config.loader`, and of the configurations that come with it."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import msgspec
import pytest
import tomli_w

from roomtone.budget.limits import Budget
from roomtone.capture.sources import Command, File, Microphone
from roomtone.cli.schema import schema_text
from roomtone.config import loader
from roomtone.config.loader import Broken, decode, each_sink, load
from roomtone.config.model import Config, GateConfig, Room, ServiceConfig, Storage, effective, find_key
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.plugins import PluginProblem, Plugins, load_plugins
from roomtone.llm.completion import GatewayConfig, Price
from roomtone.llm.conversations import AnalysisPrompt
from roomtone.protocol.parameters import Fallback, FallbackPolicy, LLMGatewayConfig, Prompt, Streaming
from roomtone.secret import Secret
from roomtone.sinks import Module, Sink

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "config" / "roomtone.toml"
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.toml"))


class Lamp(Sink, frozen=True, kw_only=True, tag="lamp"):
    """A sink of a plugin, with every sort of field that one may have."""

    path: Path
    brightness: float = 0.5
    color: Literal["red", "green"] = "red"
    secret: str | None = None


PLUGINS = Plugins({"lamp": Lamp}, {}, ())


@pytest.fixture(scope="module")
def bundled() -> Plugins:
    """The sinks that come with the daemon, through their own door."""
    return load_plugins(())


def parse(text: str, plugins: Plugins = PLUGINS) -> Config:
    return decode(tomllib.loads(text), Path("/etc/roomtone/roomtone.toml"), plugins)


def refusals(text: str, plugins: Plugins = PLUGINS) -> list[str]:
    """The lines of the error, each without the file that it must begin with."""
    with pytest.raises(ConfigError) as caught:
        parse(text, plugins)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("/etc/roomtone/roomtone.toml: ") for line in lines)
    return [line.removeprefix("/etc/roomtone/roomtone.toml: ") for line in lines]


DESK = '[rooms.desk]\nsource = { kind = "microphone" }\n'


# What is read


def test_defaults() -> None:
    """A room needs nothing but its source."""
    config = parse(DESK)

    assert config.rooms == {"desk": Room(source=Microphone(device="default"))}
    assert config.rooms["desk"].frame == 3200
    assert config.rooms["desk"].gate == GateConfig(mode="always", preroll=2.0, close_after=30.0)
    assert config.service == ServiceConfig()
    assert config.sinks == {}
    assert config.folder == Path("/etc/roomtone")


def test_everything() -> None:
    """Each table becomes the Struct that owns it; a sink's that of its plugin."""
    config = parse("""
        [service]
        state = "state"
        [rooms.talk]
        source = { kind = "file", path = "talk.wav", pace = "fast" }
        rate = 48000
        frame_ms = 50
        [rooms.talk.streaming]
        endpoint = "local"
        [rooms.door]
        source = { kind = "command", argv = ["arecord", "-q"] }
        [sinks.lamp]
        kind = "lamp"
        path = "~/lamp"
        rooms = ["talk"]
        kinds = ["turn"]
        """)

    assert config.rooms["talk"].source == File(path="talk.wav", pace="fast")
    assert config.rooms["talk"].frame == 2400
    assert config.rooms["talk"].streaming == Streaming(endpoint="local")
    assert config.rooms["door"].source == Command(argv=("arecord", "-q"))
    assert config.sinks == {"lamp": Lamp(path=Path("~/lamp"), rooms=("talk",), kinds=("turn",))}
    assert config.state({"STATE_DIRECTORY": "/var/lib/roomtone"}) == Path("/etc/roomtone/state")
    assert config.sinks_folder({"STATE_DIRECTORY": "/var/lib/roomtone"}) == Path("/var/lib/roomtone")


def test_realtime() -> None:
    """The text of what goes on by itself should follow it; a file waits."""
    assert not Room(source=File(path="x")).realtime
    assert Room(source=Microphone()).realtime
    assert Room(source=Command(argv=("x",))).realtime


def test_drop_in() -> None:
    """A drop-in file of hooks is a sink by being there, under its own name, unless a table names its kind."""

    class DropIn(Module, frozen=True, kw_only=True, tag="beep"):
        """The class that the plugin loader makes of a file beep.py."""

    plugins = Plugins({"beep": DropIn}, {"beep": DropIn}, ())

    assert parse(DESK, plugins).sinks == {"beep": DropIn()}
    (named,) = parse(DESK + '[sinks.loud]\nkind = "beep"\nkinds = ["gap"]\n', plugins).sinks.items()
    assert named == ("loud", DropIn(kinds=("gap",)))


# What is refused


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "there is no room; add [rooms.<name>] with a source, or let `roomtone init` write a file"),
        ("rooms = 3", "rooms = 3: must be tables: [rooms.<name>]"),
        (
            '[rooms]\nsource = { kind = "microphone" }',
            '[rooms] source = { kind = "microphone" }: a room has a name: write [rooms.desk] instead of [rooms]',
        ),
        (
            "[rooms.desk]",
            '[rooms.desk]: source is missing; it must be a table with kind "microphone" or "file" or "command"',
        ),
        (
            '[rooms.desk]\nsource = "default"',
            '[rooms.desk] source = "default": must be a table with kind "microphone" or "file" or "command"',
        ),
        (
            "[rooms.desk]\nsource = { path = 'x' }",
            '[rooms.desk.source]: kind is missing; it must be one of "microphone", "file", "command"',
        ),
        (
            "[rooms.desk]\nsource = { kind = 'micro' }",
            (
                '[rooms.desk.source] kind = "micro": unknown kind, did you mean "microphone"? '
                'Known are "command", "file", "microphone"'
            ),
        ),
        (
            "[rooms.desk]\nsource = { kind = 'file', path = 'x', pace = 'slow' }",
            '[rooms.desk.source] pace = "slow": must be one of "fast", "realtime"',
        ),
        (
            "[rooms.desk]\nsource = { kind = 'command', argv = [] }",
            "[rooms.desk.source] argv = []: must be a list (at least 1 item) of text",
        ),
        (DESK + "rate = 800", "[rooms.desk] rate = 800: must be a whole number from 8000 to 96000"),
        (DESK + 'rate = "16k"', '[rooms.desk] rate = "16k": must be a whole number from 8000 to 96000'),
        (
            DESK + "frame = 200",
            (
                '[rooms.desk] frame = 200: unknown key, did you mean "frame_ms"? '
                'Known are "frame_ms", "gate", "rate", "source", "speakers", "streaming"'
            ),
        ),
        (
            DESK + 'device = "x"',
            '[rooms.desk] device = "x": belongs in the source, as in source = { kind = "microphone", device = ... }',
        ),
        (
            '[rooms.desk]\nsource = { kind = "microphone", device = 0 }',
            "[rooms.desk.source] device = 0: must be text (at least 1 character); `roomtone devices` lists the names",
        ),
        (
            DESK + '[rooms.desk.streaming]\nendpoint = "asemblyai"',
            (
                '[rooms.desk.streaming] endpoint = "asemblyai": is not an endpoint: use one of "assemblyai", '
                '"assemblyai-us", "assemblyai-eu", "local", or an address that begins with ws:// or wss://'
            ),
        ),
        (
            DESK + '[service]\nmetrics = "localhost"',
            '[service] metrics = "localhost": is not an address; write 127.0.0.1:9464',
        ),
        (DESK + "format_turns = true", "[rooms.desk] format_turns = true: belongs in [rooms.desk.streaming]"),
        (DESK + "sample_rate = 8000", "[rooms.desk] sample_rate = 8000: is called rate here"),
        (
            DESK + "[rooms.desk.streaming]\nformat_turn = true",
            '[rooms.desk.streaming] format_turn = true: unknown key, did you mean "format_turns"?',
        ),
        (
            DESK + "[rooms.desk.streaming]\nvad_threshold = 2",
            "[rooms.desk.streaming] vad_threshold = 2: must be a number from 0 to 1",
        ),
        (
            DESK + "[rooms.desk.streaming]\nformat_turns = 1",
            "[rooms.desk.streaming] format_turns = 1: must be true or false",
        ),
        (
            DESK + '[rooms.desk.streaming]\nllm_gateway = { model = "m", max_tokens = 1, messages = [{ role = "x" }] }',
            '[rooms.desk.streaming.llm_gateway.messages[0]] role = "x": must be one of "assistant", "system", "user"',
        ),
        (
            "[room.desk]",
            (
                '[room]: unknown table, did you mean "rooms"? '
                'Known are "analysis", "budget", "gateway", "recognizer", "rooms", "service", "sinks", "storage"'
            ),
        ),
        (
            "grace = 3\n" + DESK,
            "grace = 3: stands above the first table; a key belongs in one: [service], [storage], [rooms.<name>], ...",
        ),
        (DESK + "[service]\ngrace = 0", "[service] grace = 0: must be a number, above 0 and at most 3600"),
        (
            '[rooms."Front Desk"]\nsource = { kind = "microphone" }',
            '[rooms."Front Desk"]: a name is at most 64 of a-z, 0-9, _ and -, for instance [rooms.front-desk]',
        ),
        (
            '[[rooms.desk]]\nsource = { kind = "microphone" }',
            (
                '[rooms] desk = [{ source = { kind = "microphone" } }]: must be a table: '
                "write [rooms.desk] in single brackets, and its keys below"
            ),
        ),
        (
            '[rooms]\ndesk = "default"',
            '[rooms] desk = "default": must be a table: write [rooms.desk] in single brackets, and its keys below',
        ),
        (
            '[rooms.second.floor]\nsource = { kind = "microphone" }',
            "[rooms.second.floor]: a name has no dot: write [rooms.second-floor]",
        ),
        (
            '[rooms."B\u00fcro"]\nsource = { kind = "microphone" }',
            '[rooms."B\u00fcro"]: a name is at most 64 of a-z, 0-9, _ and -, for instance [rooms.buro]',
        ),
        (
            "[rooms.desk]\nsource = { kind = ['file'] }",
            (
                '[rooms.desk.source] kind = ["file"]: unknown kind, did you mean "file"? '
                'Known are "command", "file", "microphone"'
            ),
        ),
        (
            "[rooms.desk]\nsource = { kind = 'file', device = 'x' }",
            '[rooms.desk.source] device = "x": is a key of kind = "microphone"',
        ),
        (
            DESK + 'speakers = { A = "" }',
            ('[rooms.desk] speakers = { A = "" }: must be a table in which each value is text (1 to 100 characters)'),
        ),
        (
            DESK + "[storage]\nspool_gb = 1e300",
            "[storage] spool_gb = 1e+300: must be a number, above 0 and at most 1e+06",
        ),
        (DESK + "[service]\nstate = ''", '[service] state = "": must be text (at least 1 character)'),
        (
            DESK + "[service]\nstate = '~nobody-here/x'",
            '[service] state = "~nobody-here/x": there is no such home folder here; write the whole path',
        ),
        (
            "[rooms.talk]\nsource = { kind = 'file', path = '~nobody-here/x.wav' }",
            '[rooms.talk.source] path = "~nobody-here/x.wav": there is no such home folder here; write the whole path',
        ),
        (
            DESK + "[sinks]\nkind = 'lamp'",
            '[sinks] kind = "lamp": a sink has a name: write [sinks.archive] instead of [sinks]',
        ),
        (
            DESK + "[sinks.x]\nkind = ['lamp']",
            '[sinks.x] kind = ["lamp"]: unknown kind, did you mean "lamp"? Known are "lamp"',
        ),
        (DESK + "[sinks]\nlamp = 3", "[sinks] lamp = 3: must be a table with a kind"),
        (DESK + "[sinks.lamp]\npath = 'x'", '[sinks.lamp]: kind is missing; known are "lamp"'),
        (
            DESK + "[sinks.x]\nkind = 'lampe'",
            '[sinks.x] kind = "lampe": unknown kind, did you mean "lamp"? Known are "lamp"',
        ),
        (DESK + "[sinks.x]\nkind = 'lamp'", "[sinks.x]: path is missing; it must be a path"),
        (DESK + "[sinks.x]\nkind = 'lamp'\npath = 3", "[sinks.x] path = 3: must be a path"),
        (
            DESK + "[sinks.x]\nkind = 'lamp'\npath = 'x'\nrooms = ['dsk']",
            '[sinks.x] rooms = ["dsk"]: unknown room "dsk", did you mean "desk"? Known are "desk"',
        ),
    ],
)
def test_refused(text: str, line: str) -> None:
    """A mistake is reported in one line: its place, its value, and the right one."""
    assert line in refusals(text)


def test_all_at_once() -> None:
    """All mistakes are reported together, in the order of the file's tables."""
    lines = refusals(
        "[service]\ngrace = 'x'\n[rooms.a]\nrate = 1\n[rooms.b]\nsource = { kind = 'file' }\n[sinks.c]\nkind = 'd'"
    )

    assert [re.match(r"\[[^]]*\]", line)[0] for line in lines] == [  # type: ignore[index]  # each has its table
        "[service]",
        "[rooms.a]",
        "[rooms.a]",
        "[rooms.b.source]",
        "[sinks.c]",
    ]


@pytest.mark.parametrize("key", ["sample_rate", "encoding", "token"])
def test_follows_from_room(key: str) -> None:
    """Keys that follow from the room, and the token, are refused in [streaming] with the reason."""
    (line,) = refusals(f'{DESK}[rooms.desk.streaming]\n{key} = "x"')

    assert line.startswith(f"[rooms.desk.streaming] {key} = ")
    assert "unknown" not in line


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "tell-nobody"\n' + DESK,
        DESK + '[service]\napi_key = "tell-nobody"',
        DESK + 'api_key = "tell-nobody"',
        DESK + '[rooms.desk.streaming]\napi_key = "tell-nobody"',
        DESK + '[rooms.desk.streaming]\ntoken = "tell-nobody"',
        '[rooms.desk]\nsource = { kind = "microphone", api_key = "tell-nobody" }',
        DESK + '[sinks.lamp]\nkind = "lamp"\npath = "x"\napi_key = "tell-nobody"',
        DESK + '[sinks.lamp]\nkind = "lamp"\npath = "x"\nsecret = ["tell-nobody"]',
        DESK + '[sinks.lamp]\nkind = "lamp"\npath = "x"\naddress = "https://me:tell-nobody@host/"',
    ],
)
def test_shows_no_secret(text: str) -> None:
    """A secret in the file is refused or misplaced; the message does not show it."""
    (line,) = refusals(text)

    assert "tell-nobody" not in line
    assert "api_key" not in text or "$ASSEMBLYAI_API_KEY" in line or "api_key_file" in line


def test_plugin_that_does_not_load() -> None:
    """A sink whose plugin does not load is left out with the reason: the rest is not kept from running."""
    plugins = Plugins({}, {}, (PluginProblem("lamp", "import", "lamp.py:1: No module named bulb"),))

    config = parse(DESK + '[sinks.x]\nkind = "lamp"', plugins)

    reason = "its plugin lamp did not load: lamp.py:1: No module named bulb"
    assert (config.sinks, config.unloaded) == ({}, {"x": reason})
    assert config.warnings == (f"{config.path}: [sinks.x] gets nothing: {reason}",)


def test_disabled_sink(bundled: Plugins) -> None:
    """A disabled sink is checked like any other, and does not run."""
    text = DESK + '[sinks.x]\nkind = "jsonl"\npath = "x"\ndisabled = true'

    config = parse(text, bundled)

    assert (list(config.sinks), list(config.disabled)) == ([], ["x"])
    assert refusals(text + "\nroms = []", bundled)


def test_each_sink_stands_for_itself(bundled: Plugins) -> None:
    """A mistake in one table hides nothing of another."""
    text = DESK + '[sinks.good]\nkind = "jsonl"\npath = "x"\n[sinks.bad]\nkind = "jsonl"\n[sinks.lost]\nkind = "lamp"'
    plugins = Plugins(bundled.kinds, {}, (PluginProblem("lamp", "import", "no bulb"),))

    found = each_sink(tomllib.loads(text), plugins)

    assert isinstance(found["good"], Sink)
    assert found["bad"] == Broken(
        "configuration error", "[sinks.bad]: path is missing; it must be text (at least 1 character)"
    )
    assert found["lost"] == Broken("load error", "its plugin lamp did not load: no bulb")


class Fragile(Sink, frozen=True, kw_only=True, tag="fragile"):
    """A sink whose own check has a fault."""

    def __post_init__(self) -> None:
        raise KeyError("limit")


def test_plugin_with_a_fault() -> None:
    """A plugin that fails on its table is named; nothing else is troubled by it."""
    plugins = Plugins({"fragile": Fragile}, {}, ())

    assert refusals(DESK + '[sinks.x]\nkind = "fragile"', plugins) == [
        "[sinks.x]: its plugin fails to read this table: KeyError: 'limit'"
    ]


def test_rule_over_several_keys() -> None:
    """The message of a Struct about its whole table is shown as it is."""

    class Pair(Sink, frozen=True, kw_only=True, tag="pair"):
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low must not be above high")

    plugins = Plugins({"pair": Pair}, {}, ())
    lines = refusals(DESK + '[sinks.x]\nkind = "pair"\nlow = 2\nhigh = 1', plugins)

    assert lines == ["[sinks.x]: low must not be above high"]


def test_doubts() -> None:
    """A combination is refused if the service would refuse it, and is a warning otherwise."""
    (line,) = refusals(DESK + '[rooms.desk.streaming]\nspeech_model = "whisper-rt"\nprompt = "x"')
    assert line.startswith('[rooms.desk.streaming] prompt = "x": is not for speech_model "whisper-rt"')

    (warning,) = parse(DESK + "[rooms.desk.streaming]\nformat_turns = true").warnings
    assert warning.startswith("/etc/roomtone/roomtone.toml: [rooms.desk.streaming] format_turns = true: has no effect")


UNPRICED = """[budget]
daily = 5
[gateway.prices]
one = { input = 3, output = 15 }
[rooms.desk.streaming.llm_gateway]
model = "one"
max_tokens = 9
messages = [{ role = "user", content = "{{turn}}" }]
fallbacks = [{ model = "two" }]
[analysis.summary]
prompt = "{{transcript}}"
model = "three"
"""


def test_a_budget_that_cannot_count_a_model_is_doubted() -> None:
    """A model without a price is named where there is a sum to hold it to, unless it runs on this machine."""
    doubts = parse(DESK + UNPRICED).warnings
    assert [doubt.partition(": ")[2].partition(": ")[0] for doubt in doubts] == [
        '[rooms.desk.streaming.llm_gateway] model = "two"',
        '[analysis.summary] model = "three"',
    ]
    assert parse(DESK + UNPRICED.replace("daily = 5", "")).warnings == ()
    (doubt,) = parse(DESK + UNPRICED + '[gateway]\nendpoint = "http://127.0.0.1:8080"').warnings
    assert '"two"' in doubt


def test_placeholders_that_nothing_is_put_in_for() -> None:
    """A misspelt one is a warning with a suggestion: a prompt may contain {{this}} on purpose."""
    text = (
        DESK
        + "[rooms.desk.streaming.llm_gateway]\nmodel = 'm'\nmax_tokens = 9\n"
        + "messages = [{ role = 'user', content = '{{turn}} {{Turn}}' }]\n"
        + "[analysis.summary]\nmodel = 'm'\nprompt = '{{transcript}} {{room}} {{ transkript }}'\n"
        + "system = '{{start}}{{x_1}}'\n"
    )
    prompt, system, messages = parse(text).warnings
    assert "[analysis.summary] prompt = " in prompt
    assert 'unknown placeholder, did you mean "transcript"?' in prompt
    assert "[analysis.summary] system = " in system
    assert "[rooms.desk.streaming.llm_gateway] messages = " in messages
    assert 'did you mean "turn"?' in messages


def test_shared() -> None:
    """Two rooms at one microphone, and two sinks at one file, may be meant: a line says what may come of it."""
    text = DESK + '[rooms.door]\nsource = { kind = "microphone" }\n'
    text += "".join(f'[sinks.{name}]\nkind = "lamp"\npath = "x"\n' for name in ("one", "two"))

    device, file = parse(text).warnings

    assert '[rooms.door.source] device = "default": records the same microphone as [rooms.desk]' in device
    assert '[sinks.two] path = "x": is the path of [sinks.one] too' in file


# Plugins, keys, and what is in effect


def test_plugin_paths(tmp_path: Path) -> None:
    """The folder `plugins` beside the configuration is used when it is there; what is named is used in any case."""
    path = tmp_path / "roomtone.toml"

    assert loader.plugin_paths({}, path) == ()
    (tmp_path / "plugins").mkdir()
    assert loader.plugin_paths({}, path) == (tmp_path / "plugins",)
    named = {"service": {"plugins": ["lamp.py", "/srv/plugins"]}}
    assert loader.plugin_paths(named, path) == (tmp_path / "lamp.py", Path("/srv/plugins"))
    assert loader.plugin_paths({"service": {"plugins": 3}}, path) == (tmp_path / "plugins",)


def test_key(tmp_path: Path) -> None:
    """A relative api_key_file is beside the configuration; without a key, an endpoint that needs one is refused."""
    (tmp_path / "key").write_text("k")
    (tmp_path / "key").chmod(0o600)
    path = tmp_path / "roomtone.toml"
    filed = decode(tomllib.loads(DESK + '[service]\napi_key_file = "key"'), path, PLUGINS)
    assert find_key(filed, {}) == Secret("k")

    assert find_key(parse(DESK), {}) is None
    explicit = parse(DESK + '[rooms.desk.streaming]\nendpoint = "assemblyai"')
    assert find_key(explicit, {"ASSEMBLYAI_API_KEY": "k"}) == Secret("k")
    with pytest.raises(ConfigError, match=r'\[rooms.desk.streaming\] endpoint = "assemblyai": needs a key; set \$ASS'):
        find_key(explicit, {})
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        find_key(filed, {})


def test_effective() -> None:
    """The configuration in effect has every default and no secret, and is itself a valid configuration."""
    config = parse("""
        [rooms.desk]
        source = { kind = "command", argv = ["ffmpeg", "-i", "rtsp://me:tell-nobody@camera/1"] }
        [rooms.desk.streaming]
        webhook_url = "https://example.org/x?token=tell-nobody"
        webhook_auth_header_name = "X-Key"
        webhook_auth_header_value = "tell-nobody"
        [sinks.lamp]
        kind = "lamp"
        path = "lamp"
        secret = "tell-nobody"
        """)

    text = tomli_w.dumps(effective(config, {"XDG_STATE_HOME": "/xdg"}))

    assert "tell-nobody" not in text
    again = parse(text)
    assert again.service.state == "/xdg/roomtone"
    assert again.rooms["desk"].frame_ms == 200
    assert again.rooms["desk"].streaming.speech_model == config.rooms["desk"].streaming.speech_model
    assert "brightness = 0.5" in text


# The configurations that come with the daemon


def commented(text: str) -> str:
    """The reference with every commented key set."""
    return re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE)


def test_reference_is_valid(bundled: Plugins) -> None:
    """The reference is a configuration as it stands, and one with every key set."""
    assert load(REFERENCE, bundled).warnings == ()

    tables = tomllib.loads(commented(REFERENCE.read_text()))
    everything = decode(tables, REFERENCE, bundled)
    assert len(everything.rooms) == 3


def fields_of(*structs: type[msgspec.Struct]) -> Iterator[Any]:
    for struct in structs:
        for field in msgspec.structs.fields(struct):
            yield pytest.param(struct, field.encode_name, id=f"{struct.__name__}.{field.encode_name}")


@pytest.mark.parametrize(
    ("struct", "field"),
    [
        *fields_of(ServiceConfig, Storage, Budget, Room, GateConfig, Microphone, File, Command),
        *fields_of(GatewayConfig, AnalysisPrompt, Price, Streaming, LLMGatewayConfig, Prompt, Fallback, FallbackPolicy),
        *fields_of(*load_plugins(()).kinds.values()),
    ],
)
def test_reference_is_complete(struct: type, field: str) -> None:
    """Every key of every table stands in the reference."""
    text = REFERENCE.read_text()

    assert re.search(rf"^#?{field} = |[{{ ,]{field} = |^#?\[.*\.{field}\]", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "struct",
    [ServiceConfig, Storage, Budget, Room, GateConfig, GatewayConfig, Streaming, *load_plugins(()).kinds.values()],
)
def test_reference_says_the_defaults(struct: type) -> None:
    """Where the reference calls a value the default, it is the default."""
    text = REFERENCE.read_text()
    for field in msgspec.structs.fields(struct):
        said = re.findall(rf"^#{field.encode_name} = (.*)$", text, flags=re.MULTILINE)
        is_simple = isinstance(field.default, int | float | str) and not isinstance(field.default, bool)
        if said and is_simple:
            # A key of this name may be another sink's too, with a default of its own.
            assert field.default in [tomllib.loads(f"x = {value}")["x"] for value in said], field.name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path: Path, bundled: Plugins) -> None:
    """Each example is a configuration without a doubt."""
    assert load(path, bundled).warnings == ()
    assert {example.stem for example in EXAMPLES} >= {"desk", "meeting-room", "offline"}


def test_schema(bundled: Plugins) -> None:
    """The schema for editors is the one of these Structs, and takes the reference and the examples."""
    path = ROOT / "config" / "roomtone.schema.json"
    assert path.read_text() == schema_text(), "run: roomtone config --schema > config/roomtone.schema.json"

    schema = msgspec.json.decode(path.read_bytes())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for example in (REFERENCE, *EXAMPLES):
        validator.validate(tomllib.loads(example.read_text()))
    validator.validate(tomllib.loads(commented(REFERENCE.read_text())))
    validator.validate({"rooms": {"a": {"source": {"kind": "microphone"}}}, "sinks": {"x": {"kind": "other", "y": 1}}})
    for wrong in (
        {},
        {"rooms": {"A b": {"source": {"kind": "microphone"}}}},
        {"rooms": {"a": {"source": {"kind": "x"}}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)
    assert set(bundled.kinds) <= {"command", "jsonl", "transcript", "wav", "webhook"}
