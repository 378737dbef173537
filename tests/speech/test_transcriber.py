"""A room stays transcribed: however its sessions end, each word is in the transcript once."""

import random
import shutil
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock

from conftest import Report
from roomtone.events import Notice, SessionEnded
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.protocol.parameters import Streaming
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.spans import Spans
from roomtone.speech import session_watchdog
from roomtone.speech.reconnect import STOPPING_OPEN_TIMEOUT_S
from roomtone.speech.transcriber import repair, transcribe, withhold
from roomtone.testing.encoded_speech import quiet, speak
from roomtone.testing.fake_service import open_service
from roomtone.testing.fake_session import Manner
from roomtone.testing.faults import (
    GARBLED,
    Close,
    Deaf,
    Drop,
    Expire,
    Fault,
    Faults,
    Garble,
    HangUp,
    Lag,
    NoBegin,
    NoTermination,
    Numb,
    Refuse,
    Stall,
    script,
)
from support.gates import gating
from support.journal import fill_disk
from support.virtual_room import BEGAN, RATE, Room, open_room, reach

NUMBERS = list(range(1, 121))
"""About a minute and a half of speech."""


async def listen(
    folder: Path,
    faults: Faults,
    *,
    audio: bytes | None = None,
    manner: Manner | None = None,
    live: bool = True,
    remote: bool = True,
    longest: float = 10_200,
) -> tuple[list[int], int, float]:
    """Speak in a room whose service commits these faults: the numbers understood, samples unsettled, seconds taken."""
    speech = speak(NUMBERS, RATE) if audio is None else audio
    async with (
        open_service(faults=faults, manner=manner, port=None, utc=trio.current_time) as service,
        open_room(folder, reach(service, remote=remote)) as room,
        trio.open_nursery() as nursery,
    ):
        begun = trio.current_time()

        async def follow() -> None:
            await transcribe(room.context, realtime=live, longest=longest, utc=trio.current_time)
            nursery.cancel_scope.cancel()

        nursery.start_soon(follow)
        await room.record(speech, live=live)
        room.spool.end_of_data()
        with trio.fail_after(100_000):
            await trio.sleep_forever()
    return await read(folder, begun)


async def read(folder: Path, begun: float) -> tuple[list[int], int, float]:
    seconds = trio.current_time() - begun
    async with open_service(port=None) as service, open_room(folder, reach(service)) as room:
        return await room.numbers(), await room.unsettled(), seconds


