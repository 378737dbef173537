"""The cost of sessions is counted to the second, kept over crashes, and held to the budget."""

import json
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner
from trio.testing import MockClock

from roomtone.budget.governor import Governor, open_governor
from roomtone.budget.ledger import CostLedger, OpenSession, Paid, Spent
from roomtone.budget.limits import Budget, CapAction
from roomtone.cli.commands.coverage import command as coverage
from roomtone.events import Notice, SessionEnded
from roomtone.journal.journal import open_journal
from roomtone.protocol.parameters import Streaming
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.speech.transcriber import transcribe, withhold
from roomtone.testing.encoded_speech import quiet, speak
from roomtone.testing.fake_service import open_service
from roomtone.testing.faults import HangUp, script
from roomtone.testing.inline import run_inline
from support.daemon import SINKS, events, recordings, run, write_wav
from support.virtual_room import RATE, Room, open_room, reach
from support.word_error import RATE as HERTZ
from support.word_error import demo_audio

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
MIDNIGHT = NOON + DAY / 2


@pytest.mark.parametrize(
    ("streaming", "price"),
    [
        (Streaming(), 0.45),
        (Streaming(speech_model="universal-streaming-english"), 0.15),
        (Streaming(speech_model="whisper-rt"), 0.30),
        (Streaming(speaker_labels=True, voice_focus="far-field"), 0.67),
        (Streaming(speaker_labels=False), 0.45),
        (Streaming(keyterms_prompt=("Roomtone",)), 0.45),
        (Streaming(speech_model="universal-streaming-english", keyterms_prompt=("Roomtone",)), 0.20),
        (Streaming(speech_model="universal-9"), 0.45),
    ],
)
def test_prices(streaming: Streaming, price: float) -> None:
    """An hour costs the model and what is asked of it; an unknown model as much as the dearest."""
    assert Budget().price(streaming) == pytest.approx(price)


def test_prices_of_the_configuration() -> None:
    """The configuration's prices count; others are the list prices."""
    budget = Budget(prices={"universal-3-5-pro": 1.0}, addons={"prompt": 0.5, "keyterms_prompt": 0.1})

    assert budget.price(Streaming(prompt="x", speaker_labels=True)) == pytest.approx(1.62)
    assert budget.price(Streaming(keyterms_prompt=("x",))) == pytest.approx(1.1)
    assert budget.price(Streaming(speech_model="whisper-rt")) == pytest.approx(0.30)


def test_a_session_over_midnight_is_charged_to_both_days() -> None:
    """Each day, and each month, is charged what was open in it."""
    books = CostLedger({})
    books.begin("a", "desk", price=3600.0, leak=0.0, now=MIDNIGHT - 100)
    books.advance(MIDNIGHT - 40, 60)
    books.advance(MIDNIGHT + 20, 60)
    books.end("a", 130.0, MIDNIGHT + 30)

    assert books.spent("2026-11-22") == Spent(100.0, 100.0)
    assert books.spent("2026-11-23") == Spent(30.0, 30.0)
    assert books.spent("2026-11", "desk") == Spent(130.0, 130.0)
    assert books.spent("2026-11", "hall") == Spent(0.0, 0.0)


@pytest.mark.parametrize("jump", [3 * DAY, -3 * DAY])
def test_a_clock_that_is_set_costs_nothing(jump: float) -> None:
    """A machine that learns the time after its start, by days, charges no session for the days."""
    books = CostLedger({})
    books.begin("a", "desk", price=3600.0, leak=0.0, now=NOON)
    books.advance(NOON + 10, 10)
    books.advance(NOON + jump + 20, 10)
    books.advance(NOON + jump + 30, 10)

    assert books.spent("2026-11") == Spent(30.0, 30.0)


def test_the_seconds_of_the_service_count() -> None:
    """The service's final bill replaces the count, also where it is less."""
    books = CostLedger({})
    books.begin("a", "desk", price=1.0, leak=0.0, now=NOON)
    books.advance(NOON + 60, 60)
    books.end("a", 55.0, NOON + 61)

    assert books.spent("2026-11-22").seconds == pytest.approx(55.0)


@pytest.mark.parametrize(("later", "seconds"), [(5.0, 65.0), (1000.0, 130.0)])
def test_a_session_that_a_crash_has_left_is_charged(later: float, seconds: float) -> None:
    """A session that a dead daemon has left goes on at the service until that notices, but no longer."""
    books = CostLedger({})
    books.begin("a", "desk", price=1.0, leak=70.0, now=NOON)
    books.advance(NOON + 60, 60)
    marks = {mark.key: mark.value for mark in books.changes()}
    left = msgspec.convert(msgspec.to_builtins(books.running["a"]), OpenSession)
    after = CostLedger(marks)
    after.abandon(left, NOON + 60 + later)

    assert after.spent("2026-11-22").seconds == pytest.approx(seconds)
    assert after.running == {}


