"""`roomtone sinks new NAME`: write a working plugin to start from."""

import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePath

import click

from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.cli.output import say
from roomtone.delivery.hooks import LIVE_HOOKS
from roomtone.delivery.plugins import RESERVED
from roomtone.events import KINDS

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@click.command(short_help="Write a new sink: a whole project, or one file.")
@click.argument("name")
@click.option("--file", "as_file", is_flag=True, help="One file for the folder `plugins`, instead of a project.")
@click.option("--directory", metavar="FOLDER", type=click.Path(path_type=Path), help="The folder to write to.")
def new(name: str, directory: Path | None, *, as_file: bool) -> None:
    """Write a working sink called NAME to start from: a project with a package, a test and an entry point in a folder
    of that name; or, with --file, a single drop-in file in the folder `plugins`.

    Existing files are not overwritten.
    """
    if not NAME.fullmatch(name) or name in {*KINDS, *LIVE_HOOKS, *RESERVED}:
        raise click.BadParameter(
            f"{name!r} is not a name for a sink; use words of a-z and 0-9 joined by -, as in my-sink", param_hint="NAME"
        )
    module = name.replace("-", "_")
    target = directory or Path("plugins" if as_file else name)
    for path, text in written(name, as_file=as_file):
        _write(target / path, text)
        say(f"wrote {target / path}")
    if as_file:
        say(f'next: a table [sinks.{name}] with kind = "{name}", then roomtone sinks test {name}')
    else:
        # Without a slash, pip would download a foreign package of that name.
        place = target if target.is_absolute() else f"./{target}"
        say(f'next: pip install {place}, and a table with kind = "{name}"; the sink is {target / module}')


def written(name: str, *, as_file: bool) -> Iterator[tuple[Path, str]]:
    """The files of the template with their paths, with my-sink replaced by this name."""
    module = name.replace("-", "_")
    words = {"my-sink": name, "my_sink": module, "MySink": "".join(word.capitalize() for word in module.split("_"))}
    pattern = re.compile("|".join(words))

    def renamed(text: str) -> str:
        return pattern.sub(lambda found: words[found[0]], text)

    for path, text in sorted(_files(resources.files("roomtone") / "template" / "package", PurePath())):
        if not as_file:
            yield Path(renamed(str(path))), renamed(text)
        elif path.name == "__init__.py":
            yield Path(f"{module}.py"), renamed(text)


def _files(folder: Traversable, under: PurePath) -> Iterator[tuple[PurePath, str]]:
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _files(entry, under / entry.name)
        elif entry.is_file():
            yield under / entry.name, entry.read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        path.chmod(0o644)  # whatever the umask: other users must not change code that the daemon runs
    except FileExistsError:
        raise CommandFailure(f"{path}: already exists; choose another name or --directory", Exit.CANTCREAT) from None
    except OSError as error:
        raise CommandFailure(f"{path}: cannot be written: {error.strerror}", Exit.CANTCREAT) from None
