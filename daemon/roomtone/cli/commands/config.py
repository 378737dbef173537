"""`roomtone config`: the configuration in effect, and the reference of all keys."""

from importlib import resources
from pathlib import Path

import click
import tomli_w

from roomtone.cli.config_option import config_option, load
from roomtone.cli.output import say, say_text
from roomtone.cli.unit import service_environment
from roomtone.config import model as configuration


@click.command(short_help="Print the configuration in effect, or the reference of all keys.")
@config_option
@click.option("--reference", is_flag=True, help="Print the commented reference of every key instead.")
@click.option("--schema", is_flag=True, help="Print the JSON schema for editors instead.")
def command(given: Path | None, *, reference: bool, schema: bool) -> None:
    """Print the configuration in effect as TOML, with all defaults and with secrets masked."""
    if reference:
        say_text(reference_text())
        return
    if schema:
        from roomtone.cli.schema import schema_text  # noqa: PLC0415 - late: only this option needs it

        say_text(schema_text())
        return
    config, _ = load(given)
    say(f"# {config.path.absolute()}, as in effect")
    tables = configuration.effective(config, service_environment(config.path))
    say_text(tomli_w.dumps(tables, multiline_strings=True))


def reference_text() -> str:
    """The commented reference: roomtone/roomtone.toml in the wheel, config/roomtone.toml in the repository."""
    packaged = resources.files("roomtone") / "roomtone.toml"
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[4] / "config" / "roomtone.toml").read_text("utf-8")
