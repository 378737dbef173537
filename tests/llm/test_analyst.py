"""Each conversation that is over is asked about once, whatever the endpoint, the network and the daemon do."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import trio
from trio.testing import MockClock

from roomtone.budget.governor import open_governor
from roomtone.budget.ledger import CostLedger
from roomtone.budget.limits import Budget
from roomtone.events import Analysis, Answer, Forgotten, Notice, RecordingStopped, Turn, Word
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.keys import SPENT_PREFIX
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.llm import client as gateway
from roomtone.llm.analyst import Analyst, open_analyst
from roomtone.llm.completion import GatewayConfig, Price
from roomtone.llm.conversations import AnalysisPrompt, Conversation, ConversationLimits, tokens
from roomtone.llm.prompt_task import MAX_UNUSABLE_ANSWERS, PromptTask
from roomtone.llm.request_pool import FINISH_TIMEOUT_S, RequestPool
from roomtone.llm.room_answers import Question
from roomtone.llm.settings import LLMSettings, RoomFacts
from roomtone.protocol.parameters import LLMGatewayConfig, Prompt, Streaming
from roomtone.testing.fake_gateway import (
    BODIES,
    FakeGateway,
    Garbled,
    Limited,
    Mishap,
    Silent,
    StatusReply,
    open_gateway,
)
from roomtone.testing.inline import run_inline

RATE = 100
DAY = 86_400
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SUMMARY = AnalysisPrompt(prompt="Sum up: {{transcript}}", model="one", least_words=1)


def utc() -> datetime:
    return BEGAN + timedelta(seconds=trio.current_time())


class Talk:
    """A room whose turns come by hand, and the analyst who is told of them."""

    def __init__(self, journal: Journal, gateway: FakeGateway, analyst: Analyst) -> None:
        self.journal = journal
        self.gateway = gateway
        self.analyst = analyst

    async def say(self, text: str, *, supersedes: str | None = None) -> Turn:
        """A turn from now on, a word a second, which is transcribed to its end."""
        begun = trio.current_time()
        start = round(begun * RATE)
        words = tuple(Word(word, start + i * RATE, start + (i + 1) * RATE) for i, word in enumerate(text.split()))
        await trio.sleep(len(words))
        turn = Turn(
            room="desk",
            position=start,
            at=BEGAN + timedelta(seconds=begun),
            session_id="s",
            turn_order=start,
            text=text,
            words=words,
            supersedes=supersedes,
        )
        (event,) = await self.journal.commit(turn, self.cover("transcribed", start, words[-1].end))
        assert isinstance(event, Turn)
        return event

    def cover(self, state: Any, start: int, end: int) -> CoverageSpan:
        return CoverageSpan("desk", start, end, state, None, BEGAN, BEGAN)

    async def be_quiet(self, minutes: float) -> None:
        """Silence, transcribed as it passes."""
        for _ in range(round(minutes * 6)):
            start = round(trio.current_time() * RATE)
            await trio.sleep(10)
            await self.journal.commit(self.cover("silent", start, round(trio.current_time() * RATE)))

    async def stop(self) -> None:
        position = round(trio.current_time() * RATE)
        await self.journal.commit(RecordingStopped(room="desk", position=position, at=utc(), reason="stopping"))

    async def events(self, kind: str) -> list[Any]:
        return [event for event in await self.journal.read(0) if event.__struct_config__.tag == kind]

    async def analyses(self) -> list[Analysis]:
        return await self.events("analysis")

    async def notices(self) -> list[Notice]:
        return await self.events("notice")


def setting(url: str, prompts: dict[str, AnalysisPrompt] | None = None, **access: Any) -> LLMSettings:
    messages = (Prompt("user", "Reply: {{turn}}"),)
    streaming = Streaming(llm_gateway=LLMGatewayConfig("one", messages, 10))
    return LLMSettings(
        GatewayConfig(endpoint=url, **access),
        {"summary": SUMMARY} if prompts is None else prompts,
        {"desk": RoomFacts(RATE, streaming)},
    )


@asynccontextmanager
async def talk(
    folder: Path,
    *mishaps: Mishap,
    prompts: dict[str, AnalysisPrompt] | None = None,
    budget: Budget = Budget(),  # noqa: B008 - it is frozen
    left: float = DAY,
    key_file: bool = False,
    network: Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport] = lambda transport: transport,
    **access: Any,
) -> AsyncIterator[Talk]:
    """`left` are the seconds until the next day of the budget begins; `network` lies before the gateway. `key_file`:
    one is named, and not there.
    """
    absent = folder / "absent.key" if key_file else None
    async with (
        open_journal(folder / "journal.sqlite", run_sync=run_inline) as journal,
        open_gateway(mishaps=mishaps, port=None) as gateway,
        open_governor(
            journal,
            lambda: budget,
            held=lambda: list(setting(gateway.url, prompts, **access).held()),
            utc=lambda: utc().timestamp() + DAY - left,
        ) as governor,
        open_analyst(
            journal,
            msgspec.structs.replace(setting(gateway.url, prompts, **access), key_file=absent),
            lambda _: round(trio.current_time() * RATE),
            governor,
            transport=network(gateway.transport),
            utc=utc,
        ) as analyst,
    ):
        await trio.sleep(1)
        yield Talk(journal, gateway, analyst)


class Unforeseen(httpx2.AsyncBaseTransport):
    """A network whose first requests raise what no library documents."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, times: int) -> None:
        self.inner = inner
        self.left = times

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.left -= 1
        if self.left >= 0:
            raise ZeroDivisionError
        return await self.inner.handle_async_request(request)


