"""roomtone_transcript: pages that say what was said, in the order of its saying, whatever order it came in."""

import errno
import os
import random
import sqlite3
import stat
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone import Analysis, Answer, Durable, Forgotten, Gap, SessionStarted, Turn, Word
from roomtone.captions import Cue, render
from roomtone_transcript import TranscriptSink
from roomtone_transcript import writer as scribe
from roomtone_transcript.writer import PageWriter
from support.journal import Numbering, accept, context, deliver_all

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
RATE = 16_000


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def said(second: float, text: str, *, order: int = 0, timed: bool = False, **facts: Any) -> Turn:
    """A turn that begins at this second after noon, its words half a second each if they are `timed`."""
    position = round(second * RATE)
    words = [
        Word(text, position + index * RATE // 2, position + (index + 1) * RATE // 2)
        for index, text in enumerate(text.split())
    ]
    facts = {"session_id": "s", "words": tuple(words) if timed else ()} | facts
    return Turn(room="desk", position=position, at=at(second), turn_order=order, text=text, **facts)


def answered(second: float, text: str, *, order: int = 0) -> Answer:
    position = round(second * RATE)
    return Answer(
        room="desk", position=position, at=at(second), session_id="s", turn_order=order, text=text, response={"a": 1}
    )


def missing(second: float, until: float) -> Gap:
    position = round(second * RATE)
    return Gap(
        room="desk",
        position=position,
        at=at(second),
        start=position,
        end=position,
        from_=at(second),
        until=at(until),
        cause="device",
    )


def committed(*facts: Durable) -> list[Durable]:
    numbering = Numbering()
    return [numbering.commit(fact) for fact in facts]


async def deliver(
    sink: TranscriptSink, folder: Path, events: Iterable[Durable], *, flush: bool = True, size: int = 1000
) -> None:
    """One life of the sink, with batches of this size; the last one is flushed or not."""
    async with sink.open(context(folder)) as plugin:
        scribe: Any = plugin
        for number, event in enumerate(events):
            if number and number % size == 0:
                scribe.flush()
            getattr(scribe, str(event.__struct_config__.tag), lambda _: None)(event)
        if flush:
            scribe.flush()


def pages(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def page(folder: Path) -> str:
    (text,) = pages(folder / "pages").values()
    return text


async def test_hooks_are_spelt_right(tmp_path: Path) -> None:
    """The daemon accepts every hook of the sink."""
    async with TranscriptSink(directory="pages").open(context(tmp_path)) as plugin:
        accept(plugin)


MARKDOWN = """\
# desk, 2025-03-01 (UTC)

**12:00:01 Ada:** Hello there.

> A greeting.
>
> - nothing more

_12:00:05 to 12:01:00: nothing recorded (device)_

**12:01:02** Back again.

> **minutes**
>
> They met.
"""
TEXT = """\
desk, 2025-03-01 (UTC)

12:00:01 Ada: Hello there.

    A greeting.

    - nothing more

[12:00:05 to 12:01:00: nothing recorded (device)]

12:01:02 Back again.

    minutes:
    They met.
"""


@pytest.mark.parametrize(("form", "name", "expected"), [("markdown", "md", MARKDOWN), ("text", "txt", TEXT)])
async def test_a_day_is_a_page(tmp_path: Path, form: Any, name: str, expected: str) -> None:
    """Turns with the names of their speakers, answers and analyses indented below, and what is missing."""
    summary = Analysis(
        room="desk", position=0, at=at(0), name="minutes", start=0, end=RATE * 70, text="They met.", response={}
    )
    events = committed(
        said(1, "Hello there.", speaker="A"),
        said(62, "Back again.", order=1),
        answered(1, "A greeting.\n\n- nothing more"),
        missing(5, 60),
        missing(6, 6.2),
        summary,
    )
    await deliver(TranscriptSink(directory="pages", format=form, speakers={"A": "Ada"}), tmp_path, events)
    assert pages(tmp_path / "pages") == {f"desk/desk_2025-03-01.{name}": expected}


async def test_late_text_stands_where_it_was_said(tmp_path: Path) -> None:
    """A turn that was repaired after an outage comes last, and is read first."""
    sink = TranscriptSink(directory="pages", format="text")
    first, second, repaired = committed(
        said(60, "Later."), said(90, "Last.", order=1), said(5, "First.", session_id="r")
    )
    await deliver(sink, tmp_path, [first, second])
    await deliver(sink, tmp_path, [repaired])
    assert page(tmp_path).splitlines()[2::2] == ["12:00:05 First.", "12:01:00 Later.", "12:01:30 Last."]


async def test_what_is_said_next_is_put_behind(tmp_path: Path) -> None:
    """The page is not written anew for what belongs to its end: a day of talk would be written thousands of times."""
    greeting, reply, late, answer = committed(
        said(1, "One.", timed=True), said(5, "Three.", order=2), said(3, "Two.", order=1), answered(5, "Yes.", order=2)
    )
    async with TranscriptSink(directory="pages", format="text", captions=("srt", "vtt")).open(
        context(tmp_path)
    ) as plugin:
        scribe: Any = plugin

        def inodes() -> list[int]:
            return [path.stat().st_ino for path in sorted((tmp_path / "pages/desk").iterdir())]

        scribe.turn(greeting)
        scribe.flush()
        first = inodes()
        scribe.turn(reply)
        scribe.flush()
        scribe.answer(answer)
        scribe.flush()
        assert inodes() == first
        behind = pages(tmp_path / "pages")

        scribe.turn(late)
        scribe.flush()
    assert behind["desk/desk_2025-03-01.txt"].endswith("One.\n\n12:00:05 Three.\n\n    Yes.\n")
    assert behind["desk/desk_2025-03-01.srt"].count("-->") == 2
    assert page_of(tmp_path).endswith("One.\n\n12:00:03 Two.\n\n12:00:05 Three.\n\n    Yes.\n")


def test_what_does_not_belong_behind(tmp_path: Path) -> None:
    """Whatever comes in whatever batches, the files are those of one batch."""
    long = " ".join(f"word{number}" for number in range(40))
    orders: dict[str, Sequence[Durable]] = {
        "late": committed(said(1, "One."), said(5, "Three.", order=2), said(3, "Two.", order=1)),
        "an answer to an older turn": committed(
            said(1, "One."), said(5, "Two.", order=1), answered(9, "To one.", order=0), said(7, "Three.", order=2)
        ),
        "an answer before its turn": committed(
            said(1, "One."), answered(2, "To three.", order=2), said(3, "Two.", order=1), said(9, "Three.", order=2)
        ),
        "two who speak at once": committed(said(1, long, timed=True), said(4, "No.", order=1, timed=True)),
        "late in its batch": committed(
            said(1, "One."), said(2, "Two.", order=1), said(9, "4", order=3), said(5, "3", order=2)
        ),
    }
    for captions in ((), ("srt", "vtt")):
        for name, events in orders.items():
            written = []
            for size in (1000, 2, 1):
                folder = tmp_path / f"{name} {len(captions)} {size}"
                folder.mkdir()
                sink = TranscriptSink(directory="pages", format="text", captions=captions)
                trio.run(partial(deliver, sink, folder, events, size=size))
                written.append(pages(folder / "pages"))
            assert written[1] == written[0], name
            assert written[2] == written[0], name


async def test_only_so_many_ends_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was forgotten meanwhile is written anew, and is whole."""
    monkeypatch.setattr(scribe, "_MAX_OPEN_PAGES", 1)
    sink = TranscriptSink(directory="pages", format="text")
    days = [said(0, "One."), said(86_400, "Two.", order=1), said(5, "Three.", order=2)]
    async with sink.open(context(tmp_path)) as plugin:
        assert isinstance(plugin, PageWriter)
        for event in committed(*days):
            assert isinstance(event, Turn)
            plugin.turn(event)
            plugin.flush()
            assert len(plugin._files) == 1
    assert page_of(tmp_path).endswith("One.\n\n12:00:05 Three.\n")


def page_of(folder: Path) -> str:
    return (folder / "pages/desk/desk_2025-03-01.txt").read_text()


@pytest.mark.parametrize("damage", [b"", b"torn", None])
async def test_a_page_that_somebody_touched_is_written_anew(tmp_path: Path, damage: bytes | None) -> None:
    """A page that has changed since it was written is not appended to: a page is always whole."""
    first, second = committed(said(1, "One."), said(5, "Two.", order=1))
    async with TranscriptSink(directory="pages", format="text").open(context(tmp_path)) as plugin:
        scribe: Any = plugin
        scribe.turn(first)
        scribe.flush()
        path = tmp_path / "pages/desk/desk_2025-03-01.txt"
        path.unlink() if damage is None else path.write_bytes(damage)
        scribe.turn(second)
        scribe.flush()
    assert page_of(tmp_path) == "desk, 2025-03-01 (UTC)\n\n12:00:01 One.\n\n12:00:05 Two.\n"


async def test_a_correction_takes_the_place_of_what_it_corrects(tmp_path: Path) -> None:
    """A superseding turn replaces the first one, over a restart, in whatever order and however often both come."""
    sink = TranscriptSink(directory="pages", format="text")
    wrong, other = committed(said(1, "Wreck a nice beach."), said(5, "Indeed.", order=1))
    right = msgspec.structs.replace(said(1, "Recognize speech."), id="9", supersedes=wrong.id)
    for events in ([wrong, other], [right], [wrong, other, right], [other, right]):
        await deliver(sink, tmp_path, events)
    assert page(tmp_path).splitlines()[2::2] == ["12:00:01 Recognize speech.", "12:00:05 Indeed."]


async def test_days_and_zones(tmp_path: Path) -> None:
    """A day is one of the zone: what was said before its midnight stands on the page before."""
    events = committed(said(0, "Noon."), said(11 * 3600 - 1, "Eve.", order=1), said(11 * 3600, "Morning.", order=2))
    await deliver(TranscriptSink(directory="pages", format="text", timezone="Europe/Berlin"), tmp_path, events)
    assert pages(tmp_path / "pages") == {
        "desk/desk_2025-03-01.txt": "desk, 2025-03-01 (Europe/Berlin)\n\n13:00:00 Noon.\n\n23:59:59 Eve.\n",
        "desk/desk_2025-03-02.txt": "desk, 2025-03-02 (Europe/Berlin)\n\n00:00:00 Morning.\n",
    }


async def test_sessions_are_pages(tmp_path: Path) -> None:
    """With `split = "session"` a page begins with its session; two of one second do not share one."""
    started = SessionStarted(room="desk", position=0, at=NOON, session_id="s", endpoint="local")
    events = committed(
        started,
        said(3, "One."),
        msgspec.structs.replace(started, session_id="t"),
        said(4, "Two.", session_id="t"),
        said(7, "Three.", session_id="u"),
        missing(8, 20),
    )
    await deliver(TranscriptSink(directory="pages", format="text", split="session"), tmp_path, events)
    assert pages(tmp_path / "pages") == {
        "desk/desk_2025-03-01_120000.txt": "desk, 2025-03-01 12:00:00 (UTC)\n\n12:00:03 One.\n",
        "desk/desk_2025-03-01_120000_2.txt": "desk, 2025-03-01 12:00:00 (UTC)\n\n12:00:04 Two.\n",
        "desk/desk_2025-03-01_120007.txt": "desk, 2025-03-01 12:00:07 (UTC)\n\n12:00:07 Three.\n",
    }


async def test_several_people_in_one_turn(tmp_path: Path) -> None:
    """Where the words of a turn are several people's, each gets a paragraph."""
    words = tuple(
        Word(text, index, index + 1, None, who)
        for index, (text, who) in enumerate([("Yes?", "A"), ("No", "B"), ("no.", "B")])
    )
    await deliver(
        TranscriptSink(directory="pages", format="text"), tmp_path, committed(said(1, "Yes? No no.", words=words))
    )
    assert page(tmp_path).splitlines()[2::2] == ["12:00:01 A: Yes?", "12:00:01 B: No no."]


HOSTILE = "# *big* <script>alert(1)</script>\n\n> `rm` \x1b[31m\0 [x](y) _a_ 😀 " + "z" * 10_000


async def test_hostile_text_is_text(tmp_path: Path) -> None:
    """Speech cannot be markup, HTML, a line of its own, or a control character."""
    sink = TranscriptSink(directory="pages", captions=("srt", "vtt"))
    events = committed(said(1, HOSTILE, speaker=HOSTILE), answered(1, "a <b>\x1b[31m\nc"))
    await deliver(sink, tmp_path, events)
    written = pages(tmp_path / "pages")
    markdown, srt, vtt = (written[f"desk/desk_2025-03-01.{name}"] for name in ("md", "srt", "vtt"))
    assert markdown.count("\n") == 6
    assert "\\<script\\>" in markdown
    assert markdown.endswith("\n\n> a &lt;b>[31m\n> c\n")
    assert srt.count("\n") == 3
    assert vtt.count("\n") == 4
    assert "<script" not in vtt
    assert not any("\x1b" in text or "\0" in text for text in written.values())


async def test_captions_are_timed_by_their_words(tmp_path: Path) -> None:
    """Captions count from the beginning of the day, change with the speaker, and are short enough to be read."""
    long = " ".join(f"word{number}" for number in range(20))
    words = (Word("Hi.", RATE, RATE * 2, None, "A"), Word("Ho.", RATE * 2, RATE * 3, None, "B"))
    events = committed(
        said(1, "Hi. Ho.", words=words), said(10, long, order=1, timed=True), said(30, "No words.", order=2)
    )
    await deliver(TranscriptSink(directory="pages", captions=("srt",), speakers={"A": "Ada"}), tmp_path, events)
    srt = pages(tmp_path / "pages")["desk/desk_2025-03-01.srt"]
    assert [block.split("\n", 2) for block in srt.strip().split("\n\n")] == [
        ["1", "12:00:01,000 --> 12:00:02,000", "Ada: Hi."],
        ["2", "12:00:02,000 --> 12:00:03,000", "B: Ho."],
        ["3", "12:00:10,000 --> 12:00:16,500", " ".join(long.split()[:13])],
        ["4", "12:00:16,500 --> 12:00:20,000", " ".join(long.split()[13:])],
        ["5", "12:00:30,000 --> 12:00:30,700", "No words."],
    ]


def test_webvtt() -> None:
    """WebVTT names the speaker in a voice span, and stands in order."""
    cues = [Cue(3661.5, 3662.0, "a < b & c", None), Cue(0.0, 1.25, "Hi.", "Ada")]
    assert render(cues, "vtt").decode() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\n<v Ada>Hi.\n\n01:01:01.500 --> 01:01:02.000\na &lt; b &amp; c\n"
    )


async def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    """Turns of that stretch and their answers leave the pages and the store; a page with nothing left goes."""
    sink = TranscriptSink(directory="pages", format="text", captions=("vtt",))
    events = committed(
        said(1, "Keep."), said(5, "Secret word.", order=1, timed=True), answered(5, "Secret answer.", order=1)
    )
    await deliver(sink, tmp_path, events)
    gone = Forgotten(room="desk", position=0, at=NOON, start=RATE * 11 // 2, end=RATE * 9, from_=NOON, until=NOON)
    await deliver(sink, tmp_path, [gone])
    assert pages(tmp_path / "pages")["desk/desk_2025-03-01.txt"].splitlines()[2:] == ["12:00:01 Keep."]
    assert b"Secret" not in (tmp_path / "state/archive/transcript.sqlite").read_bytes()
    await deliver(sink, tmp_path, [msgspec.structs.replace(gone, start=0)])
    assert pages(tmp_path / "pages") == {}


async def test_what_is_forgotten_is_gone_over_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the store and the pages, the wish that comes again writes them; the store's log has nothing."""
    sink = TranscriptSink(directory="pages", format="text")
    await deliver(sink, tmp_path, committed(said(1, "Keep."), said(5, "Secret word.", order=1)))
    position, end = RATE * 5, RATE * 9
    gone = Forgotten(room="desk", position=position, at=NOON, start=position, end=end, from_=NOON, until=NOON)
    writing = PageWriter._write

    def die(*_: object) -> None:
        raise OSError(5, "died")

    monkeypatch.setattr(PageWriter, "_write", die)
    with pytest.raises(OSError, match="died"):
        await deliver(sink, tmp_path, [gone])
    monkeypatch.setattr(PageWriter, "_write", writing)
    assert "Secret" in pages(tmp_path / "pages")["desk/desk_2025-03-01.txt"]
    async with sink.open(context(tmp_path)) as plugin:
        scribe: Any = plugin
        scribe.forgotten(gone)
        scribe.flush()
        assert "Secret" not in pages(tmp_path / "pages")["desk/desk_2025-03-01.txt"]
        for path in (tmp_path / "state/archive").iterdir():
            assert b"Secret" not in path.read_bytes(), path


async def test_private(tmp_path: Path) -> None:
    """Nobody but the daemon's user can read what was said, whatever the umask."""
    before = os.umask(0o000)
    try:
        await deliver(TranscriptSink(directory="a/pages", captions=("srt",)), tmp_path, committed(said(1, "Hello.")))
    finally:
        os.umask(before)
    for path in [*(tmp_path / "a").rglob("*"), *(tmp_path / "state/archive").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("room", ["../../etc", "..", "a/b"])
async def test_a_room_is_no_path(tmp_path: Path, room: str) -> None:
    """Whatever a room is called, its pages stay below the directory."""
    (event,) = committed(msgspec.structs.replace(said(1, "Hello."), room=room))
    await deliver(TranscriptSink(directory="in/pages"), tmp_path, [event])
    assert len(pages(tmp_path / "in/pages")) == 1


async def test_a_spoiled_store_is_put_aside(tmp_path: Path) -> None:
    """A store that the disk has spoiled stops nothing: old pages stay, and new ones begin beside them."""
    first, second = committed(said(1, "One."), said(2, "Two.", order=1))
    sink = TranscriptSink(directory="pages", format="text")
    await deliver(sink, tmp_path, [first])
    (tmp_path / "state/archive/transcript.sqlite").write_bytes(b"not a database, but long enough to be seen" * 50)
    await deliver(sink, tmp_path, [second])
    assert [text.splitlines()[2] for text in pages(tmp_path / "pages").values()] == ["12:00:01 One.", "12:00:02 Two."]


async def test_a_store_that_turns_out_spoiled_is_put_aside(tmp_path: Path) -> None:
    """Damage that opening does not show fails once: the daemon opens the sink again, and what comes goes on."""
    sink = TranscriptSink(directory="pages", format="text", start="oldest")
    await deliver_all(sink, tmp_path, [said(order, f"{order}.", order=order) for order in range(300)])
    store = tmp_path / "state/archive/transcript.sqlite"
    whole = store.read_bytes()
    store.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert await deliver_all(sink, tmp_path, [said(9000, "Last.")]) == []
    assert store.with_suffix(".spoiled").exists()
    assert [text.splitlines()[-1] for text in pages(tmp_path / "pages").values()] == [
        "12:04:59 299.",
        "14:30:00 Last.",
    ]


async def test_an_entry_that_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest of its page is written all the same, and the log says which one it is."""
    one, two, three = committed(said(1, "One."), said(2, "Two.", order=1), said(3, "Three.", order=2))
    sink = TranscriptSink(directory="pages", format="text")
    await deliver(sink, tmp_path, [one, two])
    with closing(sqlite3.connect(context(tmp_path).state / "transcript.sqlite")) as database, database:
        database.execute("UPDATE entries SET body = ? WHERE id = ?", (b'{"kind":"turn","posi', two.id))
    await deliver(sink, tmp_path, [three])
    assert page(tmp_path).endswith("12:00:01 One.\n\n12:00:03 Three.\n")
    assert two.id in capsys.readouterr().out


async def test_a_full_disk_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that the disk refuses is named and stays as it was; the batch comes again, and then it is whole."""
    first, second = committed(said(1, "One."), said(2, "Two.", order=1))
    sink = TranscriptSink(directory="pages", format="text")
    await deliver(sink, tmp_path, [first])
    before = page(tmp_path)
    opening = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".new"):
            raise OSError(28, os.strerror(28), str(path))
        return opening(path, flags, mode)

    async with sink.open(context(tmp_path)) as plugin:
        scribe: Any = plugin
        scribe.turn(second)
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match=r"No space left.*desk_2025-03-01"):
            scribe.flush()
        monkeypatch.undo()
        assert page(tmp_path) == before
    await deliver(sink, tmp_path, [second])
    assert page(tmp_path).endswith("One.\n\n12:00:02 Two.\n")


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"timezone": "Middle-Earth/Shire"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"captions": ["sub"]}, "captions"),
        ({"format": "pdf"}, "format"),
        ({"split": "hour"}, "split"),
        ({"directory": ""}, "directory"),
    ],
)
def test_wrong_tables_are_refused(table: dict[str, Any], named: str) -> None:
    """A mistake is named by its key, before anything runs."""
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert({"kind": "transcript", "directory": "pages"} | table, TranscriptSink)