async def test_nothing_happens(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Without any fault each word is in the transcript once, and every sample is settled."""
    numbers, unsettled, _ = await listen(tmp_path, script({}))

    assert numbers == NUMBERS
    assert unsettled == 0


FAULTS: dict[str, Sequence[Fault]] = {
    "end of the stream": [Drop("end", words=20)],
    "reset": [Drop("reset", words=20)],
    "reset immediately": [Drop("reset")],
    **{
        f"close {code}": [Close(code, words=20)]
        for code in (1000, 1006, 1008, 1011, 1013, 3005, 3006, 3007, 3008, 3009)
    },
    "expiry": [Expire(25.0)],
    "stall of 5 s": [Stall(5.0, words=20)],
    "stall without end": [Stall(None, words=20)],
    "no Termination": [NoTermination()],
    "no Termination but a close": [NoTermination(close=True)],
    "deaf": [Deaf()],
    "hangs up": [HangUp()],
    "garbage in the handshake": [HangUp(b"SSH-2.0-x\r\n")],
    "no Begin": [NoBegin()],
    **{f"refusal {status}": [Refuse(status)] for status in (401, 403, 404, 429, 500, 503)},
    **{f"garbled: {name}": [Garble(name, words=20)] for name in GARBLED},
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault(name: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """After each fault every word of the speech is in the transcript exactly once, and every sample is settled."""
    numbers, unsettled, _ = await listen(tmp_path, script({0: FAULTS[name]}))

    assert numbers == NUMBERS
    assert unsettled == 0


async def test_a_new_recording_sends_nothing_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where the transcript was complete, the next run's session begins with the next run's audio."""
    for numbers in (range(1, 9), range(9, 17)):
        async with open_service(port=None) as service, open_room(tmp_path, reach(service)) as room:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
                await room.record(speak(numbers, RATE))
                room.spool.end_of_data()

            (session,) = service.sessions
            assert session.numbers == list(numbers)


async def test_a_silent_socket_is_noticed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A peer that is gone without a goodbye is noticed by its pings within 15 s, though every send succeeds."""
    async with (
        open_service(faults=script({0: [Stall(None, seconds=30)]}), port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        await room.record(quiet(60, RATE))
        first, second = service.sessions
        nursery.cancel_scope.cancel()

        assert first.began_at is not None
        assert second.began_at is not None
        assert 30 < second.began_at - first.began_at < 30 + 15 + 1


@pytest.fixture
def short_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubts take quarters of a minute, for minutes of speech cost seconds of CPU."""
    monkeypatch.setattr(session_watchdog, "WINDOW_S", 15.0)


@pytest.mark.usefixtures("short_minutes")
@pytest.mark.parametrize(("numb", "gated"), [({0}, False), ({0, 1}, False), ({0}, True)])
async def test_a_session_that_hears_nothing(
    numb: set[int], gated: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """One that answers pings and says no word more is doubted after a minute of speech; others hear it all."""
    spoken = list(range(1, 200))
    faults = script({number: [Numb(words=20)] for number in numb})
    async with (
        open_service(faults=faults, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        async with trio.open_nursery() as nursery:
            gate = gating() if gated else None
            nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time, gating=gate))
            await room.record(speak(spoken, RATE) + quiet(60, RATE))
            room.spool.end_of_data()

        settled = Spans((cover.start, cover.end) for cover in await room.covers())
        events = await room.journal.select("desk", ["notice"], 0, 1 << 60)
        doubts = [event for event in events if isinstance(event, Notice) and event.code == "session.deaf"]

        assert await room.numbers() == spoken
        assert list(settled) == [(0, room.spool.end)]
        assert len(doubts) >= 1
        assert service.sessions[0].open_seconds < 15 + 2 * 15 + 10 + 5 + 60


@pytest.mark.usefixtures("short_minutes")
async def test_a_doubt_that_was_right(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where others have heard words in what a session was deaf to, the next deaf one is doubted no later than it."""
    faults = script({0: [Numb(words=20)], 1: [Drop(words=120)], 3: [Numb(words=20)]})
    async with (
        open_service(faults=faults, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
            await room.record(speak(range(1, 400), RATE))
            room.spool.end_of_data()

        assert await room.numbers() == list(range(1, 400))
        assert service.sessions[3].open_seconds < 60


@pytest.mark.usefixtures("short_minutes")
async def test_a_doubted_session_that_was_relieved(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Only what it was sent is heard again, and not what its successor has heard."""
    async with (
        open_service(faults=script({0: [Numb()]}), port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, room.context, realtime=True, longest=24.0, utc=trio.current_time))
            await room.record(speak(range(1, 200), RATE, turn=40))
            room.spool.end_of_data()

        first, second = service.sessions[:2]
        assert first.ended_at is not None
        assert second.began_at is not None
        assert second.began_at < first.ended_at
        assert sum(one.audio_seconds for one in service.sessions) < room.spool.end / RATE + 50
        assert await room.numbers() == list(range(1, 200))


@pytest.mark.parametrize("delay", [12, 40])
async def test_a_service_that_is_late(delay: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """What it has not said yet when its session dies is not held to be silence, as far as its words told that it is
    late.
    """
    slower = [Lag(lag, words=20 + 4 * lag) for lag in range(2, delay + 1)]
    faults = script({0: [*slower, Drop(words=400)]})
    async with (
        open_service(faults=faults, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
            await room.record(speak(range(1, 500), RATE))
            room.spool.end_of_data()

        transcribed = Spans((one.start, one.end) for one in await room.covers() if one.state == "transcribed")
        words = Spans((word.start, word.end) for turn in await room.turns() for word in turn.words)
        assert service.sessions[0].numbers[-1] >= 400
        assert not words - transcribed
        assert await room.numbers() == list(range(1, 500))


@pytest.mark.usefixtures("short_minutes")
async def test_music_is_doubted_ever_more_rarely(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Audio that only sounds like speech costs other sessions after 1, 2 and 4 minutes, then after 8."""
    silent = [Numb()]
    async with (
        open_service(faults=lambda _: silent, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
            await room.record(speak(range(400), RATE))
            room.spool.end_of_data()

        # Each of the three costs a session that takes its place, and one that hears the same again.
        assert len(service.sessions) == 1 + 3 * 2
        assert list(Spans((one.start, one.end) for one in await room.covers())) == [(0, room.spool.end)]


async def test_a_quiet_room_is_not_cut(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A room that is silent for half an hour keeps its one session."""
    async with (
        open_service(port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service), sync_interval=600) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        await room.record(quiet(1800, RATE))
        nursery.cancel_scope.cancel()

        assert len(service.sessions) == 1


async def test_a_session_is_relieved_before_it_expires(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Sessions that last a minute follow one another without an expiry, a doubled word, or a long overlap."""
    speech = speak(range(1, 501), RATE)
    async with (
        open_service(faults=lambda _: [Expire(60.0)], port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        await room.record(speech)
        room.spool.end_of_data()
        await settle(room)
        nursery.cancel_scope.cancel()

        assert await room.numbers() == list(range(1, 501))
        assert await room.unsettled() == 0
    seconds = len(speech) / 2 / RATE
    assert {session.ended for session in service.sessions} == {"terminated"}
    assert len(service.sessions) >= seconds / 60
    assert sum(session.open_seconds for session in service.sessions) < seconds + 20 * len(service.sessions)


async def test_a_session_is_relieved_where_nobody_pauses(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Without a pause both sessions are sent some seconds, and no word is doubled or missing where they meet."""
    numbers = list(range(1, 801))
    speech = speak(numbers, RATE, turn=len(numbers))
    manner = Manner(jitter=0.25, early=1.0, seed=2)
    heard, unsettled, _ = await listen(tmp_path, lambda _: [Expire(60.0)], audio=speech, manner=manner)

    assert heard == numbers
    assert unsettled == 0
    async with open_service(port=None) as service, open_room(tmp_path, reach(service)) as room:
        ended = await room.journal.select("desk", ["session_ended"], 0, 1 << 60)
    assert {event.reason for event in ended if isinstance(event, SessionEnded)} == {"terminated"}


async def settle(room: Room) -> None:
    """Wait until every sample of the room is settled."""
    with trio.fail_after(200_000):
        while await room.unsettled():  # noqa: ASYNC110 - on the virtual clock, and the journal has no such event
            await trio.sleep(5)


@pytest.mark.parametrize("first", ["newest", "oldest"])
async def test_an_outage_of_hours(
    first: Literal["newest", "oldest"], tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A service that is away for hours leaves a hole, which is repaired beside the live session; nothing is missing."""
    speech = speak(range(1, 41), RATE)
    back_at = trio.current_time() + 3 * 3600

    def weather() -> Sequence[Fault]:
        return [Refuse(503)] if trio.current_time() < back_at else ()

    async with (
        open_service(
            faults=lambda number: [Drop(seconds=50)] if number == 0 else weather(),
            port=None,
            utc=trio.current_time,
        ) as service,
        open_room(tmp_path, reach(service), sync_interval=600) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, first=first, utc=trio.current_time))
        await room.record(speech)
        await room.record(quiet(60, RATE))
        for _ in range(3):
            await room.record(quiet(200, RATE) + speak(range(41, 61), RATE), live=False)
            await trio.sleep(3600)
        await room.record(speak(range(101, 121), RATE))
        room.spool.end_of_data()
        await settle(room)
        nursery.cancel_scope.cancel()

        assert await room.numbers() == [*range(1, 41), *range(41, 61), *range(41, 61), *range(41, 61), *range(101, 121)]


async def test_the_daemon_dies_and_comes_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    """After a crash of the daemon itself, a session goes on from the durable position: no word twice, none missing."""
    rng = random.Random(7)
    speech = speak(range(1, 201), RATE)
    cuts = sorted({0, len(speech), *(rng.randrange(0, len(speech), 2) for _ in range(6))})
    async with open_service(port=None, utc=trio.current_time) as service:
        for start, end in pairwise(cuts):
            folder = tmp_path / str(start)
            async with open_room(folder, reach(service)) as room, trio.open_nursery() as nursery:
                nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
                await room.record(speech[start:end])
                # What a kill leaves is what is on the disk at this moment.
                shutil.copytree(folder, tmp_path / str(end))
                nursery.cancel_scope.cancel()
        async with open_room(tmp_path / str(len(speech)), reach(service)) as room:
            room.spool.end_of_data()
            await transcribe(room.context, realtime=True, utc=trio.current_time)

            assert await room.numbers() == list(range(1, 201))
            assert await room.unsettled() == 0


@pytest.mark.parametrize(("differently", "allowed"), [(0.0, 0), (0.03, 0.005)])
async def test_random_kills(
    differently: float, allowed: float, tmp_path: Path, autojump_clock: MockClock, report: Report
) -> None:
    """Over dozens of kills at random moments, with times that jitter, hardly a word is missing or doubled."""
    rng = random.Random(3)
    speech = speak(range(1, 601), RATE)
    lives = [rng.uniform(1, 24) for _ in range(400)]
    manner = Manner(latency=3.0, jitter=0.25, early=1.0, misheard=differently, seed=5)
    numbers, unsettled, _ = await listen(
        tmp_path,
        lambda number: [Drop(rng.choice(("end", "reset")), seconds=lives[number])],
        audio=speech,
        manner=manner,
    )
    async with open_service(port=None) as service, open_room(tmp_path, reach(service)) as room:
        ended = await room.journal.select("desk", ["session_ended"], 0, 1 << 60)
    missing = set(range(1, 601)) - set(numbers)
    doubled = len(numbers) - len(set(numbers))
    report(f"{len(ended)} kills, {differently:.0%} heard differently: {len(missing)} missing, {doubled} doubled")

    assert unsettled == 0
    assert len(missing) + doubled <= allowed * len(ended)


async def connections(folder: Path, faults: Faults, seconds: float, **more: Any) -> list[float]:
    """When, in seconds from the first, a room in which somebody speaks for so long asked for its sessions."""
    async with (
        open_service(faults=faults, port=None, utc=trio.current_time) as service,
        open_room(folder, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, **({"utc": trio.current_time} | more)))
        await room.record(speak(range(1, 400), RATE)[: round(seconds * RATE) * 2])
        nursery.cancel_scope.cancel()
        return [session.asked_at - service.sessions[0].asked_at for session in service.sessions]


@pytest.mark.parametrize("told", [True, False])
async def test_a_service_that_asks_for_time_gets_it(told: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """A refusal with Retry-After is not tried again before that."""
    faults = script({0: [Refuse(503, told=told, retry_after="100")], 1: [Refuse(429, told=told, retry_after="90")]})
    _, second, third, *_ = await connections(tmp_path, faults, 300)

    assert 100 <= second < 105
    assert second + 90 <= third < second + 95


async def test_too_many_sessions_are_backed_off_from(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The limit of new sessions is met with a minute at least."""
    asked = (await connections(tmp_path, script({number: [Refuse(429)] for number in range(3)}), 300))[:4]

    assert len(asked) == 4
    assert min(later - sooner for sooner, later in pairwise(asked)) >= 60


async def test_a_clock_that_is_ahead_relieves_nobody(tmp_path: Path, autojump_clock: MockClock) -> None:
    """By a clock that is four hours ahead every session has expired already; it is not that one which ends them."""
    asked = await connections(tmp_path, script({}), 400, utc=lambda: trio.current_time() + 4 * 3600)

    assert asked == [0]


async def test_it_is_said_that_sessions_are_accepted_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The notice comes with the session, not with its end hours later; and a new refusal is news again."""
    wrong = [Close(1008, "Unauthorized Connection: Invalid API key")]
    async with (
        open_service(
            faults=script({0: wrong, 1: [Drop(seconds=100)], 2: wrong}), port=None, utc=trio.current_time
        ) as service,
        open_room(tmp_path, reach(service, remote=False)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        await room.record(quiet(380, RATE))
        assert await notices(room) == ["session.refused", "session.recovered"]
        await room.record(quiet(100, RATE))
        assert await notices(room) == ["session.refused", "session.recovered", "session.refused"]
        nursery.cancel_scope.cancel()


async def test_a_refusal_ends_with_another_configuration(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The operator corrects the key and reloads, or restarts the daemon: the recovery is reported in both cases."""
    wrong = [Close(1008, "Unauthorized Connection: Invalid API key")]
    async with (
        open_service(faults=script({0: wrong}), port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service, remote=False)) as room,
    ):
        for codes in (["session.refused"], ["session.refused", "session.recovered"]):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
                await room.record(quiet(20, RATE))
                assert await notices(room) == codes
                nursery.cancel_scope.cancel()


async def notices(room: Room) -> list[str]:
    found = await room.journal.select("desk", ["notice"], 0, 1 << 60)
    return [event.code for event in sorted(found, key=lambda event: event.seq) if isinstance(event, Notice)]


async def test_a_session_that_waits_to_relieve_another_is_kept_alive(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The service ends sessions in which nothing is said for five seconds; a pause may take a minute to come."""
    numbers = list(range(1, 601))
    speech, terms = speak(numbers, RATE, turn=len(numbers)), Streaming(inactivity_timeout=5)
    async with (
        open_service(faults=lambda _: [Expire(100.0)], port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service, streaming=terms), parameters=SessionParameters(terms)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        await room.record(speech)
        room.spool.end_of_data()
        await settle(room)
        nursery.cancel_scope.cancel()

        assert await room.numbers() == numbers
    assert {session.ended for session in service.sessions} == {"terminated"}


async def test_a_session_that_ends_while_it_waits_relieves_nobody(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The old session goes on, and the next attempt to relieve it is backed off."""
    numbers = list(range(1, 601))
    faults: Faults = lambda number: [Close(1011, seconds=3)] if number % 3 else [Expire(100.0)]  # noqa: E731
    heard, unsettled, _ = await listen(tmp_path, faults, audio=speak(numbers, RATE, turn=len(numbers)))

    assert heard == numbers
    assert unsettled == 0


async def test_a_full_disk_does_not_hold_a_session_that_is_left(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where the journal has no room for the last of a session, it is left all the same, and heard again later."""
    async with open_service(port=None, utc=trio.current_time) as service:
        async with open_room(tmp_path, reach(service)) as room, trio.open_nursery() as nursery:
            nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
            await room.record(speak(range(1, 21), RATE))
            fill_disk(room.journal)
            await room.record(speak(range(21, 41), RATE))
            nursery.cancel_scope.cancel()
            begun = trio.current_time()
        assert trio.current_time() - begun < 30
        async with open_room(tmp_path, reach(service)) as room:
            room.spool.end_of_data()
            await transcribe(room.context, realtime=True, utc=trio.current_time)
            assert await room.numbers() == list(range(1, 41))


async def leave(folder: Path, faults: Faults, stop: float, *, audio: bytes) -> tuple[float, list[int], list[int]]:
    """Stop a room's recording after so many seconds: how long the transcriber took to leave after that, the numbers of
    its transcript, and those after another start, at which the service is well.
    """
    leaving, left = trio.Event(), trio.Event()

    async def follow() -> None:
        await transcribe(room.context, realtime=True, utc=trio.current_time, leaving=leaving)
        left.set()

    def until_it_is_left(number: int) -> Sequence[Fault]:
        return () if left.is_set() else faults(number)

    async with open_service(faults=until_it_is_left, port=None, utc=trio.current_time) as service:
        async with open_room(folder, reach(service)) as room, trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            with trio.move_on_after(stop):
                await room.record(audio)
            leaving.set()
            room.spool.end_of_data()
            begun = trio.current_time()
            with trio.fail_after(1000):
                await left.wait()
            seconds = trio.current_time() - begun
            before = await room.numbers()
        async with open_room(folder, reach(service)) as room:
            room.spool.end_of_data()
            await transcribe(room.context, realtime=True, utc=trio.current_time)
            assert await room.unsettled() == 0
            return seconds, before, await room.numbers()


AWAY: dict[str, tuple[Faults, float]] = {
    "refused from the beginning": (lambda _: [Refuse(503)], 1.0),
    "a key that is wrong": (lambda _: [Close(1008, "Invalid API key")], 1.0),
    "too many sessions": (lambda _: [Refuse(429)], 1.0),
    "no answer": (lambda _: [Deaf()], STOPPING_OPEN_TIMEOUT_S + 1.0),
    "gone in the middle": (lambda number: [Drop(words=20)] if number == 0 else [Refuse(503)], 1.0),
    "not accepted in the middle": (
        lambda number: [Drop(words=20)] if number == 0 else [NoBegin()],
        STOPPING_OPEN_TIMEOUT_S + 1.0,
    ),
}


@pytest.mark.parametrize("name", AWAY)
@pytest.mark.parametrize("stop", [14.0, 19.5])
async def test_a_stop_does_not_wait_for_a_service_that_is_away(
    name: str, stop: float, tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a session the room is left immediately, with one log line; the next start transcribes the rest."""
    faults, allowed = AWAY[name]
    speech = speak(NUMBERS, RATE)
    seconds, before, after = await leave(tmp_path, faults, stop, audio=speech)

    assert seconds <= allowed
    assert capsys.readouterr().out.count("transcript.pending") == 1
    assert before == after[: len(before)]
    assert after == NUMBERS[: len(after)]
    assert len(after) > len(before)


@pytest.mark.parametrize("fault", [[], [Drop(words=20)]], ids=["up", "down for a moment"])
async def test_a_stop_drains_a_session_that_is_up(
    fault: list[Fault], tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last words are transcribed before the room is left, also where a session broke and the next one is open."""
    _, before, after = await leave(tmp_path, script({0: fault}), 20.0, audio=speak(NUMBERS, RATE))

    assert before == after
    assert len(before) > 30
    assert "transcript.pending" not in capsys.readouterr().out


async def test_a_session_that_breaks_at_the_stop_is_followed_by_one_more(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A service that is well, but whose session breaks while the last words are on their way, hears them once more."""
    numbers = range(1, 17)
    faults = script({0: [NoTermination(close=True)]})
    seconds, before, after = await leave(tmp_path, faults, 100.0, audio=speak(numbers, RATE))

    assert before == after == list(numbers)
    assert seconds < 15


async def test_a_service_that_always_breaks_is_left(tmp_path: Path, autojump_clock: MockClock) -> None:
    """One session more, and no third: what is pending is kept."""
    seconds, _, after = await leave(tmp_path, lambda _: [Close(1011, words=10)], 100.0, audio=speak(NUMBERS, RATE))

    assert seconds < 15
    assert after == NUMBERS


async def test_a_stop_leaves_holes(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Holes of an outage are not transcribed before the end, however long ago the service came back."""
    numbers = list(range(1, 601))
    back_at = trio.current_time() + 250
    seconds, before, after = await leave(
        tmp_path, lambda _: [Refuse(503)] if trio.current_time() < back_at else [], 400, audio=speak(numbers, RATE)
    )

    assert seconds < 15
    assert before[-1] == 600
    assert len(before) < 600
    assert after == numbers


@pytest.mark.parametrize("recovered", [False, True], ids=["nothing known", "recovered"])
@pytest.mark.parametrize("work", ["with a gate", "without one", "by hand", "over budget"])
async def test_a_spool_that_was_removed_closes_its_holes(
    work: str, recovered: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Where all audio is gone and none has come yet, what was in holes is said to be missing, at the time it was."""
    end = 300 * RATE
    async with open_service(port=None, utc=trio.current_time) as service, open_room(tmp_path, reach(service)) as room:
        await room.journal.commit(
            CoverageSpan("desk", 0, end, "captured", None, BEGAN, BEGAN + timedelta(seconds=300)),
            Mark("room/desk/acknowledged", 290 * RATE),
            Mark("room/desk/holes", [[40 * RATE, 60 * RATE], [100 * RATE, 110 * RATE]]),
        )
        if recovered:
            await room.spool.cut(skip=end)
        gate = gating() if work == "with a gate" else None
        with trio.move_on_after(60):
            match work:
                case "by hand":
                    room.spool.end_of_data()
                    await repair(room.context)
                case "over budget":
                    await withhold(room.context)
                case _:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(
                            partial(transcribe, room.context, realtime=True, utc=trio.current_time, gating=gate)
                        )
                        await trio.sleep(30)
                        room.spool.end_of_data()
        holes = await room.journal.mark("room/desk/holes")
        notices = [notice for notice in await room.journal.read(0) if isinstance(notice, Notice)]

    assert not service.sessions
    if work == "over budget":
        assert len(holes) == 2
        return
    assert holes is None
    assert [(notice.code, notice.at) for notice in sorted(notices, key=lambda notice: notice.position)] == [
        ("transcript.missing", BEGAN + timedelta(seconds=40)),
        ("transcript.missing", BEGAN + timedelta(seconds=100)),
    ]


async def test_a_hole_of_which_some_is_left(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Audio that the quota removed is reported missing, once, and the rest is transcribed without delay."""
    failures: list[str] = []
    async with (
        open_service(port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service), report_failure=failures.append) as room,
    ):
        await room.record(quiet(10, RATE), live=False)
        await room.spool.cut()
        await room.record(speak(range(1, 9), RATE), live=False)
        await room.spool.cut()
        await room.spool.remove(room.spool.segments()[0])
        end = room.spool.end
        await room.journal.commit(Mark("room/desk/acknowledged", end), Mark("room/desk/holes", [[0, end]]))
        room.spool.end_of_data()
        begun = trio.current_time()
        await repair(room.context)

        assert await room.numbers() == list(range(1, 9))
        assert await room.journal.mark("room/desk/holes") is None
        notices = [notice for notice in await room.journal.read(0) if isinstance(notice, Notice)]
        assert [(notice.code, notice.at) for notice in notices] == [("transcript.missing", BEGAN)]
        assert len(service.sessions) == 1
        assert not failures
        assert trio.current_time() - begun < 30
