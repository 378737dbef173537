"""The `--config` option, and finding and loading the configuration and its plugins."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from roomtone import paths
from roomtone.config import loader, toml_file
from roomtone.config.model import Config
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.plugins import Plugins, load_plugins

Command = TypeVar("Command", bound=Callable[..., Any])

INSIDE = "ROOMTONE_INSIDE"
"""Set where a command runs as the service (`cli/unit.py`): the path of the configuration. Overrides `--config`."""

NO_CONFIGURATION = """\
no configuration was found; looked for {places}
`roomtone init` asks a few questions and writes one
`roomtone demo` shows everything at work in half a minute, without a configuration or an account"""


class Loaded(NamedTuple):
    """A checked configuration and its plugins."""

    config: Config
    plugins: Plugins


def config_option(command: Command) -> Command:
    """Add `--config FILE`, the same for every command."""
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
    """Find, read and validate the configuration.

    Raises ConfigError with one line for each problem, or with the next step where none was found.
    """
    path = find(given, environ)
    if path is None:
        places = ", ".join(map(str, paths.configurations(environ, Path.cwd())))
        raise ConfigError(NO_CONFIGURATION.format(places=places))
    tables = toml_file.read(path)
    plugins = load_plugins(loader.plugin_paths(tables, path))
    return Loaded(loader.decode(tables, path, plugins), plugins)


def find(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The path of the configuration for this command, or None where there is none yet.

    Raises ConfigError where the caller lacks the rights to look for it. Also raises ConfigError for a file that was not
    named but found, in the current folder for instance, and that other users can write: it chooses programs to run.
    """
    if inside := environ.get(INSIDE):
        return Path(inside)
    try:
        path = paths.find_configuration(given, environ, Path.cwd())
    except PermissionError as error:
        raise ConfigError(f"{error.filename}: {toml_file.FORBIDDEN}") from None
    is_named = given is not None or environ.get(paths.VARIABLE)
    if path is not None and not is_named and (fault := paths.foreign_hand(path)):
        raise ConfigError(f"{path.absolute()}: {fault}; to use it anyway, name it: --config {path}")
    return path