@given(
    lives=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["died", "flushed", "acknowledged"])), max_size=5),
    seed=st.integers(0, 99),
    late=st.sampled_from([0.0, 0.3, 1.0]),
    split=st.sampled_from(["day", "session"]),
)
@settings(max_examples=40, deadline=None)
def test_crashes_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory, lives: Sequence[tuple[int, str]], seed: int, late: float, split: Any
) -> None:
    """However often it dies, before or after a flush, and gets events again, late or in order, the pages are those of
    one quiet life with one batch.
    """
    folder = tmp_path_factory.mktemp("lives")
    dice = random.Random(seed)
    events: list[Durable] = []
    numbering = Numbering()
    for order in range(10):
        second = dice.uniform(0, 90_000) if dice.random() < late else 8_000.0 * order
        turn = said(second, f"Turn {order}.", order=order, timed=True, session_id=dice.choice("st"))
        if events and dice.random() < late:
            turn = msgspec.structs.replace(turn, supersedes=dice.choice(events).id)
        events.append(numbering.commit(turn))
        if dice.random() < 0.3:
            events.append(numbering.commit(answered(second, f"Answer {order}.", order=dice.choice([order, order + 1]))))
    sink = TranscriptSink(directory="pages", split=split, captions=("srt",))
    for name in ("quiet", "hard"):
        (folder / name).mkdir()
    trio.run(deliver, sink, folder / "quiet", events)

    acknowledged = 0
    for count, end in lives:
        batch = events[acknowledged : acknowledged + count]

        async def live(batch: Sequence[Durable] = batch, flush: bool = end != "died") -> None:
            await deliver(sink, folder / "hard", batch, flush=flush, size=dice.randint(1, 4))

        trio.run(live)
        acknowledged += len(batch) if end == "acknowledged" else 0
    trio.run(partial(deliver, sink, folder / "hard", events[acknowledged:], size=dice.randint(1, 4)))
    quiet, hard = pages(folder / "quiet/pages"), pages(folder / "hard/pages")
    assert hard == quiet


