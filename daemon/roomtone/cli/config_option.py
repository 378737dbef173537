"""The configuration that a command is about: found, read and checked, with the plugins that it names."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from roomtone import paths
from roomtone.config import loader
from roomtone.config import toml_file as document
from roomtone.config.model import Config
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.plugins import Plugins, load_plugins

Command = TypeVar("Command", bound=Callable[..., Any])

INSIDE = "ROOMTONE_INSIDE"
"""Set in a command that goes on as the service (`cli/unit.py`): the configuration, whatever its options say."""

NOTHING_YET = """\
there is no configuration yet; looked for {places}
`roomtone init` asks a few questions and writes one
`roomtone demo` shows everything at work in half a minute, without one and without an account"""


class Loaded(NamedTuple):
    """A checked configuration and its plugins."""

    config: Config
    plugins: Plugins


def config_option(command: Command) -> Command:
    """`--config FILE`, the same for every command."""
    return click.option(
        "--config",
        "-c",
        "given",
        metavar="FILE",
        type=click.Path(path_type=Path, readable=False),
        help="The configuration. Default: $ROOMTONE_CONFIG, else the first of ./roomtone.toml, "
        "$XDG_CONFIG_HOME/roomtone/roomtone.toml and /etc/roomtone/roomtone.toml.",
    )(command)


def load(given: Path | None, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Raises ConfigError with one line for each problem, or with what to do next where there is no configuration."""
    path = find(given, environ)
    if path is None:
        looked = ", ".join(map(str, paths.configurations(environ, Path.cwd())))
        raise ConfigError(NOTHING_YET.format(places=looked))
    tables = document.read(path)
    plugins = load_plugins(loader.plugin_paths(tables, path))
    return Loaded(loader.decode(tables, path, plugins), plugins)


def find(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration that a command is about, or None where there is none yet.

    Raises ConfigError where the caller may not see whether it is there, and for one that was only found, in this folder
    for instance, and that others could have written: it says what is run, and in whose name.
    """
    if inside := environ.get(INSIDE):
        return Path(inside)
    try:
        path = paths.find_configuration(given, environ, Path.cwd())
    except PermissionError as error:
        raise ConfigError(f"{error.filename}: {document.FORBIDDEN}") from None
    is_named = given is not None or environ.get(paths.VARIABLE)
    if path is not None and not is_named and (fault := paths.foreign_hand(path)):
        raise ConfigError(f"{path.absolute()}: {fault}; where it is meant all the same, name it: --config {path}")
    return path
