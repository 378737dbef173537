"""Finds the sinks that plugins bring: installed packages (entry points of the group `roomtone`) and drop-in files.

Nothing raises because of a plugin. Each is loaded for itself, what is wrong with one is a `Problem` that says where and
what to do, and the rest works.
"""

import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from stat import S_ISDIR, S_ISVTX, S_IWGRP, S_IWOTH
from types import ModuleType
from typing import Any, Union

import msgspec

from roomtone.delivery.hooks import Hook, InvalidHook, find_hooks, place_of
from roomtone.legible import text_of, well_formed
from roomtone.paths import foreign_hand
from roomtone.sinks import Hooks, Module, Registry, Sink

GROUP = "roomtone"

RESERVED = frozenset({"Sink", "module"})
"""The kinds of the classes that others derive from."""

_PREFIX = "roomtone_drop_in_"
_SOURCE = "__roomtone_source__"


class PluginProblem(msgspec.Struct, frozen=True):
    """What is wrong with a plugin: its name, `what` in one stable word, and a text for the person who can mend it.

    `is_file`: it is a drop-in file, which needs no table to be a sink.
    """

    plugin: str
    what: str
    text: str
    is_file: bool = False


class Plugins(msgspec.Struct, frozen=True):
    """What was found: every kind of sink with its class, which of them are drop-in files of hooks, and the problems."""

    kinds: dict[str, type[Sink]]
    modules: dict[str, type[Module]]
    problems: tuple[PluginProblem, ...]


def load_plugins(paths: Sequence[Path] = ()) -> Plugins:
    """Load the installed plugins, then the drop-in files: each path is a file, or a folder of files.

    The first who announces a kind has it, and ours come first. Raises nothing because of a plugin.
    """
    shelf = _Discovery()
    for entry in sorted(
        entry_points(group=GROUP), key=lambda entry: (_owner(entry) != GROUP, _owner(entry), entry.name)
    ):
        shelf.add_installed(entry)
    shelf.is_at_files = True
    for path in paths:
        for file in shelf.files(path):
            shelf.add_file(file)
    return Plugins(shelf.kinds, shelf.modules, tuple(shelf.problems))


