"""The inputs of a session: what all sessions of a room share, the stretch that one is sent, and when it may begin."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import structlog
import trio

from roomtone.budget.governor import FREE, Meter
from roomtone.journal.journal import Journal
from roomtone.journal.keys import RoomMark, room_key
from roomtone.live import Live
from roomtone.llm.room_answers import RoomAnswers
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.speech.endpoint import Endpoint
from roomtone.spool.spool import Spool

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

COVERAGE_COMMIT_INTERVAL_S = 10.0
"""Seconds between commits of coverage while there is no speech."""


def _ignore(reason: str) -> None:
    """The default of `report_failure`."""


class SessionContext(NamedTuple):
    """Shared by all sessions of a room. `frame` is in samples; `two_finals` is as in TurnBook.

    `report_failure` receives the reason why a session could not be opened, or ended early; `meter` counts the cost of
    sessions; `answers` is None where no language model is asked about turns; `speakers` are the names for them;
    `parameters` are those that `endpoint` opens sessions with. `seam` is held from reading what was said to committing
    what is new: two concurrent sessions, or two tasks of one, would otherwise both find the same word missing.
    `gated`: sessions open and close with speech, too often to be logged one by one.
    """

    room: str
    rate: int
    frame: int
    spool: Spool
    journal: Journal
    live: Live
    endpoint: Endpoint
    parameters: SessionParameters
    speech_model: str | None
    two_finals: bool
    seam: trio.Lock
    report_failure: Callable[[str], None] = _ignore
    meter: Meter = FREE
    answers: RoomAnswers | None = None
    speakers: Mapping[str, str] = MappingProxyType({})
    gated: bool = False

    def key(self, name: RoomMark) -> str:
        """The key of a mark of this room."""
        return room_key(self.room, name)

    def log_session(self, event: str, **facts: object) -> None:
        """Log the beginning or the end of a session. The journal has both in any case."""
        (log.debug if self.gated else log.info)(event, room=self.room, **facts)


class Stretch(NamedTuple):
    """The audio for one session: from position `start` to `until`, or open-ended. All before `floor` is settled."""

    start: int
    floor: int
    until: int | None = None


class Handover:
    """When a session may send, and when its words may be written: after those of the session that it relieves."""

    def __init__(self) -> None:
        self.may_send = trio.Event()
        self.settled = trio.Event()
        """Set when all words of older sessions are in the journal: the events of a room come in session order."""

    @classmethod
    def immediate(cls) -> "Handover":
        """For a session that relieves no other."""
        handover = cls()
        handover.may_send.set()
        handover.settled.set()
        return handover
