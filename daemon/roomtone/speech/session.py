"""One streaming session over one stretch of the spool: from `Begin` to `Termination`, or to whatever ended it sooner.

A passage sends what it reads and journals what comes back. It never repairs itself: when its session is over it says
how far everything is settled, and the transcriber decides what follows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import structlog
import trio

from roomtone.backoff import is_worth_saying
from roomtone.concurrency import grace_after_cancel
from roomtone.journal.journal import Mark
from roomtone.protocol import messages
from roomtone.protocol.messages import Begin, RetryAdvice
from roomtone.protocol.turns import Abandoned, EmptyFinal, FinalTurn, InterimText, TurnBook, TurnOutcome
from roomtone.speech.acks import AckTracker
from roomtone.speech.allowance import EVENT_BYTES, KEPT_BURST_BYTES, KEPT_BYTES_PER_S, Allowance
from roomtone.speech.connection import Connection
from roomtone.speech.sender import AudioSender
from roomtone.speech.session_errors import Excess, SessionClosed
from roomtone.speech.session_journal import SessionContext, SessionJournal, identify
from roomtone.speech.session_watchdog import SessionWatchdog
from roomtone.speech.time_map import TimeMap

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

PING_INTERVAL_S = 5.0
"""Seconds between pings: a half-open socket is noticed within this and the endpoint's patience."""
LAST_ANSWERS_TIMEOUT_S = 10.0
"""Seconds that the language model has for the last turns before Terminate, after which no answer comes."""
LAST_TURN_TIMEOUT_S = 1.5
"""Seconds in which the service says what it has heard at last, when it is asked to end the turn."""
TERMINATION_TIMEOUT_S = 10.0
"""Seconds that Termination may take after Terminate."""
JOURNAL_CLOSE_TIMEOUT_S = 2.0
"""Seconds that the journal has for the last of a session when everything is cancelled."""


class SessionOutcome(NamedTuple):
    """How a session was over. `complete`: the service has answered Terminate, so that all it was sent is heard;
    `begun`: there was one at all; `wait`: the service asks to be left alone for so many seconds.
    """

    complete: bool
    verdict: RetryAdvice
    text: str
    begun: bool = True
    wait: float = 0.0


