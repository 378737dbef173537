"""`roomtone init`: a working configuration, from a few answers or flags."""

import os
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import tomli_w
import trio

from roomtone import paths, secret
from roomtone.capture.source_process import list_devices
from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.cli.output import say
from roomtone.config import loader
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.plugins import Plugins, load_plugins

HEADER = """\
# Written by `roomtone init`. All keys: `roomtone config --reference`.
# Check this file: `roomtone check`.

"""


class InitAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """The answers that a configuration is made of. The source is a TOML table."""

    room: str
    source: dict[str, Any]
    endpoint: str | None
    directory: str
    webhook: str | None


DEFAULTS = InitAnswers(
    room="desk",
    source={"kind": "microphone", "device": "default"},
    endpoint=None,
    directory="recordings",
    webhook=None,
)
_NOWHERE = Path("answer")


@click.command(short_help="Write a configuration for the devices of this machine.")
@click.option("--room", metavar="NAME", help="The room's name: a-z, 0-9, _ and -. Default: desk.")
@click.option("--device", metavar="DEVICE", help="The microphone; see `roomtone devices`. Default: default.")
@click.option(
    "--source-file", metavar="FILE", type=click.Path(path_type=Path), help="Play this WAV or FLAC file instead."
)
@click.option(
    "--endpoint",
    metavar="ENDPOINT",
    help="assemblyai, assemblyai-eu, local, or a ws:// or wss:// address. Default: assemblyai with a key, else local.",
)
@click.option("--directory", metavar="FOLDER", help="The folder for recordings. Default: recordings.")
@click.option("--webhook", metavar="URL", help="Also post every event to this address.")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path(paths.FILE),
    show_default=True,
    help="The file to write.",
)
@click.option("--yes", "-y", is_flag=True, help="Ask no questions: use defaults for missing options.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def command(  # noqa: PLR0917 - click passes them by name
    room: str | None,
    device: str | None,
    source_file: Path | None,
    endpoint: str | None,
    directory: str | None,
    webhook: str | None,
    output: Path,
    *,
    yes: bool,
    force: bool,
) -> None:
    """Write a configuration for the devices of this machine.

    On a terminal, it asks for everything that the options leave open; elsewhere, and with --yes, it uses defaults. Only
    you can read the file. An existing file is not overwritten without --force.
    """
    if device is not None and source_file is not None:
        raise click.UsageError("--device and --source-file exclude each other; give one of them")
    if output.exists() and not force:
        raise CommandFailure(
            f"{output}: already exists; --force overwrites it, --output names another file", Exit.CANTCREAT
        )
    plugins = load_plugins(())
    ask = _Questions(plugins, quiet=yes or not sys.stdin.isatty())
    answers = InitAnswers(
        room=room or ask.text("The room's name", "room", DEFAULTS.room),
        source=_file(source_file, output) if source_file else {"kind": "microphone", "device": device or ask.device()},
        endpoint=endpoint or ask.endpoint(),
        directory=directory or ask.text("Folder for the recordings", "directory", DEFAULTS.directory),
        webhook=webhook or ask.text("Also post every event to this address (empty: no)", "webhook", "") or None,
    )
    tables = compose(answers)
    loader.decode(tables, output, plugins)
    _write(output, HEADER + tomli_w.dumps(tables, multiline_strings=True), force=force)
    say(f"wrote {output}")
    say(f"next: roomtone check{_flag(output)}, then {_next(output)}")


def compose(answers: InitAnswers) -> dict[str, Any]:
    """The tables of a configuration with these answers. Pure."""
    streaming = {} if answers.endpoint is None else {"streaming": {"endpoint": answers.endpoint}}
    sinks: dict[str, Any] = {
        "archive": {"kind": "wav", "directory": answers.directory},
        "log": {"kind": "jsonl", "path": "events.jsonl"},
    }
    if answers.webhook is not None:
        sinks["hook"] = {"kind": "webhook", "url": answers.webhook}
    return {"rooms": {answers.room: {"source": answers.source, **streaming}}, "sinks": sinks}


