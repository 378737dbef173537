"""The words of one session, on their way into the journal: turns with their seam, answers, and what they settle."""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import structlog
import trio

from roomtone.events import Durable, Interim, SessionEnded, SessionStarted, Turn, Word
from roomtone.journal.records import CoverageSpan, Mark, Record
from roomtone.llm.session_answers import SessionAnswers
from roomtone.protocol.messages import LLMGatewayResponse, Termination, TurnMessage
from roomtone.protocol.turns import MAX_REMEMBERED_TURNS
from roomtone.spans import Span
from roomtone.speech.acks import AckTracker
from roomtone.speech.seam import near, unheard
from roomtone.speech.session_context import COVERAGE_COMMIT_INTERVAL_S, SessionContext, Stretch
from roomtone.speech.speakers import Speakers, label_of
from roomtone.speech.time_map import TimeMap

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

SEAM_TIMEOUT_S = 10.0
"""Seconds that a turn may wait until it is decided which of its words an older session has already said."""
MAX_TURN_S = 120
"""Seconds that a turn of another session may have begun before the words that are compared with it."""
MAX_INTERIM_LENGTH = 10_000
"""Characters of an open turn that are shown, the last ones: ten minutes without a pause."""
MAX_ID_LENGTH = 64
"""Characters of a session's id. The service's has 36."""
MAX_KNOWN_LABELS = 1000
"""Sessions of a room, the latest ones, whose labels a new session must not have."""
BILLING_TOLERANCE_S = 60.0
"""Seconds by which the service may say that a session lasted longer than we have seen it open."""

_NEVER = 1 << 62  # a position that no room reaches


async def identify(context: SessionContext, session_id: str) -> tuple[str, Mark]:
    """Returns the id of a session that has begun, and the mark to commit with it: the labels in use.

    The id is the service's unless it is malformed, or its label is that of another session: then it is a new one.
    Events, answers and speakers are found by it.
    """
    key = context.key("session_labels")
    labels = await context.journal.mark(key)
    if labels is None:  # a journal of an earlier version, or the first session
        started = await context.journal.select(context.room, ["session_started"], 0, _NEVER)
        labels = [label_of(event.session_id) for event in started if isinstance(event, SessionStarted)]
    is_plain = len(session_id) <= MAX_ID_LENGTH and re.fullmatch(r"[A-Za-z0-9._:-]+", session_id) is not None
    chosen = session_id if is_plain and label_of(session_id) not in labels else str(uuid.uuid4())
    return chosen, Mark(key, [*labels, label_of(chosen)][-MAX_KNOWN_LABELS:])


class _Kept(NamedTuple):
    """Of a turn with `of` words, the indexes of those that no older session has said."""

    of: int
    indexes: tuple[int, ...]


_NONE = _Kept(-1, ())