class StreamingSession:
    """One session from position `start`, all before `floor` being settled, up to `until` where that is known.

    `marks` and `settled` are as Minutes has them; `may_send` holds a session back that is to relieve another.
    `doubted_after`: so many minutes of what sounds like speech, and not a word, are held to be deafness.
    `acknowledged` is, once the session is `over`, how far everything is settled.
    """

    def __init__(
        self,
        desk: SessionContext,
        *,
        start: int,
        floor: int,
        until: int | None,
        marks: Callable[[int], Sequence[Mark]],
        settled: trio.Event,
        may_send: trio.Event,
        doubted_after: float = math.inf,
    ) -> None:
        self.over = trio.Event()
        self.ending = SessionOutcome(complete=False, verdict=RetryAdvice.RETRY, text="left", begun=False)
        self.expires_at: datetime | None = None
        self.begun_at = trio.current_time()
        self._desk = desk
        self._until = until
        self._marks = marks
        self._settled = settled
        self._may_send = may_send
        self._doubted_after = doubted_after
        self._book = TurnBook(two_finals=desk.two_finals)
        self._allowance = Allowance(burst=KEPT_BURST_BYTES, rate=KEPT_BYTES_PER_S)
        self._furthest_ms = 0.0
        self._warnings = 0
        self._asked = False
        self._changes: dict[str, Any] = {}
        self._changed = trio.Event()
        self.begin_at(start, floor)

    def begin_at(self, start: int, floor: int) -> None:
        """Where the first sample is read, and what is settled before; may be moved until `may_send` is set."""
        self._start = start
        self._floor = self.acknowledged = max(floor, start)
        self._ledger = AckTracker(start, floor=self._floor)
        self._furthest_ms = 0.0
        self._track = TimeMap(start, self._desk.rate)
        self._doubt = SessionWatchdog(start, self._desk.rate, minutes=self._doubted_after)
        self._outgoing = AudioSender(
            self._desk.spool,
            self._track,
            self._ledger,
            rate=self._desk.rate,
            frame=self._desk.frame,
            until=self._until,
            remote=self._desk.endpoint.remote,
            doubt=self._doubt,
        )

    def end_at_once(self) -> int:
        """End the stretch where the session is now, and say where that is: another session takes over from there."""
        self._outgoing.until = self._outgoing.position
        return self._outgoing.position

    def end_by(self, position: int) -> None:
        """End the stretch at this position, or where the session is now if that is later."""
        until = max(position, self._outgoing.position)
        if self._outgoing.until is None or until < self._outgoing.until:
            self._until = self._outgoing.until = until

    def share_until(self, position: int, seam: int) -> None:
        """End the stretch at this position, and leave to another session what is heard behind the seam."""
        self._ledger.limit = seam
        self.end_by(position)

    @property
    def position(self) -> int:
        """The position that is sent next."""
        return self._outgoing.position

    @property
    def progress(self) -> int:
        """How many samples this session has settled, now that it is over."""
        return self.acknowledged - self._floor

    @property
    def deaf_since(self) -> int | None:
        """From where on this session seems to have heard nothing of what it was sent, if that is so."""
        return self._doubt.deaf_since

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Open a session and live it. `started` comes when it has begun, or could not; `ending` says which, and how it
        was over.

        Errors: those of the journal and the spool. Everything of the network and the service is an Ending.
        """
        terms = self._desk.terms
        asked = terms.streaming
        try:
            async with self._desk.endpoint.open() as session:
                self.ending = self.ending._replace(begun=True)
                task_status.started()
                with terms.told(self._tell, asked=asked):
                    await self._converse(session)
        except SessionClosed as over:
            begun = self.ending.begun
            self.ending = SessionOutcome(
                complete=False, verdict=over.verdict, text=str(over), begun=begun, wait=over.wait
            )
            if not begun:
                task_status.started()
        finally:
            self.over.set()

    async def _converse(self, session: Connection) -> None:
        self.begun_at = trio.current_time()
        if session.begin.expires_at is not None:
            self.expires_at = datetime.fromtimestamp(session.begin.expires_at, UTC)
        await self._wait_until_it_may_send(session)
        minutes = await self._open_minutes(session.begin)
        termination: messages.Termination | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, session, minutes, nursery.cancel_scope)
                nursery.start_soon(self._ping, session, nursery.cancel_scope)
                nursery.start_soon(self._update, session)
                nursery.start_soon(_report_for_ever, minutes)
                try:
                    termination = await self._receive(session, minutes)
                    self.ending = SessionOutcome(complete=self._asked, verdict=RetryAdvice.RETRY, text="terminated")
                except SessionClosed as over:
                    self.ending = SessionOutcome(complete=False, verdict=over.verdict, text=str(over))
                nursery.cancel_scope.cancel()
            await self._settled.wait()
        finally:
            # What the service has said is journalled even when the deadline of a shutdown has struck. A full disk must
            # not hold that up: what it does not take is pending, and heard again at the next start.
            async with trio.open_nursery() as nursery:
                with trio.CancelScope(shield=True) as patience:
                    nursery.start_soon(grace_after_cancel, patience, JOURNAL_CLOSE_TIMEOUT_S)
                    await self._close(minutes, termination)
                nursery.cancel_scope.cancel()

    async def _wait_until_it_may_send(self, session: Connection) -> None:
        """Keep a session alive that is to relieve another, for the service ends who says nothing. Raises SessionOver
        where it has ended already.
        """
        pause = min(PING_INTERVAL_S, self._desk.terms.streaming.inactivity_timeout / 2)
        while not self._may_send.is_set():
            with trio.move_on_after(pause):
                await self._may_send.wait()
            if not self._may_send.is_set() and not await session.send(messages.keep_alive()):
                while True:
                    await session.receive()

    async def _open_minutes(self, begin: Begin) -> SessionJournal:
        async with self._desk.seam:  # two sessions beside each other must not both find an id unused
            minutes = SessionJournal(
                self._desk,
                self._track,
                self._ledger,
                session_id=await identify(self._desk, begin.id),
                start=self._start,
                floor=self._floor,
                marks=self._marks,
                settled=self._settled,
            )
            await minutes.begin(self.expires_at, model=self._model_of(begin))
        return minutes

    def _model_of(self, begin: Begin) -> str | None:
        """The model of the session: the recognizer on this machine names its own, whatever it was asked for."""
        named = (begin.configuration or {}).get("model")
        is_own = not self._desk.endpoint.remote and isinstance(named, str)
        return named if is_own else self._desk.speech_model

    async def _close(self, minutes: SessionJournal, termination: messages.Termination | None) -> None:
        for outcome in self._book.close():
            match outcome:
                case FinalTurn(turn=turn):
                    minutes.add(turn)
                case Abandoned(turn=turn) if self.ending.complete:
                    minutes.add(turn)
        if self.ending.complete:
            await minutes.journal(whatever_comes=True)
            self._ledger.terminated()
        await minutes.end(self.ending.text, termination, trio.current_time() - self.begun_at)
        self.acknowledged = minutes.acknowledged

    async def _send(self, session: Connection, minutes: SessionJournal, conversation: trio.CancelScope) -> None:
        if not await self._outgoing.send(session):
            return  # over: the receiver says how
        if self._desk.answers is not None:
            await self._hear_answers(session, minutes)
        self._asked = True
        await session.send(messages.terminate())
        await trio.sleep(TERMINATION_TIMEOUT_S)
        self._give_up(conversation, f"no Termination within {TERMINATION_TIMEOUT_S:.0f} s")

    def _tell(self, changes: Mapping[str, Any]) -> None:
        """Have the session told of other terms. What does not fit is merged: the last value of each counts."""
        self._changes.update(changes)
        self._changed.set()

    async def _update(self, session: Connection) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            changes, self._changes = self._changes, {}
            await session.send(messages.update_configuration(changes))
            log.info("session.updated", room=self._desk.room, parameters=sorted(changes))

    async def _hear_answers(self, session: Connection, minutes: SessionJournal) -> None:
        """Wait for the answers to the last turns: nothing follows Termination, and what is then missing is lost."""
        with trio.move_on_after(LAST_ANSWERS_TIMEOUT_S):
            await session.send(messages.force_endpoint())
            await trio.sleep(LAST_TURN_TIMEOUT_S)
            while minutes.is_expecting or self._book.open_since() != math.inf:  # noqa: ASYNC110 - two books, no event
                await trio.sleep(0.1)

    async def _ping(self, session: Connection, conversation: trio.CancelScope) -> None:
        patience = self._desk.endpoint.patience
        while True:
            await trio.sleep(PING_INTERVAL_S)
            sent = self._ledger.sent
            with trio.move_on_after(patience) as scope:
                if not await session.ping():
                    return
                self._ledger.answered(sent, trio.current_time())
            if scope.cancelled_caught:
                self._give_up(conversation, f"no answer to a ping within {patience:.0f} s")

    def _give_up(self, conversation: trio.CancelScope, text: str) -> None:
        self.ending = SessionOutcome(complete=False, verdict=RetryAdvice.BACK_OFF, text=text)
        conversation.cancel()

    async def _receive(self, session: Connection, minutes: SessionJournal) -> messages.Termination:
        """Take messages until Termination. Raises SessionOver where the session ends without one."""
        while True:
            message: messages.Message | None = None
            with trio.move_on_at(self._book.deadline()):
                message = await session.receive()
            now = trio.current_time()
            if isinstance(message, messages.TurnMessage | messages.Silence):
                self._doubt.hear()
            if isinstance(message, messages.TurnMessage) and message.words:
                self._measure(max(word.end for word in message.words))
            match message:
                case messages.TurnMessage() | messages.SpeakerRevision():
                    await self._take(self._book.feed(message, now), minutes)
                case messages.LLMGatewayResponse(turn_order=order):
                    self._charge(message)
                    await minutes.answer(msgspec.structs.replace(message, turn_order=self._book.number(order)))
                case messages.Termination():
                    return message
                case messages.Warning(warning_code=code):
                    self._warnings += 1
                    if is_worth_saying(self._warnings):
                        log.warning("session.warned", room=self._desk.room, code=code, warnings=self._warnings)
                case None:
                    await self._take(self._book.expire(now), minutes)

    def _measure(self, end_ms: float) -> None:
        """How late the service is shows in words that it says for the first time, and not in what it says again."""
        if end_ms > self._furthest_ms and self._track.has_sent(end_ms):
            self._furthest_ms = end_ms
            self._ledger.late_by(self._track.sent / self._desk.rate - end_ms / 1000)

    def _charge(self, message: messages.Message) -> None:
        """Raises SessionOver for more to keep than the audio that was sent can give rise to."""
        size = EVENT_BYTES + messages.weigh(message)
        if not self._allowance.take(size, self._track.sent / self._desk.rate):
            raise SessionClosed(None, str(Excess()), RetryAdvice.EXCESS, refused=False)

    async def _take(self, outcomes: Sequence[TurnOutcome], minutes: SessionJournal) -> None:
        for outcome in outcomes:
            match outcome:
                case FinalTurn(turn=turn) | Abandoned(turn=turn):
                    self._charge(turn)
            match outcome:
                case InterimText(turn=turn):
                    minutes.show(turn)
                case EmptyFinal(turn_order=order):
                    self._ledger.closed(order, None)
                case FinalTurn(turn=turn, corrects=corrects):
                    minutes.add(turn, is_answered=not corrects)
                case Abandoned(turn=turn):
                    # An abandoned turn is taken at its last word: the service went on without it, its speech was heard.
                    minutes.add(turn)
        await minutes.journal()


async def _report_for_ever(minutes: SessionJournal) -> None:
    while True:
        await trio.sleep(1)
        await minutes.report()
