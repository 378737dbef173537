"""The documents say what the program does: every command, every exit code, every example."""

import re
import tomllib
from pathlib import Path

import pytest

from roomtone import cli
from roomtone.config import decode
from roomtone.plugins import load_plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_commands(name: str) -> None:
    """The README has every command in its table."""
    assert re.search(rf"^\| `roomtone {name}` \|", README, flags=re.MULTILINE)


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
