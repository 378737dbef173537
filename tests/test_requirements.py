"""Laws of the files that say, by hash, which release of each package is installed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "daemon" / "requirements"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
USED = [wanted for extra in ("local", "gate", "metrics") for wanted in EXTRAS[extra]]
"""What README.md names for use: its installation by hash brings all of it."""
WANTED = {
    "run": [*PROJECT["dependencies"], *USED, *PYPROJECT["build-system"]["requires"]],
    "dev": [*PROJECT["dependencies"], *(wanted for extra in EXTRAS.values() for wanted in extra)],
}


def read(name: str) -> list[Requirement]:
    """The pins of the file, without their hashes."""
    text = (LOCKS / f"{name}.txt").read_text()
    return [Requirement(line.partition(" \\")[0]) for line in text.splitlines() if not line.startswith(" ")]


@pytest.mark.parametrize("name", ["run", "dev"])
def test_complete(name: str) -> None:
    """Every package that the project asks for is there, in a release that the project accepts on each Python."""
    pins = read(name)
    for wanted in map(Requirement, WANTED[name]):
        found = [pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
        assert found or wanted.name == PROJECT["name"], f"{wanted}: run `make requirements`"
        for pin in found:
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert wanted.specifier.contains(exact.version), f"{wanted}: run `make requirements`"


@pytest.mark.parametrize("name", ["run", "dev"])
def test_hashed(name: str) -> None:
    """Each pin has its hashes, and no registry's address stands in the file."""
    text = (LOCKS / f"{name}.txt").read_text()
    pins = re.split(r"\n(?! )", text.strip())

    assert len(pins) == len(read(name))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", pin) for pin in pins)
    assert "://" not in text
    assert "index" not in text


def test_same() -> None:
    """What runs is what was tested."""
    run, dev = ({f"{pin.name}{pin.specifier}" for pin in read(name)} for name in ("run", "dev"))

    assert run <= dev


def test_root_installs_by_hash_only() -> None:
    """What the README has root install comes with a hash, or is this project, built by what has come with one."""
    text = (ROOT / "README.md").read_text()
    lines = [line.partition("#")[0] for line in text.splitlines() if re.match(r"sudo \S*pip install", line)]

    assert len(lines) == 2
    for line in lines:
        assert "--require-hashes" in line or {"--no-deps", "--no-build-isolation", "."} <= set(line.split())
