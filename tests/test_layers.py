"""The layers: imports point down only, from the commands to the facts that know nothing of anything else.

The table has packages and the modules that stand beside them. Inside a package the tree of daemon/README.md is enough.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DAEMON = ROOT / "daemon" / "roomtone"
MAX_ARGUMENTS = 7
"""Arguments of a constructor, `self` not counted."""

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"admission", "backoff", "captions", "concurrency", "descriptors", "events", "files", "legible"})
    | {"protocol", "secret", "spans", "suggestions", "trusted_clock"},
    frozenset({"durable", "live", "paths", "proxy", "spool"}),
    frozenset({"journal", "network", "sinks"}),
    frozenset({"budget", "capture", "containment", "delivery"}),
    frozenset({"llm"}),
    frozenset({"speech"}),
    frozenset({"config"}),
    frozenset({"forget", "monitoring", "retention"}),
    frozenset({"rooms", "testing"}),
    frozenset({"control"}),
    frozenset({"daemon"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
"""Each package may import those of the lines above its own, and itself: two of one line do not know each other."""

ALONE = {
    "recognizer": frozenset({"admission", "concurrency", "descriptors", "events", "legible", "protocol"}),
    "template": frozenset({"testing"}),
}
"""Programs of their own, with the packages that they may import. No package imports them."""


def modules() -> dict[str, Path]:
    """Each module below `roomtone`, by its dotted name, and each package by that of its `__init__`."""
    found = {}
    for path in sorted(DAEMON.rglob("*.py")):
        parts = path.relative_to(DAEMON).with_suffix("").parts
        if name := ".".join(part for part in parts if part != "__init__"):
            found[name] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that this file imports anywhere, types included."""
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
            while len(parts) > 1 and ".".join(parts[1:]) not in MODULES:
                parts.pop()
            if parts[0] == "roomtone" and len(parts) > 1:
                yield ".".join(parts[1:])


def package_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def allowed(package: str) -> frozenset[str]:
    """The packages that this one may import."""
    if package in ALONE:
        return ALONE[package]
    place = next(index for index, line in enumerate(LAYERS) if package in line)
    return frozenset().union(*LAYERS[:place])


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    """A module imports its own package, and packages of the lines above."""
    others = {package_of(other) for other in imported(MODULES[name])} - {package_of(name)}
    assert others <= allowed(package_of(name))


def test_the_table_has_each_package_once() -> None:
    """Packages form the table, all of them, each in one line; none that is not there, and no module inside of one."""
    named = [name for line in LAYERS for name in line] + list(ALONE)
    assert sorted(named) == sorted({package_of(name) for name in MODULES})


def test_no_package_could_stand_higher() -> None:
    """Each package imports one of the line above its own: the table shows how far up each one really is."""
    known = defaultdict[str, set[str]](set)
    for name, path in MODULES.items():
        known[package_of(name)].update(map(package_of, imported(path)))
    loose = {name for above, line in pairwise(LAYERS) for name in line if known[name].isdisjoint(above)}
    assert loose == set()


def test_the_source_imports_the_standard_library() -> None:
    """The capture process starts in a moment and holds little: nothing of ours in it imports a package at its top."""
    waiting, seen = ["capture.source.main"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.parse(MODULES[name].read_text()).body:
            for module in _top_level(node):
                assert module.split(".")[0] in {*sys.stdlib_module_names, "roomtone"}, f"{name} imports {module}"
        waiting += imported(MODULES[name])
    assert not {package_of(name) for name in seen} & {"events", "sinks", "journal", "live"}


def _top_level(node: ast.stmt) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module)):
            return [module]
        case _:
            return []


def product_classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Each class of the daemon and of the plugins in this repository, with its file."""
    for folder in ("daemon", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    yield str(path.relative_to(ROOT)), node


def test_no_class_name_is_defined_twice() -> None:
    """A name that is read in an error or a stack leads to one class."""
    places = defaultdict[str, list[str]](list)
    for place, node in product_classes():
        places[node.name].append(place)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_constructors_take_few_things() -> None:
    """A constructor of more than seven arguments has too many tasks. Structs and named tuples, which are data, have no
    constructor of their own.
    """
    large = {}
    for place, node in product_classes():
        for function in node.body:
            if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                given = function.args
                count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs) - 1
                if count > MAX_ARGUMENTS:
                    large[f"{place}: {node.name}"] = count
    assert large == {}
