"""The English of the code and the public documents: the rules of daemon/README.md that a pattern can find.

A number below may only be lowered. It counts the places that are left; the message names them.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

IS_NO = 0
"""Lines with "is no" or "are no" before a noun, in place of "is not a"."""
QUESTION_DOCSTRINGS = 0
"""Docstrings that begin with What, Whether, Who, Whoever or How."""
INDEFINITE_PERSONS = 0
"""Places with somebody, nobody, whoever or "a person" in public text: documents, messages, help."""

ROOT = Path(__file__).parent.parent
CODE = [path for folder in ("daemon", "plugins", ".ci") for path in sorted((ROOT / folder).rglob("*.py"))]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile", "config/roomtone.toml")),
    *(ROOT / folder / "README.md" for folder in ("daemon", "plugins", "systemd")),
    *sorted((ROOT / "config" / "examples").iterdir()),
    *(ROOT / "systemd" / name for name in ("roomtone.catalog", "roomtone.service", "user/roomtone.service")),
]
QUESTION = re.compile(r"(What|Whether|Who|Whoever|How)\b")
NO_NOUN = re.compile(r"(?<![Tt]here )\b(?:is|are) no (?!longer\b|more\b|less\b|other\b)[a-z]")
"""Not "there is no device", which is plain English."""
PERSON = re.compile(r"\b(?:[Ss]omebody|[Nn]obody|[Ww]hoever|[Aa] person)\b")
RULES = "## How we write"
"""The section of daemon/README.md that quotes the words it forbids."""


def place_of(path: Path, line: int, text: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {text.strip()[:80]}"


def list_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a document with their numbers, without the rules themselves."""
    is_rule = False
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        is_rule = line == RULES or (is_rule and not line.startswith("## "))
        if not is_rule:
            yield number, line


def list_docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Every string that stands alone: docstrings of modules, classes, functions, constants and fields."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def list_messages(path: Path) -> Iterator[tuple[int, str]]:
    """Every other string, the parts of formatted ones included: messages, notices and help."""
    tree = ast.parse(path.read_text("utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value


def check(places: list[str], budget: int) -> None:
    assert len(places) <= budget, "\n".join([f"{len(places)} places, {budget} are allowed:", *places])


@pytest.mark.parametrize(
    ("pattern", "bad", "good"),
    [
        (NO_NOUN, "an address that is no address", "there is no device, and it is no longer used"),
        (QUESTION, "Whether it is healthy", "True if it is healthy"),
        (PERSON, "somebody has paused it", "paused by the operator"),
    ],
)
def test_the_patterns(pattern: re.Pattern[str], bad: str, good: str) -> None:
    """Each pattern finds its habit and lets plain English pass, and there are files to look at."""
    assert pattern.search(bad)
    assert not pattern.search(good)
    assert len(CODE) > 100


def test_is_no() -> None:
    """Rule 2: "is not a", never "no" before a noun after *is*."""
    lines = [(path, *line) for path in (*CODE, *DOCUMENTS) for line in list_lines(path)]
    check([place_of(*line) for line in lines if NO_NOUN.search(line[2])], IS_NO)


def test_docstrings() -> None:
    """Rule 5: docstrings state a fact, and do not begin as a question."""
    texts = [(path, *text) for path in CODE for text in list_docstrings(path)]
    check([place_of(*text) for text in texts if QUESTION.match(text[2].lstrip())], QUESTION_DOCSTRINGS)


def test_persons() -> None:
    """Rule 3: user, operator, caller, client."""
    texts = [(path, *line) for path in DOCUMENTS for line in list_lines(path)]
    texts += [(path, *text) for path in CODE for text in list_messages(path)]
    check([place_of(*text) for text in texts if PERSON.search(text[2])], INDEFINITE_PERSONS)