class Clock:
    """Unix time that goes with the virtual clock, from noon on."""

    def __init__(self) -> None:
        self._begun = trio.current_time()

    def __call__(self) -> float:
        return NOON + trio.current_time() - self._begun


async def notices(room: Room) -> list[str]:
    return [event.code for event in await room.journal.read(0) if isinstance(event, Notice)]


async def test_a_crash_forgets_ten_seconds_at_most(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Killed in the middle of a session, the daemon still knows what that has cost; and that it has told of it."""
    clock = Clock()
    budget = Budget(daily=0.01)
    async with (
        open_journal(tmp_path / "journal", run_sync=run_inline) as journal,
        open_governor(journal, lambda: budget, utc=clock) as governor,
    ):
        meter = governor.meter("desk", SessionParameters(Streaming()))
        await journal.commit(*meter.begin("a"))
        await trio.sleep(75)
        shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    async with (
        open_journal(tmp_path.with_name("copy") / "journal", run_sync=run_inline) as journal,
        open_governor(journal, lambda: budget, utc=clock) as governor,
    ):
        spent = governor.spent("desk").day
        assert 74 <= spent.seconds <= 76
        assert spent.money == pytest.approx(spent.seconds / 3600 * 0.45, abs=1e-4)
        assert await journal.marks("session/") == {}
        told = [event.code for event in await journal.read(0) if isinstance(event, Notice)]
        assert told == ["budget.near"]


async def test_it_is_told_at_four_fifths_and_at_the_whole(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The first notice comes at 80 % of the budget and not before, the second at 100 %; each names how much it is."""
    budget = Budget(daily=0.45)  # an hour
    async with (
        open_journal(tmp_path / "journal", run_sync=run_inline) as journal,
        open_governor(journal, lambda: budget, utc=Clock()) as governor,
    ):
        await journal.commit(*governor.meter("desk", SessionParameters(Streaming())).begin("a"))
        told = list[list[str]]()
        for seconds in (0.79 * 3600, 0.02 * 3600, 0.18 * 3600, 0.02 * 3600):
            await trio.sleep(seconds)
            told.append([event.text for event in await journal.read(0) if isinstance(event, Notice)])
    assert list(map(len, told)) == [0, 1, 1, 2]
    assert told[-1][0].startswith("80 % of the daily budget: ")
    assert told[-1][1].startswith("The daily budget is spent, ")


async def work(room: Room, governor: Governor, other: Room | None, course: CapAction | None) -> None:
    """A room's actions by its budget: at the service, at the recognizer, or only recording."""
    follow = partial(transcribe, realtime=True, utc=trio.current_time)
    if course is None:
        await follow(room.context._replace(meter=governor.meter("desk", SessionParameters(Streaming()))))
    elif other is not None:
        await follow(other.context)
    else:
        await withhold(room.context)


async def spend(
    folder: Path, budget: Budget, audio: bytes, *, local: bool
) -> tuple[list[int], list[str], dict[str, float]]:
    """Record and transcribe under this budget: the numbers, the notices, and seconds by state."""
    clock = Clock()
    async with (
        open_service(port=None, utc=trio.current_time) as service,
        # Its first session is another one than the service's: two services never give one id.
        open_service(port=None, utc=trio.current_time, faults=script({0: [HangUp()]})) as recognizer,
        open_room(folder, reach(service)) as room,
        open_governor(room.journal, lambda: budget, utc=clock) as governor,
    ):
        beside = (
            room._replace(context=room.context._replace(endpoint=reach(recognizer, remote=False))) if local else None
        )
        with trio.fail_after(200_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(governor.run_within_budget, partial(work, room, governor, beside))
                await room.record(audio)
                room.spool.end_of_data()
        ended = [event for event in await room.journal.read(0) if isinstance(event, SessionEnded)]
        bill = sum(session.open_seconds for session in service.sessions)
        assert governor.spent().month.seconds == pytest.approx(bill, abs=1.5 * len(ended))
        covers = await room.covers()
        states = {
            state: sum(one.end - one.start for one in covers if one.state == state) / RATE
            for state in ("transcribed", "silent", "unsent")
        }
        states["billed"] = bill
        return await room.numbers(), await notices(room), states


async def test_at_the_cap_the_recognizer_takes_over(tmp_path: Path, autojump_clock: MockClock) -> None:
    """When the budget is spent the recognizer goes on with the next word: none is missing, none is there twice."""
    numbers, told, states = await spend(tmp_path, Budget(daily=0.01), speak(range(1, 301), RATE), local=True)

    assert numbers == list(range(1, 301))
    assert told == ["budget.near", "budget.spent"]
    assert 80 <= states["billed"] <= 80 + 12
    assert states["unsent"] == 0


async def test_at_the_cap_only_recording_goes_on(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With at_cap = "record" nothing is sent from then on, and coverage says so."""
    audio = speak(range(1, 301), RATE)
    numbers, told, states = await spend(tmp_path, Budget(monthly=0.01, at_cap="record"), audio, local=False)

    assert numbers == list(range(1, len(numbers) + 1))
    assert told == ["budget.near", "budget.spent"]
    assert 80 <= states["billed"] <= 80 + 12
    assert states["unsent"] == pytest.approx(len(audio) / 2 / RATE - 80, abs=15)


async def test_a_new_day_has_a_new_budget(tmp_path: Path, autojump_clock: MockClock) -> None:
    """At midnight (UTC) sessions are opened again, and it is told once for each day."""
    async with (
        open_service(port=None, utc=trio.current_time) as service,
        open_room(tmp_path, reach(service)) as room,
        trio.open_nursery() as nursery,
    ):
        begun = trio.current_time()
        budget = Budget(daily=0.01, at_cap="record")
        async with open_governor(
            room.journal, lambda: budget, utc=lambda: MIDNIGHT - 300 + trio.current_time() - begun
        ) as governor:
            nursery.start_soon(governor.run_within_budget, partial(work, room, governor, None))
            await room.record(speak(range(1, 101), RATE) + quiet(250, RATE))
            assert not governor.is_spent
            assert len(service.sessions) == 2
            await room.record(speak(range(1, 201), RATE))
            assert governor.is_spent
            nursery.cancel_scope.cancel()
        told = await notices(room)
        assert told == ["budget.near", "budget.spent", "budget.renewed", "budget.near", "budget.spent"]


async def test_the_recognizer_gives_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    """When the next month begins the service goes on in the middle of the speech: no word is missing or twice."""
    budget, begun = Budget(monthly=0.01), trio.current_time()
    month_end = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    async with (
        open_service(port=None, utc=trio.current_time) as service,
        # Its first sessions are others than the service's: two services never give one id.
        open_service(port=None, utc=trio.current_time, faults=script({0: [HangUp()], 1: [HangUp()]})) as recognizer,
        open_room(tmp_path, reach(service)) as room,
        open_governor(
            room.journal, lambda: budget, utc=lambda: month_end - 120 + trio.current_time() - begun
        ) as governor,
    ):
        beside = room._replace(context=room.context._replace(endpoint=reach(recognizer, remote=False)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(governor.run_within_budget, partial(work, room, governor, beside))
            await room.record(speak(range(1, 301), RATE))
            room.spool.end_of_data()

        assert await room.numbers() == list(range(1, 301))
        assert len(service.sessions) == 2
        assert sum(session.audio_seconds for session in recognizer.sessions) < 60
        assert await notices(room) == ["budget.near", "budget.spent", "budget.renewed"]


async def test_a_larger_budget_holds_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A reload takes effect within ten seconds: sessions are opened again, and closed again."""
    budgets = [Budget(daily=0.001, at_cap="record")]
    async with (
        open_journal(tmp_path / "journal", run_sync=run_inline) as journal,
        open_governor(journal, lambda: budgets[-1], utc=Clock()) as governor,
    ):
        await journal.commit(*governor.meter("desk", SessionParameters(Streaming())).begin("a"))
        await trio.sleep(30)
        assert governor.is_spent
        budgets.append(Budget(daily=1.0))
        await trio.sleep(11)
        assert not governor.is_spent
        budgets.append(Budget())
        await trio.sleep(11)
        assert not governor.is_spent


async def test_the_last_answer_is_counted(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A payment in the daemon's last moment is in the journal."""
    async with open_journal(tmp_path / "journal", run_sync=run_inline) as journal:
        async with open_governor(journal, Budget, utc=Clock()) as governor:
            governor.pay("desk", Spent(requests=1, models=0.5))
        async with open_governor(journal, Budget, utc=Clock()) as governor:
            assert governor.spent("desk").month.money == 0.5


async def test_what_is_spent_by_hand_counts(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A payment beside the daemon is in its sums within ten seconds, once, on the day when it was spent."""
    async with open_journal(tmp_path / "journal", run_sync=run_inline) as journal:
        for _ in range(2):
            async with open_governor(journal, lambda: Budget(daily=1.0), utc=Clock()) as governor:
                await journal.commit(Paid("desk", NOON - DAY, Spent(requests=1, models=0.25)).mark)
                await journal.commit(Paid("desk", NOON, Spent(requests=1, models=0.5)).mark)
                await trio.sleep(11)
        assert governor.is_spent
        assert governor.spent("desk").day.money == 1.0
        assert governor.spent("desk").month.money == 1.5
        assert await journal.marks("paid/") == {}


async def test_it_does_not_hover_at_the_cap(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A spent budget stays spent, though the service says of the last session that it was shorter than counted."""
    async with (
        open_journal(tmp_path / "journal", run_sync=run_inline) as journal,
        open_governor(journal, lambda: Budget(daily=0.001), utc=Clock()) as governor,
    ):
        meter = governor.meter("desk", SessionParameters(Streaming()))
        await journal.commit(*meter.begin("a"))
        await trio.sleep(9)
        assert governor.is_spent
        await journal.commit(*meter.end("a", 7.0))
        await trio.sleep(20)
        assert governor.spent().day.money < 0.001
        assert governor.is_spent
        told = [event.code for event in await journal.read(0) if isinstance(event, Notice)]
        assert told == ["budget.spent"]


async def test_another_sum_is_told_anew(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A budget that was raised, and is spent again on the same day, is told again."""
    budgets = [Budget(daily=0.001)]
    async with (
        open_journal(tmp_path / "journal", run_sync=run_inline) as journal,
        open_governor(journal, lambda: budgets[-1], utc=Clock()) as governor,
    ):
        await journal.commit(*governor.meter("desk", SessionParameters(Streaming())).begin("a"))
        await trio.sleep(20)
        budgets.append(Budget(daily=0.01))
        await trio.sleep(80)
        told = [event.code for event in await journal.read(0) if isinstance(event, Notice)]
        assert told == ["budget.spent", "budget.renewed", "budget.near", "budget.spent"]


async def test_another_course_holds_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A reload of the cap holds for a budget that is spent already."""
    budgets = [Budget(daily=0.001)]
    courses = list[CapAction | None]()

    async def work(course: CapAction | None) -> None:
        courses.append(course)
        await trio.sleep_forever()

    async with (
        open_journal(tmp_path / "journal", run_sync=run_inline) as journal,
        open_governor(journal, lambda: budgets[-1], utc=Clock()) as governor,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(governor.run_within_budget, work)
        await journal.commit(*governor.meter("desk", SessionParameters(Streaming())).begin("a"))
        await trio.sleep(20)
        budgets.append(Budget(daily=0.001, at_cap="record"))
        await trio.sleep(11)
        assert courses == [None, "local", "record"]
        nursery.cancel_scope.cancel()


async def test_the_price_is_that_of_the_terms(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A session costs what its terms cost when it begins, also where they have changed since the room was opened."""
    terms = SessionParameters(Streaming())
    async with (
        open_journal(tmp_path / "journal", run_sync=run_inline) as journal,
        open_governor(journal, Budget, utc=Clock()) as governor,
    ):
        meter = governor.meter("desk", terms)
        assert terms.change(Streaming(prompt="A meeting."))
        await journal.commit(*meter.begin("a"))
        await trio.sleep(3600)
        assert governor.spent().day.money == pytest.approx(0.50, abs=1e-3)


async def test_the_daemon_at_its_cap(tmp_path: Path) -> None:
    """The whole daemon, gate and all: the session opens at speech, and at the cap the recognizer of this
    machine goes on; two notices say so, every sample is recorded, and none is pending.
    """
    audio = bytes(2 * 4 * HERTZ) + demo_audio()[: 2 * 14 * HERTZ]
    write_wav(tmp_path / "talk.wav", audio)
    async with open_service() as service:
        config = f"""
[budget]
daily = 5.0
prices = {{ universal-3-5-pro = 3600.0 }}
[rooms.desk]
source = {{ kind = "file", path = "talk.wav", pace = "realtime" }}
[rooms.desk.gate]
mode = "speech"
[rooms.desk.streaming]
endpoint = "{service.url}"
{SINKS}"""
        log = await trio.to_thread.run_sync(run_to_its_end, tmp_path, config)
        (session,) = service.sessions

    assert session.audio_seconds < 14
    assert [event["code"] for event in events(tmp_path, "notice")] == ["budget.spent"], log
    started = events(tmp_path, "session_started")
    assert [event["endpoint"] for event in started] == [service.url, "local"]
    assert started[0]["position"] > HERTZ
    assert events(tmp_path, "turn")
    assert [recorded for _, _, recorded in recordings(tmp_path)] == [audio]
    answer = CliRunner().invoke(coverage, ["--config", str(tmp_path / "roomtone.toml"), "--json"])
    account = json.loads(answer.output)
    (room,) = account["rooms"]
    assert (account["explained"], room["pending"]) == (True, 0)
    assert room["unsent"] > HERTZ


def run_to_its_end(folder: Path, config: str) -> str:
    with run(folder, config) as daemon:
        assert daemon.finish() == 0, daemon.log
        assert "Traceback" not in daemon.log
        return daemon.log
