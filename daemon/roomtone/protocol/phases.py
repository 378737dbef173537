"""The phases of a session on the wire, as a table of transitions. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from roomtone.protocol.messages import Begin, Error, Termination, Warning  # noqa: A004 - the name of the message


class Phase(StrEnum):
    """The state of a session. It is up, and billed, from BEGUN on."""

    CONNECTING = "connecting"
    BEGUN = "begun"
    TERMINATING = "terminating"
    OVER = "over"


CLOSED: Final = "closed"
_RUNNING: Final = ("SpeechStarted", "Turn", "SpeakerRevision", "LLMGatewayResponse", "Heartbeat", "Silence", "Warning")

TRANSITIONS: Final[Mapping[tuple[Phase, str], Phase]] = {
    (Phase.CONNECTING, Begin.kind): Phase.BEGUN,
    (Phase.CONNECTING, Warning.kind): Phase.CONNECTING,
    **{(Phase.BEGUN, kind): Phase.BEGUN for kind in _RUNNING},
    (Phase.BEGUN, "Terminate"): Phase.TERMINATING,
    (Phase.BEGUN, Termination.kind): Phase.OVER,  # at expiry the service may send one unasked, and then 3008
    **{(Phase.TERMINATING, kind): Phase.TERMINATING for kind in _RUNNING},
    (Phase.TERMINATING, "Terminate"): Phase.TERMINATING,
    (Phase.TERMINATING, Termination.kind): Phase.OVER,
    **{(phase, Error.kind): Phase.OVER for phase in Phase},
    **{(phase, CLOSED): Phase.OVER for phase in Phase},
}
"""The phase that follows each expected input: a message's kind, the Terminate that the client sent, or the close."""


def step(phase: Phase, kind: str) -> tuple[Phase, bool]:
    """Returns the next phase, and True if this input was expected.

    An unexpected one, such as a Turn before Begin, changes no phase: the caller reports it and uses what it can.
    """
    following = TRANSITIONS.get((phase, kind))
    return (phase, False) if following is None else (following, True)
