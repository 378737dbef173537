"""The words of a session are written once, and a correction changes those that were written, and nothing else."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from trio.testing import MockClock

from roomtone.events import Answer, SessionStarted, Turn, Word
from roomtone.protocol.messages import LLMGatewayResponse, TimedWord, TurnMessage
from roomtone.speech.acks import AckTracker
from roomtone.speech.session_context import Stretch
from roomtone.speech.session_journal import MAX_KNOWN_LABELS, SessionJournal, identify
from roomtone.speech.time_map import TimeMap
from roomtone.testing.fake_service import open_service
from support.journal import fill_disk
from support.virtual_room import BEGAN, RATE, Room, open_room, reach


@asynccontextmanager
async def open_session_journal(folder: Path, old: Sequence[float]) -> AsyncIterator[tuple[SessionJournal, Room]]:
    """The journal of a session that was sent ten seconds again, of which an older one had heard "yes" at these ends."""
    async with open_service(port=None) as service, open_room(folder, reach(service)) as room:
        await room.record(bytes(2 * 10 * RATE), live=False)
        words = tuple(Word("yes", round((end - 0.2) * RATE), round(end * RATE)) for end in old)
        await room.journal.commit(
            Turn(
                room="desk", position=words[0].start, at=BEGAN, session_id="old", turn_order=0, text="yes", words=words
            )
        )
        time_map, acks, settled = TimeMap(0, RATE), AckTracker(0, floor=0), trio.Event()
        time_map.send(10 * RATE)
        settled.set()
        yield (
            SessionJournal(
                room.context,
                time_map,
                acks,
                session_id="new",
                stretch=Stretch(0, 1),
                marks=lambda _: (),
                settled=settled,
            ),
            room,
        )


def heard(order: int, *ends: float, speaker: str = "A") -> TurnMessage:
    """A final turn of "yes" at these seconds."""
    words = tuple(TimedWord(round(1000 * end) - 200, round(1000 * end), "yes", speaker=speaker) for end in ends)
    return TurnMessage(order, True, " ".join(["yes"] * len(ends)), words=words, speaker_label=speaker)


def revised(turn: TurnMessage) -> TurnMessage:
    words = tuple(msgspec.structs.replace(word, speaker="B") for word in turn.words or ())
    return msgspec.structs.replace(turn, words=words, speaker_label="B")


async def new_turns(room: Room) -> list[Turn]:
    found = await room.journal.select("desk", ["turn"], 0, 1 << 60)
    return [event for event in found if isinstance(event, Turn) and event.session_id == "new"]


async def test_a_label_is_of_one_session(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An id whose label a session of this room has had is replaced, and the memory of labels is bounded."""
    async with open_service(port=None) as service, open_room(tmp_path, reach(service)) as room:
        # An earlier version kept no labels.
        begun = SessionStarted(
            room="desk", position=0, at=BEGAN, session_id="00000000-old", endpoint="x", speech_model=None
        )
        await room.journal.commit(begun)
        for number in range(MAX_KNOWN_LABELS + 2):
            chosen, mark = await identify(room.context, f"{number:08}-new")
            assert (chosen == f"{number:08}-new") is (number > 0)
            await room.journal.commit(mark)
        again, mark = await identify(room.context, "00000009-again")

    assert again != "00000009-again"
    assert len(mark.value) == MAX_KNOWN_LABELS


async def test_a_correction_finds_its_turn_waiting(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A turn that waits for its seam while it is corrected is journalled once, as it was corrected."""
    async with open_session_journal(tmp_path, [2.0]) as (session_journal, room):
        turn = heard(0, 2.95)
        session_journal.add(turn)
        await session_journal.write_turns()
        assert await new_turns(room) == []
        session_journal.add(revised(turn))
        await session_journal.write_turns(force=True)
        (event,) = await new_turns(room)

    assert (event.speaker, event.supersedes) == ("B.new", None)


async def test_a_correction_keeps_its_words(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Which words an older session has said is decided once: by itself a turn might be taken for what it is not."""
    async with open_session_journal(tmp_path, [2.0]) as (session_journal, room):
        early, again, later = heard(0, 1.5), heard(1, 2.0), heard(2, 5.0)
        for turn in (early, again, later):
            session_journal.add(turn)
        await session_journal.write_turns()
        assert [event.turn_order for event in await new_turns(room)] == [0, 2]
        for turn in (early, again, later):
            session_journal.add(revised(turn))
            await session_journal.write_turns(force=True)
        first, first_again, last, last_again = await new_turns(room)

    assert (first_again.supersedes, last_again.supersedes) == (first.id, last.id)
    assert (first_again.text, first_again.position, first_again.speaker) == (first.text, first.position, "B.new")


async def test_two_tasks_journal_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Words that arrive and words that become due may be written in one moment: neither overtakes earlier ones."""
    async with open_session_journal(tmp_path, [2.0, 3.0]) as (session_journal, room):
        session_journal.add(heard(0, 2.0, 3.0, 6.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session_journal.write_turns)
            nursery.start_soon(session_journal.report)

        (turn,) = await new_turns(room)
        assert [word.end / RATE for word in turn.words] == [6.0]


async def test_a_session_beside_this_one_has_said_more(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A repair runs beside the live session: what it said since the last turn was journalled is not said again."""
    async with open_session_journal(tmp_path, [2.0]) as (session_journal, room):
        session_journal.add(heard(0, 2.0, 4.0))
        await session_journal.write_turns()
        words = (Word("yes", round(5.8 * RATE), 6 * RATE),)
        await room.journal.commit(
            Turn(
                room="desk", position=words[0].start, at=BEGAN, session_id="old", turn_order=1, text="yes", words=words
            )
        )
        session_journal.add(heard(1, 6.0, 8.0))
        await session_journal.write_turns(force=True)

        turns = await new_turns(room)
        assert [[word.end / RATE for word in turn.words] for turn in turns] == [[4.0], [8.0]]


async def test_what_is_not_written_is_not_settled(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A commit that is cancelled while the disk is full leaves the turn waiting, and the position where it was."""
    async with open_session_journal(tmp_path, [1.0]) as (session_journal, room):
        make_room = fill_disk(room.journal)
        session_journal.add(heard(0, *(3 + number / 100 for number in range(200))))
        with trio.move_on_after(20) as patience:
            await session_journal.write_turns(force=True)
        assert patience.cancelled_caught
        assert session_journal.acknowledged == 1
        assert await new_turns(room) == []
        make_room()
        await session_journal.write_turns(force=True)

        (turn,) = await new_turns(room)
        assert len(turn.words) == 200


async def test_an_answer_that_is_not_written_waits(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A commit that is cancelled while the disk is full loses no answer: the end of the session writes it, once."""
    async with open_session_journal(tmp_path, [1.0]) as (session_journal, room):
        session_journal.add(heard(0, 3.0), is_answered=True)
        await session_journal.write_turns(force=True)
        make_room = fill_disk(room.journal)
        body = {"choices": [{"message": {"role": "assistant", "content": "long " * 10_000}}]}
        with trio.move_on_after(20) as patience:
            await session_journal.answer(LLMGatewayResponse(0, "yes", body))
        assert patience.cancelled_caught
        make_room()
        await session_journal.end("terminated", None, 30.0)

        found = await room.journal.select("desk", ["answer"], 0, 1 << 60)
        (answer,) = [event for event in found if isinstance(event, Answer)]
        assert answer.text.startswith("long long")
