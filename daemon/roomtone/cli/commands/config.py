"""`roomtone config`: what is in effect, and the reference of every key."""

from importlib import resources
from pathlib import Path

import click
import tomli_w

from roomtone.cli.config_option import config_option, load
from roomtone.cli.output import say, say_text
from roomtone.cli.unit import environment
from roomtone.config import model as configuration


@click.command(short_help="Print the configuration in effect, or the reference of all keys.")
@config_option
@click.option("--reference", is_flag=True, help="Print the commented reference of every key instead.")
@click.option("--schema", is_flag=True, help="Print the JSON schema for editors instead.")
def command(given: Path | None, *, reference: bool, schema: bool) -> None:
    """Print the configuration in effect as TOML: every default filled in, every secret masked."""
    if reference:
        say_text(reference_text())
        return
    if schema:
        from roomtone.cli.schema import schema_text  # noqa: PLC0415 - late: only this option wants it

        say_text(schema_text())
        return
    config, _ = load(given)
    say(f"# {config.path.absolute()}, as it is in effect")
    tables = configuration.effective(config, environment(config.path))
    say_text(tomli_w.dumps(tables, multiline_strings=True))


def reference_text() -> str:
    """The commented reference, which the wheel carries as roomtone/roomtone.toml, and the repository as config/."""
    packaged = resources.files("roomtone") / "roomtone.toml"
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[4] / "config" / "roomtone.toml").read_text("utf-8")
