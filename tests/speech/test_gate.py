"""With a gate sessions are open only while there is speech, and no word is lost, doubled or forgotten."""

import random
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from roomtone.journal.keys import backfill_mark
from roomtone.journal.records import Mark
from roomtone.spans import Span, Spans
from roomtone.speech.gate import HANGOVER_S, GateDecisions
from roomtone.speech.transcriber import repair, transcribe
from roomtone.testing.encoded_speech import quiet, speak
from roomtone.testing.fake_service import FakeService, open_service
from roomtone.testing.faults import Drop, Expire, Fault, Faults, NoBegin, NoTermination, Refuse, Stall, script
from support.gates import gating
from support.virtual_room import RATE, Room, open_room, reach

S = RATE
CLOSE_AFTER = 12.0


def hearing(*, preroll: float = 2.0, close_after: float = 30.0) -> GateDecisions:
    return GateDecisions(RATE, preroll=preroll, close_after=close_after, heard=0, wanted=Spans())


def test_speech_is_wanted_with_what_surrounds_it() -> None:
    """Wanted is the speech, the pre-roll before it and a tail behind it; before the pre-roll all is settled."""
    room = hearing()
    room.add(Span(0, 100 * S), [Span(60 * S, 61 * S)], fresh=False)

    assert room.wanted == Spans([(58 * S, round((61 + HANGOVER_S) * S))])
    assert 97 * S < room.settled < 98 * S


def test_short_silences_are_no_end() -> None:
    """A session goes on over silences shorter than close_after, and is not wanted over longer ones."""
    room = hearing()
    room.add(Span(0, 200 * S), [Span(at * S, (at + 1) * S) for at in (10, 39, 71, 110)], fresh=False)

    assert room.follow(8 * S) == (40 + HANGOVER_S) * S
    assert room.is_silent_after(round((40 + HANGOVER_S) * S))
    assert list(room.wanted_between(0, 200 * S)) == [(8 * S, 42 * S), (69 * S, 74 * S), (108 * S, 113 * S)]


def test_it_is_quiet_after_the_last_speech() -> None:
    """A room is quiet from close_after behind the last speech on."""
    room = hearing()
    room.add(Span(0, 11 * S), [Span(10 * S, 11 * S)], fresh=False)
    assert not room.is_quiet
    room.add(Span(11 * S, 41 * S - 1), [], fresh=False)
    assert not room.is_quiet
    room.add(Span(41 * S - 1, 41 * S), [], fresh=False)
    assert room.is_quiet


def test_nothing_is_wanted_across_a_break() -> None:
    """Audio after time without a source does not belong to the speech before it."""
    room = hearing()
    room.add(Span(0, 10 * S), [Span(9 * S, 10 * S)], fresh=False)
    room.add(Span(10 * S, 11 * S), [], fresh=True)

    assert room.wanted == Spans([(7 * S, 10 * S)])


async def follow(room: Room, *, realtime: bool = True) -> None:
    await transcribe(room.context, realtime=realtime, utc=trio.current_time, gating=gating(close_after=CLOSE_AFTER))


TALKS = [range(1, 13), range(13, 17), range(17, 18), range(18, 30)]
NUMBERS = [number for talk in TALKS for number in talk]


def day(pauses: Sequence[float] = (25, 50, 18, 90, 25)) -> bytes:
    """Four talks of one to twelve words, with silence before, between and behind them, in seconds."""
    parts = [quiet(pauses[0], RATE)]
    for talk, pause in zip(TALKS, pauses[1:], strict=True):
        parts += [speak(talk, RATE), quiet(pause, RATE)]
    return b"".join(parts)


async def listen(folder: Path, faults: Faults, audio: bytes, *, live: bool = True) -> FakeService:
    """Speak in a room with a gate, whose service commits these faults, until everything is settled."""
    async with (
        open_service(faults=faults, port=None, utc=trio.current_time) as service,
        open_room(folder, reach(service, remote=live), gated=True) as room,
    ):
        with trio.fail_after(100_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(follow, room, realtime=live))
                await room.record(audio, live=live)
                room.spool.end_of_data()
        return service


async def states(folder: Path) -> dict[str, float]:
    """The numbers are checked; seconds by state."""
    async with open_service(port=None) as service, open_room(folder, reach(service)) as room:
        assert await room.numbers() == NUMBERS
        covers = await room.covers()
        total = Spans((one.start, one.end) for one in covers)
        assert list(total) == [(0, room.spool.end)]
        assert sum(one.end - one.start for one in covers) == room.spool.end
        return {
            state: sum(one.end - one.start for one in covers if one.state == state) / RATE
            for state in ("transcribed", "silent", "unsent")
        }


