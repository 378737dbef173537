"""Running sessions take new parameters where the service accepts them; speakers' names are unambiguous."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from roomtone.events import Turn
from roomtone.protocol.parameters import Streaming
from roomtone.protocol.session_parameters import SessionParameters, live_changes
from roomtone.speech.speakers import Speakers
from roomtone.speech.transcriber import transcribe
from roomtone.testing.encoded_speech import speak
from roomtone.testing.fake_service import FakeService, open_service
from roomtone.testing.fake_session import Manner
from roomtone.testing.faults import Drop, script
from support.virtual_room import RATE, Room, open_room, reach

WAS = Streaming(speech_model="u3-rt-pro", prompt="A meeting.", keyterms_prompt=("trio",))


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        ({}, {}),
        ({"keyterms_prompt": ("a", "b")}, {"keyterms_prompt": ("a", "b")}),
        ({"keyterms_prompt": None}, {"keyterms_prompt": []}),
        ({"prompt": "A game.", "max_turn_silence": 900}, {"prompt": "A game.", "max_turn_silence": 900}),
        ({"prompt": None}, None),
        ({"prompt": "A game.", "speaker_labels": True}, None),
        ({"speech_model": "universal-3-5-pro"}, None),
        ({"format_turns": True}, None),
        ({"endpoint": "assemblyai-eu"}, None),
    ],
)
def test_what_a_session_can_be_told(after: dict[str, Any], changes: dict[str, Any] | None) -> None:
    """Only what the service takes within a session, and of what is unset only lists: else a new session is needed."""
    assert live_changes(WAS, msgspec.structs.replace(WAS, **after)) == changes


def test_who_is_told() -> None:
    """Open sessions get the changes, one that has begun with old parameters immediately, one that is over does not."""
    terms, told = SessionParameters(WAS), list[Mapping[str, Any]]()
    later = msgspec.structs.replace(WAS, prompt="A game.")
    with terms.follow(told.append, begun_with=WAS):
        assert terms.change(later)
        assert not terms.change(Streaming())
    assert terms.streaming == later
    assert terms.change(msgspec.structs.replace(WAS, prompt="A walk."))
    assert told == [{"prompt": "A game."}]
    with terms.follow(told.append, begun_with=later):
        assert told[1:] == [{"prompt": "A walk."}]


def reach_by(service: FakeService, terms: SessionParameters) -> Any:
    """An endpoint whose sessions are opened under the terms that then hold."""
    fixed = reach(service)
    return msgspec.structs.replace(fixed, open=lambda: reach(service, streaming=terms.streaming).open())


async def test_key_terms_change_within_a_session(tmp_path: Path, autojump_clock: MockClock) -> None:
    """New key terms reach the session that is up, and every one after it; no session ends for them, no word is lost."""
    terms = SessionParameters(Streaming(keyterms_prompt=("one",)))
    async with (
        open_service(faults=script({0: [Drop(words=20)]}), port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach_by(service, terms), parameters=terms) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        nursery.start_soon(room.record, speak(range(1, 61), RATE))
        await trio.sleep(5)
        assert terms.change(Streaming(keyterms_prompt=("two",), max_turn_silence=700))
        await trio.sleep(60)
        room.spool.end_of_data()
    first, second = service.sessions
    assert first.changes == {"keyterms_prompt": ["two"], "max_turn_silence": 700}
    assert first.query["keyterms_prompt"] == '["one"]'
    assert (second.query["keyterms_prompt"], second.changes) == ('["two"]', {})
    async with open_room(tmp_path, reach(service)) as room:
        assert await room.numbers() == list(range(1, 61))


# Speakers


def test_a_label_is_of_one_session() -> None:
    """Two sessions' "A" are two people, an unknown speaker has no name, and only the configuration gives names."""
    assert Speakers("de5d9927-73a6", {}).name("A") == "A.de5d9927"
    assert Speakers("12c77068-02b3", {}).name("A") != Speakers("de5d9927-73a6", {}).name("A")
    assert [Speakers("s", {}).name(label) for label in (None, "UNKNOWN", "PENDING")] == [None] * 3
    named = Speakers("s", {"A": "Anna"})
    assert (named.name("A"), named.name("B")) == ("Anna", "B.s")
    alone = Speakers("s", {"*": "Anna"})
    assert (alone.name("B"), alone.name(None)) == ("Anna", "Anna")


