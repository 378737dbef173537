"""Each final turn has its answer, or a notice says why: whatever the service says, and however its session ends."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from roomtone.budget.governor import open_governor
from roomtone.budget.limits import Budget
from roomtone.events import Answer, Notice, Turn
from roomtone.llm.analyst import open_analyst
from roomtone.llm.completion import GatewayConfig
from roomtone.llm.settings import LLMSettings, RoomFacts
from roomtone.protocol.parameters import LLMGatewayConfig, Prompt, Streaming
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.speech.transcriber import transcribe
from roomtone.testing import fake_gateway as fake
from roomtone.testing.encoded_speech import quiet, speak
from roomtone.testing.fake_gateway import BODIES
from roomtone.testing.fake_service import open_service
from roomtone.testing.fake_session import Manner
from roomtone.testing.faults import Drop, Expire, Fault, NoTermination, script
from support.virtual_room import RATE, open_room, reach

STREAMING = Streaming(llm_gateway=LLMGatewayConfig("one", (Prompt("user", "Heard: {{turn}}"),), 100))


class Came(list[Any]):
    """The events of a room, in the order of the journal."""

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]

    def each_turn_once(self) -> None:
        """Every turn has one answer behind it, which is tied to it and about it."""
        turns, answers = self.of(Turn), self.of(Answer)
        assert sorted(answer.turn for answer in answers) == sorted(turn.id for turn in turns)
        for answer in answers:
            (turn,) = [turn for turn in turns if turn.id == answer.turn]
            assert (answer.session_id, answer.turn_order) == (turn.session_id, turn.turn_order)
            assert answer.text == f"Heard: {turn.text}"
            assert answer.seq > turn.seq
            assert answer.position == turn.position


async def talk(
    folder: Path,
    *,
    manner: Manner | None = None,
    faults: Sequence[Fault] = (),
    audio: bytes | None = None,
    mishaps: Sequence[fake.Mishap] = (),
    longest: float = 10_200.0,
    remote: bool = True,
    **access: Any,
) -> tuple[Came, list[Any]]:
    """Speak in a room that asks about each turn: its events, and the requests outside of the session."""
    speech = speak(range(1, 25), RATE) if audio is None else audio
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        service = await enter(open_service(manner=manner, faults=script({0: faults}), port=None, utc=trio.current_time))
        gateway = await enter(fake.open_gateway(mishaps=mishaps, port=None))
        terms = SessionParameters(STREAMING)
        room = await enter(open_room(folder, reach(service, streaming=STREAMING, remote=remote), parameters=terms))
        setting = LLMSettings(GatewayConfig(endpoint=gateway.url, **access), {}, {"desk": RoomFacts(RATE, STREAMING)})
        governor = await enter(open_governor(room.journal, Budget))
        analyst = await enter(
            open_analyst(room.journal, setting, lambda _: room.spool.end, governor, transport=gateway.transport)
        )
        desk = room.context._replace(answers=analyst.answers("desk", STREAMING, remote=remote))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, desk, realtime=True, longest=longest, utc=trio.current_time))
            await room.record(speech)
            room.spool.end_of_data()
        await analyst.finish()
        assert await room.journal.marks("answer/") == {}
        return Came(await room.journal.read(0)), gateway.requests


async def test_each_turn_has_its_answer(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The answers come behind their turns, tied to them, also where the model takes its time."""
    came, requests = await talk(tmp_path, manner=Manner(thinking=3.0))

    assert len(came.of(Turn)) == 3
    came.each_turn_once()
    assert came.of(Notice) == requests == []


async def test_the_last_answer_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A turn that is open at the end has its answer: nothing follows Termination, so the session ends after it."""
    audio = speak(range(1, 4), RATE, break_=0.12) + quiet(0.2, RATE)
    came, _ = await talk(tmp_path, manner=Manner(thinking=5.0), audio=audio)

    came.each_turn_once()
    assert len(came.of(Answer)) == 1
    assert came.of(Notice) == []


async def test_no_session_waits_for_ever(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An answer that does not come holds the session for ten seconds, and is then a notice."""
    begun = trio.current_time()
    came, _ = await talk(tmp_path, manner=Manner(gateway=False), answer_within=3600.0)

    seconds = len(speak(range(1, 25), RATE)) / 2 / RATE
    assert trio.current_time() - begun < seconds + 10 + 10 + 5
    assert [notice.code for notice in came.of(Notice)] == ["answer.missing"]
    assert len(came.of(Turn)) == 3


