"""What one session has said, on its way into the journal: turns with their seam, answers, and what they settle."""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import structlog
import trio

from roomtone.budget.governor import FREE, Meter
from roomtone.events import Durable, Interim, SessionEnded, SessionStarted, Turn, Word
from roomtone.journal.journal import CoverageSpan, Journal, Mark, Record
from roomtone.live import Live
from roomtone.llm.room_answers import RoomAnswers
from roomtone.llm.session_answers import SessionAnswers
from roomtone.protocol.messages import LLMGatewayResponse, Termination, TurnMessage
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.protocol.turns import MAX_REMEMBERED_TURNS
from roomtone.spans import Span
from roomtone.speech.acks import AckTracker
from roomtone.speech.endpoint import Endpoint
from roomtone.speech.seam import near, unheard
from roomtone.speech.speakers import Speakers, label_of
from roomtone.speech.time_map import TimeMap
from roomtone.spool.spool import Spool

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

COVERAGE_COMMIT_INTERVAL_S = 10.0
"""Seconds between commits of coverage while nobody speaks."""
SEAM_TIMEOUT_S = 10.0
"""Seconds that a turn may wait for what tells whether an older session has said it already."""
MAX_TURN_S = 120
"""Seconds that a turn of another session may have begun before the words that are compared with it."""


MAX_INTERIM_LENGTH = 10_000
"""Characters of a turn that is still being said that are shown, the last ones: ten minutes without a pause."""
LONGEST_ID = 64
"""Characters of a session's id. The service's has 36."""


def _tell_nobody(reason: str) -> None:
    """For a desk at which nobody asks."""


class SessionContext(NamedTuple):
    """What every session of a room works with. `frame` is in samples; `two_finals` as TurnBook wants it.

    `failed` is told why a session could not be, or ended before its time; `meter` counts what sessions cost; `answers`
    is None where no language model is asked about turns; `speakers` are the names for them; `terms` are those that
    `endpoint` opens sessions under. `seam` is held from reading what was said to committing what is new: two sessions
    beside each other, or two tasks of one, would both find the same word unsaid. `gated`: sessions come and go with
    speech, too often to be told one by one.
    """

    room: str
    rate: int
    frame: int
    spool: Spool
    journal: Journal
    live: Live
    endpoint: Endpoint
    terms: SessionParameters
    speech_model: str | None
    two_finals: bool
    seam: trio.Lock
    failed: Callable[[str], None] = _tell_nobody
    meter: Meter = FREE
    answers: RoomAnswers | None = None
    speakers: Mapping[str, str] = MappingProxyType({})
    gated: bool = False

    def tell(self, event: str, **facts: object) -> None:
        """Log the beginning or the end of a session. The events are in the journal in any case."""
        (log.debug if self.gated else log.info)(event, room=self.room, **facts)


_NEVER = 1 << 62  # no position


async def identify(desk: SessionContext, session_id: str) -> str:
    """The id of a session that has begun: the service's, unless that is not one.

    One that another session of this room has had, that cannot be told from such a one by what stands in a speaker's
    label, or that has what no id has, is replaced by one of ours: events, answers and what is forgotten go by it.
    """
    known = await desk.journal.select(desk.room, ["session_started"], 0, _NEVER)
    told = {label_of(event.session_id) for event in known if isinstance(event, SessionStarted)}
    is_plain = len(session_id) <= LONGEST_ID and re.fullmatch(r"[A-Za-z0-9._:-]+", session_id) is not None
    return session_id if is_plain and label_of(session_id) not in told else str(uuid.uuid4())


class _Kept(NamedTuple):
    """Of so many words of a turn, those that no older session has said."""

    of: int
    indexes: tuple[int, ...]


_NONE = _Kept(-1, ())