async def converse(folder: Path, *, manner: Manner | None = None, names: Mapping[str, str] | None = None) -> list[Turn]:
    """Every turn event of a room in which two people speak in turns, those that were superseded too."""
    streaming = Streaming(speaker_labels=True, speech_model="universal-streaming-english", format_turns=True)
    async with (
        open_service(manner=manner, faults=script({0: [Drop(words=20)]}), port=None, utc=trio.current_time) as service,
        open_room(folder, reach(service, streaming=streaming), speakers=names or {}, two_finals=True) as room,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
            await room.record(speak(range(1, 61), RATE))
            room.spool.end_of_data()
        assert await room.numbers() == list(range(1, 61))
        await check_who_spoke(room)
        found = await room.journal.select("desk", ["turn"], 0, 1 << 60)
        return [event for event in found if isinstance(event, Turn)]


async def check_who_spoke(room: Room) -> None:
    """Of the session that ended in order, which has revised its speakers, every second turn is of the other person."""
    turns = await room.turns()
    last = [turn for turn in turns if turn.session_id == turns[-1].session_id]
    assert len(last) >= 4
    for turn in last:
        expected = None if turn.speaker is None else turn.speaker.partition(".")[0]
        assert expected == "AB"[turn.turn_order % 2]
        assert {word.speaker for word in turn.words} == {turn.speaker}


@pytest.mark.parametrize("two_finals", [False, True])
async def test_speakers_are_revised(two_finals: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """A revision is a turn in the place of the first one: other speakers, and the same words at the same places."""
    events = await converse(tmp_path, manner=Manner(two_finals=two_finals, jitter=0.2, early=0.5))

    by_id = {event.id: event for event in events}
    revised = [event for event in events if event.supersedes]
    assert revised
    for event in revised:
        before = by_id[event.supersedes or ""]
        assert (before.text, before.position, before.at) == (event.text, event.position, event.at)
        assert [(word.text, word.start, word.end) for word in before.words] == [
            (word.text, word.start, word.end) for word in event.words
        ]
        assert before.speaker != event.speaker
    labels = {event.speaker for event in events}
    assert len({str(label).partition(".")[2] for label in labels}) == 2


@pytest.mark.parametrize("seed", range(6))
async def test_a_revision_says_nothing_anew(seed: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Of a turn that an older session had begun to say, a revision keeps the same words, however alike they are."""
    streaming = Streaming(speaker_labels=True)
    manner = Manner(seed=seed, jitter=0.25, early=1.0, misheard=0.3)
    async with (
        open_service(
            manner=manner, faults=lambda n: [Drop(words=11 + seed)] if n < 3 else (), port=None, utc=trio.current_time
        ) as service,
        open_room(tmp_path, reach(service, streaming=streaming)) as room,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
            await room.record(speak([number % 3 for number in range(60)], RATE, turn=3))
            room.spool.end_of_data()
        found = await room.journal.select("desk", ["turn"], 0, 1 << 60)
    by_id = {event.id: event for event in found}
    revised = [event for event in found if isinstance(event, Turn) and event.supersedes]
    assert revised
    for event in revised:
        before = by_id[event.supersedes or ""]
        assert isinstance(before, Turn)
        assert (before.text, len(before.words)) == (event.text, len(event.words))


async def test_names_stand_in_the_turns(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The names of the configuration are in the events that every sink gets, those of a revision too."""
    events = await converse(tmp_path, names={"A": "A.nna", "B": "B.ob"})

    assert {event.speaker for event in events} == {"A.nna", "B.ob"}