@pytest.mark.parametrize(("times", "answered"), [(3, 1), (10**6, 0)])
async def test_what_nobody_foresaw_waits_and_ends_nothing(
    tmp_path: Path, autojump_clock: MockClock, times: int, answered: int
) -> None:
    """It is asked again, with a notice; a failure that stays is left for the next start when all else is done."""
    async with talk(tmp_path, network=partial(Unforeseen, times=times)) as room:
        await room.say("hello there")
        await room.be_quiet(20)
        assert {notice.code for notice in await room.notices()} == {"part.failed"}
        with trio.fail_after(FINISH_TIMEOUT_S):
            await room.analyst.finish()
        assert len(await room.analyses()) == answered


async def test_a_conversation_is_asked_about_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """After five silent minutes the transcript of it all is asked about, in one event with what that cost."""
    prices = {"one": Price(input=1.0, output=10.0)}
    async with talk(tmp_path, prices=prices) as room:
        first = await room.say("hello there")
        await room.be_quiet(4)
        await room.say("still here")
        assert await room.analyses() == []
        await room.be_quiet(6)
        (analysis,) = await room.analyses()

    assert analysis.text == "Sum up: [00:00:01] hello there\n[00:04:03] still here"
    assert (analysis.position, analysis.at, analysis.start) == (first.position, first.at, first.position)
    assert (analysis.model, analysis.requests, analysis.input_tokens, analysis.output_tokens) == ("one", 1, 8, 8)
    assert analysis.cost == pytest.approx(88e-6)
    async with open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal:
        spent = CostLedger(await journal.marks(SPENT_PREFIX)).spent("2026-01-01", "desk")
        assert (spent.requests, spent.input_tokens, spent.output_tokens, spent.unpriced) == (1, 8, 8, 0)
        assert spent.money == pytest.approx(88e-6)


async def test_a_hole_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    """While a stretch behind the words is not transcribed, they are not asked about."""
    async with talk(tmp_path) as room:
        await room.say("hello there")
        start = round(trio.current_time() * RATE)
        await trio.sleep(3600)
        assert await room.analyses() == []
        await room.journal.commit(room.cover("silent", start, start + 400 * RATE))
        await trio.sleep(10)
        assert len(await room.analyses()) == 1


MISHAPS: dict[str, Sequence[Mishap]] = {
    "429": [Limited("30")],
    "429 without a time": [Limited(None)] * 3,
    "500": [StatusReply(500)] * 6,
    "503, then 429": [StatusReply(503), Limited("7")],
    "401": [StatusReply(401)],
    "404": [StatusReply(404, b'{"error":"no such model","status":404}')],
    "time-out": [Silent(), Silent()],
    **{f"garbled: {name}": [Garbled(name)] * (MAX_UNUSABLE_ANSWERS - 1) for name in BODIES},
}


