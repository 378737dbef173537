"""roomtone.recognizer.adapter: everything around an engine that only turns the audio of a turn into words."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.recognizer.adapter import MAX_TURN_MS, RELAXED_MS, WINDOW, EngineAdapter
from roomtone.recognizer.alignment import fill
from roomtone.recognizer.engine import Capabilities, EngineInfo, Hypothesis, Spoken, TurnSettings
from support.word_error import RATE

LOUD = np.full(WINDOW, 8000, "<i2").tobytes()
SOFT = bytes(2 * WINDOW)
PER_S = RATE / WINDOW  # windows in a second


def detect(window: bytes) -> float:
    """The probability of speech, as loud as the window is."""
    return int(np.frombuffer(window, "<i2")[0]) / 10_000


class Echo:
    """A turn engine that records what it was asked, and says the words that it was given."""

    info = EngineInfo("echo", "mountain", Capabilities(punctuates=True, terms=True))

    def __init__(self, text: str | None = None) -> None:
        self.text = text
        self.asked: list[float] = []
        self.terms: tuple[str, ...] = ()

    def decode(self, audio: bytes, terms: tuple[str, ...] = ()) -> str | Sequence[Spoken]:
        self.asked.append(len(audio) / 2 / RATE)
        self.terms = terms
        return f"{len(self.asked)} words were said" if self.text is None else self.text


def hear(engine: Echo, *parts: tuple[bytes, float], settings: TurnSettings | None = None) -> list[Hypothesis]:
    """What comes of these windows, each so many seconds long."""
    audio = b"".join(window * round(seconds * PER_S) for window, seconds in parts)
    with EngineAdapter(engine, lambda: detect, None).open(settings or TurnSettings()) as stream:
        return stream.feed(audio) + stream.endpoint()


def test_silence_and_clicks_never_reach_the_engine() -> None:
    """An engine that is asked about silence invents words, so it is not asked."""
    engine = Echo()
    assert hear(engine, *[(SOFT, 2), (LOUD, 0.1)] * 20, (SOFT, 2)) == []
    assert engine.asked == []


def test_a_turn_is_decoded_without_the_pause_that_ended_it() -> None:
    """The engine gets the speech, a little before it and a little after it; the words lie within."""
    engine = Echo()
    [final] = [h for h in hear(engine, (SOFT, 3), (LOUD, 0.9), (SOFT, 3)) if h.final]
    assert len(engine.asked) == 1
    assert 0.9 <= engine.asked[0] <= 1.6
    assert final.words[0].start >= 2.5 * RATE
    assert final.words[-1].end <= 4.3 * RATE


def test_partials_come_at_growing_intervals() -> None:
    """Each decoding costs the whole turn so far: about 1, 2, 4 and 8 s of speech are shown, then the final."""
    engine = Echo()
    hypotheses = hear(engine, (LOUD, 11), (SOFT, 2))
    assert [h.final for h in hypotheses] == [False] * 4 + [True]
    assert all(1.7 <= after / before <= 2.6 for before, after in pairwise(engine.asked[:4]))
    assert sum(engine.asked) < 3 * 11


def test_a_long_turn_is_cut_at_its_softest_moment() -> None:
    """A pause too short to end a turn is where a long one is cut; the rest begins the next turn, without a loss."""
    engine = Echo()
    finals = [h for h in hear(engine, (LOUD, 13), (SOFT, 0.07), (LOUD, 7), (SOFT, 2)) if h.final]
    first, second = finals
    assert abs(first.words[-1].end / RATE - 13.05) < 0.1
    assert second.words[0].start == first.words[-1].end
    assert max(engine.asked) <= MAX_TURN_MS / 1000 + 0.1


def test_an_hour_without_a_pause_is_bounded() -> None:
    """Turns follow each other without a break, each between the two lengths; so the memory of one turn is enough."""
    engine = Echo()
    finals = [h for h in hear(engine, (LOUD, 300)) if h.final]
    lengths = [(h.words[-1].end - h.words[0].start) / RATE for h in finals]
    assert all(RELAXED_MS / 1000 <= length <= MAX_TURN_MS / 1000 + 0.1 for length in lengths[:-1])
    assert sum(lengths) == pytest.approx(300, abs=0.2)


def test_one_word_against_a_turn_of_noise_is_dropped() -> None:
    """A cough gives no "You": a turn of one or two words is believed only where the detector heard speech."""
    noisy = [(LOUD, 0.2), *[(SOFT, 0.35), (LOUD, 0.05)] * 5, (SOFT, 2)]
    assert [h.words for h in hear(Echo("You"), *noisy)] == [()]
    assert len(hear(Echo("You"), (LOUD, 0.6), (SOFT, 2))[-1].words) == 1
    assert len(hear(Echo("You said it was true"), *noisy)[-1].words) == 5


def test_text_of_an_engine_is_not_trusted() -> None:
    """Control characters, endless words and repetitions without end do not reach a transcript."""
    text = "good\x1b[2J \ud800 mor\0ning " + "x" * 10_000 + " again" * 10_000
    words = [word.text for word in hear(Echo(text), (LOUD, 2), (SOFT, 2))[-1].words]
    assert len(words) < 30
    assert max(map(len, words)) <= 100
    assert all(word.isprintable() for word in words)


def test_terms_reach_the_engine() -> None:
    """The terms of `keyterms_prompt` are given to each decoding."""
    engine = Echo()
    hear(engine, (LOUD, 1), (SOFT, 2), settings=TurnSettings(terms=("Ravenglass",)))
    assert engine.terms == ("Ravenglass",)


@given(
    st.lists(st.tuples(st.text("abc", min_size=1, max_size=9), st.booleans()), max_size=30),
    st.integers(100, 1000),
)
def test_words_without_a_time_lie_between_their_neighbors(words: list[tuple[str, bool]], step: int) -> None:
    """Times never go back, known ones stay, and none lies past the end."""
    times = [(step * i, step * i + step // 2) if is_known else None for i, (_, is_known) in enumerate(words)]
    filled = fill([word for word, _ in words], times, step * len(words))
    assert len(filled) == len(words)
    assert all(known in (None, given) for known, given in zip(times, filled, strict=True))
    flat = [position for pair in filled for position in pair]
    assert flat == sorted(flat)
    assert all(0 <= position <= step * len(words) for position in flat)
