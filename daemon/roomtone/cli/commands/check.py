"""`roomtone check`: list all that would run, and find out if it can."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import msgspec
import trio

from roomtone import network, paths
from roomtone.capture.recovery import RateChanged, refuse_other_rate
from roomtone.capture.source_process import SourceEnded, SourceFailed, open_source
from roomtone.capture.sources import Command, File, name_of
from roomtone.cli.commands.engines import describe_speed
from roomtone.cli.commands.sinks import open_for_reading
from roomtone.cli.config_option import Loaded, config_option, load
from roomtone.cli.exit_codes import CommandFailure
from roomtone.cli.output import say, say_json
from roomtone.cli.unit import continue_as_service
from roomtone.config import model as configuration
from roomtone.config.active import ActiveConfig
from roomtone.config.model import Config, Room
from roomtone.delivery.errors import explain
from roomtone.delivery.hooks import open_sink, validate_hooks
from roomtone.journal.keys import room_key
from roomtone.journal.schema import JournalError, explained
from roomtone.llm.client import RequestFailed
from roomtone.llm.settings import LLMSettings
from roomtone.monitoring.prometheus import lacking
from roomtone.protocol import parameters
from roomtone.proxy import NetworkError, find_proxy
from roomtone.secret import Secret
from roomtone.sinks import Context, Sink
from roomtone.speech.recognizer_process import RecognizerUnavailable, open_recognizer
from roomtone.speech.vad import DetectorMissing, open_detector

CHECK_TIMEOUT_S = 15.0
"""Seconds until a source's first samples: a camera may need ten to answer."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part that would run. `what` describes it, `fault` is the reason why it cannot run, and `note` is a remark."""

    subject: str
    what: str
    fault: str | None = None
    note: str | None = None


@click.command(short_help="Show what would run, and if it can.")
@config_option
@click.option("--sources", is_flag=True, help="Open microphones and commands too, and wait for samples.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: ok, and findings [{subject, what, fault, note}]."
)
def command(given: Path | None, *, sources: bool, as_json: bool) -> None:
    """Load the configuration and the plugins, open and close every sink, and show what would run.

    Sources that are files are opened too. Nothing is recorded, no files are left behind, and nothing is sent to
    receivers. While a daemon runs with this state, its sinks are not opened.
    The exit code is 0 if everything would run, 1 if something would not, and 78 if the configuration is wrong.
    """
    continue_as_service(given)
    loaded = load(given)
    findings = trio.run(partial(examine, loaded, os.environ, sources=sources))
    faults = sum(finding.fault is not None for finding in findings)
    if as_json:
        say_json({"ok": not faults, "findings": findings})
    else:
        say(*map(_line, findings))
    if faults:
        raise CommandFailure(f"{faults} of these would not run" if faults > 1 else "one of these would not run")


async def examine(loaded: Loaded, environ: Mapping[str, str], *, sources: bool) -> list[Finding]:
    """Everything that would run, in the order of the configuration. Raises ConfigError for a missing key."""
    config, plugins = loaded
    api_key = configuration.find_key(config, environ)
    state = config.state(environ)
    findings = [Finding("configuration", str(config.path.absolute())), _key(api_key)]
    findings += _journal(config, state / "journal.sqlite")
    for name, room in config.rooms.items():
        findings.append(await _room(name, room, config, sources=sources))
        findings.append(await _streaming(name, room, api_key))
        if room.gate.mode == "speech":
            findings.append(_gate(name, room))
    if any(_endpoint(room, api_key) == parameters.LOCAL for room in config.rooms.values()):
        findings.append(await _recognizer(config))
    elif config.budget.limits() and config.budget.at_cap == "local":
        fault = await recognizer_fault(config)
        fault_and_advice = None if fault is None else f'{fault}; or set [budget] at_cap = "record"'
        findings.append(Finding("recognizer", "on this machine, for when the budget is spent", fault=fault_and_advice))
    findings += await _models(ActiveConfig(config, api_key).llm_settings())
    findings += await _state_and_sinks(config, environ, state)
    if config.service.metrics or config.service.metrics_textfile:
        what = config.service.metrics or config.service.metrics_textfile or ""
        findings.append(Finding("metrics", what, fault=lacking(config.service)))
    findings += [
        Finding(f"plugin {problem.plugin}", "does not load", fault=problem.text) for problem in plugins.problems
    ]
    return [*findings, *(Finding("warning", warning) for warning in config.warnings)]


