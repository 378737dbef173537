"""The phases of a session: expected messages lead on, others change nothing."""

import pytest

from roomtone.protocol.phases import CLOSED, Phase, step


def run(*kinds: str) -> tuple[Phase, list[str]]:
    phase, surprises = Phase.CONNECTING, []
    for kind in kinds:
        phase, expected = step(phase, kind)
        surprises += [] if expected else [kind]
    return phase, surprises


@pytest.mark.parametrize(
    ("kinds", "phase", "surprises"),
    [
        (["Begin", "SpeechStarted", "Turn", "Terminate", "Turn", "SpeakerRevision", "Termination"], Phase.OVER, []),
        (["Error"], Phase.OVER, []),
        (["Begin", "Turn", "Error", CLOSED], Phase.OVER, []),
        (["Begin", "Termination", "Error"], Phase.OVER, []),
        (["Turn", "Begin"], Phase.BEGUN, ["Turn"]),
        (["Begin", "Begin"], Phase.BEGUN, ["Begin"]),
        (["Termination"], Phase.CONNECTING, ["Termination"]),
        (["Begin", "Terminate", "Termination", "Turn"], Phase.OVER, ["Turn"]),
        (["Begin", "Unknown"], Phase.BEGUN, ["Unknown"]),
        ([CLOSED], Phase.OVER, []),
    ],
)
def test_the_phases_of_a_session(kinds: list[str], phase: Phase, surprises: list[str]) -> None:
    """A legal message leads to the next phase; any other changes nothing and is reported."""
    assert run(*kinds) == (phase, surprises)