class _Discovery:
    """What has been found so far."""

    def __init__(self) -> None:
        self.kinds: dict[str, type[Sink]] = {}
        self.modules: dict[str, type[Module]] = {}
        self.problems: list[PluginProblem] = []
        self.is_at_files = False

    def add_installed(self, entry: EntryPoint) -> None:
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary: importing runs its code
            remedy = f"repair or remove the package {_owner(entry)}"
            self._note(entry.name, "import", f"{_explain(error)}; {remedy}")
            return
        hooks = self._hooks(plugin, entry.name)
        if hooks is None:
            return
        if "register_sinks" not in hooks:
            self._note(
                entry.name,
                "hooks",
                f"{place_of(plugin)}: a package announces its sinks with a function register_sinks marked with "
                "@hookimpl; hooks of events at the level of the module are for drop-in files",
            )
            return
        self._register(entry.name, hooks["register_sinks"])

    def add_file(self, file: Path) -> None:
        name = file.stem
        module = self._executed(file)
        hooks = self._hooks(module, name) if module else None
        if module is None or hooks is None:
            return
        if not hooks:
            self._note(name, "hooks", f"{file}: there is no function marked with @hookimpl, so it does nothing")
            return
        if "register_sinks" in hooks:
            self._register(name, hooks.pop("register_sinks"))
        if hooks:
            self._add_module(name, module, file, has_audio="audio" in hooks)

    def files(self, path: Path) -> Iterator[Path]:
        """The plugin files that a path means, by name; those that begin with a dot or an underscore are left alone."""
        try:
            if not path.is_dir():
                yield path
                return
            found = sorted(path.glob("*.py"))
        except OSError as error:
            self._note(path.stem, "file", f"{path}: cannot be read: {error.strerror}; see who may read it")
            return
        yield from (file for file in found if not file.name.startswith((".", "_")))

    def _executed(self, file: Path) -> ModuleType | None:
        try:
            source = self._source(file)
        except OSError as error:
            self._note(
                file.stem, "file", f"{file}: cannot be read: {error.strerror}; see that it is there, or leave it out"
            )
            return None
        if source is None:
            return None
        known = sys.modules.get(f"{_PREFIX}{file.stem}")
        if known is not None and known.__dict__.get(_SOURCE) == (str(file), source):
            return known  # as an import would: what has not changed is the same module, and so the same sink
        module = ModuleType(f"{_PREFIX}{file.stem}")
        module.__file__ = str(file)
        # msgspec and dataclasses look up the annotations of a class in its module, and find modules here only.
        sys.modules[module.__name__] = module
        try:
            # Not by an import: that would write __pycache__ beside the file, and run a stale one.
            exec(compile(source, str(file), "exec"), module.__dict__)  # noqa: S102 - running it is what it is there for
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary
            self._note(file.stem, "import", f"{_explain(error, file)}; repair the file, or take it out of the folder")
            return None
        module.__dict__[_SOURCE] = str(file), source
        return module

    def _source(self, file: Path) -> bytes | None:
        """The file's text, if nobody but root and we could have written it: it runs with all that the daemon may do.

        Naming the configuration changes nothing of that.
        """
        real = file.resolve()
        with real.open("rb") as opened:
            # The open file is asked, not the path, so that what was checked is what is read.
            for place, status in ((real, os.fstat(opened.fileno())), (real.parent, real.parent.stat())):
                if fault := _unsafe(place, status):
                    self._note(file.stem, "unsafe", fault)
                    return None
            if hand := foreign_hand(file):
                text = f"{hand}, who could run code as the daemon so; move {file}, or give what is above it to root"
                self._note(file.stem, "unsafe", text)
                return None
            return opened.read()

    def _hooks(self, plugin: Any, name: str) -> dict[str, Hook] | None:
        try:
            return find_hooks(plugin, [Registry, Hooks], name=name)
        except InvalidHook as misfit:
            self._note(name, "hooks", str(misfit))
        except Exception as error:  # noqa: BLE001 - the plugin boundary: an object of theirs is looked at
            self._note(name, "hooks", _explain(error))
        return None

    def _register(self, name: str, register_sinks: Hook) -> None:
        where = f"{place_of(register_sinks.function)}: register_sinks"
        if register_sinks.is_async:
            self._note(name, "sinks", f"{where} is asynchronous; write it as `def`")
            return
        try:
            classes: Iterable[Any] = tuple(register_sinks.function())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary
            self._note(name, "sinks", f"{where} failed: {_explain(error)}")
            return
        for wrong in classes:
            if fault := self._fault(wrong):
                self._note(name, "sinks", f"{where} gave {_called(wrong)}: {fault}")
            else:
                self.kinds[_kind(wrong)] = wrong

    def _add_module(self, stem: str, module: ModuleType, file: Path, *, has_audio: bool) -> None:
        kind: Any = msgspec.defstruct(
            "DropIn",
            [],
            bases=(Module,),
            module=module.__name__,
            namespace={"module": module, "audio": has_audio, "__doc__": module.__doc__},
            tag=stem,
            frozen=True,
            kw_only=True,
        )
        if fault := self._fault(kind):
            self._note(stem, "sinks", f"{file}: {fault}; give the file another name")
            return
        self.kinds[stem] = self.modules[stem] = kind

    def _fault(self, kind: Any) -> str | None:
        """Why this class cannot be a kind of sink beside those that are there."""
        if not (isinstance(kind, type) and issubclass(kind, Sink)):
            return "it is not a class derived from roomtone.Sink; return the classes themselves"
        if fault := _misshapen(kind):
            return fault
        if _kind(kind) in self.kinds:
            owner = self.kinds[_kind(kind)].__module__.removeprefix(_PREFIX)
            return f'the kind "{_kind(kind)}" is taken by {owner}; give it another tag'
        try:
            msgspec.json.Decoder(Union[(*self.kinds.values(), kind)])
        except Exception as error:  # noqa: BLE001 - the plugin boundary: evaluating annotations runs their code
            return f"its fields cannot be read from a table: {_explain(error)}"
        return None

    def _note(self, plugin: str, what: str, text: str) -> None:
        self.problems.append(PluginProblem(plugin, what, text, self.is_at_files))


def _misshapen(kind: type[Sink]) -> str | None:
    config = kind.__struct_config__
    if not config.frozen:
        return "it is not frozen; leave out frozen=False"
    if not isinstance(config.tag, str) or config.tag_field != "kind" or config.array_like:
        return 'its kind must be text under the key kind; give it tag="mykind" and leave tag_field and array_like'
    if config.tag in RESERVED:
        return f'the kind "{config.tag}" is reserved; give it another tag'
    return None


def _unsafe(place: Path, status: os.stat_result) -> str | None:
    """Why others could change what is there. In a folder with the sticky bit they cannot replace what is not theirs."""
    if status.st_uid not in {0, os.geteuid()}:
        return (
            f"{place} belongs to user {status.st_uid}, who could change what runs as the daemon; "
            f"give it to root (chown root {place})"
        )
    is_guarded = S_ISDIR(status.st_mode) and status.st_mode & S_ISVTX
    if status.st_mode & (S_IWGRP | S_IWOTH) and not is_guarded:
        return f"{place} may be changed by others, who could run code as the daemon so; forbid it (chmod go-w {place})"
    return None


def _explain(error: BaseException, file: Path | None = None) -> str:
    """What was raised, and where: in that file if it was there, else in the innermost place."""
    if isinstance(error, SyntaxError):
        return text_of(f"{error.filename}:{error.lineno}: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    place = next(
        (frame for frame in reversed(frames) if file and frame.filename == str(file)), frames[-1] if frames else None
    )
    text = " ".join(text_of(error).split())
    return well_formed(f"{f'{place.filename}:{place.lineno}: ' if place else ''}{type(error).__name__}: {text}")


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _kind(sink: type[Sink]) -> str:
    return str(sink.__struct_config__.tag)


def _called(thing: object) -> str:
    return thing.__qualname__ if isinstance(thing, type) else repr(thing)[:80]
