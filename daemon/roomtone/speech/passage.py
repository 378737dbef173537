"""One streaming session over one stretch of the spool: from `Begin` to `Termination`, or to whatever ended it sooner.

A passage reads the spool from its start, sends what it reads, and journals what comes back. It never repairs itself:
when its session is over it says how far everything is settled, and the transcriber decides what follows.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import structlog
import trio

from roomtone.capture.spool import Piece, Spool
from roomtone.events import Answer, Durable, Interim, SessionEnded, SessionStarted, Turn, Word
from roomtone.journal import Cover, Fact, Journal, Mark
from roomtone.live import Live
from roomtone.speech import protocol
from roomtone.speech.connection import Session, SessionOver
from roomtone.speech.coverage import Ledger, Span
from roomtone.speech.endpoint import Endpoint
from roomtone.speech.protocol import Verdict
from roomtone.speech.seam import unheard
from roomtone.speech.track import Pace, Track
from roomtone.speech.turns import Abandoned, EmptyFinal, FinalTurn, InterimText, Outcome, TurnBook

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

PING_EVERY = 5.0
"""Seconds between pings: a half-open socket is noticed within this and the endpoint's patience."""
LONGEST_TURN = 120
"""Seconds that a turn of an older session may have begun before the stretch that is sent again."""
REPORT_EVERY = 10.0
"""Seconds between commits of coverage while nobody speaks."""
IDLE = 10.0
"""Seconds without a new sample after which a session is ended: an open socket costs money."""
LAST_WORDS = 10.0
"""Seconds that Termination may take after Terminate, and that a turn may wait for its seam to be decided."""
AWAY = -1
"""Stands for time without a source, where no sample is missing."""
ZEROS = 1.0
"""Seconds of lost audio that are sent as silence, so that word times still map by one addition; more ends the turn."""


class Desk(NamedTuple):
    """What every session of a room works with. `frame` is in samples; `two_finals` as TurnBook wants it."""

    room: str
    rate: int
    frame: int
    spool: Spool
    journal: Journal
    live: Live
    endpoint: Endpoint
    speech_model: str | None
    two_finals: bool


class Ending(NamedTuple):
    """How a session was over. `complete`: the service has sent Termination, so that all it was sent is heard."""

    complete: bool
    verdict: Verdict
    text: str