async def test_by_the_daemons_delivery(tmp_path: Path) -> None:
    """Through the journal and the delivery, over a restart: a page with every turn once."""
    sink = TranscriptSink(directory="pages", format="text", start="oldest")
    assert await deliver_all(sink, tmp_path, [said(order, f"{order}.", order=order) for order in range(1200)]) == []
    await deliver_all(sink, tmp_path, [said(9000, "Last.")])
    assert len(page(tmp_path).splitlines()[2::2]) == 1201


@pytest.mark.parametrize("old", ["there", "gone", "moved", "read-only"])
async def test_a_directory_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    """New speech is on a whole page in the new directory; the old page is removed, or reported to stay."""
    warnings: list[str] = []
    told = msgspec.structs.replace(context(tmp_path), warn=warnings.append)
    before, after = committed(said(0, "Hello."), said(60, "Again.", order=1))
    await deliver(TranscriptSink(directory="pages"), tmp_path, [before])
    match old:
        case "gone":
            (tmp_path / "pages").rename(tmp_path / "elsewhere")
        case "moved":
            (tmp_path / "pages").rename(tmp_path / "new")
        case "read-only":
            unlink = Path.unlink

            def refuse(path: Path, **settings: Any) -> None:
                if path.is_relative_to(tmp_path / "pages"):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                unlink(path, **settings)

            monkeypatch.setattr(Path, "unlink", refuse)
    async with TranscriptSink(directory="new").open(told) as plugin:
        scribe: Any = plugin
        scribe.turn(after)
        scribe.flush()
    monkeypatch.undo()
    (text,) = pages(tmp_path / "new").values()
    assert ("Hello." in text, "Again." in text) == (True, True)
    assert len(pages(tmp_path / "pages")) == (1 if old == "read-only" else 0)
    assert [str(tmp_path / "pages") in warning for warning in warnings] == ([True] if old == "read-only" else [])
