"""One streaming session over one stretch of the spool.

A session sends what it reads and journals what comes back. It never repairs itself: when it is over, `acknowledged`
says up to where all is settled, and the transcriber decides what follows.

                 room's side                                 service's side
    choose start │ position and floor, from the journal
    open         │ ───────── TCP, TLS, upgrade ─────────────▶ │
                 │ ◀──────── Begin ────────────────────────── │ billed from here on
    handover     │ keep-alives, while the session that it relieves still sends
    SessionStarted is written                                 │
    converse     │ ───────── frames, at the pace allowed ───▶ │
                 │ ───────── ping ──────────────────────────▶ │ pong: all sent before it is heard, some seconds later
                 │ ◀──────── Turn, partial ────────────────── │ interim text; the turn is open, nothing in it is heard
                 │ ◀──────── Turn, final ──────────────────── │ the turn waits until its seam is decided, is written,
                 │                                            │ and what it settles is acknowledged with it
    rollover     │ before it expires, the next session is opened; in a pause this one is sent no more
    end of stretch ─────── Terminate ───────────────────────▶ │
                 │ ◀──────── last turns, Termination, close ─ │ complete: all that was sent is heard
    SessionEnded is written, with what still waits; `over` is set
                 │
    or an Error, a close, no pong, a broken network           │ not complete: after a delay the next session
                                                                is sent what is not acknowledged, and 5 s before it
    what the live lane skips is a hole: backfill opens sessions of its own for it
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
from roomtone.journal.records import Mark
from roomtone.protocol import messages
from roomtone.protocol.close_codes import RetryAdvice
from roomtone.protocol.messages import Begin
from roomtone.protocol.turns import Abandoned, EmptyFinal, FinalTurn, InterimText, TurnBook, TurnOutcome
from roomtone.speech.acks import AckTracker
from roomtone.speech.allowance import EVENT_BYTES, KEPT_BURST_BYTES, KEPT_BYTES_PER_S, Allowance
from roomtone.speech.connection import Connection
from roomtone.speech.sender import AudioSender
from roomtone.speech.session_context import Handover, SessionContext, Stretch
from roomtone.speech.session_errors import ExcessiveTraffic, SessionClosed
from roomtone.speech.session_journal import SessionJournal, identify
from roomtone.speech.session_watchdog import SessionWatchdog
from roomtone.speech.time_map import TimeMap

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

PING_INTERVAL_S = 5.0
"""Seconds between pings: a half-open socket is noticed within this and the endpoint's ping timeout."""
LAST_ANSWERS_TIMEOUT_S = 10.0
"""Seconds that the language model has for the last turns before Terminate, after which no answer comes."""
LAST_TURN_TIMEOUT_S = 1.5
"""Seconds in which the service reports the last turn after it was asked to end it."""
TERMINATION_TIMEOUT_S = 10.0
"""Seconds that Termination may take after Terminate."""
JOURNAL_CLOSE_TIMEOUT_S = 2.0
"""Seconds that the journal has for the last of a session when everything is cancelled."""


class SessionOutcome(NamedTuple):
    """The end of a session. `complete`: the service has answered Terminate, so that all it was sent is heard;
    `begun`: it was open at all; `wait`: seconds for which the service asks to be left alone.
    """

    complete: bool
    advice: RetryAdvice
    text: str
    begun: bool = True
    wait: float = 0.0