async def test_an_account_without_access_is_noticed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """No answer and no error, turn after turn: one notice, within the time that the table gives."""
    audio = b"".join(speak([number], RATE) + quiet(15, RATE) for number in range(8))
    came, requests = await talk(tmp_path, manner=Manner(gateway=False), audio=audio, answer_within=5.0)

    assert len(came.of(Turn)) == 8
    assert [notice.code for notice in came.of(Notice)] == ["answer.missing"]
    assert came.of(Answer) == requests == []


async def test_a_missing_answer_is_asked_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where the table says so, each turn without an answer is asked about once outside of the session."""
    came, requests = await talk(tmp_path, manner=Manner(gateway=False), ask_again=True, answer_within=5.0)

    came.each_turn_once()
    assert len(requests) == 3
    assert requests[0] == {
        "model": "one",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": f"Heard: {came.of(Turn)[0].text}"}],
    }


async def test_the_recognizer_asks_nobody(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With the recognizer of this machine turns are asked about outside of the session immediately, or not at all."""
    manner = Manner(gateway=False)
    came, requests = await talk(tmp_path / "asked", manner=manner, remote=False, ask_again=True)
    came.each_turn_once()
    assert len(requests) == 3

    came, _ = await talk(tmp_path / "silent", manner=manner, remote=False)
    assert came.of(Notice) == came.of(Answer) == []
    assert len(came.of(Turn)) == 3


FAILURES = {name: BODIES[name] for name in ("error as text", "error as object", "error as message", "null choices")}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_no_answer(name: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """A body that reports a failure, in each of its shapes, is a notice or another question, and no empty answer."""
    manner = Manner(failure=msgspec.json.decode(FAILURES[name]))
    came, _ = await talk(tmp_path / "told", manner=manner)
    assert came.of(Answer) == []
    assert [notice.code for notice in came.of(Notice)] == ["answer.missing"]

    came, requests = await talk(tmp_path / "asked", manner=manner, ask_again=True)
    came.each_turn_once()
    assert len(requests) == len(came.of(Turn))


@pytest.mark.parametrize("fault", [Drop(words=12), NoTermination(), NoTermination(close=True), Expire(8.0)], ids=str)
async def test_a_session_that_dies(fault: Fault, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Answers that a dead session owes are asked for; no turn has two answers, and none lacks one."""
    came, _ = await talk(tmp_path, manner=Manner(thinking=2.0), faults=[fault], ask_again=True)

    came.each_turn_once()


async def test_sessions_that_are_relieved(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where one session follows another, the answers come behind their own turns."""
    came, requests = await talk(
        tmp_path, manner=Manner(thinking=2.0), audio=speak(range(1, 100), RATE), longest=15.0, ask_again=True
    )

    assert len({turn.session_id for turn in came.of(Turn)}) > 2
    came.each_turn_once()
    assert requests == []


async def test_a_late_answer_counts(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An answer that comes after the notice is journalled, and it is said that answers come again."""
    audio = speak(range(1, 25), RATE) + quiet(30, RATE)
    came, _ = await talk(tmp_path, manner=Manner(thinking=8.0), audio=audio, answer_within=4.0)

    came.each_turn_once()
    assert {notice.code for notice in came.of(Notice)} == {"answer.missing", "answer.recovered"}


async def test_a_late_answer_is_no_second_one(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A turn that was asked about again has one answer, though the session's own comes after all."""
    audio = speak(range(1, 25), RATE) + quiet(30, RATE)
    came, requests = await talk(tmp_path, manner=Manner(thinking=8.0), audio=audio, answer_within=4.0, ask_again=True)

    came.each_turn_once()
    assert len(requests) == 3
