"""roomtone.recognizer.session: from hypotheses to messages."""

from collections.abc import Iterable

import pytest

from roomtone.protocol.messages import ClientCommand, Message, Silence, SpeechStarted, TurnMessage
from roomtone.recognizer.engine import Hypothesis, Spoken, TurnSettings
from roomtone.recognizer.query import Parameters, SessionRefused
from roomtone.recognizer.session import SHORT_FRAMES, RecognizerSession

RATE = 16_000
FRAME = bytes(2 * RATE // 10)  # 100 ms


class Script:
    """A stream that says what it was told to say, one step per frame, and remembers what it was fed."""

    def __init__(self, *steps: Iterable[Hypothesis]) -> None:
        self.steps = [list(step) for step in steps]
        self.fed = b""
        self.settings: list[TurnSettings] = []
        self.speaking = False

    def feed(self, audio: bytes) -> list[Hypothesis]:
        self.fed += audio
        return self.steps.pop(0) if self.steps else []

    def endpoint(self) -> list[Hypothesis]:
        return [said("cut off", final=True)]

    def configure(self, settings: TurnSettings) -> None:
        self.settings.append(settings)


def said(text: str, *, final: bool = False) -> Hypothesis:
    """The words of the text, each of half a second."""
    words = text.split()
    return Hypothesis(tuple(Spoken(w, i * 8000, (i + 1) * 8000, 0.5) for i, w in enumerate(words)), final=final)


def turns(messages: Iterable[Message]) -> list[TurnMessage]:
    return [message for message in messages if isinstance(message, TurnMessage)]


def heard(script: Script, parameters: Parameters | None = None) -> list[Message]:
    session = RecognizerSession(parameters or Parameters(), script, RATE)
    return [message for _ in range(len(script.steps)) for message in session.hear(FRAME)]


def test_a_turn_is_replaced_by_the_next_of_its_order_and_counted_at_its_end() -> None:
    """turn_order counts from 0 and moves on at finals; times are ms of the session's audio."""
    messages = turns(heard(Script([said("good")], [said("good day"), said("good day sir", final=True)], [said("yes")])))
    assert [(turn.turn_order, turn.end_of_turn, turn.transcript) for turn in messages] == [
        (0, False, "Good"),
        (0, False, "Good day"),
        (0, True, "Good day sir."),
        (1, False, "Yes"),
    ]
    assert [(word.start, word.end) for word in messages[2].words or ()] == [(0, 500), (500, 1000), (1000, 1500)]
    assert [turn.utterance for turn in messages] == ["", "", "Good day sir.", ""]


def test_formatting_is_capitals_and_a_full_stop() -> None:
    """Formatted turns have them, in the words too; others are lower case throughout."""
    script = [said("yes i think on monday", final=True)]
    formatted, plain = Parameters(), Parameters(speech_model="universal-streaming-english")
    [turn] = turns(heard(Script(script), formatted))
    assert (turn.transcript, turn.turn_is_formatted) == ("Yes I think on Monday.", True)
    assert " ".join(word.text for word in turn.words or ()) == turn.transcript
    [turn] = turns(heard(Script(script), plain))
    assert (turn.transcript, turn.turn_is_formatted) == ("yes i think on monday", False)


def test_speech_is_announced_once_a_turn() -> None:
    """The later models send SpeechStarted with the first partial, or with a final that had none."""
    messages = heard(Script([said("a"), said("a b"), said("a b", final=True)], [said("c", final=True)]))
    assert [type(message) for message in messages].count(SpeechStarted) == 2
    assert isinstance(messages[0], SpeechStarted)
    first = Parameters(speech_model="universal-streaming-english")
    assert not any(isinstance(m, SpeechStarted) for m in heard(Script([said("a", final=True)]), first))


def test_noise_is_no_turn_but_what_was_shown_is_ended() -> None:
    """A final without words is silent, unless a partial of it was shown: that must not stay open for ever."""
    assert heard(Script([said("", final=True)])) == []
    shown = turns(heard(Script([said("the")], [said("", final=True)], [said("so", final=True)])))
    assert [(turn.turn_order, turn.end_of_turn, turn.transcript) for turn in shown] == [
        (0, False, "The"),
        (0, True, ""),
        (1, True, "So."),
    ]


def test_partials_can_be_left_out() -> None:
    """include_partial_turns=false gives finals only."""
    script = Script([said("a")], [said("a b", final=True)])
    assert [turn.end_of_turn for turn in turns(heard(script, Parameters(include_partial_turns=False)))] == [True]


def test_frames_outside_50_to_1000_ms_end_the_session() -> None:
    """Too long ends it at once; too short only as a habit, for a client's last frame is often short."""
    session = RecognizerSession(Parameters(), Script(), RATE)
    session.hear(bytes(2 * RATE))
    session.hear(bytes(2 * RATE // 20))
    with pytest.raises(SessionRefused, match=r"Input Duration Violation: 1200\.0 ms") as refused:
        session.hear(bytes(2 * RATE * 12 // 10))
    assert refused.value.code == 3007
    short = bytes(2 * RATE // 50)
    for _ in range(SHORT_FRAMES - 1):
        session.hear(short)
    with pytest.raises(SessionRefused, match=r"Input Duration Violation: 20\.0 ms"):
        session.hear(short)


def test_half_a_sample_ends_the_session() -> None:
    """It would shift every sample after it."""
    with pytest.raises(SessionRefused, match="half a sample"):
        RecognizerSession(Parameters(), Script(), RATE).hear(FRAME + b"\0")


def test_another_rate_is_resampled_without_losing_a_sample() -> None:
    """The engine gets all of the audio at its own rate; frames are measured at the rate of the client."""
    script = Script()
    session = RecognizerSession(Parameters(sample_rate=48_000), script, RATE)
    for _ in range(20):
        session.hear(bytes(2 * 48_000 // 20))
    session.finish()
    assert len(script.fed) == 2 * RATE


def test_the_end_ends_the_open_turn() -> None:
    """ForceEndpoint and Terminate both give the turn that is open as a final."""
    session = RecognizerSession(Parameters(), Script(), RATE)
    assert [turn.transcript for turn in turns(session.obey(ClientCommand("ForceEndpoint")))] == ["Cut off."]
    assert [turn.turn_order for turn in turns(session.finish())] == [1]


def test_an_update_reaches_the_engine() -> None:
    """UpdateConfiguration takes effect in the running session and is not answered."""
    script = Script()
    session = RecognizerSession(Parameters(), script, RATE)
    assert session.obey(ClientCommand("UpdateConfiguration", {"min_turn_silence": 3000, "vad_threshold": 0.9})) == []
    assert script.settings == [TurnSettings(silence=3000, threshold=0.9)]


def test_silence_is_acknowledged_on_wish() -> None:
    """About once a second while no turn is open, without a hole between two of them."""
    script = Script()
    session = RecognizerSession(Parameters(acknowledge_silence=True), script, RATE)
    spans = [message for _ in range(25) for message in session.hear(FRAME)]
    assert spans == [Silence(0, 1000), Silence(1000, 2000)]
    script.speaking = True
    assert [message for _ in range(25) for message in session.hear(FRAME)] == []
