"""The documents say what the program does: every command, key, event, make target, module and dependency."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest

from roomtone import cli, events
from roomtone.cli.schema import schema_text
from roomtone.config.loader import decode
from roomtone.delivery.plugins import load_plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HOUSE = (ROOT / "daemon" / "README.md").read_text()
GUIDE = (ROOT / "plugins" / "README.md").read_text()
REFERENCE = (ROOT / "config" / "roomtone.toml").read_text()
PACKAGE = ROOT / "daemon" / "roomtone"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def list_commands(group: click.Group, path: str = "") -> Iterator[str]:
    """Every command and subcommand, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            # `sinks` is a command too, `service` only leads to some.
            yield from [f"{path}{name}"] if command.invoke_without_command else []
            yield from list_commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}"


def list_keys() -> Iterator[tuple[str, str]]:
    """Every key of every table of the configuration, with the Struct that has it."""
    for struct, shape in json.loads(schema_text())["$defs"].items():
        yield from ((struct, key) for key in shape.get("properties", {}))


def list_fields() -> Iterator[tuple[str, str]]:
    """Every field of every kind of event that is this kind's own."""
    common = {field.encode_name for field in msgspec.structs.fields(events.Event)}
    for kind, struct in KINDS.items():
        yield from (
            (kind, field.encode_name) for field in msgspec.structs.fields(struct) if field.encode_name not in common
        )


KINDS = {str(struct.__struct_config__.tag): struct for struct in get_args(events.Durable) + get_args(events.Live)}


def read_tree() -> Iterator[str]:
    """The modules and folders that the tree of the daemon's README names, as paths without their endings."""
    (tree,) = re.findall(r"```\nroomtone/\n(.*?)```", HOUSE, flags=re.DOTALL)
    folders: list[str] = []
    for line in tree.splitlines():
        indent, names = re.fullmatch(r"( +)([a-z_/]+(?:, [a-z_]+)*)(?: .*)?", line).groups()  # type: ignore[union-attr]
        del folders[len(indent) // 2 - 1 :]
        if names.endswith("/"):
            folders.append(names)
            yield "".join(folders)
        else:
            yield from ("".join(folders) + name for name in names.split(", "))


def describe(packages: Iterable[str]) -> Iterator[str]:
    """The names of requirements, without versions, extras and this project itself."""
    names = (re.match(r"[\w-]+", package) for package in packages)
    yield from (name[0] for name in names if name and name[0] != PROJECT["name"])


@pytest.mark.parametrize("name", [*list_commands(cli.group)])
def test_commands(name: str) -> None:
    """The README has every command and subcommand in its table."""
    cells = re.findall(r"^\| (`roomtone .*?) \|", README, flags=re.MULTILINE)

    assert name in {word.removeprefix("roomtone ") for cell in cells for word in re.findall(r"`(.*?)`", cell)}


def test_no_other_commands() -> None:
    """Every command that a document tells people to type is one."""
    known = {command.split()[0] for command in list_commands(cli.group)}
    systemd = (ROOT / "systemd" / "README.md").read_text()
    typed = re.findall(
        r"(?:`|^ *|bin/)roomtone ([a-z]+)\b", README + HOUSE + GUIDE + systemd + REFERENCE, flags=re.MULTILINE
    )

    assert set(typed) <= known


@pytest.mark.parametrize(("struct", "key"), [*list_keys()])
def test_keys(struct: str, key: str) -> None:
    """The reference of the configuration has every key, as one that is set, and every table."""
    assert re.search(rf"\b{re.escape(key)} = |^#?\[.*\b{re.escape(key)}\b.*\]$", REFERENCE, flags=re.MULTILINE), struct


@pytest.mark.parametrize("kind", [*KINDS])
def test_events(kind: str) -> None:
    """The guide for plugins has every kind of event, as a hook and with its fields."""
    assert len(re.findall(rf"^\| `{kind}` \|", GUIDE, flags=re.MULTILINE)) == len(("hook", "fields"))


@pytest.mark.parametrize(("kind", "field"), [*list_fields()])
def test_fields(kind: str, field: str) -> None:
    """The guide for plugins has every field of every kind of event in the row of that kind."""
    rows = re.findall(rf"^\| `{kind}` \|.*$", GUIDE, flags=re.MULTILINE)

    assert any(f"`{field}`" in row for row in rows)


@pytest.mark.parametrize("target", re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
def test_targets(target: str) -> None:
    """The README has every target of make; `make` alone tells the others."""
    assert target == "help" or f"make {target}" in README


def test_tree() -> None:
    """The tree of the daemon's README has every module and no other; of the commands, the folder is enough."""
    modules = {
        path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")
    }
    folders = {
        f"{path.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("*") if path.is_dir() and "__" not in path.name
    }
    whole = {"cli/", "testing/", "template/", "demo/"}
    named = {str(module) for module in modules if f"{module.parts[0]}/" not in whole}
    named |= {folder for folder in folders if folder.count("/") == 1 or folder.split("/")[0] + "/" not in whole}

    assert sorted(read_tree()) == sorted(named)


@pytest.mark.parametrize(
    "package",
    sorted({*describe(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))}),
)
def test_parts(package: str) -> None:
    """The daemon's README says of every dependency why it is there."""
    rows = re.findall(r"^\| (.*?) \|", HOUSE.partition("## Parts")[2], flags=re.MULTILINE)

    assert any(package in re.findall(r"[\w-]+", row) for row in rows)


def test_configuration() -> None:
    """The README's configuration is one: its TOML blocks, all of them in one file, load."""
    blocks = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)

    config = decode(tomllib.loads("\n".join(blocks)), ROOT / "README.md", load_plugins(()))

    assert config.rooms
    assert config.sinks


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links(link: str) -> None:
    """What the README links to is there."""
    assert (ROOT / link).exists()