class _Questions:
    """Questions to the user, each repeated until its answer is valid. If `quiet`, the defaults are the answers."""

    def __init__(self, plugins: Plugins, *, quiet: bool) -> None:
        self._plugins = plugins
        self._quiet = quiet

    def text(self, question: str, field: str, default: str) -> str:
        if self._quiet:
            return default
        shown = bool(default)
        answer: str = click.prompt(question, default, show_default=shown, value_proc=partial(self._valid, field))
        return answer

    def _valid(self, field: str, answer: str) -> str:
        """Return the answer if a configuration with it would load."""
        answer = answer.strip()
        answers = msgspec.structs.replace(DEFAULTS, **{field: answer or None})
        try:
            loader.decode(compose(answers), _NOWHERE, self._plugins)
        except ConfigError as error:
            raise click.BadParameter(str(error).replace(f"{_NOWHERE}: ", "")) from None
        return answer

    def endpoint(self) -> str | None:
        """The endpoint; None chooses at each start, depending on the key."""
        if self._quiet:
            return None
        found = "there is a key" if os.environ.get(secret.VARIABLE) else f"${secret.VARIABLE} is not set"
        say(f"With a key, speech goes to AssemblyAI; without one, to the recognizer on this machine ({found}).")

        def valid(answer: str) -> str | None:
            return None if answer.strip() == "auto" else self._valid("endpoint", answer)

        question = "Endpoint: auto, assemblyai, assemblyai-eu, local, or an address"
        chosen: str | None = click.prompt(question, default="auto", value_proc=valid)
        return chosen

    def device(self) -> str:
        """One of the available microphones, by number or name."""
        if self._quiet:
            return "default"
        found = trio.run(list_devices).devices
        if not found:
            say("No microphone was found; the default one will be used once there is one.")
            return "default"
        width = max(len(name) for name, _ in found)
        for number, (name, label) in enumerate(found, 1):
            say(f"  {number}  {name:{width}}  {label}")

        def valid(answer: str) -> str:
            answer = answer.strip()
            if not answer.isdecimal():
                return answer
            if not 1 <= int(answer) <= len(found):
                raise click.BadParameter(
                    f"{answer} is not in the list; enter a number from 1 to {len(found)}, or a name"
                )
            return found[int(answer) - 1][0]

        device: str = click.prompt("Microphone, by number or name", default="default", value_proc=valid)
        return device


def _file(path: Path, output: Path) -> dict[str, Any]:
    """The source table. The path is relative if the file is below the configuration's folder, else absolute: relative
    paths begin at that folder, not at the user's current one.
    """
    if not path.is_file():
        raise CommandFailure(f"{path}: the file does not exist", Exit.FAILED)
    absolute, folder = path.absolute(), output.absolute().parent
    return {"kind": "file", "path": str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)}


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write the file, never readable by other users: the webhook's address may hold a secret. An overwritten file keeps
    its owner, group and mode except for others: a service may read it as a member of that group.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # a link stays one
        before = path.stat() if force and path.exists() else None
        target = path.with_name(f".{path.name}.new") if force else path
        if force:
            target.unlink(missing_ok=True)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, for its mode
            if before:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) & ~0o007 if before else 0o600)
            file.write(text)
        if force:
            target.replace(path)
    except OSError as error:
        raise CommandFailure(f"{path}: cannot be written: {error.strerror}", Exit.CANTCREAT) from None


def _next(output: Path) -> str:
    """The next command: the machine's configuration is for a service, any other is for `roomtone run`."""
    if output.absolute().is_relative_to("/etc"):
        given = "" if output.absolute() == Path("/etc/roomtone", paths.FILE) else _flag(output)
        return f"roomtone service install{given}"
    return f"roomtone run{_flag(output)}"


def _flag(output: Path) -> str:
    return "" if output == Path(paths.FILE) else f" --config {output}"
