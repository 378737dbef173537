"""Captions: turns as short lines with times, in the forms SRT and WebVTT. Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from roomtone import Turn, Word

Captions: TypeAlias = Literal["srt", "vtt"]

_WIDE = 84
"""Characters in one caption: two lines of 42, the custom of broadcasters."""
_LONG = 7.0
"""Seconds that one caption stands."""
_SHORT = 0.7
_READING = 15.0
"""Characters a second, for text without times."""


_MARK = re.compile(r"(<(?=[A-Za-z/!?])|\{(?=[\\A-Za-z]))")


class Cue(NamedTuple):
    """One caption, in seconds from the beginning of the file that it belongs to."""

    start: float
    end: float
    text: str
    speaker: str | None = None


def cues(turn: Turn, place: Callable[[int], float], speakers: Mapping[str, str]) -> Iterator[Cue]:
    """The turn's captions. `place` gives the second of the file at which a position is heard."""
    if not turn.words:
        start = max(0.0, place(turn.position))
        yield Cue(start, start + max(_SHORT, len(turn.text) / _READING), _plain(turn.text), _name(turn, None, speakers))
        return
    line: list[Word] = []
    width, until = 0, 0.0
    for word in turn.words:
        is_fit = width + len(word.text) <= _WIDE and place(word.end) <= until
        if line and not (is_fit and word.speaker == line[0].speaker):
            yield _cue(turn, line, place, speakers)
            line = []
        if not line:
            width, until = 0, place(word.start) + _LONG
        line.append(word)
        width += len(word.text) + 1
    yield _cue(turn, line, place, speakers)


def _cue(turn: Turn, line: list[Word], place: Callable[[int], float], speakers: Mapping[str, str]) -> Cue:
    start = max(0.0, place(line[0].start))
    text = _plain(" ".join(word.text for word in line))
    return Cue(start, max(start + _SHORT, place(line[-1].end)), text, _name(turn, line[0], speakers))


def _name(turn: Turn, word: Word | None, speakers: Mapping[str, str]) -> str | None:
    label = turn.speaker or (word.speaker if word else None)
    return _plain(speakers.get(label, label)) if label else None


def render(cues: Iterable[Cue], form: Captions) -> bytes:
    """The file of captions in this form."""
    head = "WEBVTT\n" if form == "vtt" else ""
    return head.encode() + render_more(ordered(cues), form, after=0)


def render_more(cues: Iterable[Cue], form: Captions, *, after: int) -> bytes:
    """The text of these captions, in this order, for the end of a file that has `after` captions."""
    blocks: list[str] = []
    for number, cue in enumerate(cues, after + 1):
        if form == "srt":
            between = "\n" if number > 1 else ""
            blocks.append(f"{between}{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_spoken(cue)}\n")
        else:
            blocks.append(f"\n{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_voiced(cue)}\n")
    return "".join(blocks).encode()


def ordered(cues: Iterable[Cue]) -> list[Cue]:
    """In the order of their appearance."""
    return sorted(cues, key=lambda cue: (cue.start, cue.end, cue.text, cue.speaker or ""))


def _spoken(cue: Cue) -> str:
    """For SRT, which has no escapes: a space breaks up what players would take for times or markup."""
    text = f"{cue.speaker}: {cue.text}" if cue.speaker else cue.text
    return _MARK.sub(r"\1 ", text.replace("-->", "-- >"))


def _voiced(cue: Cue) -> str:
    text = _escaped(cue.text)
    return f"<v {_escaped(cue.speaker)}>{text}" if cue.speaker else text


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str) -> str:
    """The text in one line without unprintable characters: an empty line would end the caption."""
    return one_line(text) or "\N{HORIZONTAL ELLIPSIS}"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def one_line(text: str) -> str:
    """The text in one line, without unprintable characters."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(character for character in line if character.isprintable())