class SessionJournal:
    """The journal's side of one session, which was sent audio from `start` on, all before `floor` being settled before.

    `marks` says what to journal with the acknowledged position; `settled` is set when all that older sessions have said
    is in the journal: until then nothing of this one is, for the events of a room come in the order of its sessions.
    """

    def __init__(
        self,
        desk: SessionContext,
        track: TimeMap,
        ledger: AckTracker,
        *,
        session_id: str,
        start: int,
        floor: int,
        marks: Callable[[int], Sequence[Mark]],
        settled: trio.Event,
    ) -> None:
        self.acknowledged = floor
        self._desk = desk
        self._track = track
        self._ledger = ledger
        self._id = session_id
        self._metered = f"{desk.room}/{session_id}"
        self._start = start
        self._margin = desk.rate if start < floor else 0
        self._marks = marks
        self._settled = settled
        self._waiting: list[tuple[TurnMessage, tuple[Word, ...]]] = []
        self._waiting_since = 0.0
        self._reported_at = trio.current_time()
        self._begun: dict[int, int] = {}
        self._speakers = Speakers(session_id, desk.speakers)
        self._ids: dict[int, str] = {}
        self._kept: dict[int, _Kept] = {}
        self._replies = SessionAnswers(desk.room, session_id, desk.spool.at, desk.answers)

    def show(self, turn: TurnMessage) -> None:
        """Publish a turn that is still being said."""
        position = self._open(turn)
        self._desk.live.publish(
            Interim(
                room=self._desk.room,
                position=position,
                at=self._desk.spool.at(position),
                session_id=self._id,
                turn_order=turn.turn_order,
                text=turn.text[-MAX_INTERIM_LENGTH:],
            )
        )

    def add(self, turn: TurnMessage, *, is_answered: bool = False) -> None:
        """Take a final turn; `journal` decides when it is written. It replaces what was said before as the same turn.

        `is_answered`: the service asks the language model about it.
        """
        self._open(turn)
        now = trio.current_time()
        self._waiting_since = self._waiting_since if self._waiting else now
        entry = (turn, self._track.words(turn.words or ()))
        # A turn that was abandoned, or that is corrected, before its seam is decided is still one turn.
        waiting = next((i for i, (other, _) in enumerate(self._waiting) if other.turn_order == turn.turn_order), None)
        if waiting is not None:
            self._waiting[waiting] = entry
        else:
            self._waiting.append(entry)
        if turn.end_of_turn and turn.words and self._track.has_sent(max(word.end for word in turn.words)):
            self._ledger.prove(max(word.end for word in entry[1]))
        if is_answered:
            self._replies.expect(turn.turn_order, now)

    def _open(self, turn: TurnMessage) -> int:
        """The position of the turn's first word; nothing behind it counts as heard before the turn is journalled."""
        first = min(turn.words or (), key=lambda word: word.start, default=None)
        words = self._track.words([first] if first else [])
        position = words[0].start if words else self._ledger.heard(trio.current_time())
        self._ledger.opened(turn.turn_order, position)
        begun = self._begun.setdefault(turn.turn_order, position)
        for remembered in (self._begun, self._ids, self._kept):
            if len(remembered) > 2 * MAX_REMEMBERED_TURNS:
                del remembered[next(iter(remembered))]
        return begun

    async def report(self) -> None:
        """Write what has become due: turns whose seam is decided now, and coverage once in REPORT_EVERY seconds."""
        await self.journal()
        await self._journal_answers()
        async with self._desk.seam:
            if trio.current_time() >= self._reported_at + COVERAGE_COMMIT_INTERVAL_S and self._settled.is_set():
                await self._commit(())

    async def journal(self, *, whatever_comes: bool = False) -> None:
        """Write the turns whose seam is decided, or all of them, and what they settle, in one transaction.

        Cancelled, it has written nothing, and they wait on.
        """
        async with self._desk.seam:
            if self._waiting and (self._settled.is_set() or whatever_comes):
                await self._journal(whatever_comes=whatever_comes)

    async def _journal(self, *, whatever_comes: bool) -> None:
        old = await self._recall()
        if not (self._decided(old) or whatever_comes):
            return
        waiting = tuple(self._waiting)
        self._keep(waiting, old)
        turns: list[Turn] = []
        for turn, heard in waiting:
            limit = self._ledger.limit
            kept = [i for i in self._kept[turn.turn_order].indexes if limit is None or heard[i].end <= limit]
            if kept or not heard:
                turns.append(self._turn(turn, tuple(heard[i] for i in kept), whole=len(kept) == len(heard)))
        closed = {
            turn.turn_order: Span(heard[0].start, max(word.end for word in heard)) if heard else None
            for turn, heard in waiting
        }
        events = await self._commit([*turns, *self._replies.marks(turns)], closed)
        # One that was corrected meanwhile is another entry, and still waits.
        done = {id(entry) for entry in waiting}
        self._waiting = [entry for entry in self._waiting if id(entry) not in done]
        written = {event.turn_order: event for event in events if isinstance(event, Turn)}
        self._ids.update((order, turn.id) for order, turn in written.items())
        self._replies.written((turn.turn_order for turn, _ in waiting), written)
        await self._journal_answers()

    def _keep(self, waiting: Sequence[tuple[TurnMessage, tuple[Word, ...]]], old: Sequence[Sequence[Word]]) -> None:
        """Decide which words of these turns are new. A correction of the same words keeps those that were kept before:
        who speaks is revised, and nothing is said anew.
        """
        undecided = [
            (turn.turn_order, heard)
            for turn, heard in waiting
            if self._kept.get(turn.turn_order, _NONE).of != len(heard)
        ]
        words = [word for _, heard in undecided for word in heard]
        new = {id(words[index]) for index in unheard(old, words, self._desk.rate)}
        for order, heard in undecided:
            self._kept[order] = _Kept(len(heard), tuple(i for i, word in enumerate(heard) if id(word) in new))

    def _decided(self, old: Sequence[Sequence[Word]]) -> bool:
        """Whether all that older sessions have said, and that these turns may repeat, can be told from what is new."""
        words = [word for _, heard in self._waiting for word in heard]
        common = near(old, words, self._desk.rate)
        if not common:
            return True
        edge = max(turn[-1].end for turn in common) + self._desk.rate
        return (
            words[-1].end > edge
            or self._ledger.sent > edge + SEAM_TIMEOUT_S * self._desk.rate
            or trio.current_time() >= self._waiting_since + SEAM_TIMEOUT_S
        )

    async def _recall(self) -> list[tuple[Word, ...]]:
        """What other sessions have said where the waiting turns are, turn by turn: as it stands in the journal now, for
        a session beside this one may have said more since the last time.

        Where nothing is sent again, the words of the session that was relieved end before this one's first sample.
        """
        desk = self._desk
        words = [word for _, heard in self._waiting for word in heard]
        if not words:
            return []
        begin = min(word.start for word in words) - MAX_TURN_S * desk.rate
        end = max(word.end for word in words) + desk.rate
        known = await desk.journal.select(desk.room, ["turn"], begin, end)
        said = [event for event in known if isinstance(event, Turn) and event.session_id != self._id]
        superseded = {event.supersedes for event in said}
        turns = [
            tuple(word for word in event.words if word.end > self._start - self._margin)
            for event in said
            if event.id not in superseded
        ]
        return [turn for turn in turns if turn]

    def _turn(self, turn: TurnMessage, words: tuple[Word, ...], *, whole: bool) -> Turn:
        position = words[0].start if words else self._begun[turn.turn_order]
        return Turn(
            room=self._desk.room,
            position=position,
            at=self._desk.spool.at(position),
            session_id=self._id,
            turn_order=turn.turn_order,
            text=turn.text if whole else " ".join(word.text for word in words),
            words=tuple(msgspec.structs.replace(word, speaker=self._speakers.name(word.speaker)) for word in words),
            language=turn.language_code,
            speaker=self._speakers.name(turn.speaker_label),
            supersedes=self._ids.get(turn.turn_order),
        )

    async def _commit(
        self, facts: Sequence[Record], closed: Mapping[int, Span | None] = MappingProxyType({})
    ) -> tuple[Durable, ...]:
        """One transaction: these facts, and everything that is newly settled with them and with the turns they close.

        Nothing counts as settled before it is in the journal.
        """
        desk = self._desk
        self._reported_at = trio.current_time()
        acknowledged, rows = self._ledger.after(closed).report(self._reported_at)
        covers = [
            CoverageSpan(
                room=desk.room,
                start=span.start,
                end=span.end,
                state=state,
                cause=None,
                from_=desk.spool.at(span.start),
                until=desk.spool.at(span.end),
            )
            for span, state in rows
        ]
        marks = self._marks(acknowledged) if acknowledged > self.acknowledged else ()
        events = await desk.journal.commit(*facts, *covers, *marks) if facts or covers or marks else ()
        self.acknowledged = max(self.acknowledged, acknowledged)
        self._ledger.settle(acknowledged, closed)
        return events

    @property
    def is_expecting(self) -> bool:
        """Whether the language model has not yet answered a turn that it was asked about."""
        return self._replies.is_expecting

    async def answer(self, message: LLMGatewayResponse) -> None:
        """Take what the language model said to a turn; it is journalled behind the turn."""
        self._replies.take(message)
        await self._journal_answers()

    async def _journal_answers(self, *, is_last: bool = False) -> None:
        with self._replies.due(trio.current_time(), is_last=is_last) as facts:
            if facts:
                await self._desk.journal.commit(*facts)

    async def begin(self, expires_at: datetime | None, *, model: str | None) -> None:
        """Journal that the session is up."""
        desk = self._desk
        await desk.journal.commit(
            SessionStarted(
                room=desk.room,
                position=self._start,
                at=desk.spool.at(self._start),
                session_id=self._id,
                endpoint=desk.endpoint.name,
                speech_model=model,
                expires_at=expires_at,
            ),
            *desk.meter.begin(self._metered),
        )
        desk.tell("session.started", session_id=self._id, endpoint=desk.endpoint.name)

    async def end(self, reason: str, termination: Termination | None, seconds: float) -> None:
        """Journal what still waits, how the session ended, and all that this settles.

        The service's own seconds count; `seconds` is how long the session was open where it does not say.
        """
        desk = self._desk
        await self.journal(whatever_comes=True)
        await self._journal_answers(is_last=True)
        position = self._ledger.sent if self._ledger.limit is None else min(self._ledger.sent, self._ledger.limit)
        audio = None if termination is None else termination.audio_duration_seconds
        told = None if termination is None else termination.session_duration_seconds
        open_for = round(seconds, 3) if told is None else told
        await self._commit(
            [
                SessionEnded(
                    room=desk.room,
                    position=position,
                    at=desk.spool.at(position),
                    session_id=self._id,
                    audio_seconds=round(self._track.sent / desk.rate, 3) if audio is None else audio,
                    session_seconds=open_for,
                    reason=reason,
                ),
                *desk.meter.end(self._metered, open_for),
            ]
        )
        desk.tell("session.ended", session_id=self._id, reason=reason, seconds=round(seconds, 1))
