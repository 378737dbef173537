"""Reads one TOML file into a Config, or refuses it with all of its problems.

Each sink's table is read by that sink's own Struct, so a plugin's keys are checked like the daemon's. A message names
the file, the table, the key and its value, and says what to do. No message shows a secret.
"""

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from roomtone import events, paths, secret
from roomtone.budget.limits import Budget
from roomtone.capture.sources import Microphone
from roomtone.config import toml_file, validation
from roomtone.config.model import Config, Room, ServiceConfig, Storage
from roomtone.config.toml_file import ConfigError
from roomtone.config.validation import Problem
from roomtone.delivery.plugins import Plugins
from roomtone.legible import text_of
from roomtone.llm import completion
from roomtone.llm.completion import GatewayConfig
from roomtone.llm.conversations import AnalysisPrompt
from roomtone.protocol import parameters
from roomtone.protocol.parameters import Streaming
from roomtone.sinks import Sink
from roomtone.speech.recognizer_process import RecognizerConfig
from roomtone.suggestions import listing, unknown

IN_PROMPTS = ("transcript", "room", "start", "end")
"""The placeholders, as {{name}}, in a prompt of [analysis]."""
IN_MESSAGES = ("turn",)
"""The placeholders, as {{name}}, in a message of llm_gateway."""
TABLES = ("service", "storage", "budget", "rooms", "recognizer", "gateway", "analysis", "sinks")


class Broken(msgspec.Struct, frozen=True):
    """A sink that cannot run, and why."""

    what: Literal["load error", "configuration error"]
    text: str


def load(path: Path, plugins: Plugins) -> Config:
    """The configuration in this file. Raises ConfigError with one line for each problem."""
    return decode(toml_file.read(path), path, plugins)


def plugin_paths(tables: Mapping[str, Any], path: Path) -> tuple[Path, ...]:
    """The files and folders of plugins that the tables name, absolute.

    They are needed before the tables are checked, for plugins bring the kinds. A value that is not a list of texts is
    left for the check to refuse.
    """
    service = tables.get("service")
    named = service.get("plugins") if isinstance(service, dict) else None
    chosen = (
        named if isinstance(named, list) and all(isinstance(name, str) for name in named) else ServiceConfig().plugins
    )
    folder = path.absolute().parent
    given = [folder / os.path.expanduser(name) for name in chosen]  # noqa: PTH111 - it leaves what it does not know
    return tuple(given if named is not None else [place for place in given if place.exists()])


def decode(tables: Mapping[str, Any], path: Path, plugins: Plugins) -> Config:
    """The checked configuration of these tables. Raises ConfigError with one line for each problem. Pure."""
    problems = [
        *_top(tables),
        *validation.diagnose(tables.get("service", {}), ServiceConfig, ("service",), _advice),
        *_homes(tables),
        *validation.diagnose(tables.get("storage", {}), Storage, ("storage",), _advice),
        *validation.diagnose(tables.get("budget", {}), Budget, ("budget",), _advice),
        *_rooms(tables.get("rooms", {})),
        *validation.diagnose(tables.get("recognizer", {}), RecognizerConfig, ("recognizer",), _advice),
        *validation.diagnose(tables.get("gateway", {}), GatewayConfig, ("gateway",), _advice),
        *_analysis(tables.get("analysis", {}), tables.get("rooms", {})),
        *_sinks(tables.get("sinks", {}), tables.get("rooms", {}), plugins),
    ]
    _refuse(path, problems)
    rooms = {name: _convert(table, Room) for name, table in tables["rooms"].items()}
    found = [(name, problem) for name, room in rooms.items() for problem in parameters.check(room.streaming)]
    _refuse(path, [_in_file(name, rooms[name], problem) for name, problem in found if problem.severity == "error"])
    sinks = _with_modules(
        {name: table for name, table in each_sink(tables, plugins).items() if isinstance(table, Sink)}, plugins
    )
    unloaded, given = each_unloaded(tables, plugins), tables.get("sinks", {})
    return Config(
        path=path,
        service=_convert(tables.get("service", {}), ServiceConfig),
        storage=_convert(tables.get("storage", {}), Storage),
        budget=_convert(tables.get("budget", {}), Budget),
        recognizer=_convert(tables.get("recognizer", {}), RecognizerConfig),
        gateway=_gateway(tables.get("gateway", {}), path),
        analysis={name: _convert(table, AnalysisPrompt) for name, table in tables.get("analysis", {}).items()},
        rooms=rooms,
        sinks={name: sink for name, sink in sinks.items() if not sink.disabled},
        disabled={name: sink for name, sink in sinks.items() if sink.disabled},
        unloaded=unloaded,
        warnings=(
            *(f"{path}: {_in_file(name, rooms[name], problem)}" for name, problem in found),
            *(f"{path}: {problem}" for problem in (*_shared_devices(rooms), *_shared_files(sinks))),
            *(f"{path}: [sinks.{name}] gets nothing: {unloaded[name]}" for name in unloaded if name in given),
            *(f"{path}: {problem}" for problem in (*_unpriced(tables, rooms), *_unfilled(tables, rooms))),
        ),
    )