@pytest.mark.parametrize("name", MISHAPS)
async def test_a_mishap(name: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """After each mishap the conversation has its one analysis, and the next one too."""
    async with talk(tmp_path, *MISHAPS[name]) as room:
        await room.say("hello there")
        await room.be_quiet(6)
        await trio.sleep(3600)
        await room.say("and again")
        await room.be_quiet(6)
        analyses = await room.analyses()

    assert [analysis.text.split("] ")[1] for analysis in analyses] == ["hello there", "and again"]
    assert len(room.gateway.requests) == len(MISHAPS[name]) + 2


async def test_a_person_is_asked_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A wrong key is one notice, however often it is tried, and one when it works again."""
    async with talk(tmp_path, *[StatusReply(401)] * 5) as room:
        await room.say("hello there")
        await room.be_quiet(6)
        await trio.sleep(7200)
        assert [notice.code for notice in await room.notices()] == ["analysis.refused", "analysis.recovered"]
        assert len(await room.analyses()) == 1


async def test_a_refusal_ends_with_another_configuration(tmp_path: Path, autojump_clock: MockClock) -> None:
    """That the model is to be had again is told, though a reload has mended it; and a lacking key is told without a
    word having been said.
    """
    async with talk(tmp_path, key_file=True) as room:
        while not await room.notices():  # noqa: ASYNC110 - a thread looks for the file; the virtual clock does not wait
            await trio.sleep(1)
        assert [notice.code for notice in await room.notices()] == ["analysis.refused"]
        await room.say("hello there")
        await room.be_quiet(6)
        room.analyst.change(setting(room.gateway.url))
        await trio.sleep(60)
        assert [notice.code for notice in await room.notices()] == ["analysis.refused", "analysis.recovered"]
        assert len(await room.analyses()) == 1


@pytest.mark.parametrize(
    "mishaps", [[StatusReply(413)], [Garbled("empty")] * MAX_UNUSABLE_ANSWERS], ids=["refused", "unusable"]
)
async def test_no_conversation_blocks_the_next(
    mishaps: list[Mishap], tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A conversation that no attempt gets an answer for is left with a notice: the next conversation is asked about."""
    async with talk(tmp_path, *mishaps) as room:
        await room.say("hello there")
        await room.be_quiet(6)
        await trio.sleep(3600)
        await room.say("and again")
        await room.be_quiet(6)
        (analysis,) = await room.analyses()
        (notice,) = await room.notices()

    assert "and again" in analysis.text
    assert notice.code == "analysis.failed"


async def test_a_wish_to_be_left_alone_is_granted(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Retry-After is waited out."""
    times = []
    async with talk(tmp_path, Limited("600")) as room:
        await room.say("hello there")
        await room.be_quiet(5)
        while not await room.analyses():
            await trio.sleep(1)
            times.append(len(room.gateway.requests))
    assert times.count(1) >= 590


async def test_fallbacks(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A model that fails is followed immediately by the next one, and the event says which has answered."""
    prompt = msgspec.structs.replace(SUMMARY, fallbacks=("two", "three"))
    async with talk(tmp_path, Limited("600"), StatusReply(500), prompts={"summary": prompt}) as room:
        await room.say("hello there")
        await room.be_quiet(6)
        (analysis,) = await room.analyses()

    assert [request["model"] for request in room.gateway.requests] == ["one", "two", "three"]
    assert analysis.model == "three"


async def test_a_long_conversation_is_asked_about_in_parts(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Parts that fit, cut at turns, then one answer of their answers; a mishap does not ask for all of them again."""
    prompt = msgspec.structs.replace(SUMMARY, context=500, max_tokens=20)
    words = " ".join(["word"] * 40)
    async with talk(tmp_path, None, StatusReply(500), prompts={"summary": prompt}) as room:
        for _ in range(12):
            await room.say(words)
        await room.be_quiet(6)
        (analysis,) = await room.analyses()

    asked = [request["messages"][0]["content"] for request in room.gateway.requests]
    parts = [text for text in dict.fromkeys(asked) if text.startswith("Sum up: (This is part")]
    assert len(parts) >= 2
    assert sum(text.count("] word") for text in parts) == 12
    assert asked.count(parts[0]) == 1
    assert asked.count(parts[1]) == 2
    assert "In its place stand the answers" in asked[-1]
    assert analysis.requests == len(asked) - 1
    assert analysis.input_tokens == sum(len(text.split()) for text in asked) - len(parts[1].split())


async def test_a_transcript_that_a_request_holds_twice(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The model's limit holds for all that a prompt repeats of the transcript."""
    prompt = AnalysisPrompt(prompt="{{transcript}} Once more: {{transcript}}", model="one", context=500, max_tokens=20)
    async with talk(tmp_path, prompts={"summary": prompt}) as room:
        for _ in range(7):
            await room.say(" ".join(["word"] * 40))
        await room.be_quiet(6)
        assert len(await room.analyses()) == 1

    asked = [request["messages"][0]["content"] for request in room.gateway.requests]
    assert len(asked) > 2
    assert max(map(tokens, asked)) < 550


async def test_what_is_pending_survives(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A daemon that stops while the endpoint is down asks at its next start, once."""
    async with talk(tmp_path, *[StatusReply(500)] * 1000) as room:
        await room.say("hello there")
        await room.stop()
        begun = trio.current_time()
        await room.analyst.finish()
        assert trio.current_time() - begun <= FINISH_TIMEOUT_S + 1
        assert await room.analyses() == []
        assert len(room.gateway.requests) > 1
    for _ in range(2):
        async with talk(tmp_path) as room:
            await room.be_quiet(6)
            (analysis,) = await room.analyses()
    assert "hello there" in analysis.text


async def test_a_stop_asks_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """When the recording stops, what was said is asked about before the daemon ends, without waiting for silence."""
    async with talk(tmp_path) as room:
        await room.say("hello there")
        await room.stop()
        with trio.fail_after(1):
            await room.analyst.finish()
        assert len(await room.analyses()) == 1


async def test_a_signal_bounds_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A daemon that is told to stop does not wait for a silent endpoint longer than its share."""
    async with talk(tmp_path, Silent()) as room:
        await room.say("hello there")
        await room.stop()
        room.analyst.stop(15)
        with trio.fail_after(15.1):
            await room.analyst.finish()
        assert await room.analyses() == []


async def test_a_new_prompt_begins_now(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A prompt that is added is not asked about the past, and one that was away has no past either."""
    async with talk(tmp_path, prompts={}) as room:
        await room.say("hello there")
        await room.be_quiet(6)
        room.analyst.change(setting(room.gateway.url))
        await room.be_quiet(6)
        await room.say("and again")
        await room.be_quiet(6)
        room.analyst.change(setting(room.gateway.url, {}))
        await room.be_quiet(1)
        await room.say("unheard")
        await room.be_quiet(6)
        room.analyst.change(setting(room.gateway.url))
        await room.be_quiet(6)
        (analysis,) = await room.analyses()
    assert "and again" in analysis.text


PRICES = {"one": Price(input=1.0, output=10.0)}
ONE = Budget(daily=50e-6)
"""The cost of one answer, and more."""


async def test_the_budget_is_for_models_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A conversation that is over when the budget is spent waits for the next day, and the notice says so."""
    async with talk(tmp_path, budget=ONE, prices=PRICES, left=3600) as room:
        for text in ("hello there", "and again"):
            await room.say(text)
            await room.be_quiet(6)
        await trio.sleep(3600 - trio.current_time() - 20)
        assert len(room.gateway.requests) == len(await room.analyses()) == 1
        await trio.sleep(60)
        assert ["again" in analysis.text for analysis in await room.analyses()] == [False, True]
        spent, *others = await room.notices()

    assert [notice.code for notice in (spent, *others)] == ["budget.spent", "budget.renewed", "budget.spent"]
    assert "[analysis.summary] waits; no language model is asked about turns." in spent.text
    assert "0.00 of 0.00 USD (sessions 0.00, language models 0.00)" in spent.text


async def test_what_waits_for_a_budget_survives(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A daemon that stops without a budget leaves what waits for a start with one, and does not wait for it."""
    async with talk(tmp_path, budget=ONE, prices=PRICES) as room:
        await room.say("hello there")
        await room.be_quiet(6)
        await room.say("and again")
        await room.stop()
        with trio.fail_after(1):
            await room.analyst.finish()
    async with talk(tmp_path, prices=PRICES) as room:
        await room.be_quiet(6)
        assert ["again" in analysis.text for analysis in await room.analyses()] == [False, True]


async def test_what_costs_nothing_needs_no_budget(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A model whose price is zero is asked without a budget, as a fallback of one that is not too."""
    prompt = msgspec.structs.replace(SUMMARY, fallbacks=("own",))
    prices = PRICES | {"own": Price(input=0, output=0)}
    async with talk(tmp_path, prompts={"summary": prompt}, budget=ONE, prices=prices) as room:
        for text in ("hello there", "and again"):
            await room.say(text)
            await room.be_quiet(6)
        assert [analysis.model for analysis in await room.analyses()] == ["one", "own"]


async def test_an_answer_without_words_costs_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Each answer is paid when it comes, usable or not; and one of a model without a price is counted as such."""
    async with talk(tmp_path, Garbled("no room"), prices=PRICES) as room:
        await room.say("hello there")
        await room.be_quiet(6)
        await room.journal.commit()
        spent = CostLedger(await room.journal.marks(SPENT_PREFIX)).spent("2026-01-01", "desk")
        assert (spent.requests, spent.unpriced) == (2, 0)
        assert spent.money == pytest.approx(155e-6)
        prompt = msgspec.structs.replace(SUMMARY, model="two")
        room.analyst.change(setting(room.gateway.url, {"summary": prompt}))
        await room.say("and again")
        await room.be_quiet(6)
        spent = CostLedger(await room.journal.marks(SPENT_PREFIX)).spent("2026-01-01", "desk")
        assert (spent.requests, spent.unpriced) == (3, 1)
        assert spent.money == pytest.approx(155e-6)


async def test_parts_are_paid_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where the budget ends in the middle of a long conversation, its other parts are asked about on the next day."""
    prompt = msgspec.structs.replace(SUMMARY, context=500, max_tokens=20)
    words = " ".join(["word"] * 40)
    budget = Budget(daily=0.5e-3)
    async with talk(tmp_path, prompts={"summary": prompt}, budget=budget, prices=PRICES, left=1200) as room:
        for _ in range(12):
            await room.say(words)
        await room.be_quiet(6)
        before = len(room.gateway.requests)
        assert not await room.analyses()
        await trio.sleep(1200)
        (analysis,) = await room.analyses()

    asked = [request["messages"][0]["content"] for request in room.gateway.requests]
    assert 0 < before < len(asked) == len(set(asked)) == analysis.requests


async def test_a_room_that_is_no_more(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The last words in a room that the configuration loses are not asked about, and a notice says so, once."""
    async with talk(tmp_path) as room:
        await room.say("hello there")
        without = msgspec.structs.replace(setting(room.gateway.url), rooms={})
        for _ in range(2):
            room.analyst.change(without)
            await room.be_quiet(6)
        (notice,) = await room.notices()
        assert (notice.code, notice.room) == ("analysis.dropped", "desk")
        assert not room.gateway.requests


class SlowOffice(RequestPool):
    """A request pool on a small computer: each check takes this many seconds."""

    takes = 0.5
    looks = 0

    async def look(self, room: str, rules: ConversationLimits, done: int) -> tuple[Conversation | None, bool]:
        self.looks += 1
        await trio.sleep(self.takes)
        return None, True


async def test_looking_takes_little_of_a_small_computer(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The longer it takes to see whether a conversation is over, the less often is it looked; but twice a minute."""
    async with (
        open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal,
        open_governor(journal, Budget) as governor,
        open_gateway(port=None) as fake,
    ):
        models = gateway.LLMClient(60, fake.transport)
        for takes, looks in ((0.01, 120), (0.5, 57), (5.0, 17)):
            office = SlowOffice(journal, governor, lambda _: 0, utc)
            office.takes = takes
            with trio.move_on_after(600):
                await PromptTask(office, setting(fake.url), models, "summary", "desk").run()
            assert office.looks == pytest.approx(looks, rel=0.1)


async def test_little_is_not_asked_about(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A cough is not a conversation."""
    prompt = msgspec.structs.replace(SUMMARY, least_words=3)
    async with talk(tmp_path, prompts={"summary": prompt}) as room:
        await room.say("oh well")
        await room.be_quiet(6)
        await room.say("one two three")
        await room.be_quiet(6)
        (analysis,) = await room.analyses()
    assert "one two three" in analysis.text


# Turns without an answer


async def expect(room: Talk, turn: Turn) -> None:
    """Leave behind what a session that died has left: an answer that is expected."""
    await room.journal.commit(Question("desk", turn.session_id, turn.turn_order, turn.position).mark)


async def leave(folder: Path, texts: Iterable[str]) -> list[Turn]:
    async with talk(folder) as room:
        turns = [await room.say(text) for text in texts]
        for turn in turns:
            await expect(room, turn)
    return turns


async def test_an_answer_is_asked_for_after_a_crash(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An answer that was expected when the daemon died is asked for at its next start, with the turn's own prompt."""
    first, second = await leave(tmp_path, ["hello there", "good bye"])
    async with talk(tmp_path, Limited("3"), prompts={}, ask_again=True) as room:
        await trio.sleep(60)
        answers = await room.events("answer")
        assert [(answer.turn, answer.text) for answer in answers] == [
            (first.id, "Reply: hello there"),
            (second.id, "Reply: good bye"),
        ]
        assert await room.journal.marks("answer/") == {}
        assert all(isinstance(answer, Answer) for answer in answers)


async def test_missing_answers_are_one_notice(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where the question is not asked again, or not answered, one notice says so."""
    await leave(tmp_path, ["hello there", "good bye"])
    async with talk(tmp_path, prompts={}) as room:
        await trio.sleep(60)
        assert [notice.code for notice in await room.notices()] == ["answer.missing"]
        assert room.gateway.requests == []
        assert await room.journal.marks("answer/") == {}


async def test_no_answer_is_asked_for_without_a_budget(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Turns whose answer is missing are not asked about when the budget is spent: the notice about that says so."""
    await leave(tmp_path, ["hello there", "good bye", "and again"])
    async with talk(tmp_path, prompts={}, ask_again=True, budget=ONE, prices=PRICES) as room:
        await trio.sleep(60)
        assert len(await room.events("answer")) == len(room.gateway.requests) == 2
        assert [notice.code for notice in await room.notices()] == ["budget.spent"]
        assert await room.journal.marks("answer/") == {}


async def test_an_account_without_access(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A refusal is not asked for again: one request for each turn, and one notice for all."""
    await leave(tmp_path, ["hello there", "good bye"])
    async with talk(tmp_path, StatusReply(403), StatusReply(403), prompts={}, ask_again=True) as room:
        await trio.sleep(60)
        (notice,) = await room.notices()
        assert "answered 403" in notice.text
        assert len(room.gateway.requests) == 2


async def test_marks_of_others_harm_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A mark that cannot be read, and one of a room that is not configured any more, are removed."""
    async with open_journal(tmp_path / "journal.sqlite", run_sync=run_inline) as journal:
        await journal.commit(Mark("answer/x", 5), Question("attic", "s", 1, 2).mark)
    async with talk(tmp_path) as room:
        assert await room.journal.marks("answer/") == {}


async def test_what_is_forgotten_while_it_is_held_is_never_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Held, it has nothing under way and asks nothing; then it knows no more than the journal does."""
    async with talk(tmp_path, Silent()) as room:
        turn = await room.say("hello there")
        await room.be_quiet(5.5)
        assert len(room.gateway.requests) == 1, "it is under way"
        async with room.analyst.held():
            gone = Forgotten(
                room="desk", position=0, at=BEGAN, start=0, end=turn.words[-1].end, from_=BEGAN, until=utc()
            )
            await trio.sleep(60)
            await room.journal.forget(gone, 600 * RATE, gone)
        await room.be_quiet(20)
        assert len(room.gateway.requests) == 1
        assert await room.analyses() == []
        await room.say("another time")
        await room.be_quiet(6)
        (analysis,) = await room.analyses()
    assert "hello" not in analysis.text
