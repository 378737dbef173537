"""A page of speech, as Markdown or as plain text. Pure."""

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
    """The style of pages: their format, their time zone, and names for the labels of speakers."""

    format: Format
    zone: tzinfo
    speakers: Mapping[str, str]

    @property
    def suffix(self) -> str:
        return ".md" if self.format == "markdown" else ".txt"

    def time(self, at: datetime) -> str:
        return f"{at.astimezone(self.zone):%H:%M:%S}"


def render(title: str, entries: Iterable[Entry], style: Style) -> bytes:
    """The page: the entries in the order of speech, not of delivery."""
    title = one_line(title)
    heading = f"# {_escaped(title)}" if style.format == "markdown" else title
    return f"{heading}\n".encode() + render_more(ordered(entries), style)


def render_more(entries: Iterable[Entry], style: Style) -> bytes:
    """The text of these entries, in this order, for the end of a page."""
    line = _markdown if style.format == "markdown" else _text
    return "".join(f"\n{block}\n" for entry in entries for block in line(entry, style)).encode()


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """By position; an answer below its turn, if that is among the entries."""
    entries = list(entries)
    turns = positions(entries)
    return sorted(entries, key=lambda entry: place(entry, turns))


def positions(entries: Iterable[Entry]) -> dict[tuple[str, int], int]:
    """The positions of the turns among these, by session and order."""
    return {(each.session_id, each.turn_order): each.position for each in entries if isinstance(each, Turn)}


def place(entry: Entry, turns: Mapping[tuple[str, int], int]) -> Place:
    """The place of the entry among others; `turns` has the positions of the turns that may have been answered."""
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
    """Each paragraph with its speaker: one, or one for each change of speakers inside the turn."""
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
    """Speech with all markup escaped."""
    return _MARKS.sub(r"\\\1", text)


def _unmarked(text: str) -> str:
    """A language model's Markdown, without HTML, images and links.

    Opening the page would fetch an image, and so report the data in its address; a link may run a script. Each needs
    one of these pairs: `](` inline, and `]:` in the target of a reference. Rejected: allowing good addresses, because
    viewers of Markdown parse addresses in many ways.
    """
    return _LEADING.sub(r"]\\\1", text.replace("<", "&lt;"))
