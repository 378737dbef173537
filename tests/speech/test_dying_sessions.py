"""Sessions that all die young keep up with the room: nothing is lost, nothing doubled, and it is not left behind."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from conftest import Report
from roomtone.speech.transcriber import transcribe
from roomtone.testing.encoded_speech import speak
from roomtone.testing.fake_service import open_service
from roomtone.testing.fake_session import Manner
from roomtone.testing.faults import Close, Drop, Expire, Fault, Faults
from support.virtual_room import RATE, open_room, reach

SECONDS = 300


def dying(seed: int, how: str) -> Faults:
    """Every session dies after 20 to 25 s, one way or another."""
    rng = random.Random(seed)
    lives = [rng.uniform(20, 25) for _ in range(1000)]

    def choose(number: int) -> Sequence[Fault]:
        match how:
            case "announced":
                return [Expire(lives[number])]
            case "announced, and shorter":
                return [Expire(lives[number] - 8)]
            case "error":
                return [Close(3005, seconds=lives[number])]
        return [Drop(rng.choice(("end", "reset")), seconds=lives[number])]

    return choose


@pytest.mark.parametrize("how", ["dropped", "error", "announced", "announced, and shorter"])
async def test_sessions_that_die_each_twenty_seconds(
    how: str, tmp_path: Path, autojump_clock: MockClock, report: Report
) -> None:
    """Ten seconds after five minutes of speech all of it is transcribed, each word once, and little was sent twice."""
    numbers = list(range(1, 1 + round(SECONDS / 0.535)))
    speech = speak(numbers, RATE)
    manner = Manner(latency=0.5, jitter=0.1, early=0.5, seed=4)
    async with (
        open_service(faults=dying(5, how), manner=manner, port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(transcribe, room.context, realtime=True, utc=trio.current_time))
        await room.record(speech)
        behind = len(numbers) - len(await room.numbers())
        end = room.spool.end
        room.spool.end_of_data()
        with trio.fail_after(100_000):
            while await room.unsettled():  # noqa: ASYNC110 - on the virtual clock, and the journal has no such event
                await trio.sleep(1)
        seconds = trio.current_time()
        heard = await room.numbers()
        nursery.cancel_scope.cancel()
        audio = sum(session.audio_seconds for session in service.sessions)
        report(f"{how}: {behind} words behind, {seconds - end / RATE:.0f} s later, {len(service.sessions)} sessions")
        report(f"{audio:.0f} s sent of {end / RATE:.0f}")

    assert heard == numbers
    assert seconds < end / RATE + 10
    assert audio < (1.4 if how.startswith("announced") else 1.6) * end / RATE
    if how == "announced":
        assert {session.ended for session in service.sessions} == {"terminated"}
