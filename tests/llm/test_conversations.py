"""Conversations: where they end, when that is known, what a language model gets to see, and how it is cut."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from roomtone.events import Durable, Forgotten, Gap, RecordingStopped, SessionEnded, SessionStarted, Turn, Word
from roomtone.llm import conversations
from roomtone.llm.conversations import (
    AnalysisPrompt,
    ConversationLimits,
    conversations_in,
    current,
    cut,
    edges,
    first_over,
    lines,
    tokens,
)
from roomtone.spans import Spans

RATE = 100
BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
RULES = ConversationLimits(RATE, timedelta(minutes=5), timedelta(hours=4))


def at(second: float) -> datetime:
    return BEGAN + timedelta(seconds=second)


def turn(second: float, text: str = "one two", *, late: float = 0.0, seq: int = 0, **more: object) -> Turn:
    """A turn of two seconds; `late` is time that passed without a source before it."""
    start = round(second * RATE)
    words = tuple(Word(word, start + i * RATE, start + (i + 1) * RATE) for i, word in enumerate(text.split()))
    fields: dict[str, object] = {"id": f"t{second}", "session_id": "s", "turn_order": 0, "words": words} | more
    return Turn(seq=seq, room="desk", position=start, at=at(second + late), text=text, **fields)  # type: ignore[arg-type]


def starts(turns: Sequence[Turn], rules: ConversationLimits = RULES, edges: Sequence[int] = ()) -> list[int]:
    return [conversation.start // RATE for conversation in conversations_in(turns, edges, rules)]


def test_silence_ends_a_conversation() -> None:
    """Turns that are less than the silence apart belong together, and no others do."""
    assert starts([turn(0), turn(300), turn(602), turn(904)]) == [0, 602, 904]


def test_time_without_a_source_is_silence() -> None:
    """An hour without a microphone ends a conversation, though no sample lies between its turns."""
    assert starts([turn(0), turn(3, late=3600)]) == [0, 3]


def test_a_stop_ends_a_conversation() -> None:
    """No conversation spans a recording that stopped, however short the pause."""
    assert starts([turn(0), turn(5), turn(10)], edges=[7 * RATE]) == [0, 10]


def test_a_conversation_without_silence_is_cut() -> None:
    """Talk that never ends is a conversation for so long, and then the next one."""
    rules = RULES._replace(longest=timedelta(minutes=2))
    assert starts([turn(second) for second in range(0, 300, 10)], rules) == [0, 120, 240]


def test_sessions_end_conversations_where_they_follow_speech() -> None:
    """Behind a gate the end of the last open session is one; a relieved or a dead session ends nothing."""

    def begun(seq: int, id_: str) -> Durable:
        return SessionStarted(seq=seq, room="desk", position=0, at=BEGAN, session_id=id_, endpoint="x")

    def ended(seq: int, id_: str, position: int, reason: str = "terminated") -> Durable:
        return SessionEnded(
            seq=seq,
            room="desk",
            position=position,
            at=BEGAN,
            session_id=id_,
            audio_seconds=1,
            session_seconds=1,
            reason=reason,
        )

    events = [
        begun(1, "a"),
        begun(2, "b"),
        ended(3, "a", 30),
        ended(4, "b", 60),
        begun(5, "c"),
        ended(6, "c", 90, "1006"),
    ]
    stopped = RecordingStopped(seq=7, room="desk", position=99, at=BEGAN, reason="stopping")
    assert edges([*events, stopped], by_session=True) == [60, 99]
    assert edges([*events, stopped], by_session=False) == [99]


def test_a_session_that_died_with_its_daemon_is_not_open() -> None:
    """After a crash the end of the next session ends the conversation, though the end of the last was not recorded."""
    events: list[Durable] = [
        SessionStarted(seq=1, room="desk", position=0, at=BEGAN, session_id="a", endpoint="x"),
        Gap(seq=2, room="desk", position=5, at=BEGAN, start=5, end=5, from_=BEGAN, until=BEGAN, cause="daemon down"),
        SessionStarted(seq=3, room="desk", position=5, at=BEGAN, session_id="b", endpoint="x"),
        SessionEnded(
            seq=4,
            room="desk",
            position=60,
            at=BEGAN,
            session_id="b",
            audio_seconds=1,
            session_seconds=1,
            reason="terminated",
        ),
    ]
    assert edges(events, by_session=True) == [60]


def over(turns: Sequence[Turn], settled: float, head: float, now: float, edges: Sequence[int] = ()) -> bool:
    spans = Spans([(0, round(settled * RATE))])
    return first_over(turns, edges, RULES, settled=spans, head=round(head * RATE), now=at(now)) is not None


def test_when_a_conversation_is_over() -> None:
    """It is over when its silence is transcribed, and not as soon as time has passed: a hole may go on with it."""
    assert not over([turn(0)], settled=301, head=400, now=400)
    assert over([turn(0)], settled=302, head=400, now=400)
    assert not over([turn(0)], settled=50, head=4000, now=9000)


def test_when_the_source_is_away() -> None:
    """While there is no source positions stand still: then it is over when all is transcribed and time has passed."""
    assert not over([turn(0)], settled=10, head=10, now=301)
    assert over([turn(0)], settled=10, head=10, now=302)
    assert not over([turn(0)], settled=9, head=10, now=9000)


def test_when_the_recording_stopped() -> None:
    """A stop ends it immediately, when everything before it is transcribed."""
    assert over([turn(0)], settled=5, head=5, now=5, edges=[5 * RATE])
    assert not over([turn(0)], settled=4, head=5, now=5, edges=[5 * RATE])


def test_the_next_conversation_ends_the_first() -> None:
    """Audio in between must be transcribed."""
    assert over([turn(0), turn(400)], settled=400, head=402, now=402)
    assert not over([turn(0), turn(400)], settled=250, head=402, now=402)


def test_what_holds() -> None:
    """A correction stands in the place of what it corrects, and what was forgotten is not told to anybody."""
    first, second = turn(0), turn(10)
    better = turn(0, "ONE TWO", id="new", supersedes="t0", seq=9)
    forgotten = Forgotten(room="desk", position=1000, at=BEGAN, start=1050, end=1060, from_=BEGAN, until=BEGAN)
    assert [each.text for each in current([second, first, better])] == ["ONE TWO", "one two"]
    assert current([first, second, forgotten]) == [first]


def test_lines() -> None:
    """Each line has its time and its speaker; a turn of several speakers is several lines."""
    words = (Word("Hi.", 0, 10, speaker="A.s"), Word("Oh,", 10, 20, speaker="B.s"), Word("hi.", 20, 30, speaker="B.s"))
    both = turn(61, "Hi. Oh, hi.", words=words)
    assert list(lines([turn(0), turn(5, speaker="Anna"), both])) == [
        "[12:00:00] one two",
        "[12:00:05] Anna: one two",
        "[12:01:01] A.s: Hi.",
        "[12:01:01] B.s: Oh, hi.",
    ]


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", codec="utf-8"))),
    st.integers(20, 200),
)
def test_cutting_loses_nothing(texts: list[str], most: int) -> None:
    """Every letter is in one part, in order, and no part is larger than was asked for."""
    parts = cut(texts, most)

    assert "".join("".join(parts).split()) == "".join("".join(texts).split())
    assert all(tokens(part) <= most for part in parts)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=50), st.integers(1, 100))
def test_combining_comes_to_an_end(answers: list[str], most: int) -> None:
    """However long the answers to the parts are, there are fewer texts to ask about each time."""
    assert 1 <= len(conversations.combine(answers, most)) < len(answers)


def test_a_request() -> None:
    """The prompt is filled in, the system's too, and nothing is sent that was not set."""
    prompt = AnalysisPrompt(prompt="In {{room}}: {{transcript}}", model="m", system="From {{start}}.")
    assert prompt.request("n", "Hello {{room}}", {"room": "desk", "start": "noon"}) == {
        "model": "n",
        "max_tokens": 1000,
        "messages": [
            {"role": "system", "content": "From noon."},
            {"role": "user", "content": "In desk: Hello {{room}}"},
        ],
    }
