"""`roomtone engines`: the engines of the recognizer on this machine, and how they do on your own audio."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import soundfile
import soxr

from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure
from roomtone.cli.output import say, say_json
from roomtone.config.toml_file import ConfigError
from roomtone.legible import legible
from roomtone.speech.recognizer_process import RecognizerConfig

TRIAL = (sys.executable, "-P", "-m", "roomtone.recognizer.trial")
RATE = 16_000
CHECK_S = 5


@click.group(invoke_without_command=True, short_help="List the engines of the recognizer, or try one.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: engines [{name, package, used, info, error}].")
@click.pass_context
def command(context: click.Context, given: Path | None, *, as_json: bool) -> None:
    """List the engines of the recognizer on this machine: which one rooms use, its model, size and license.

    Each is opened once. Nothing is downloaded.
    """
    context.obj = _configured(given)
    if context.invoked_subcommand is not None:
        return
    engines = list(_ask(msgspec.structs.asdict(context.obj)))
    if as_json:
        say_json({"engines": engines})
    else:
        say(*map(_row, engines))


@command.command("test", short_help="Try an engine on a recording.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--engine", help="Another engine than the configured one.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file with what is said.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with the words and the figures.")
@click.pass_obj
def try_engine(config: RecognizerConfig, file: Path, engine: str | None, text: Path | None, *, as_json: bool) -> None:
    """Let the engine transcribe FILE, and print its words, word error rate, processor time, latency and memory."""
    request = msgspec.structs.asdict(config if engine in {None, config.engine} else RecognizerConfig(engine=engine))
    request["text"] = text.read_text("utf-8") if text else None
    with tempfile.TemporaryDirectory() as folder:
        request["audio"] = str(Path(folder, "audio.raw"))
        Path(request["audio"]).write_bytes(_audio_of(file))
        result: dict[str, Any] = {}
        with click.progressbar(length=100, label=file.name, file=sys.stderr) as bar:
            for line in _ask(request):
                result = line
                bar.update(round(100 * line.get("done", 1)) - bar.pos)
    if error := result.get("error"):
        raise CommandFailure(legible(error))
    if as_json:
        say_json(result)
    else:
        say(*_report(result))


def describe_speed(config: RecognizerConfig) -> str:
    """Engine, model and real-time factor, from five seconds of the demo. Raises CommandFailure if it does not open."""
    request = msgspec.structs.asdict(config)
    with tempfile.TemporaryDirectory() as folder, as_file(files("roomtone") / "demo" / "meeting.flac") as demo:
        request["audio"] = str(Path(folder, "audio.raw"))
        Path(request["audio"]).write_bytes(_audio_of(demo)[: 2 * RATE * CHECK_S])
        *_, result = _ask(request)
    if error := result.get("error"):
        raise CommandFailure(legible(error))
    model = f"{legible(result['info']['engine'])} {legible(result['info']['model'])}"
    factor = result["cpu_per_second"]
    slow = "" if factor < 1 else ": too slow to follow a conversation; choose another [recognizer] engine"
    return f"{model} takes {factor:.2f} s of processor time for a second of speech{slow}"


def _configured(given: Path | None) -> RecognizerConfig:
    """The table of the configuration; where there is no configuration yet, the defaults."""
    try:
        return load(given, os.environ).config.recognizer_settings()
    except (ConfigError, click.ClickException):
        if given is not None:
            raise
        return RecognizerConfig()


def _ask(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the recognizer's trial program."""
    with subprocess.Popen(TRIAL, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trial:  # noqa: S603 - our own
        if trial.stdin is None or trial.stdout is None:  # for mypy: both are pipes
            return
        with trial.stdin:
            trial.stdin.write(msgspec.json.encode(request) + b"\n")
        answer: dict[str, Any] = {}
        for line in trial.stdout:
            answer = msgspec.json.decode(line)
            yield answer
    if trial.returncode and "error" not in answer:
        raise CommandFailure(f"the engine's process ended with exit status {trial.returncode}")


def _audio_of(file: Path) -> bytes:
    """The recording as 16-bit mono at RATE."""
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise CommandFailure(f"{file}: {error.error_string}; give a WAV or FLAC file") from error
    mono = soxr.resample(samples.mean(axis=1), rate, RATE)
    return bytes((np.clip(mono, -1, 1) * 32_767).astype("<i2").tobytes())


def _row(engine: dict[str, Any]) -> str:
    mark = "*" if engine["used"] else " "
    if error := engine.get("error"):
        return f"{mark} {legible(engine['name'])}: {legible(error)}"
    info = engine["info"]
    size = f", {info['size'] / 1e6:.0f} MB" if info["size"] else ""
    license_ = f", license {legible(info['license'])}" if info["license"] else ""
    return f"{mark} {legible(engine['name'])}: model {legible(info['model'])}{size}{license_}"


def _report(result: dict[str, Any]) -> Iterator[str]:
    yield from map(legible, result["turns"])
    yield ""
    yield f"engine             {legible(result['info']['engine'])}, model {legible(result['info']['model'])}"
    if result["word_error_rate"] is not None:
        yield f"word error rate    {result['word_error_rate']:.3f}"
    yield f"processor time     {result['cpu_per_second']:.2f} s for each second of audio"
    if result["latency"] is not None:
        yield f"last word to final {result['latency']:.2f} s in the median"
    yield f"memory             {result['memory_mb']:.0f} MB"
