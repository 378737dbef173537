"""The fake speech service: what it hears is what was sent, and it fails as it is told to."""

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
import trio
from assemblyai.streaming.v3 import (
    BeginEvent,
    LLMGatewayResponseEvent,
    StreamingClient,
    StreamingClientOptions,
    StreamingError,
    StreamingEvents,
    StreamingParameters,
    TerminationEvent,
    TurnEvent,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from roomtone.protocol import messages as protocol
from roomtone.protocol.close_codes import RetryAdvice
from roomtone.protocol.messages import (
    LLMGatewayResponse,
    Message,
    SpeakerRevision,
    Termination,
    TurnMessage,
)
from roomtone.protocol.parameters import LLMGatewayConfig, Prompt, Streaming, build_query
from roomtone.speech.connection import open_connection
from roomtone.speech.session_errors import SessionClosed
from roomtone.testing.encoded_speech import MAX_NUMBER, WORD, Ear, numbers_in, quiet, speak
from roomtone.testing.fake_service import FakeService, open_service
from roomtone.testing.fake_session import Manner
from roomtone.testing.faults import (
    GARBLED,
    Close,
    Deaf,
    Drop,
    Expire,
    Fault,
    Garble,
    HangUp,
    NoBegin,
    NoTermination,
    Refuse,
    Stall,
    TooEarly,
    script,
    weather,
)

RATE = 8000
NUMBERS = list(range(100, 116))


async def listen(
    service: FakeService,
    audio: bytes,
    streaming: Streaming | None = None,
    *,
    key: str = "",
    frame: int = RATE // 5,
    pace: float = 1.0,
    memory: bool = True,
    timeout: float = 10,
) -> tuple[list[Message], SessionClosed]:
    """Send the audio at `pace` times real time, terminate, and return what came and how it ended."""
    messages: list[Message] = []
    url = f"{service.url}?{build_query(streaming or Streaming(), RATE)}"
    headers = [("Authorization", key)] if key else []
    connect = service.connect if memory else None
    try:
        async with (
            open_connection(url, headers=headers, timeout=timeout, connect=connect) as session,
            trio.open_nursery() as nursery,
        ):

            async def send() -> None:
                for start in range(0, len(audio), 2 * frame):
                    piece = audio[start : start + 2 * frame]
                    if not await session.send_audio(piece + bytes(2 * frame - len(piece))):
                        return
                    await trio.sleep(frame / RATE / pace)
                await session.send(protocol.terminate())

            nursery.start_soon(send)
            while True:
                messages.append(await session.receive())
    except* SessionClosed as group:
        over = group.exceptions[0]
        while not isinstance(over, SessionClosed):
            over = over.exceptions[0]
    return messages, over


def finals(messages: Sequence[Message]) -> list[TurnMessage]:
    return [message for message in messages if isinstance(message, TurnMessage) and message.end_of_turn]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, MAX_NUMBER), max_size=12),
    st.sampled_from([8000, 16_000, 44_100]),
    st.integers(1, 30_000),
    st.integers(0, 5),
)
def test_words_are_heard_however_the_audio_is_cut(numbers: list[int], rate: int, piece: int, before: int) -> None:
    """An Ear hears exactly the words that were said, in pieces of any size."""
    audio = quiet(before / 7, rate) + speak(numbers, rate)
    ear = Ear(rate)
    heard = [word for start in range(0, len(audio), 2 * piece) for word in ear.hear(audio[start : start + 2 * piece])]
    assert [word.number for word in heard] == numbers
    assert all(abs(word.end - word.start - WORD * rate) < 1 for word in heard)