async def test_sessions_are_open_while_somebody_speaks(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Every word is in the transcript once; sessions end in silence, and are open hardly longer than they must."""
    with capture_logs() as logs:
        service = await listen(tmp_path, script({}), day())

    # Several in a minute are not news: they are in the journal, and in the log at level debug.
    assert [entry["event"] for entry in logs if entry["log_level"] != "debug"] == []
    spoken = sum(len(speak(talk, RATE)) / 2 / RATE for talk in TALKS)
    ideal = spoken + len(TALKS) * (2 + CLOSE_AFTER)
    assert len(service.sessions) == len(TALKS)
    assert {session.ended for session in service.sessions} == {"terminated"}
    assert sum(session.open_seconds for session in service.sessions) <= ideal + len(TALKS) * 1.5
    seconds = await states(tmp_path)
    assert seconds["unsent"] == pytest.approx(len(day()) / 2 / RATE - spoken - len(TALKS) * (2 + CLOSE_AFTER), abs=6)


async def test_short_silences_keep_a_session(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Silences shorter than close_after do not end the session."""
    service = await listen(tmp_path, script({}), day((5, 8, 10, 9, 20)))

    assert len(service.sessions) == 1
    await states(tmp_path)


FAULTS: dict[str, Sequence[Fault]] = {
    "end of the stream": [Drop("end", words=5)],
    "reset in silence": [Drop("reset", seconds=13)],
    "expiry": [Expire(25.0)],
    "stall without end": [Stall(None, words=5)],
    "no Termination": [NoTermination()],
    "no Begin": [NoBegin()],
    "refusal 401": [Refuse(401)],
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault(name: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """After each fault every word is in the transcript exactly once, and every sample is settled."""
    await listen(tmp_path, lambda number: FAULTS[name] if number % 2 == 0 and number < 6 else (), day())

    await states(tmp_path)


async def test_sessions_are_relieved(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A talk longer than a session may last is handed over, and the gate ends the last session of the chain."""
    speech = quiet(30, RATE) + speak(range(1, 201), RATE) + quiet(40, RATE)
    async with (
        open_service(faults=lambda _: [Expire(60.0)], port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(follow, room)
        await room.record(speech)
        await trio.sleep(5)
        assert all(session.ended_at is not None for session in service.sessions)
        room.spool.end_of_data()

    async with open_service(port=None) as other, open_room(tmp_path, reach(other)) as room:
        assert await room.numbers() == list(range(1, 201))
    assert {session.ended for session in service.sessions} == {"terminated"}


async def test_an_outage_leaves_holes_of_speech_only(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Speech during an outage is transcribed when the service is back, without the silence around it."""
    back_at = trio.current_time() + 260

    async with (
        open_service(
            faults=lambda _: [Refuse(503)] if trio.current_time() < back_at else (), port=None, utc=trio.current_time
        ) as service,
        open_room(tmp_path, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(follow, room)
        await room.record(day())
        await room.record(quiet(120, RATE))
        room.spool.end_of_data()

    seconds = await states(tmp_path)
    spoken = sum(len(speak(talk, RATE)) / 2 / RATE for talk in TALKS)
    assert sum(session.open_seconds for session in service.sessions) < spoken + len(TALKS) * 10
    assert seconds["unsent"] > 240


async def test_a_file_is_read_in_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where the gate runs ahead of the session, as in a file, sessions still end at each long silence."""
    service = await listen(tmp_path, script({}), day(), live=False)

    assert len(service.sessions) == len(TALKS)
    assert sum(session.audio_seconds for session in service.sessions) < 60
    await states(tmp_path)


async def test_the_daemon_dies_and_comes_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    """After a crash the gate goes on where it was: no word is missing or twice, wherever it struck."""
    rng = random.Random(11)
    speech = day()
    cuts = sorted({0, len(speech), *(rng.randrange(0, len(speech), 2) for _ in range(8))})
    async with open_service(port=None, utc=trio.current_time) as service:
        for start, end in pairwise(cuts):
            folder = tmp_path / str(start)
            async with open_room(folder, reach(service)) as room, trio.open_nursery() as nursery:
                nursery.start_soon(follow, room)
                await room.record(speech[start:end])
                shutil.copytree(folder, tmp_path / str(end))
                nursery.cancel_scope.cancel()
        folder = tmp_path / str(len(speech))
        async with open_room(folder, reach(service)) as room:
            room.spool.end_of_data()
            await follow(room)

            assert await room.numbers() == NUMBERS


async def test_a_gate_comes_and_goes(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A room whose configuration gains or loses its gate misses no word of what waited for a session."""
    async with (
        open_service(faults=lambda _: [Refuse(503)], port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        for with_gate in (True, False, True):
            async with trio.open_nursery() as nursery:
                gate = gating(close_after=CLOSE_AFTER) if with_gate else None
                nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time, gating=gate))
                await room.record(quiet(40, RATE) if with_gate else day())
                nursery.cancel_scope.cancel()
    async with open_service(port=None, utc=trio.current_time) as service, open_room(tmp_path, reach(service)) as room:
        room.spool.end_of_data()
        await follow(room)
        assert await room.numbers() == NUMBERS


async def test_what_the_gate_held_back_can_be_wished_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A requested stretch is transcribed against the gate's decision, concurrently with the daemon's other work."""

    class Deaf:
        def hear(self, position: int, audio: bytes) -> list[Span]:
            return []

    gate = gating()._replace(detector=Deaf)
    async with (
        open_service(port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time, gating=gate))
        await room.record(day())
        assert not service.sessions
        await room.journal.commit(backfill_mark("desk", Span(20 * RATE, 45 * RATE)))
        await room.record(quiet(30, RATE))

        assert await room.numbers() == list(TALKS[0])
        assert len(service.sessions) == 1
        room.spool.end_of_data()
        nursery.cancel_scope.cancel()


async def test_a_wish_needs_no_daemon(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where nothing records, what is in holes and in wishes is transcribed, and nothing else."""
    audio = day()
    async with open_service(port=None, utc=trio.current_time) as service, open_room(tmp_path, reach(service)) as room:
        await room.record(audio, live=False)
        await room.journal.commit(backfill_mark("desk", Span(20 * RATE, 45 * RATE)))
        await room.journal.commit(Mark("room/desk/acknowledged", room.spool.end))
        room.spool.end_of_data()
        await repair(room.context)

        assert await room.numbers() == list(TALKS[0])
        assert len(service.sessions) == 1