def _journal(config: Config, path: Path) -> list[Finding]:
    """Conflicts of the journal with this configuration. It is read only, also while a daemon runs with it."""
    if not path.exists():
        return []
    faults = []
    try:
        with explained(path), open_for_reading(path) as database:
            for name, rate in config.rates.items():
                try:
                    refuse_other_rate(name, rate, database.mark(room_key(name, "rate")))
                except RateChanged as changed:
                    faults.append(Finding(f"room {name}", "does not continue its recordings", fault=str(changed)))
    except JournalError as error:
        faults.append(Finding("journal", str(path), fault=str(error)))
    return faults


async def _state_and_sinks(config: Config, environ: Mapping[str, str], state: Path) -> list[Finding]:
    absent = _missing(state)
    try:
        with paths.lock(state):
            opened = [await _sink(name, sink, config, environ, state) for name, sink in config.sinks.items()]
            if absent:
                shutil.rmtree(absent)  # while it is locked: a daemon that starts now tries again
    except paths.StateInUse:
        note = "a daemon runs with this state, so its sinks are not opened here"
        return [
            Finding("state", str(state), note=note),
            *(Finding(f"sink {name}", _kind(sink)) for name, sink in config.sinks.items()),
        ]
    except paths.StateError as error:
        return [Finding("state", str(state), fault=str(error).removeprefix(f"{state}: "))]
    return [Finding("state", str(state)), *opened]


async def _sink(name: str, sink: Sink, config: Config, environ: Mapping[str, str], state: Path) -> Finding:
    folder, own = config.sinks_folder(environ), state / "sinks" / name
    absent = _missing(own)
    outputs = [found for path in _outputs(sink) if (found := _missing(folder / path))]
    context = Context(
        name=name,
        folder=folder,
        state=paths.private_folder(own),
        rates={room: table.rate for room, table in config.rooms.items()},
    )
    try:
        with trio.fail_after(sink.timeout):
            async with open_sink(sink, context) as plugin:
                validate_hooks(plugin, name=name)
    except trio.TooSlowError:
        return Finding(f"sink {name}", _kind(sink), fault=f"opening took longer than {sink.timeout:g} s")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary: opening a sink runs its code
        return Finding(f"sink {name}", _kind(sink), fault=explain(error))
    finally:
        for path in outputs:
            _remove_empty(path)
        if absent:
            shutil.rmtree(absent)
    return Finding(f"sink {name}", _kind(sink))


def _outputs(sink: Sink) -> Iterator[str | Path]:
    """The paths that the sink would write to, as far as its table names them."""
    for key, value in msgspec.structs.asdict(sink).items():
        if isinstance(value, Path) or (isinstance(value, str) and key in {"path", "directory"}):
            yield value


def _missing(path: Path) -> Path | None:
    """The topmost missing folder of this path, itself included; None where the path exists."""
    return next((one for one in (*reversed(path.parents), path) if not os.path.lexists(one)), None)


def _remove_empty(path: Path) -> None:
    """Remove files and folders that opening a sink has created. Those that are no longer empty stay."""
    inside = sorted(path.rglob("*"), reverse=True) if path.is_dir() else []
    for one in [*inside, path]:
        with suppress(OSError):
            if one.is_dir():
                one.rmdir()
            elif not one.stat().st_size:
                one.unlink()


async def _room(name: str, room: Room, config: Config, *, sources: bool) -> Finding:
    what = f"{name_of(room.source)}, {room.rate} Hz, blocks of {room.frame_ms} ms"
    if isinstance(room.source, Command) and shutil.which(room.source.argv[0]) is None:
        return Finding(
            f"room {name}", what, fault=f"the program {room.source.argv[0]} does not exist or is not executable"
        )
    if not sources and not isinstance(room.source, File):
        return Finding(f"room {name}", what, note="not opened; --sources opens it")
    try:
        with trio.fail_after(CHECK_TIMEOUT_S):
            async with open_source(room.source, rate=room.rate, frame=room.frame, folder=config.folder) as process:
                await process.receive()
    except trio.TooSlowError:
        return Finding(f"room {name}", what, fault=f"delivered no samples within {CHECK_TIMEOUT_S:g} s")
    except SourceFailed as error:
        return Finding(f"room {name}", what, fault=str(error))
    except SourceEnded:
        return Finding(f"room {name}", what, note="the source has no samples")
    return Finding(f"room {name}", what, note="samples arrived")


