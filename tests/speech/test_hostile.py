"""Whatever a speech service does, each word is in the transcript once, and what it can make us keep is bounded."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from roomtone.budget.governor import open_governor
from roomtone.budget.limits import Budget
from roomtone.events import Answer, Notice, SessionEnded, SessionStarted
from roomtone.llm.room_answers import Policy, RoomAnswers, Unanswered
from roomtone.protocol.messages import MAX_MESSAGE_BYTES
from roomtone.protocol.parameters import LLMGatewayConfig, Prompt, Streaming
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.speech.allowance import KEPT_BURST_BYTES, KEPT_BYTES_PER_S, Allowance
from roomtone.speech.transcriber import transcribe
from roomtone.testing.encoded_speech import quiet, speak
from roomtone.testing.fake_service import open_service
from roomtone.testing.faults import Drop, Fault, Faults, Lag, Miscount, Name, Repeat, Say, script
from support.virtual_room import RATE, Room, open_room, reach

NUMBERS = list(range(1, 65))
GATEWAY = LLMGatewayConfig(model="m", messages=(Prompt(role="user", content="{{turn}}"),), max_tokens=100)


def turn(order: int | str, start: float, end: float, text: str, *, final: bool = True) -> str:
    """A turn message of one word, at these seconds, as text."""
    said = text[:1000]
    word = {"start": 1000 * start, "end": 1000 * end, "text": said, "confidence": 0.9, "word_is_final": final}
    message = {"type": "Turn", "turn_order": 4711, "end_of_turn": final, "transcript": text, "words": [word]}
    return msgspec.json.encode(message).decode().replace("4711", str(order))


async def hear(room: Room, audio: bytes) -> None:
    """Have the room transcribed while this is said in it, to the end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        await room.record(audio)
        room.spool.end_of_data()


HOSTILE: dict[str, Sequence[Fault]] = {
    "every turn is the first": [Miscount(1)],
    "turns are counted anew": [Miscount(3)],
    "everything twice": [Repeat()],
    "everything twice, as another turn": [Repeat(by_order=True)],
    "Begin twice": [Say('{"type":"Begin","id":"another"}', words=10)],
    "Termination before it was asked for": [Say('{"type":"Termination"}', words=10)],
    "Termination immediately": [Say('{"type":"Termination"}')],
    "nonsense in Termination": [
        Say('{"type":"Termination","session_duration_seconds":-1e14,"audio_duration_seconds":1e14}', words=10)
    ],
    "a turn in the future": [Say(turn(90, 1000, 1001, ""), words=10)],
    "a final before any audio": [Say(turn(-3, -9, -8, " "))],
    "an open turn in the future": [Say(turn(90, 1000, 1001, "", final=False), words=10)],
    "an open turn without words": [Say('{"type":"Turn","turn_order":0,"end_of_turn":false,"transcript":""}')],
    "an open turn that never ends": [Say('{"type":"Turn","turn_order":99,"end_of_turn":false,"transcript":""}')],
    "a word of a megabyte": [Say(turn(90, 1, 2, "x").replace("x", "x" * 300_000), words=10)],
    "a warning of a megabyte": [Say('{"type":"Warning","warning":"' + "w" * 900_000 + '"}', times=3)],
    "thousands of messages of no type": [Say('{"type":"Weather"}', times=300)],
    "late, and what is old again": [Lag(3.0), Repeat()],
}


ENDING = {name for name in HOSTILE if "Termination" in name or "a word of" in name}
"""Faults that end a session: a room whose service always has them is never transcribed."""