def each_sink(tables: Mapping[str, Any], plugins: Plugins) -> dict[str, Sink | Broken]:
    """Each sink's table for itself, so that a mistake in one hides no other sink. Pure."""
    given = tables.get("sinks")
    found: dict[str, Sink | Broken] = {}
    for name, table in (given if isinstance(given, dict) else {}).items():
        if text := _load_error(table, plugins):
            found[name] = Broken("load error", text)
        elif problems := [*_name(("sinks", name), name), *_sink(("sinks", name), table, tables.get("rooms"), plugins)]:
            found[name] = Broken("configuration error", "; ".join(map(str, problems)))
        else:
            found[name] = _convert(table, plugins.kinds[table["kind"]])
    return found


def each_unloaded(tables: Mapping[str, Any], plugins: Plugins) -> dict[str, str]:
    """The sinks whose plugin does not load, each with the reason: of tables, and of drop-in files without one. Pure."""
    given = tables.get("sinks")
    given = given if isinstance(given, dict) else {}
    named = {name: table for name, table in given.items() if isinstance(table, dict)}
    found = {name: text for name, table in named.items() if (text := _load_error(table, plugins))}
    taken = {str(table.get("kind")) for table in named.values()} | named.keys() | plugins.modules.keys()
    for problem in plugins.problems:
        if problem.is_file and problem.plugin not in taken:
            found.setdefault(problem.plugin, problem.text)
    return found


def _refuse(path: Path, problems: Sequence[Problem]) -> None:
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))