async def _recognizer(config: Config) -> Finding:
    """The configured engine. The daemon replaces one that does not open, and yet the operator must correct it."""
    fault, speed = await recognizer_fault(config), None
    if fault is None:
        try:
            speed = await trio.to_thread.run_sync(describe_speed, config.recognizer_settings())
        except CommandFailure as failure:
            fault = f"{failure.message}; pocketsphinx takes its place"
    return Finding("recognizer", "on this machine", fault=fault, note=speed)


async def recognizer_fault(config: Config | None = None) -> str | None:
    """The reason why the local recognizer cannot run, or None. It is started as in the daemon, and stopped."""
    fault = None
    try:
        async with open_recognizer(config.recognizer_settings() if config else None) as recognizer:
            await recognizer.address()
    except* RecognizerUnavailable as group:
        fault = "; ".join(map(str, group.exceptions))
    return fault


async def _streaming(name: str, room: Room, key: Secret | None) -> Finding:
    endpoint = room.streaming.endpoint or ("assemblyai" if key else parameters.LOCAL)
    chosen = "" if room.streaming.endpoint else ", chosen because there is " + ("a key" if key else "no key")
    gateway = room.streaming.llm_gateway
    asks = f", each turn to {gateway.model}" if gateway else ""
    model = "" if endpoint == parameters.LOCAL else f" ({room.streaming.speech_model})"
    fault, note = None, None
    if (url := _endpoint(room, key)) != parameters.LOCAL:
        fault, note = await network.find_fault(url), _describe_proxy(url)
    return Finding(f"room {name}", f"speech to {endpoint}{model}{chosen}{asks}", fault=fault, note=note)


async def _models(settings: LLMSettings) -> list[Finding]:
    """The language models that are asked outside of sessions: about conversations, and again about turns."""
    asked = [(f"analysis {name}", room, settings.prompts[name].model) for name, room in settings.pairs()]
    for room, facts in settings.rooms.items():
        if settings.access.ask_again and facts.streaming.llm_gateway:
            asked.append((f"room {room}", room, f"{facts.streaming.llm_gateway.model}, again if it has not answered,"))
    return [await _model(subject, room, model, settings) for subject, room, model in asked]


async def _model(subject: str, room: str, model: str, settings: LLMSettings) -> Finding:
    url = settings.url(room)
    try:
        await settings.route(room)
        fault = await network.find_fault(url)
    except RequestFailed as failed:
        fault = str(failed)
    return Finding(subject, f"asks {model} about {room} at {url}", fault=fault, note=_describe_proxy(url))


def _describe_proxy(url: str) -> str | None:
    """The proxy for this address. None without one, or where it cannot be used."""
    try:
        proxy = find_proxy(url)
    except NetworkError:
        return None
    return None if proxy is None else f"through the proxy {proxy.url}"


def _gate(name: str, room: Room) -> Finding:
    what = f"sessions only during speech, closed after {room.gate.close_after:g} s of silence"
    try:
        open_detector(room.rate)
    except DetectorMissing as error:
        return Finding(f"room {name}", what, fault=f"[rooms.{name}.gate] {error}")
    return Finding(f"room {name}", what)


def _endpoint(room: Room, key: Secret | None) -> str:
    return parameters.resolve_endpoint(room.streaming.endpoint, has_key=key is not None)


def _key(key: Secret | None) -> Finding:
    return Finding("key", "there is one" if key else "there is none")


def _kind(sink: Sink) -> str:
    return str(sink.__struct_config__.tag)


def _line(finding: Finding) -> str:
    mark = "FAULT" if finding.fault else "ok   " if finding.subject != "warning" else "note "
    rest = ": ".join(filter(None, (finding.what, finding.fault or finding.note)))
    return f"{mark}  {finding.subject:16}  {rest}"