class SessionJournal:
    """Writes what one session says, which is sent this stretch of audio.

    `marks` gives the marks to commit with an acknowledged position. `settled` is set when all words of older sessions
    are in the journal; until then none of this one are written, since the events of a room come in session order.
    """

    def __init__(
        self,
        context: SessionContext,
        time_map: TimeMap,
        acks: AckTracker,
        *,
        session_id: str,
        stretch: Stretch,
        marks: Callable[[int], Sequence[Mark]],
        settled: trio.Event,
    ) -> None:
        self.acknowledged = stretch.floor
        self._context = context
        self._time_map = time_map
        self._acks = acks
        self._id = session_id
        self._meter_key = f"{context.room}/{session_id}"
        self._start = stretch.start
        self._margin = context.rate if stretch.start < stretch.floor else 0
        self._marks = marks
        self._settled = settled
        self._waiting: list[tuple[TurnMessage, tuple[Word, ...]]] = []
        self._waiting_since = 0.0
        self._reported_at = trio.current_time()
        self._begun: dict[int, int] = {}
        self._speakers = Speakers(session_id, context.speakers)
        self._ids: dict[int, str] = {}
        self._kept: dict[int, _Kept] = {}
        self._answers = SessionAnswers(context.room, session_id, context.spool.at, context.answers)

    def publish_interim(self, turn: TurnMessage) -> None:
        """Publish an open turn as interim text."""
        position = self._open(turn)
        self._context.live.publish(
            Interim(
                room=self._context.room,
                position=position,
                at=self._context.spool.at(position),
                session_id=self._id,
                turn_order=turn.turn_order,
                text=turn.text[-MAX_INTERIM_LENGTH:],
            )
        )

    def add(self, turn: TurnMessage, *, is_answered: bool = False) -> None:
        """Take a final turn; `write_turns` decides when it is written. It replaces an earlier state of the same turn.

        `is_answered`: the service asks the language model about it.
        """
        self._open(turn)
        now = trio.current_time()
        self._waiting_since = self._waiting_since if self._waiting else now
        entry = (turn, self._time_map.words(turn.words or ()))
        # A turn that was abandoned, or that is corrected, before its seam is decided is still one turn.
        waiting = next((i for i, (other, _) in enumerate(self._waiting) if other.turn_order == turn.turn_order), None)
        if waiting is not None:
            self._waiting[waiting] = entry
        else:
            self._waiting.append(entry)
        if turn.end_of_turn and turn.words and self._time_map.has_sent(max(word.end for word in turn.words)):
            self._acks.prove(max(word.end for word in entry[1]))
        if is_answered:
            self._answers.expect(turn.turn_order, now)

    def _open(self, turn: TurnMessage) -> int:
        """Returns the position of the turn's first word; from there on nothing is heard until the turn is written."""
        first = min(turn.words or (), key=lambda word: word.start, default=None)
        words = self._time_map.words([first] if first else [])
        position = words[0].start if words else self._acks.heard(trio.current_time())
        self._acks.opened(turn.turn_order, position)
        begun = self._begun.setdefault(turn.turn_order, position)
        for remembered in (self._begun, self._ids, self._kept):
            if len(remembered) > 2 * MAX_REMEMBERED_TURNS:
                del remembered[next(iter(remembered))]
        return begun

    async def report(self) -> None:
        """Write what has become due: turns whose seam is decided, and coverage once per commit interval."""
        await self.write_turns()
        await self._write_answers()
        async with self._context.seam:
            if trio.current_time() >= self._reported_at + COVERAGE_COMMIT_INTERVAL_S and self._settled.is_set():
                await self._commit(())

    async def write_turns(self, *, force: bool = False) -> None:
        """Write the turns whose seam is decided, or with `force` all, and what they settle, in one transaction.

        If it is cancelled, nothing is written, and the turns keep waiting.
        """
        async with self._context.seam:
            if self._waiting and (self._settled.is_set() or force):
                await self._write_turns(force=force)

    async def _write_turns(self, *, force: bool) -> None:
        old = await self._recall()
        if not (self._decided(old) or force):
            return
        waiting = tuple(self._waiting)
        self._keep(waiting, old)
        turns: list[Turn] = []
        for turn, heard in waiting:
            limit = self._acks.limit
            kept = [i for i in self._kept[turn.turn_order].indexes if limit is None or heard[i].end <= limit]
            if kept or not heard:
                turns.append(self._turn(turn, tuple(heard[i] for i in kept), whole=len(kept) == len(heard)))
        closed = {
            turn.turn_order: Span(heard[0].start, max(word.end for word in heard)) if heard else None
            for turn, heard in waiting
        }
        events = await self._commit([*turns, *self._answers.marks(turns)], closed)
        # A turn that was corrected meanwhile is another entry, and still waits.
        done = {id(entry) for entry in waiting}
        self._waiting = [entry for entry in self._waiting if id(entry) not in done]
        written = {event.turn_order: event for event in events if isinstance(event, Turn)}
        self._ids.update((order, turn.id) for order, turn in written.items())
        self._answers.written((turn.turn_order for turn, _ in waiting), written)
        await self._write_answers()

    def _keep(self, waiting: Sequence[tuple[TurnMessage, tuple[Word, ...]]], old: Sequence[Sequence[Word]]) -> None:
        """Decide which words of these turns are new. A correction of the same words keeps those that were kept before:
        it revises the speakers only.
        """
        undecided = [
            (turn.turn_order, heard)
            for turn, heard in waiting
            if self._kept.get(turn.turn_order, _NONE).of != len(heard)
        ]
        words = [word for _, heard in undecided for word in heard]
        new = {id(words[index]) for index in unheard(old, words, self._context.rate)}
        for order, heard in undecided:
            self._kept[order] = _Kept(len(heard), tuple(i for i, word in enumerate(heard) if id(word) in new))

    def _decided(self, old: Sequence[Sequence[Word]]) -> bool:
        """True if the new words of these turns can be distinguished from those that older sessions have said."""
        words = [word for _, heard in self._waiting for word in heard]
        common = near(old, words, self._context.rate)
        if not common:
            return True
        edge = max(turn[-1].end for turn in common) + self._context.rate
        return (
            words[-1].end > edge
            or self._acks.sent > edge + SEAM_TIMEOUT_S * self._context.rate
            or trio.current_time() >= self._waiting_since + SEAM_TIMEOUT_S
        )

    async def _recall(self) -> list[tuple[Word, ...]]:
        """Returns the words of other sessions near the waiting turns, turn by turn. They are read each time, since a
        concurrent session may have added some.

        Where nothing is sent again, the words of the session that was relieved end before this one's first sample.
        """
        context = self._context
        words = [word for _, heard in self._waiting for word in heard]
        if not words:
            return []
        begin = min(word.start for word in words) - MAX_TURN_S * context.rate
        end = max(word.end for word in words) + context.rate
        known = await context.journal.select(context.room, ["turn"], begin, end)
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
            room=self._context.room,
            position=position,
            at=self._context.spool.at(position),
            session_id=self._id,
            turn_order=turn.turn_order,
            text=turn.text if whole else " ".join(word.text for word in words),
            words=tuple(msgspec.structs.replace(word, speaker=self._speakers.name(word.speaker)) for word in words),
            language=turn.language_code,
            speaker=self._speakers.name(turn.speaker_label),
            supersedes=self._ids.get(turn.turn_order),
        )

    async def _commit(
        self, records: Sequence[Record], closed: Mapping[int, Span | None] = MappingProxyType({})
    ) -> tuple[Durable, ...]:
        """Write these records and all that they and the closed turns settle, in one transaction.

        Nothing counts as settled before it is in the journal.
        """
        context = self._context
        self._reported_at = trio.current_time()
        acknowledged, rows = self._acks.after(closed).report(self._reported_at)
        covers = [
            CoverageSpan(
                room=context.room,
                start=span.start,
                end=span.end,
                state=state,
                cause=None,
                from_=context.spool.at(span.start),
                until=context.spool.at(span.end),
            )
            for span, state in rows
        ]
        marks = self._marks(acknowledged) if acknowledged > self.acknowledged else ()
        events = await context.journal.commit(*records, *covers, *marks) if records or covers or marks else ()
        self.acknowledged = max(self.acknowledged, acknowledged)
        self._acks.settle(acknowledged, closed)
        return events

    @property
    def is_awaiting_answers(self) -> bool:
        """True if the language model has not yet answered a turn that it was asked about."""
        return self._answers.is_expecting

    async def answer(self, message: LLMGatewayResponse) -> None:
        """Take the language model's answer to a turn; it is written after the turn."""
        self._answers.take(message)
        await self._write_answers()

    async def _write_answers(self, *, is_last: bool = False) -> None:
        with self._answers.due(trio.current_time(), is_last=is_last) as records:
            if records:
                await self._context.journal.commit(*records)

    async def begin(self, expires_at: datetime | None, *marks: Mark, model: str | None) -> None:
        """Write that the session has begun, and these marks."""
        context = self._context
        await context.journal.commit(
            SessionStarted(
                room=context.room,
                position=self._start,
                at=context.spool.at(self._start),
                session_id=self._id,
                endpoint=context.endpoint.name,
                speech_model=model,
                expires_at=expires_at,
            ),
            *context.meter.begin(self._meter_key),
            *marks,
        )
        context.log_session("session.started", session_id=self._id, endpoint=context.endpoint.name)

    async def end(self, reason: str, termination: Termination | None, seconds: float) -> None:
        """Write what still waits, how the session ended, and all that this settles.

        The service's own seconds are billed; `seconds`, for which the session was open here, where it does not say, or
        says more than can be.
        """
        context = self._context
        await self.write_turns(force=True)
        await self._write_answers(is_last=True)
        position = self._acks.sent if self._acks.limit is None else min(self._acks.sent, self._acks.limit)
        audio = None if termination is None else termination.audio_duration_seconds
        billed = None if termination is None else termination.session_duration_seconds
        if billed is None or billed > seconds + BILLING_TOLERANCE_S:
            billed = round(seconds, 3)
        await self._commit(
            [
                SessionEnded(
                    room=context.room,
                    position=position,
                    at=context.spool.at(position),
                    session_id=self._id,
                    audio_seconds=round(self._time_map.sent / context.rate, 3) if audio is None else audio,
                    session_seconds=billed,
                    reason=reason,
                ),
                *context.meter.end(self._meter_key, billed),
            ]
        )
        context.log_session("session.ended", session_id=self._id, reason=reason, seconds=round(seconds, 1))
