"""roomtone.recognizer.endpointer: where turns begin and end."""

from hypothesis import given
from hypothesis import strategies as st

from roomtone.recognizer.endpointer import MAX_TURN_MS, ONSET_SPEECH, Endpointer, Step
from roomtone.recognizer.engine import TurnSettings

WINDOW = 32.0
SETTINGS = TurnSettings(silence=320, threshold=0.5)


def follow(probabilities: list[float], settings: TurnSettings = SETTINGS) -> list[Step]:
    endpointer = Endpointer(WINDOW)
    return [endpointer.hear(probability, settings) for probability in probabilities]


def test_a_click_begins_no_turn() -> None:
    """Fewer windows of speech than an onset has are noise, however often they come."""
    click = [0.9] * (ONSET_SPEECH - 2) + [0.0] * 10
    assert set(follow(click * 50)) == {Step.QUIET}


def test_a_turn_ends_after_the_silence_and_not_before() -> None:
    """The pause that the settings name ends a turn; one window less does not."""
    speech, pause = [0.9] * 20, [0.0] * 9
    assert Step.END not in follow([*speech, *pause, *speech])
    steps = follow([*speech, *pause, 0.0])
    assert steps.index(Step.BEGIN) == ONSET_SPEECH - 1
    assert steps[-1] is Step.END


def test_soft_speech_does_not_end_a_turn() -> None:
    """Within a turn, what is a little below the threshold still counts as speech."""
    assert Step.END not in follow([0.9] * 20 + [0.4] * 100)


def test_a_long_turn_ends_in_a_shorter_pause() -> None:
    """From half of the longest turn on, ever shorter pauses are enough."""
    long = [0.9] * int(0.9 * MAX_TURN_MS / WINDOW)
    assert Step.END in follow([*long, *[0.0] * 5])


def test_a_turn_without_any_pause_is_cut() -> None:
    """A television that never pauses is cut at the longest turn, and the next turn goes on without an onset."""
    steps = follow([0.9] * int(2.5 * MAX_TURN_MS / WINDOW))
    assert steps.count(Step.CUT) == 2
    assert steps.count(Step.BEGIN) == 1
    cut = steps.index(Step.CUT)
    assert steps[cut + 1] is Step.SPEECH
    assert cut * WINDOW <= MAX_TURN_MS


@given(
    st.lists(st.floats(0, 1), max_size=3000),
    st.builds(TurnSettings, silence=st.integers(50, 10_000), threshold=st.floats(0, 1)),
)
def test_every_turn_that_begins_is_bounded(probabilities: list[float], settings: TurnSettings) -> None:
    """Whatever is heard, begin and end alternate, and no turn is longer than the longest."""
    speaking, length = False, 0
    for step in follow(probabilities, settings):
        length += 1
        match step:
            case Step.QUIET:
                assert not speaking
            case Step.BEGIN:
                assert not speaking
                speaking, length = True, ONSET_SPEECH
            case Step.SPEECH:
                assert speaking
            case Step.CUT:
                assert speaking
                length = 0
            case Step.END:
                assert speaking
                speaking = False
        assert not speaking or length * WINDOW <= MAX_TURN_MS + 2 * WINDOW
