"""The `roomtone` command. Each subcommand is a module of its own, imported only when it is called."""

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from roomtone import descriptors
from roomtone.suggestions import nearest

COMMANDS = (
    "run",
    "demo",
    "init",
    "check",
    "devices",
    "engines",
    "service",
    "status",
    "health",
    "tail",
    "mute",
    "unmute",
    "rotate",
    "forget",
    "reload",
    "sinks",
    "coverage",
    "transcribe",
    "analyze",
    "config",
    "events",
)


class CommandGroup(click.Group):
    """The commands in the order in which a new user needs them; each is `command` of its module in `commands/`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"roomtone.cli.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            ctx.fail(f"No such command '{args[0]}'." + (f" Did you mean '{near}'?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from roomtone.cli.exit_codes import contain_known_errors  # noqa: PLC0415 - late: `--version` does not need it

        with contain_known_errors():
            return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from roomtone.cli.exit_codes import MEANINGS  # noqa: PLC0415 - late, as above

        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code.value), meaning) for code, meaning in MEANINGS.items()])


@click.command(
    "roomtone", cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="roomtone", prog_name="roomtone")
def group() -> None:
    """An always-on recorder for rooms and desks. Every sample is accounted for, and every event is delivered."""


def main() -> NoReturn:
    """The console script."""
    descriptors.prepare()
    try:
        code = _run()
    finally:
        descriptors.settle_output()
    sys.exit(code)


def _run() -> Any:
    _import_structlog_without_rich()
    from roomtone.cli.output import install_traceback_hooks  # noqa: PLC0415 - late, as above
    from roomtone.legible import legible  # noqa: PLC0415 - late, as above
    from roomtone.monitoring import logs  # noqa: PLC0415 - after the line above, which makes the import of structlog lean

    logs.configure("warning", sys.stderr)
    install_traceback_hooks()
    try:
        return group.main(prog_name="roomtone", standalone_mode=False)
    except click.ClickException as error:
        text = legible(error.message, lines=True)  # it quotes the command line
        error.message = text  # type: ignore[misc]  # final for subclasses
        with suppress(OSError):  # standard error is closed; the exit code remains
            error.show()
        return error.exit_code
    except OSError as error:  # from printing `--help`; those of commands are contained
        with suppress(OSError):
            click.echo(f"roomtone: {error}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        with suppress(OSError):
            click.echo(err=True)
        return 130


def _import_structlog_without_rich() -> None:
    """Import structlog without rich, which it would load for tracebacks that are not used here: 6 MB of memory."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # importing a module that is None raises ImportError
    try:
        import_module("structlog")
    finally:
        del sys.modules["rich"]