def _homes(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """Paths that begin at a home folder that does not exist."""
    rooms = _table(tables, "rooms")
    named = [
        ("service", "state"),
        ("service", "api_key_file"),
        ("service", "plugins"),
        ("gateway", "key_file"),
        ("recognizer", "model"),
    ]
    for *where, key in (*named, *(("rooms", name, "source", "path") for name in rooms)):
        value = _table(tables, *where).get(key)
        for path in [value] if isinstance(value, str) else _texts(value):
            try:
                paths.expand(path)
            except FileNotFoundError as error:
                yield Problem(tuple(where), error.strerror or "", key, value)


def _table(tables: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The table of these names, empty where there is none."""
    found: Any = tables
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _shared_devices(rooms: Mapping[str, Room]) -> Iterator[Problem]:
    """Rooms that share a microphone: a sound server allows that, a bare device serves only the first."""
    first: dict[str, str] = {}
    for name, room in rooms.items():
        if isinstance(room.source, Microphone) and (other := first.setdefault(room.source.device, name)) != name:
            text = (
                f"records the same microphone as [rooms.{other}]: on a device without a sound server one of them fails"
            )
            yield Problem(("rooms", name, "source"), text, "device", room.source.device)


def _shared_files(sinks: Mapping[str, Sink]) -> Iterator[Problem]:
    """Sinks of one kind that write to one place: each one assumes that it is alone there."""
    first: dict[tuple[Any, ...], str] = {}
    for name, sink in sinks.items():
        for key in ("path", "directory"):
            value = getattr(sink, key, None)
            if value is not None and (other := first.setdefault((type(sink), key, value), name)) != name:
                yield Problem(
                    ("sinks", name), f"is the {key} of [sinks.{other}] too: give each its own", key, str(value)
                )


def _top(tables: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in tables.items():
        if key not in TABLES and isinstance(value, dict):
            yield Problem((key,), unknown("table", key, TABLES))
        elif key not in TABLES:
            text = "stands above the first table; a key belongs in one: [service], [storage], [rooms.<name>], ..."
            yield Problem((), _advice((), key) or text, key, value)


def _rooms(rooms: Any) -> Iterator[Problem]:
    if not isinstance(rooms, dict):
        yield Problem((), "must be tables: [rooms.<name>]", "rooms", rooms)
        return
    if not rooms:
        yield Problem((), "there is no room; add [rooms.<name>] with a source, or let `roomtone init` write a file")
    for name, table in rooms.items():
        if name in Room.__struct_fields__ and not (isinstance(table, dict) and "source" in table):
            yield Problem(("rooms",), "a room has a name: write [rooms.desk] instead of [rooms]", name, table)
            continue
        if not isinstance(table, dict):
            text = "must be a table: write [rooms.desk] in single brackets, and its keys below"
            yield Problem(("rooms",), text, name, table)
            continue
        yield from _name(("rooms", name), name)
        yield from _room(name, table)


def _room(name: str, table: dict[str, Any]) -> Iterator[Problem]:
    if "source" not in table:
        for key, inner in table.items():
            if isinstance(inner, dict) and "source" in inner:
                yield Problem(("rooms", name, key), f"a name has no dot: write [rooms.{name}-{key}]")
                return
    for problem in validation.diagnose(table, Room, ("rooms", name), _advice):
        of_device = problem.key == "device" and problem.text.startswith("must be")
        hint = "; `roomtone devices` lists the names" if of_device else ""
        yield msgspec.structs.replace(problem, text=problem.text + hint)


def _gateway(table: Any, path: Path) -> GatewayConfig:
    access: GatewayConfig = _convert(table, GatewayConfig)
    try:
        url = completion.resolve(access.endpoint)
    except ValueError as error:
        raise ConfigError(f"{path}: {Problem(('gateway',), str(error), 'endpoint', access.endpoint)}") from None
    if access.key_file is not None and completion.is_assemblyai(url):
        text = "is for an endpoint of another's: AssemblyAI's takes the key of the speech service"
        raise ConfigError(f"{path}: {Problem(('gateway',), text, 'key_file', access.key_file)}")
    if access.key_file is not None and not completion.may_see_key(url):
        text = "would go over the network in the open: use https://, or no key"
        raise ConfigError(f"{path}: {Problem(('gateway',), text, 'key_file', access.key_file)}")
    return access


def _analysis(prompts: Any, rooms: Any) -> Iterator[Problem]:
    if not isinstance(prompts, dict):
        yield Problem((), "must be tables: [analysis.<name>]", "analysis", prompts)
        return
    for name, table in prompts.items():
        where = ("analysis", name)
        if name in AnalysisPrompt.__struct_fields__ and not isinstance(table, dict):
            yield Problem(("analysis",), "a prompt has a name: write [analysis.summary]", name, table)
            continue
        yield from _name(where, name)
        yield from validation.diagnose(table, AnalysisPrompt, where, _advice)
        if not isinstance(table, dict):
            continue
        prompt = table.get("prompt")
        if isinstance(prompt, str) and "transcript" not in completion.fields(prompt):
            yield Problem(where, "has no {{transcript}}, which becomes what was said", "prompt", prompt)
        for chosen in _texts(table.get("rooms")):
            if isinstance(rooms, dict) and chosen not in rooms:
                yield Problem(where, unknown(f'room "{chosen}"', chosen, rooms), "rooms", table["rooms"])


def _unpriced(tables: Mapping[str, Any], rooms: Mapping[str, Room]) -> Iterator[Problem]:
    """Models whose cost a budget cannot count. Models on this machine are assumed to cost nothing."""
    budget, access = _convert(tables.get("budget", {}), Budget), _convert(tables.get("gateway", {}), GatewayConfig)
    if not budget.limits():
        return
    asked = dict[str, tuple[str, ...]]()
    for name, room in rooms.items():
        if gateway := room.streaming.llm_gateway:
            models = (gateway.model, *(fallback.model for fallback in gateway.fallbacks or ()))
            asked |= dict.fromkeys(models, ("rooms", name, "streaming", "llm_gateway"))
    if not completion.is_loopback(completion.resolve(access.endpoint)):
        for name, table in tables.get("analysis", {}).items():
            asked |= dict.fromkeys((table["model"], *table.get("fallbacks", ())), ("analysis", name))
    for model, where in asked.items():
        if access.price(model) is None:
            yield Problem(where, "has no price in [gateway.prices], so the [budget] does not count it", "model", model)


def _unfilled(tables: Mapping[str, Any], rooms: Mapping[str, Room]) -> Iterator[Problem]:
    """Placeholders without a meaning. They are warnings, for a prompt may contain {{this}} on purpose."""
    texts = list[tuple[tuple[str, ...], str, str, Sequence[str]]]()
    for name, table in tables.get("analysis", {}).items():
        texts += [(("analysis", name), key, table.get(key) or "", IN_PROMPTS) for key in ("prompt", "system")]
    for name, room in rooms.items():
        if gateway := room.streaming.llm_gateway:
            prompts = [*gateway.messages, *(one for each in gateway.fallbacks or () for one in each.messages or ())]
            of_turns = ("rooms", name, "streaming", "llm_gateway")
            texts += [(of_turns, "messages", prompt.content, IN_MESSAGES) for prompt in prompts]
    for where, key, text, known in texts:
        for placeholder in completion.unknown_placeholders(text, known):
            yield Problem(
                where, f"{unknown('placeholder', placeholder, known)}; the model will see it as it is", key, text
            )


def _in_file(name: str, room: Room, problem: parameters.ParameterProblem) -> Problem:
    """A problem of the streaming table as a problem of the file."""
    key = problem.key.rpartition(".")[2]
    table = ("rooms", name, "streaming", *problem.key.split(".")[:-1])
    return Problem(table, problem.text, key, getattr(room.streaming, problem.key, msgspec.UNSET))


def _sinks(sinks: Any, rooms: Any, plugins: Plugins) -> Iterator[Problem]:
    if not isinstance(sinks, dict):
        yield Problem((), "must be tables: [sinks.<name>]", "sinks", sinks)
        return
    for name, table in sinks.items():
        if "kind" in sinks and not isinstance(table, dict):
            yield Problem(("sinks",), "a sink has a name: write [sinks.archive] instead of [sinks]", name, table)
            continue
        yield from _name(("sinks", name), name)
        yield from _sink(("sinks", name), table, rooms, plugins)


def _sink(where: tuple[str, ...], table: Any, rooms: Any, plugins: Plugins) -> Iterator[Problem]:
    if not isinstance(table, dict):
        yield Problem(where[:1], "must be a table with a kind", where[1], table)
        return
    kind = table.get("kind")
    if kind is None:
        yield Problem(where, f"kind is missing; known are {listing(sorted(plugins.kinds))}")
        return
    if not isinstance(kind, str) or kind not in plugins.kinds:
        if not _load_error(table, plugins):
            yield Problem(where, unknown("kind", str(kind), plugins.kinds), "kind", kind)
        return
    try:
        yield from list(validation.diagnose(table, plugins.kinds[kind], where, _advice))
    except Exception as error:  # noqa: BLE001 - the plugin boundary: a Struct may check itself in __post_init__
        yield Problem(where, f"its plugin fails to read this table: {type(error).__name__}: {text_of(error)}")
    for key, known in (("rooms", rooms), ("kinds", events.KINDS)):
        for chosen in _texts(table.get(key)):
            if isinstance(known, dict | tuple) and chosen not in known:
                yield Problem(where, unknown(f'{key[:-1]} "{chosen}"', chosen, known), key, table[key])


def _load_error(table: Any, plugins: Plugins) -> str | None:
    """Why a kind is unknown that a plugin may define which did not load, or None.

    That is not a mistake of the file: a plugin that an update has broken must not keep the recorder from starting.
    """
    kind = table.get("kind") if isinstance(table, dict) else None
    if not isinstance(kind, str) or kind in plugins.kinds or not plugins.problems:
        return None
    for problem in plugins.problems:
        if problem.plugin in (kind, f"roomtone_{kind}"):
            return f"its plugin {problem.plugin} did not load: {problem.text}"
    broken = [problem.plugin for problem in plugins.problems]
    return f"{unknown('kind', kind, plugins.kinds)} (not loaded: {listing(broken)}; see `roomtone sinks`)"


def _name(where: tuple[str, ...], name: str) -> Iterator[Problem]:
    if not validation.NAME.fullmatch(name):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
        better = re.sub(r"[^a-z0-9_-]+", "-", plain).strip("-_")[:64] or {"rooms": "desk"}.get(where[0], "first")
        yield Problem(where, f"a name is at most 64 of a-z, 0-9, _ and -, for instance [{where[0]}.{better}]")


def _with_modules(sinks: dict[str, Sink], plugins: Plugins) -> dict[str, Sink]:
    """Adds a sink for each drop-in file of hooks without a table: its presence in the folder is enough."""
    named = {str(sink.__struct_config__.tag) for sink in sinks.values()} | sinks.keys()
    return sinks | {name: module() for name, module in plugins.modules.items() if name not in named}


_KEYS = frozenset({"api_key", "apikey", "api-key", "assemblyai_api_key", "key", "authorization"})
_NO_KEY_HERE = (
    f"a key does not belong in this file; give it as the systemd credential {secret.CREDENTIAL}, as "
    f"${secret.VARIABLE}, or in a file of its own named by [service] api_key_file"
)


def _advice(table: tuple[str, ...], key: str) -> str | None:
    """Advice about a key that a table does not have: its right name, or the table that it belongs to."""
    text = None
    match table:
        case _ if key in _KEYS:
            text = _NO_KEY_HERE
        case ("rooms", _, "streaming"):
            text = next((problem.text for problem in parameters.explain({key: None}) if problem.key == key), None)
        case ("rooms", name) if key in Streaming.__struct_fields__:
            text = f"belongs in [rooms.{name}.streaming]"
        case ("rooms", _, "source") if key in _SOURCE_KEYS:
            text = f'is a key of kind = "{_SOURCE_KEYS[key]}"'
        case ("rooms", _) if key in _SOURCE_KEYS:
            text = f'belongs in the source, as in source = {{ kind = "{_SOURCE_KEYS[key]}", {key} = ... }}'
        case ("rooms", _) if key == "sample_rate":
            text = "is called rate here"
    return text


_SOURCE_KEYS = {"device": "microphone", "path": "file", "pace": "file", "argv": "command", "restart": "command"}


def _convert(table: Any, wanted: type[Any]) -> Any:
    return msgspec.convert(table, wanted, dec_hook=validation.to_type)


def _texts(value: Any) -> Sequence[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else ()