class Passage:
    """One session from position `start`, all before `floor` being settled already, up to `until` where that is known.

    `marks` says what to journal with the acknowledged position; `settled` is set when the words of the session before
    are all in the journal: until then nothing of this one is, for events of one room come in the order of sessions.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        start: int,
        floor: int,
        until: int | None,
        marks: Callable[[int], Sequence[Mark]],
        settled: trio.Event,
        may_send: trio.Event,
    ) -> None:
        self.desk = desk
        self.until = until
        self.over = trio.Event()
        self.ending = Ending(complete=False, verdict=Verdict.RETRY, text="the daemon stops")
        self.expires_at: datetime | None = None
        self.begun_at = trio.current_time()
        self._marks = marks
        self._settled = settled
        self._may_send = may_send
        self.begin_at(start, floor)
        self._book = TurnBook(two_finals=desk.two_finals)
        self._waiting: list[tuple[protocol.TurnMessage, tuple[Word, ...]]] = []
        self._waiting_since = 0.0
        self._old: list[tuple[Word, ...]] = []
        self._recalled = False
        self._asked = False
        self._begun: dict[int, int] = {}
        self._ids: dict[int, str] = {}
        self._id = ""
        self._reported_at = trio.current_time()

    def begin_at(self, start: int, floor: int) -> None:
        """Where the first sample is read, and what is settled before; may be moved until `may_send` is set."""
        self.start = self.position = start
        self.floor = self.acknowledged = max(floor, start)
        self.track = Track(start, self.desk.rate)
        self.ledger = Ledger(start, floor=self.floor)

    async def run(self, *, task_status: trio.TaskStatus[bool]) -> None:
        """Open a session and live it; `ending` says how it was over. `started` gets whether it came to Begin.

        Errors: those of the journal and the spool. Everything of the network and the service is an Ending.
        """
        try:
            async with self.desk.endpoint.open() as session:
                await self._journal_begin(session.begin)
                task_status.started(True)
                await self._converse(session)
        except SessionOver as over:
            if not self._id:
                self.ending = Ending(complete=False, verdict=over.verdict, text=str(over))
                task_status.started(False)
        finally:
            self.over.set()

    async def _converse(self, session: Session) -> None:
        self.begun_at = trio.current_time()
        termination: protocol.Termination | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, session, nursery.cancel_scope)
                nursery.start_soon(self._ping, session, nursery.cancel_scope)
                nursery.start_soon(self._report_for_ever)
                try:
                    termination = await self._receive(session)
                    self.ending = Ending(complete=self._asked, verdict=Verdict.RETRY, text="terminated")
                except SessionOver as over:
                    self.ending = Ending(complete=False, verdict=over.verdict, text=str(over))
                nursery.cancel_scope.cancel()
            await self._settled.wait()
        finally:
            # What the service has said is journalled even when the deadline of a shutdown has struck: it is one commit.
            with trio.CancelScope(shield=True):
                await self._journal_end(termination, trio.current_time() - self.begun_at)

    # --- sending -----------------------------------------------------------------------------------------------------

    async def _send(self, session: Session, conversation: trio.CancelScope) -> None:
        await self._may_send.wait()
        pace = Pace(self.desk.rate, now=trio.current_time(), speed=1.2 if self.desk.endpoint.remote else None)
        frame = 2 * self.desk.frame
        held = b""
        while (found := await self._next(self.desk.frame - len(held) // 2)) is not None:
            audio, lost = found
            if lost and held:
                await self._send_frame(session, held, pace)
                held = b""
            if lost > ZEROS * self.desk.rate or lost == AWAY:
                await session.send(protocol.force_endpoint())
                lost = 0
            self.track.jump(self.position - len(audio) // 2 - lost)
            held += bytes(2 * lost) + audio
            while len(held) >= frame:
                if not await self._send_frame(session, held[:frame], pace):
                    return  # over: the receiver says how
                held = held[frame:]
        if held:
            await self._send_frame(session, held, pace)
        self._asked = True
        await session.send(protocol.terminate())
        await trio.sleep(LAST_WORDS)
        self.ending = Ending(complete=False, verdict=Verdict.BACK_OFF, text=f"no Termination within {LAST_WORDS:.0f} s")
        conversation.cancel()

    async def _next(self, limit: int) -> tuple[bytes, int] | None:
        """The next audio and the samples missing before it, or AWAY; None where the stretch ends."""
        if self.until is not None:
            limit = min(limit, self.until - self.position)
        if limit <= 0:
            return None
        piece: Piece | None = None
        with trio.move_on_after(IDLE):
            piece = await wait_piece(self.desk.spool, self.position, limit)
        # The stretch may have been given its end while this waited.
        if piece is None or (self.until is not None and piece.position + len(piece.audio) // 2 > self.until):
            return None if piece is None or piece.position >= self._end else await self._next(limit)
        lost = piece.position - self.position
        if self.track.sent == 0:
            self.track.jump(piece.position)
            lost = 0
        elif piece.fresh and lost <= ZEROS * self.desk.rate:
            lost = AWAY
        self.position = piece.position + len(piece.audio) // 2
        return piece.audio, lost

    @property
    def _end(self) -> float:
        return float("inf") if self.until is None else self.until

    async def _send_frame(self, session: Session, frame: bytes, pace: Pace) -> bool:
        """Send at most one frame's audio, padded to the shortest that the service takes. False: the session is over."""
        samples = len(frame) // 2
        padded = max(samples, round(self.desk.rate * protocol.SHORTEST_FRAME))
        await trio.sleep(pace.wait(self.track.sent, trio.current_time()))
        sent = await session.send_audio(frame + bytes(2 * (padded - samples)))
        position = self.track.position + samples
        self.track.send(padded)
        self.track.jump(position)
        self.ledger.sent = position
        return sent

    async def _ping(self, session: Session, conversation: trio.CancelScope) -> None:
        while True:
            await trio.sleep(PING_EVERY)
            sent = self.ledger.sent
            patience = self.desk.endpoint.patience
            with trio.move_on_after(patience) as scope:
                if not await session.ping():
                    return
                self.ledger.answered(sent, trio.current_time())
            if scope.cancelled_caught:
                text = f"no answer to a ping within {patience:.0f} s"
                self.ending = Ending(complete=False, verdict=Verdict.BACK_OFF, text=text)
                conversation.cancel()

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def _receive(self, session: Session) -> protocol.Termination:
        """Take messages until Termination. Raises SessionOver where the session ends without one."""
        while True:
            message: protocol.Message | None = None
            with trio.move_on_at(self._book.deadline()):
                message = await session.receive()
            now = trio.current_time()
            match message:
                case protocol.TurnMessage() | protocol.SpeakerRevision():
                    await self._take(self._book.feed(message, now))
                case protocol.LLMGatewayResponse():
                    await self._journal_answer(message)
                case protocol.Termination():
                    return message
                case protocol.Warning(warning=text):
                    log.warning("session.warned", room=self.desk.room, session_id=self._id, text=text)
                case None:
                    await self._take(self._book.expire(now))

    async def _take(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case InterimText(turn=turn):
                    self._show(turn)
                case EmptyFinal(turn_order=order):
                    self.ledger.closed(order, None)
                case FinalTurn(turn=turn) | Abandoned(turn=turn):
                    # An abandoned turn is taken at its last word: the service went on without it, its speech was heard.
                    self._open(turn)
                    self._waiting_since = self._waiting_since if self._waiting else trio.current_time()
                    self._waiting.append((turn, self.track.words(turn.words or ())))
        await self._journal_turns()

    def _show(self, turn: protocol.TurnMessage) -> None:
        position = self._open(turn)
        self.desk.live.publish(
            Interim(
                room=self.desk.room,
                position=position,
                at=self.desk.spool.at(position),
                session_id=self._id,
                turn_order=turn.turn_order,
                text=turn.text,
            )
        )

    def _open(self, turn: protocol.TurnMessage) -> int:
        """The position of the turn's first word; nothing behind it counts as heard before the turn is journalled."""
        words = self.track.words((turn.words or ())[:1])
        position = words[0].start if words else self.ledger.heard(trio.current_time())
        self.ledger.opened(turn.turn_order, position)
        return self._begun.setdefault(turn.turn_order, position)

    # --- journalling -------------------------------------------------------------------------------------------------

    async def _journal_begin(self, begin: protocol.Begin) -> None:
        self._id = begin.id
        if begin.expires_at is not None:
            self.expires_at = datetime.fromtimestamp(begin.expires_at, UTC)
        desk = self.desk
        await desk.journal.commit(
            SessionStarted(
                room=desk.room,
                position=self.position,
                at=desk.spool.at(self.position),
                session_id=begin.id,
                endpoint=desk.endpoint.name,
                speech_model=desk.speech_model,
                expires_at=self.expires_at,
            )
        )
        log.info("session.started", room=desk.room, session_id=begin.id, endpoint=desk.endpoint.name)

    async def _journal_turns(self, *, all_of_them: bool = False) -> None:
        """Journal the turns whose seam is decided, or all of them, and what they settle, in one transaction."""
        if not self._waiting or not (await self._decided() or all_of_them):
            return
        waiting, self._waiting = self._waiting, []
        words = [word for _, heard in waiting for word in heard]
        new = {id(words[index]) for index in unheard(self._old, words, self.desk.rate)}
        turns: list[Turn] = []
        for turn, heard in waiting:
            kept = tuple(word for word in heard if id(word) in new)
            if kept or not heard:
                turns.append(self._turn(turn, kept, whole=len(kept) == len(heard)))
            span = Span(heard[0].start, max(word.end for word in heard)) if heard else None
            self.ledger.closed(turn.turn_order, span)
        for event in await self._commit(turns):
            if isinstance(event, Turn):
                self._ids[event.turn_order] = event.id

    async def _decided(self) -> bool:
        """Whether everything that the sessions before have said, and that these turns may repeat, is known."""
        if not self._settled.is_set():
            return False
        if not self._recalled:
            await self._recall()
        if not self._old:
            return True
        edge = max(word.end for turn in self._old for word in turn) + self.desk.rate
        now = trio.current_time()
        return (
            any(words[-1].end > edge for _, words in self._waiting if words)
            or self.ledger.sent > edge + LAST_WORDS * self.desk.rate
            or now >= self._waiting_since + LAST_WORDS
        )

    async def _recall(self) -> None:
        """Read from the journal which words of this stretch are there already, where some of it was sent before."""
        self._recalled = True
        if self.start == self.floor:
            return
        desk = self.desk
        begin = self.start - LONGEST_TURN * desk.rate
        known = await desk.journal.select(desk.room, ["turn"], begin, self.until or desk.spool.end)
        turns = [
            tuple(word for word in event.words if word.end > self.start - desk.rate)
            for event in known
            if isinstance(event, Turn) and event.session_id != self._id
        ]
        self._old = [turn for turn in turns if turn]

    def _turn(self, turn: protocol.TurnMessage, words: tuple[Word, ...], *, whole: bool) -> Turn:
        position = words[0].start if words else self._begun[turn.turn_order]
        return Turn(
            room=self.desk.room,
            position=position,
            at=self.desk.spool.at(position),
            session_id=self._id,
            turn_order=turn.turn_order,
            text=turn.text if whole else " ".join(word.text for word in words),
            words=words,
            language=turn.language_code,
            speaker=turn.speaker_label,
            supersedes=self._ids.get(turn.turn_order),
        )

    async def _journal_answer(self, message: protocol.LLMGatewayResponse) -> None:
        text = message.text
        position = self._begun.get(message.turn_order, self.ledger.start)
        await self._journal_turns(all_of_them=self._settled.is_set())
        await self.desk.journal.commit(
            Answer(
                room=self.desk.room,
                position=position,
                at=self.desk.spool.at(position),
                session_id=self._id,
                turn_order=message.turn_order,
                text=text or "",
                response=message.data if isinstance(message.data, dict) else {"data": message.data},
            )
        )
        if text is None:
            log.warning("answer.empty", room=self.desk.room, session_id=self._id, turn_order=message.turn_order)

    async def _report_for_ever(self) -> None:
        while True:
            await trio.sleep(1)
            await self._journal_turns()
            if trio.current_time() >= self._reported_at + REPORT_EVERY and self._settled.is_set():
                await self._commit(())

    async def _commit(self, facts: Sequence[Fact]) -> tuple[Durable, ...]:
        """One transaction: these facts, and everything that is newly settled with them."""
        desk = self.desk
        self._reported_at = trio.current_time()
        acknowledged, rows = self.ledger.report(self._reported_at)
        covers = [
            Cover(
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
        moved = acknowledged > self.acknowledged
        self.acknowledged = max(self.acknowledged, acknowledged)
        marks = self._marks(acknowledged) if moved else ()
        if not (facts or covers or marks):
            return ()
        return await desk.journal.commit(*facts, *covers, *marks)

    async def _journal_end(self, termination: protocol.Termination | None, seconds: float) -> None:
        desk = self.desk
        last = self._book.close()
        await self._take(last if self.ending.complete else [turn for turn in last if not isinstance(turn, Abandoned)])
        await self._journal_turns(all_of_them=True)
        if self.ending.complete:
            self.ledger.terminated()
        position = self.ledger.sent
        audio = None if termination is None else termination.audio_duration_seconds
        open_for = None if termination is None else termination.session_duration_seconds
        await self._commit(
            [
                SessionEnded(
                    room=desk.room,
                    position=position,
                    at=desk.spool.at(position),
                    session_id=self._id,
                    audio_seconds=round(self.track.sent / desk.rate, 3) if audio is None else audio,
                    session_seconds=round(seconds, 3) if open_for is None else open_for,
                    reason=self.ending.text,
                )
            ]
        )
        log.info(
            "session.ended", room=desk.room, session_id=self._id, reason=self.ending.text, seconds=round(seconds, 1)
        )


async def wait_piece(spool: Spool, position: int, limit: int) -> Piece | None:
    """The first audio at or after `position`, at most `limit` samples, as soon as there is any; None: never again."""
    while True:
        end = spool.end
        if (piece := await spool.read(position, limit)) is not None:
            return piece
        if not await spool.grown(end):
            return None