@pytest.mark.parametrize("breaks", [False, True], ids=["whole", "broken"])
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_service(name: str, breaks: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Every word once, every sample settled; also where all sessions are such, have one id, and break."""
    faults: Faults = lambda number: [  # noqa: E731
        *HOSTILE[name],
        Name("the one and only"),
        *([Drop("reset", words=20)] if breaks and number < 4 else []),
    ]
    if name in ENDING:
        faults = script({number: faults(number) for number in range(3)})
    async with (
        open_service(faults=faults, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        await hear(room, speak(NUMBERS, RATE))
        numbers = await room.numbers()
        started = await room.journal.select("desk", ["session_started"], 0, 1 << 60)
        ids = [event.session_id for event in started if isinstance(event, SessionStarted)]
        turns = [(turn.session_id, turn.turn_order) for turn in await room.turns()]

        assert numbers == NUMBERS
        assert await room.unsettled() == 0
        assert len(set(ids)) == len(ids)
        assert len(set(turns)) == len(turns)


@pytest.mark.parametrize("seed", range(4))
async def test_all_of_it_together(seed: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Some of everything, in sessions that break: every word once, every sample settled."""
    rng = random.Random(seed)
    kinds = [name for name in HOSTILE if name not in ENDING]

    def choose(number: int) -> Sequence[Fault]:
        chosen = [fault for name in rng.sample(kinds, 3) for fault in HOSTILE[name]]
        return [*chosen, Name(rng.choice("ab")), *([Drop("reset", words=rng.randint(5, 25))] if number < 8 else [])]

    async with (
        open_service(faults=choose, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        await hear(room, speak(NUMBERS, RATE))

        assert await room.numbers() == NUMBERS
        assert await room.unsettled() == 0


FLOODS = {
    "a message that is too long": '{"type":"Warning","warning":"' + "w" * MAX_MESSAGE_BYTES + '"}',
    "finals": turn("{n}", 0, 1, "{n}" + "f" * 900_000),
    "finals of no length": turn("{n}", 0, 0, "{n}" + "f" * 900_000),
    "partials": turn("{n}", 0, 1, "p" * 900_000, final=False),
    "the same partial": turn(0, 0, 1, "p" * 900_000, final=False),
    "warnings": '{"type":"Warning","warning":"' + "w" * 900_000 + '"}',
    "answers": '{"type":"LLMGatewayResponse","turn_order":{n},"data":{"choices":[{"message":{"content":"'
    "{n}" + "a" * 900_000 + '"}}]}}',
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood(what: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """A service that says a megabyte without pause is not tried for a minute, and that is reported once; little of its
    text is kept, and the next sessions hear the words.
    """
    flood = [Say(FLOODS[what], times=12, words=10)]
    async with (
        open_service(faults=script({0: flood}), port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        await hear(room, speak(NUMBERS, RATE) + quiet(90, RATE))
        events = await room.journal.select("desk", ["turn", "notice", "answer"], 0, 1 << 60)
        kept = sum(len(msgspec.json.encode(event)) for event in events)
        first, second = service.sessions[:2]

        assert kept < 2 * 5 * KEPT_BURST_BYTES
        assert await room.numbers() == NUMBERS
        assert await room.unsettled() == 0
        codes = [event.code for event in events if isinstance(event, Notice)]
        assert codes == ["session.excessive"]
        assert first.ended_at is not None
        assert second.asked_at - first.ended_at >= 60


@pytest.mark.parametrize("seconds", [-1e14, -1.0, 1e14, 86_400, "NaN"])
async def test_no_service_bills_more_than_a_session_can_cost(
    seconds: float | str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nonsense in Termination reaches neither the bill nor the journal: then the seconds that we saw count."""
    nonsense = f'{{"type":"Termination","session_duration_seconds":{seconds},"audio_duration_seconds":{seconds}}}'
    faults = script({0: [Say(nonsense.replace("NaN", '"NaN"'), words=10)]})
    async with (
        open_service(faults=faults, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
        open_governor(room.journal, Budget, utc=trio.current_time) as governor,
    ):
        meter = governor.meter("desk", SessionParameters(Streaming()))
        await hear(room._replace(context=room.context._replace(meter=meter)), speak(NUMBERS, RATE))
        ended = await room.journal.select("desk", ["session_ended"], 0, 1 << 60)
        spent = governor.spent().day.seconds
        open_for = [event.session_seconds for event in ended if isinstance(event, SessionEnded)]

        assert await room.numbers() == NUMBERS
        assert all(0 <= seconds <= trio.current_time() for seconds in open_for)
        assert open_for[0] > 0
        assert spent == pytest.approx(sum(open_for), abs=1)


async def test_an_answer_that_comes_twice(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Each turn has one answer and is billed for one, however often it is sent, and whatever the turn is called."""
    terms, paid = Streaming(llm_gateway=GATEWAY), []
    answers = RoomAnswers(
        GATEWAY, Policy(within=20.0, ask_again=False), Unanswered(), lambda usage, _: paid.append(usage)
    )
    async with (
        open_service(faults=lambda _: [Repeat(3), Miscount(2)], port=None, utc=trio.current_time) as service,
        open_room(
            tmp_path, reach(service, streaming=terms), parameters=SessionParameters(terms), answers=answers
        ) as room,
    ):
        await hear(room, speak(NUMBERS, RATE))
        turns = await room.turns()
        found = await room.journal.select("desk", ["answer"], 0, 1 << 60)

        assert [event.text for event in found if isinstance(event, Answer)] == [turn.text for turn in turns]
        assert [event.turn for event in found if isinstance(event, Answer)] == [turn.id for turn in turns]
        assert len(paid) == len(turns)


async def test_a_final_with_an_old_order_takes_no_words(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A turn that lies elsewhere supersedes nothing, whatever its order."""
    faults = [Say(turn(0, 8.0, 8.1, "w999"), words=20)]
    async with (
        open_service(faults=lambda _: faults, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        await hear(room, speak(NUMBERS, RATE))
        numbers = await room.numbers()

    assert [number for number in numbers if number != 999] == NUMBERS


def test_the_allowance() -> None:
    """So much ahead of the audio, and what its seconds allow, which do not add up while nothing is said."""
    allowance = Allowance(burst=100, rate=10)
    assert allowance.take(100, 0.0)
    assert not allowance.take(1, 0.0)
    assert allowance.take(9, 1.0)
    assert allowance.take(100, 1000.0)
    assert not allowance.take(11, 1001.0)


def test_honest_speech_is_allowed() -> None:
    """Three hours of talk, with a revision of all of it and long answers, stay far below what is allowed."""
    allowance = Allowance(burst=KEPT_BURST_BYTES, rate=KEPT_BYTES_PER_S)
    for turns in range(1, 5400):
        assert allowance.take(1024 + 1500, 2.0 * turns)
        assert allowance.take(1024 + 20_000, 2.0 * turns)
    assert allowance.take(1_000_000, 2.0 * 5400)