class StreamingSession:
    """One session, which is sent the stretch of audio.

    `marks` gives the marks to commit with an acknowledged position; `handover` is that from the session that this one
    relieves. `suspicion_minutes`: minutes of what sounds like speech, without a word, after which it counts as deaf.
    `acknowledged` is the position before which all is settled, final once the session is `over`.
    """

    def __init__(
        self,
        context: SessionContext,
        stretch: Stretch,
        *,
        marks: Callable[[int], Sequence[Mark]],
        handover: Handover,
        suspicion_minutes: float = math.inf,
    ) -> None:
        self.over = trio.Event()
        self.outcome = SessionOutcome(complete=False, advice=RetryAdvice.RETRY, text="left", begun=False)
        self.expires_at: datetime | None = None
        self.begun_at = trio.current_time()
        self._context = context
        self._marks = marks
        self._handover = handover
        self._suspicion_minutes = suspicion_minutes
        self._book = TurnBook(two_finals=context.two_finals)
        self._allowance = Allowance(burst=KEPT_BURST_BYTES, rate=KEPT_BYTES_PER_S)
        self._warnings = 0
        self._is_terminating = False
        self._changes: dict[str, Any] = {}
        self._changed = trio.Event()
        self.set_stretch(stretch)

    def set_stretch(self, stretch: Stretch) -> None:
        """Choose the audio; it may be chosen anew until the handover lets this session send."""
        rate = self._context.rate
        self._stretch = stretch
        self.acknowledged = stretch.floor
        self._furthest_ms = 0.0
        self._acks = AckTracker(stretch.start, floor=stretch.floor)
        self._time_map = TimeMap(stretch.start, rate)
        self._watchdog = SessionWatchdog(stretch.start, rate, suspicion_minutes=self._suspicion_minutes)
        self._sender = AudioSender(self._context, self._time_map, self._acks, self._watchdog, until=stretch.until)

    def begin_at(self, start: int, floor: int) -> None:
        """Move the beginning of the stretch; its end stays."""
        self.set_stretch(Stretch(start, floor, self._stretch.until))

    def end_here(self) -> int:
        """End the stretch at the position that is sent next, and return it: another session goes on from there."""
        self._sender.until = self._sender.position
        return self._sender.position

    def end_by(self, position: int) -> None:
        """End the stretch at this position, or where the session is now if that is later."""
        until = max(position, self._sender.position)
        if self._sender.until is None or until < self._sender.until:
            self._sender.until = until
            self._stretch = self._stretch._replace(until=until)

    def share_until(self, position: int, seam: int) -> None:
        """End the stretch at this position; what is heard past the seam counts for another session."""
        self._acks.limit = seam
        self.end_by(position)

    @property
    def position(self) -> int:
        """The position that is sent next."""
        return self._sender.position

    @property
    def progress(self) -> int:
        """The number of samples that this session has settled, once it is over."""
        return self.acknowledged - self._stretch.floor

    @property
    def deaf_since(self) -> int | None:
        """The position since which this session seems to have heard nothing of what it was sent, or None."""
        return self._watchdog.deaf_since

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Open the session and stay until it is over. `started` is called when it has begun or could not be opened;
        `outcome` says which, and how it ended.

        Errors: those of the journal and the spool. Every failure of the network and the service is an outcome.
        """
        parameters = self._context.parameters
        begun_with = parameters.streaming
        try:
            async with self._context.endpoint.open() as connection:
                self.outcome = self.outcome._replace(begun=True)
                task_status.started()
                with parameters.follow(self._queue_update, begun_with=begun_with):
                    await self._converse(connection)
        except SessionClosed as closed:
            begun = self.outcome.begun
            self.outcome = SessionOutcome(
                complete=False, advice=closed.advice, text=str(closed), begun=begun, wait=closed.wait
            )
            if not begun:
                task_status.started()
        finally:
            self.over.set()

    async def _converse(self, connection: Connection) -> None:
        self.begun_at = trio.current_time()
        if connection.begin.expires_at is not None:
            self.expires_at = datetime.fromtimestamp(connection.begin.expires_at, UTC)
        await self._wait_to_send(connection)
        journal = await self._open_journal(connection.begin)
        termination: messages.Termination | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, connection, journal, nursery.cancel_scope)
                nursery.start_soon(self._ping, connection, nursery.cancel_scope)
                nursery.start_soon(self._send_updates, connection)
                nursery.start_soon(_report_periodically, journal)
                try:
                    termination = await self._receive(connection, journal)
                    self.outcome = SessionOutcome(
                        complete=self._is_terminating, advice=RetryAdvice.RETRY, text="terminated"
                    )
                except SessionClosed as closed:
                    self.outcome = SessionOutcome(complete=False, advice=closed.advice, text=str(closed))
                nursery.cancel_scope.cancel()
            await self._handover.settled.wait()
        finally:
            # What the service has said is written even past the deadline of a shutdown. A full disk must not delay
            # that: what it does not take is pending, and is heard again after the next start.
            async with trio.open_nursery() as nursery:
                with trio.CancelScope(shield=True) as shielded:
                    nursery.start_soon(grace_after_cancel, shielded, JOURNAL_CLOSE_TIMEOUT_S)
                    await self._close(journal, termination)
                nursery.cancel_scope.cancel()

    async def _wait_to_send(self, connection: Connection) -> None:
        """Keep a session alive that is to relieve another: the service ends idle ones. Raises SessionClosed where it
        has ended already.
        """
        pause = min(PING_INTERVAL_S, self._context.parameters.streaming.inactivity_timeout / 2)
        while not self._handover.may_send.is_set():
            with trio.move_on_after(pause):
                await self._handover.may_send.wait()
            if not self._handover.may_send.is_set() and not await connection.send(messages.keep_alive()):
                while True:
                    await connection.receive()

    async def _open_journal(self, begin: Begin) -> SessionJournal:
        async with self._context.seam:  # two concurrent sessions must not both find an id unused
            session_id, labels = await identify(self._context, begin.id)
            journal = SessionJournal(
                self._context,
                self._time_map,
                self._acks,
                session_id=session_id,
                stretch=self._stretch,
                marks=self._marks,
                settled=self._handover.settled,
            )
            await journal.begin(self.expires_at, labels, model=self._model_of(begin))
        return journal

    def _model_of(self, begin: Begin) -> str | None:
        """The model of the session: the recognizer on this machine names its own, whatever it was asked for."""
        named = (begin.configuration or {}).get("model")
        is_own = not self._context.endpoint.remote and isinstance(named, str)
        return named if is_own else self._context.speech_model

    async def _close(self, journal: SessionJournal, termination: messages.Termination | None) -> None:
        for outcome in self._book.close():
            match outcome:
                case FinalTurn(turn=turn):
                    journal.add(turn)
                case Abandoned(turn=turn) if self.outcome.complete:
                    journal.add(turn)
        if self.outcome.complete:
            await journal.write_turns(force=True)
            self._acks.terminated()
        await journal.end(self.outcome.text, termination, trio.current_time() - self.begun_at)
        self.acknowledged = journal.acknowledged

    async def _send(self, connection: Connection, journal: SessionJournal, conversation: trio.CancelScope) -> None:
        if not await self._sender.send(connection):
            return  # over: the receiver learns how
        if self._context.answers is not None:
            await self._wait_for_answers(connection, journal)
        self._is_terminating = True
        await connection.send(messages.terminate())
        await trio.sleep(TERMINATION_TIMEOUT_S)
        self._give_up(conversation, f"no Termination within {TERMINATION_TIMEOUT_S:.0f} s")

    def _queue_update(self, changes: Mapping[str, Any]) -> None:
        """Send these parameters to the session. Those that still wait are merged: the last value of each counts."""
        self._changes.update(changes)
        self._changed.set()

    async def _send_updates(self, connection: Connection) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            changes, self._changes = self._changes, {}
            await connection.send(messages.update_configuration(changes))
            log.info("session.updated", room=self._context.room, parameters=sorted(changes))

    async def _wait_for_answers(self, connection: Connection, journal: SessionJournal) -> None:
        """Wait for the answers to the last turns: nothing follows Termination, so that later ones would be lost."""
        with trio.move_on_after(LAST_ANSWERS_TIMEOUT_S):
            await connection.send(messages.force_endpoint())
            await trio.sleep(LAST_TURN_TIMEOUT_S)
            while journal.is_awaiting_answers or self._book.open_since() != math.inf:  # noqa: ASYNC110 - two states, no event
                await trio.sleep(0.1)

    async def _ping(self, connection: Connection, conversation: trio.CancelScope) -> None:
        timeout = self._context.endpoint.ping_timeout_s
        while True:
            await trio.sleep(PING_INTERVAL_S)
            sent = self._acks.sent
            with trio.move_on_after(timeout) as scope:
                if not await connection.ping():
                    return
                self._acks.answered(sent, trio.current_time())
            if scope.cancelled_caught:
                self._give_up(conversation, f"no answer to a ping within {timeout:.0f} s")

    def _give_up(self, conversation: trio.CancelScope, text: str) -> None:
        self.outcome = SessionOutcome(complete=False, advice=RetryAdvice.BACK_OFF, text=text)
        conversation.cancel()

    async def _receive(self, connection: Connection, journal: SessionJournal) -> messages.Termination:
        """Handle messages until Termination. Raises SessionClosed where the session ends without one."""
        while True:
            message: messages.Message | None = None
            with trio.move_on_at(self._book.deadline()):
                message = await connection.receive()
            now = trio.current_time()
            if isinstance(message, messages.TurnMessage | messages.Silence):
                self._watchdog.on_message()
            if isinstance(message, messages.TurnMessage) and message.words:
                self._measure_lag(max(word.end for word in message.words))
            match message:
                case messages.TurnMessage() | messages.SpeakerRevision():
                    await self._handle_outcomes(self._book.feed(message, now), journal)
                case messages.LLMGatewayResponse(turn_order=order):
                    self._count_kept(message)
                    await journal.answer(msgspec.structs.replace(message, turn_order=self._book.number(order)))
                case messages.Termination():
                    return message
                case messages.Warning(warning_code=code):
                    self._warnings += 1
                    if is_worth_saying(self._warnings):
                        log.warning("session.warned", room=self._context.room, code=code, warnings=self._warnings)
                case None:
                    await self._handle_outcomes(self._book.expire(now), journal)

    def _measure_lag(self, end_ms: float) -> None:
        """Measure the service's delay by words that are new; a repeated word says nothing about it."""
        if end_ms > self._furthest_ms and self._time_map.has_sent(end_ms):
            self._furthest_ms = end_ms
            self._acks.late_by(self._time_map.sent / self._context.rate - end_ms / 1000)

    def _count_kept(self, message: messages.Message) -> None:
        """Raises SessionClosed where the service says more that must be kept than the audio can contain."""
        size = EVENT_BYTES + messages.weigh(message)
        if not self._allowance.take(size, self._time_map.sent / self._context.rate):
            raise SessionClosed(None, str(ExcessiveTraffic()), RetryAdvice.EXCESS, refused=False)

    async def _handle_outcomes(self, outcomes: Sequence[TurnOutcome], journal: SessionJournal) -> None:
        for outcome in outcomes:
            match outcome:
                case FinalTurn(turn=turn) | Abandoned(turn=turn):
                    self._count_kept(turn)
            match outcome:
                case InterimText(turn=turn):
                    journal.publish_interim(turn)
                case EmptyFinal(turn_order=order):
                    self._acks.closed(order, None)
                case FinalTurn(turn=turn, corrects=corrects):
                    journal.add(turn, is_answered=not corrects)
                case Abandoned(turn=turn):
                    # It counts as it was last reported: the service went on without it, but its speech was heard.
                    journal.add(turn)
        await journal.write_turns()


async def _report_periodically(journal: SessionJournal) -> None:
    while True:
        await trio.sleep(1)
        await journal.report()
