"""A page of what was said, as Markdown or as plain text. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, tzinfo
from itertools import groupby
from typing import Literal, NamedTuple, TypeAlias

from roomtone import Analysis, Answer, Gap, Turn
from roomtone.captions import one_line

Format: TypeAlias = Literal["markdown", "text"]
Entry: TypeAlias = Turn | Answer | Analysis | Gap
Place: TypeAlias = tuple[int, int, str]

_LEADING = re.compile(r"\]([(:])")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")


class Style(NamedTuple):
    """How pages look: their format, what time of day it is on them, and names for the labels of speakers."""

    format: Format
    zone: tzinfo
    speakers: Mapping[str, str]

    @property
    def suffix(self) -> str:
        return ".md" if self.format == "markdown" else ".txt"

    def time(self, at: datetime) -> str:
        return f"{at.astimezone(self.zone):%H:%M:%S}"


def render(title: str, entries: Iterable[Entry], style: Style) -> bytes:
    """The page: what was said in the order of its saying, whatever order it came in."""
    title = one_line(title)
    heading = f"# {_escaped(title)}" if style.format == "markdown" else title
    return f"{heading}\n".encode() + render_more(ordered(entries), style)


def render_more(entries: Iterable[Entry], style: Style) -> bytes:
    """What these add to the end of a page, in this order."""
    line = _markdown if style.format == "markdown" else _text
    return "".join(f"\n{block}\n" for entry in entries for block in line(entry, style)).encode()


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """By position; an answer below its turn, if that is here."""
    entries = list(entries)
    turns = positions(entries)
    return sorted(entries, key=lambda entry: place(entry, turns))


def positions(entries: Iterable[Entry]) -> dict[tuple[str, int], int]:
    """Where the turns among these were said, by session and order."""
    return {(each.session_id, each.turn_order): each.position for each in entries if isinstance(each, Turn)}


def place(entry: Entry, turns: Mapping[tuple[str, int], int]) -> Place:
    """Where the entry stands among others, `turns` being those that may have been answered."""
    match entry:
        case Answer():
            return turns.get((entry.session_id, entry.turn_order), entry.position), 2, entry.id
        case Analysis():
            return entry.end, 3, entry.id
        case Gap():
            return entry.start, 0, entry.id
        case _:
            return entry.position, 1, entry.id


def paragraphs(turn: Turn) -> Iterator[tuple[str | None, str]]:
    """Who said what: one paragraph, or, where the words of a turn are several people's, one for each change."""
    if turn.speaker is not None or len({word.speaker for word in turn.words}) < 2:
        yield turn.speaker or (turn.words[0].speaker if turn.words else None), turn.text
        return
    for speaker, words in groupby(turn.words, key=lambda word: word.speaker):
        yield speaker, " ".join(word.text for word in words)


def _markdown(entry: Entry, style: Style) -> Iterator[str]:
    match entry:
        case Turn():
            for speaker, text in paragraphs(entry):
                name = f" {_escaped(one_line(style.speakers.get(speaker, speaker)))}:" if speaker else ""
                yield f"**{style.time(entry.at)}{name}** {_escaped(one_line(text))}"
        case Answer():
            yield _indented(_unmarked(entry.text), "> ")
        case Analysis():
            yield _indented(f"**{_escaped(one_line(entry.name))}**\n\n{_unmarked(entry.text)}", "> ")
        case Gap():
            yield f"_{_missing(entry, style)}_"


def _text(entry: Entry, style: Style) -> Iterator[str]:
    match entry:
        case Turn():
            for speaker, text in paragraphs(entry):
                name = f" {one_line(style.speakers.get(speaker, speaker))}:" if speaker else ""
                yield f"{style.time(entry.at)}{name} {one_line(text)}"
        case Answer():
            yield _indented(entry.text, "    ")
        case Analysis():
            yield _indented(f"{one_line(entry.name)}:\n{entry.text}", "    ")
        case Gap():
            yield f"[{_missing(entry, style)}]"


def _missing(gap: Gap, style: Style) -> str:
    return f"{style.time(gap.from_)} to {style.time(gap.until)}: nothing recorded ({gap.cause})"


def _indented(text: str, mark: str) -> str:
    lines = (
        "".join(character for character in line if character.isprintable() or character == "\t")
        for line in text.splitlines()
    )
    return "\n".join((mark + line).rstrip() for line in lines) or mark.rstrip()


def _escaped(text: str) -> str:
    """What was said is no markup, whatever it looks like."""
    return _MARKS.sub(r"\\\1", text)


def _unmarked(text: str) -> str:
    """A language model writes Markdown, which stays; but it gets no HTML, no image and no link onto the page.

    Whoever opens the page would fetch an image, and so report what its address has in it; a link may run a script. Each
    of them needs one of these pairs: `](` inline, and `]:` for what a reference leads to. Rejected: to tell good
    addresses from bad ones, which readers of Markdown read in many ways.
    """
    return _LEADING.sub(r"]\\\1", text.replace("<", "&lt;"))
