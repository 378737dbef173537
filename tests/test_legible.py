"""Laws of `roomtone.legible`: text of others does nothing to a terminal."""

import json
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.legible import describe_traceback, legible, legible_json

TEXT = st.text(st.characters())
"""Any text, lone surrogates too."""


def is_harmless(text: str) -> bool:
    return not any(
        unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and letter not in "\t\u200c\u200d"
        for letter in text
    )


@given(TEXT)
def test_nothing_is_obeyed(text: str) -> None:
    """Whatever comes in, one line of UTF-8 comes out that no terminal obeys."""
    shown = legible(text)
    assert is_harmless(shown)
    assert shown.encode().decode() == shown
    assert legible(shown) == shown


@given(TEXT)
def test_lines_stay_lines(text: str) -> None:
    """With `lines` newlines stay, and nothing else begins a line."""
    assert legible(text, lines=True).split("\n") == [legible(line) for line in text.split("\n")]


@pytest.mark.parametrize(
    "text",
    [
        "Füße, ¿qué?, œuvre",
        "שלום עולם",
        "नमस्ते क्\u200dष",
        "👩\u200d👩\u200d👧 ok",
        "dix\u00a0%\u202f!",
        "日本語",
        "a\tb",
    ],
)
def test_text_of_any_language_stays_as_it_is(text: str) -> None:
    """The joiners that emoji and scripts are written with stay, and so do the spaces of typography."""
    assert legible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;cm0gLXJm\x07", r"\u001b]52;c;cm0gLXJm\u0007"),
        ("\x1b]0;title\x1b\\", r"\u001b]0;title\u001b\ "[:-1]),
        ("\x1b[2J", r"\u001b[2J"),
        ("\x9b2J", r"\u009b2J"),
        ("a\u202eb\u2066c\u2069", r"a\u202eb\u2066c\u2069"),
        ("one\nFault\r\n", r"one\nFault\r\n"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_written_out(text: str, shown: str) -> None:
    assert legible(text) == shown


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_json_is_the_same_value(value: object) -> None:
    """JSON stays valid, and says the same."""
    document = msgspec.json.encode(value).decode()
    assert json.loads(legible_json(document)) == value
    assert is_harmless(legible_json(document))


def test_a_traceback_without_the_texts() -> None:
    """A traceback names places and classes, of causes and of groups too, and quotes nothing."""

    def fail() -> None:
        try:
            int("the words that were said")
        except ValueError as error:
            error.add_note("and more words")
            raise RuntimeError("so were these words") from error

    def fail_together() -> None:
        try:
            fail()
        except RuntimeError as error:
            raise ExceptionGroup("words of a group", [error, KeyError("a word")]) from None

    with pytest.raises(ExceptionGroup) as caught:
        fail_together()
    text = describe_traceback(caught.value)
    assert [name in text for name in ("ValueError", "RuntimeError", "KeyError", "ExceptionGroup")] == [True] * 4
    assert "line " in text
    assert "test_legible.py" in text
    shown = "\n".join(line for line in text.split("\n") if "raise " not in line and "int(" not in line)
    assert "word" not in shown  # the lines of code aside, which are no text of an error