@settings(deadline=None)
@given(st.integers(0, 4000), st.integers(0, 4000))
def test_a_word_half_sent_is_no_word(skipped: int, cut: int) -> None:
    """Of a word whose beginning or end is missing nothing is heard, and the next is heard all the same."""
    audio = speak([1, 2, 3], RATE, pause=0.1)
    word, step = round(WORD * RATE), round((WORD + 0.1) * RATE)
    heard = Ear(RATE).hear(audio[2 * skipped : len(audio) - 2 * cut])
    end = len(audio) // 2 - cut
    # A word that lost less than half of its first cell is still whole: bits are read in the middle of the cells.
    assert [word.number for word in heard] == [
        n for n in (1, 2, 3) if (n - 1) * step >= skipped and (n - 1) * step + word <= end
    ] or skipped % step < 20


def test_lost_samples_spoil_a_word() -> None:
    """A word from which 50 ms are missing is not heard, nor is it taken for another one."""
    audio = speak([7, 8], RATE)
    assert [word.number for word in Ear(RATE).hear(audio[:800] + audio[800 + 800 :])] == [8]


def test_a_word_survives_another_volume() -> None:
    """At a quarter of the loudness the words are the same."""
    audio = memoryview(speak(NUMBERS, RATE)).cast("h")
    faint = b"".join((sample // 4).to_bytes(2, "little", signed=True) for sample in audio)
    assert [word.number for word in Ear(RATE).hear(faint)] == NUMBERS


async def test_the_text_is_what_was_sent(autojump_clock: trio.testing.MockClock) -> None:
    """Each word comes once in the finals, at the time in the session where it lies in the audio."""
    audio = speak(NUMBERS, RATE)
    async with open_service(port=None) as service:
        messages, over = await listen(service, audio)
    turns = finals(messages)
    assert [numbers_in(turn.transcript) for turn in turns] == [NUMBERS[:8], NUMBERS[8:]]
    assert [turn.turn_order for turn in turns] == [0, 1]
    words = [word for turn in turns for word in turn.words or ()]
    truth = Ear(RATE).hear(audio)
    assert [(word.start, word.end) for word in words] == [
        (heard.start * 1000 // RATE, heard.end * 1000 // RATE) for heard in truth
    ]
    assert isinstance(messages[-1], Termination)
    assert (over.code, over.advice, over.refused) == (1000, RetryAdvice.RETRY, False)
    record = service.sessions[0]
    assert record.numbers == NUMBERS
    assert record.audio_seconds == pytest.approx(len(audio) / 2 / RATE, abs=0.2)
    assert record.ended == "terminated"
    assert record.open_seconds == pytest.approx(record.audio_seconds, abs=1)


async def test_the_manner_is_repeatable(autojump_clock: trio.testing.MockClock) -> None:
    """Jitter, early words and misheard ones are the same for the same seed and session, others for another."""
    manner = Manner(seed=3, jitter=0.25, early=1.0, misheard=0.3, latency=0.4)
    texts = []
    for _ in range(2):
        async with open_service(port=None, manner=manner) as service:
            first, _over = await listen(service, speak(NUMBERS, RATE))
            second, _over = await listen(service, speak(NUMBERS, RATE))
        assert [turn.words for turn in finals(first)] != [turn.words for turn in finals(second)]
        texts.append([turn.words for turn in finals(first)])
        words = [word for turn in finals(first) for word in turn.words or ()]
        assert any(word.text.casefold().startswith("m") for word in words)
        assert all(one.start <= other.start for one, other in itertools.pairwise(words))
    assert texts[0] == texts[1]


async def test_over_a_socket() -> None:
    """The same over a real socket, faster."""
    async with open_service() as service:
        messages, over = await listen(service, speak(NUMBERS, RATE), pace=50, memory=False)
    assert [n for turn in finals(messages) for n in numbers_in(turn.transcript)] == NUMBERS
    assert over.code == 1000


async def test_answers_come_for_each_turn(autojump_clock: trio.testing.MockClock) -> None:
    """With `llm_gateway` each final has one answer that contains the turn; without access to it there is silence."""
    asked = Streaming(llm_gateway=LLMGatewayConfig("m", (Prompt("user", "Say: {{turn}}"),), 100))
    async with open_service(port=None) as service:
        messages, _ = await listen(service, speak(NUMBERS, RATE), asked)
    answers = [message for message in messages if isinstance(message, LLMGatewayResponse)]
    assert [answer.text for answer in answers] == [f"Say: {turn.transcript}" for turn in finals(messages)]
    async with open_service(port=None, manner=Manner(gateway=False)) as service:
        messages, _ = await listen(service, speak(NUMBERS, RATE), asked)
    assert not [message for message in messages if isinstance(message, LLMGatewayResponse)]


async def test_us_models_have_two_finals(autojump_clock: trio.testing.MockClock) -> None:
    """An unformatted final comes before the formatted one, and an empty one when the session terminates."""
    streaming = Streaming(speech_model="universal-streaming-english", format_turns=True)
    async with open_service(port=None, manner=Manner(two_finals=True)) as service:
        messages, _ = await listen(service, speak(NUMBERS[:4], RATE), streaming)
    assert [(turn.turn_order, turn.turn_is_formatted, turn.transcript) for turn in finals(messages)] == [
        (0, False, "w100 w101 w102 w103"),
        (0, True, "W100 w101 w102 w103."),
        (1, False, ""),
    ]


async def test_speakers_are_corrected_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """With `speaker_labels` every second turn is given to A at first and to B before Termination."""
    async with open_service(port=None) as service:
        messages, _ = await listen(service, speak(NUMBERS, RATE), Streaming(speaker_labels=True))
    revision = messages[-2]
    assert isinstance(revision, SpeakerRevision)
    assert [(one.turn_order, one.speaker_label) for one in revision.revisions] == [(1, "B")]


async def test_an_utterance_ends_on_demand(autojump_clock: trio.testing.MockClock) -> None:
    """ForceEndpoint ends the turn; an UpdateConfiguration changes the pause that ends the next."""
    async with open_service(port=None) as service:
        url = f"{service.url}?{build_query(Streaming(), RATE)}"
        async with open_connection(url, connect=service.connect) as session:
            await session.send_audio(speak([1], RATE)[: 2 * RATE // 2])
            await session.send(protocol.force_endpoint())
            await session.send(protocol.update_configuration({"max_turn_silence": 100}))
            await session.send_audio(speak([2], RATE)[: 2 * RATE // 2])
            seen: list[Message] = []
            while len(finals(seen)) < 2:
                seen.append(await session.receive())
        assert [numbers_in(turn.transcript) for turn in finals(seen)] == [[1], [2]]
        assert service.sessions[0].changes == {"max_turn_silence": 100}


WRONG = [
    ((Refuse(401),), 401, RetryAdvice.FATAL, True),
    ((Refuse(403, told=False),), 403, RetryAdvice.FATAL, True),
    ((Refuse(302),), 302, RetryAdvice.BACK_OFF, True),
    ((Refuse(429),), 429, RetryAdvice.BACK_OFF_A_MINUTE, True),
    ((Refuse(503, told=False),), 503, RetryAdvice.BACK_OFF, True),
    ((Deaf(),), None, RetryAdvice.BACK_OFF, True),
    ((NoBegin(),), None, RetryAdvice.BACK_OFF, True),
    ((HangUp(),), None, RetryAdvice.BACK_OFF, True),
    ((HangUp(b"SSH-2.0-OpenSSH_9.2\r\n"),), None, RetryAdvice.BACK_OFF, True),
    ((Close(1008),), 1008, RetryAdvice.FATAL, False),
    ((Close(1011, words=3),), 1011, RetryAdvice.BACK_OFF, False),
    ((Close(1013),), 1013, RetryAdvice.BACK_OFF, False),
    ((Close(1001, ""),), 1001, RetryAdvice.BACK_OFF, False),
    ((Close(3005, seconds=1),), 3005, RetryAdvice.BACK_OFF, False),
    ((Close(3006),), 3006, RetryAdvice.FATAL, False),
    ((Close(3007),), 3007, RetryAdvice.FATAL, False),
    ((Close(3008, words=9),), 3008, RetryAdvice.RETRY, False),
    ((Close(3009),), 3009, RetryAdvice.BACK_OFF_A_MINUTE, False),
    ((Drop(words=2),), None, RetryAdvice.BACK_OFF, False),
    ((Drop("reset", words=2),), None, RetryAdvice.BACK_OFF, False),
    ((Expire(1.0),), 3008, RetryAdvice.RETRY, False),
    ((Garble("no json"),), None, RetryAdvice.BACK_OFF, False),
    ((Garble("long"),), None, RetryAdvice.EXCESS, False),
]


@pytest.mark.parametrize(("faults", "code", "verdict", "refused"), WRONG, ids=[repr(row[0][0]) for row in WRONG])
async def test_each_fault_is_told_by_its_name(
    autojump_clock: trio.testing.MockClock,
    faults: Sequence[Fault],
    code: int | None,
    verdict: RetryAdvice,
    *,
    refused: bool,
) -> None:
    """The session's end says what happened and what it means for the next."""
    async with open_service(port=None, faults=script({0: faults})) as service:
        _, over = await listen(service, speak(NUMBERS, RATE))
    assert (over.code, over.advice, over.refused) == (code, verdict, refused), str(over)


@pytest.mark.parametrize(("faults", "code", "verdict", "refused"), WRONG, ids=[repr(row[0][0]) for row in WRONG])
async def test_each_fault_is_told_over_a_socket(
    faults: Sequence[Fault], code: int | None, verdict: RetryAdvice, *, refused: bool
) -> None:
    """The kernel's errors end as those in memory do."""
    async with open_service(faults=script({0: faults})) as service:
        _, over = await listen(service, speak(NUMBERS, RATE), pace=3, memory=False, timeout=2)
    assert (over.code, over.advice, over.refused) == (code, verdict, refused), str(over)


async def test_the_words_before_a_failure_arrive(autojump_clock: trio.testing.MockClock) -> None:
    """Turns that were sent before the Error message are received before the session is over."""
    async with open_service(port=None, faults=script({0: [Close(3005, words=9)]})) as service:
        messages, over = await listen(service, speak(NUMBERS, RATE))
    assert [numbers_in(turn.transcript) for turn in finals(messages)] == [NUMBERS[:8]]
    assert over.text == "Session Cancelled: An error occurred"


async def test_a_stall_is_silence(autojump_clock: trio.testing.MockClock) -> None:
    """A stalled service answers no ping while it stalls, and goes on afterwards."""
    async with open_service(port=None, faults=script({0: [Stall(30.0)]})) as service:
        url = f"{service.url}?{build_query(Streaming(), RATE)}"
        async with open_connection(url, connect=service.connect) as session:
            await trio.sleep(1)
            with trio.move_on_after(10) as limit:
                await session.ping()
            assert limit.cancelled_caught
            assert await session.ping()
            assert trio.current_time() >= 30


@pytest.mark.parametrize("close", [False, True])
async def test_a_missing_termination(autojump_clock: trio.testing.MockClock, *, close: bool) -> None:
    """After Terminate nothing comes, or a close without Termination."""
    async with open_service(port=None, faults=script({0: [NoTermination(close=close)]})) as service:
        seen: list[Message] = []
        with trio.move_on_after(60) as limit:
            seen, _ = await listen(service, speak(NUMBERS, RATE))
        assert limit.cancelled_caught is not close
        assert not [message for message in seen if isinstance(message, Termination)]


@pytest.mark.parametrize("name", GARBLED)
async def test_garbled_messages(autojump_clock: trio.testing.MockClock, name: str) -> None:
    """A malformed message that could have been words ends the session, any other is ignored."""
    async with open_service(port=None, faults=script({0: [Garble(name, words=2)]})) as service:
        with structlog.testing.capture_logs() as logs:
            messages, over = await listen(service, speak(NUMBERS, RATE))
    harmless = {"half a heartbeat", "unknown type", "unknown fields", "old casing", "warning"}
    if name in harmless:
        assert over.code == 1000
        assert [n for turn in finals(messages) for n in numbers_in(turn.transcript)] == NUMBERS
    else:
        assert over.advice is (RetryAdvice.EXCESS if name == "long" else RetryAdvice.BACK_OFF)
    assert ("message.malformed" in [entry["event"] for entry in logs]) is (name == "half a heartbeat")


async def test_a_turn_before_begin_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    """A message of the service before Begin is reported, and received after it."""
    async with open_service(port=None, faults=script({0: [TooEarly()]})) as service:
        with structlog.testing.capture_logs() as logs:
            messages, _ = await listen(service, speak([1], RATE))
    assert isinstance(messages[0], TurnMessage)
    assert [entry["event"] for entry in logs] == ["message.unexpected"]


async def test_frames_out_of_bounds_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    """Frames of 20 ms and of 1.2 s end the session with 3007, 50 ms and 1 s do not."""
    async with open_service(port=None) as service:
        ends = [(await listen(service, quiet(3, RATE), frame=RATE * ms // 1000))[1].code for ms in (20, 50, 1000, 1200)]
    assert ends == [3007, 1000, 1000, 3007]


async def test_haste_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """With a `rush`, audio at four times real time ends a session after the grace."""
    async with open_service(port=None, rush=1.25) as service:
        _, hasty = await listen(service, quiet(60, RATE), pace=4)
        _, steady = await listen(service, quiet(60, RATE), pace=1.2)
    assert (hasty.code, hasty.advice) == (3007, RetryAdvice.BACK_OFF)
    assert steady.code == 1000


async def test_too_many_new_sessions_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    """The third session of a minute is refused where two are allowed, and let in a minute later."""
    async with open_service(port=None, sessions_a_minute=2) as service:
        codes = [(await listen(service, b""))[1].code for _ in range(3)]
        await trio.sleep(60)
        codes.append((await listen(service, b""))[1].code)
    assert codes == [1000, 1000, 3009, 1000]


@pytest.mark.parametrize(
    ("key", "text"),
    [("", "Missing Authorization header"), ("sk-wrong-key", "Invalid API key")],
)
async def test_only_the_key_opens(autojump_clock: trio.testing.MockClock, key: str, text: str) -> None:
    """A wrong key, and none, are refused after the upgrade with 1008."""
    async with open_service(port=None, key="sk-right-key") as service:
        _, wrong = await listen(service, b"", key=key)
        _, right = await listen(service, b"", key="sk-right-key")
    assert (wrong.code, wrong.advice, wrong.refused) == (1008, RetryAdvice.FATAL, True)
    assert text in wrong.text
    assert right.code == 1000


async def test_bad_parameters_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    """A bad value is refused before Begin with 3006 and the parameter's name; an unknown parameter is ignored."""
    async with open_service(port=None) as service:
        for bad in ("sample_rate=7000", "speech_model=u3-pro", "keyterms_prompt=a", "format_turns=yes"):
            with pytest.raises(SessionClosed, match=f"Invalid '{bad.partition('=')[0]}'") as refused:
                async with open_connection(f"{service.url}?{bad}", connect=service.connect):
                    pass
            assert refused.value.refused
        async with open_connection(f"{service.url}?mood=good&format_turns=False", connect=service.connect):
            pass


async def test_silence_of_the_client_ends_a_session(autojump_clock: trio.testing.MockClock) -> None:
    """With `inactivity_timeout` a session without any message ends with 3006, to be opened again immediately."""
    async with open_service(port=None) as service:
        url = f"{service.url}?{build_query(Streaming(inactivity_timeout=30), RATE)}"
        with pytest.raises(SessionClosed, match="inactivity") as over:
            async with open_connection(url, connect=service.connect) as session:
                await session.receive()
        assert (over.value.code, over.value.advice) == (3006, RetryAdvice.RETRY)
        assert trio.current_time() == pytest.approx(30, abs=1)


def test_the_weather_is_repeatable() -> None:
    """A seed decides which connections suffer, and about the share that was asked for."""
    stormy = weather(1, [Drop(), Stall()], 0.25)
    assert [stormy(n) for n in range(50)] == [weather(1, [Drop(), Stall()], 0.25)(n) for n in range(50)]
    assert 180 < sum(bool(stormy(n)) for n in range(1000)) < 320


# The SDK opens its socket in a way that the websockets library has begun to deprecate; that is between those two.
sdk = pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")


class Official:
    """AssemblyAI's own client, with what it was told."""

    def __init__(self, host: str, key: str) -> None:
        self.begun: list[BeginEvent] = []
        self.turns: list[TurnEvent] = []
        self.answers: list[LLMGatewayResponseEvent] = []
        self.terminations: list[TerminationEvent] = []
        self.errors: list[StreamingError] = []
        self.ended = threading.Event()
        self.client = StreamingClient(StreamingClientOptions(api_key=key, api_host=host))
        self.client.on(StreamingEvents.Begin, lambda _, event: self.begun.append(event))
        self.client.on(StreamingEvents.Turn, lambda _, event: self.turns.append(event))
        self.client.on(StreamingEvents.LLMGatewayResponse, lambda _, event: self.answers.append(event))
        self.client.on(StreamingEvents.Termination, lambda _, event: self.terminations.append(event))
        self.client.on(StreamingEvents.Error, lambda _, event: self._fail(event))

    def _fail(self, error: StreamingError) -> None:
        self.errors.append(error)
        self.ended.set()

    def connect(self, parameters: dict[str, Any]) -> None:
        self.client.connect(StreamingParameters(**parameters))

    def transcribe(self, parameters: dict[str, Any], audio: bytes) -> None:
        self.connect(parameters)
        for start in range(0, len(audio), RATE // 5 * 2):
            self.client.stream(audio[start : start + RATE // 5 * 2].ljust(RATE // 5 * 2, b"\0"))
        self.client.disconnect(terminate=True)


@sdk
async def test_the_official_client_understands_the_service() -> None:
    """AssemblyAI's SDK connects, hears every word in order, the answers, and the termination."""
    async with open_service(key="sk-right-key") as service:
        official = Official(service.url.removesuffix("/v3/ws"), "sk-right-key")
        parameters: dict[str, Any] = {
            "sample_rate": RATE,
            "speech_model": "u3-rt-pro",
            "speaker_labels": True,
            "language_detection": True,
            "keyterms_prompt": ["Birchwood Lane"],
            "llm_gateway": {"model": "m", "messages": [{"role": "user", "content": "{{turn}}"}], "max_tokens": 10},
        }
        await trio.to_thread.run_sync(official.transcribe, parameters, speak(NUMBERS, RATE))
    assert not official.errors
    assert len(official.begun) == len(official.terminations) == 1
    ends = [turn for turn in official.turns if turn.end_of_turn]
    assert [n for turn in ends for n in numbers_in(turn.transcript)] == NUMBERS
    assert [answer.transcript for answer in official.answers] == [turn.transcript for turn in ends]
    assert service.sessions[0].headers["authorization"] == "sk-right-key"


@sdk
async def test_the_official_client_understands_a_refusal() -> None:
    """AssemblyAI's SDK reports a wrong key with the code that the service gives."""
    async with open_service(key="sk-right-key") as service:
        official = Official(service.url.removesuffix("/v3/ws"), "sk-wrong-key")

        def connect() -> None:
            official.connect({"sample_rate": RATE, "speech_model": "u3-rt-pro"})
            assert official.ended.wait(30)
            official.client.disconnect()

        await trio.to_thread.run_sync(connect)
    assert [error.code for error in official.errors] == [1008]
    assert service.sessions[0].ended.startswith("1008")
