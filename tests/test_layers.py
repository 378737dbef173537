"""The layers: imports point one way, from the facts at the bottom to the commands at the top."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DAEMON = Path(__file__).parent.parent / "daemon" / "roomtone"

LAYERS = (
    {
        *(
            "admission",
            "backoff",
            "concurrency",
            "descriptors",
            "durable",
            "events",
            "files",
            "legible",
            "network",
            "paths",
            "proxy",
        ),
        *("secret", "spans", "suggestions", "trusted_clock", "protocol.*"),
    },
    {"sinks", "live", "captions"},
    {"journal.*", "spool.*"},
    {"containment"},
    {"capture.*"},
    {"budget.*"},
    {"llm.*"},
    {"speech.*"},
    {"delivery.*"},
    {"config.*"},
    {"monitoring.*"},
    {"retention.*", "forget.*"},
    {"testing.*", "testing"},
    {"rooms"},
    {"control.*"},
    {"daemon"},
    {"cli", "cli.*", "__main__"},
)
"""Each set may import from the ones above it here, and from itself. Packages by their name and a star."""

ALONE = {
    "capture.source.main": set[str](),
    "recognizer.*": {
        "admission",
        "concurrency",
        "descriptors",
        "events",
        "legible",
        "protocol.*",
        "recognizer.*",
    },
}
"""What runs as a program of its own imports only this; capture.source its own folder's modules that import nothing."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(DAEMON.rglob("*.py")):
        parts = path.relative_to(DAEMON).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield name, path


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that this file imports anywhere, types included."""
    known = {name for name, _ in modules()}
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found = [f"{module}.{alias.name}" for alias in names]
            case _:
                continue
        for name in found:
            parts = name.split(".")
            if parts[0] != "roomtone":
                continue
            while len(parts) > 1 and ".".join(parts[1:]) not in known:
                parts.pop()
            if len(parts) > 1:
                yield ".".join(parts[1:])


def layer(name: str) -> int:
    exact = next((index for index, members in enumerate(LAYERS) if name in members), None)
    package = name.split(".", maxsplit=1)[0] + ".*"
    if exact is not None:
        return exact
    return next((index for index, members in enumerate(LAYERS) if package in members), -1)


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, path in modules() if "." in name or path.name != "__init__.py"]
)
def test_imports_point_left(name: str, path: Path) -> None:
    """No module imports one of a later layer."""
    if name.split(".", maxsplit=1)[0] in {"recognizer", "template"}:  # programs of their own, and other people's
        return
    for other in imported(path):
        if other.split(".")[0] == "recognizer":
            pytest.fail(f"{name} imports {other}, which is a program of its own")
        assert layer(other) <= layer(name), f"{name} imports {other}"


def test_the_recognizer_stands_alone() -> None:
    """The recognizer could be a program of its own: it knows the protocol and nothing of the daemon."""
    allowed = {
        "admission",
        "concurrency",
        "descriptors",
        "events",
        "legible",
        "protocol",
        "protocol.messages",
        "protocol.parameters",
        "protocol.turns",
    }
    for name, path in modules():
        if name.split(".")[0] == "recognizer":
            others = {other for other in imported(path) if other.split(".")[0] != "recognizer"}
            assert others <= allowed, f"{name} imports {others - allowed}"


def test_the_source_imports_the_standard_library() -> None:
    """The capture process starts in a moment and holds little: nothing of ours in it imports a package at its top."""
    waiting, seen = ["capture.source.main"], set[str]()
    paths = dict(modules())
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.parse(paths[name].read_text()).body:
            for module in _top_level(node):
                assert module.split(".")[0] in {*sys.stdlib_module_names, "roomtone"}, f"{name} imports {module}"
        waiting += imported(paths[name])
    assert not seen & {"events", "sinks", "journal", "live"}


def _top_level(node: ast.stmt) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module)):
            return [module]
        case _:
            return []


def test_the_table_is_complete() -> None:
    """Each module has its place in the table, and the table names none that is not there."""
    there = {name for name, _ in modules()}
    named = {name for members in LAYERS for name in members}
    packages = {name.rpartition(".")[0] for name in there}
    assert {name.removesuffix(".*") for name in named} - there - packages == set()
    assert [name for name in there if name.split(".")[0] not in {"recognizer", "template"} and layer(name) < 0] == []
