"""Keeps a room transcribed for ever: session after session, from the durable position, whatever the network does.

Two lanes work on one spool. The live lane follows the head, and relieves a session by the next one before it expires.
Where it has fallen too far behind for a service that takes little more than real time, it goes on near the head and
leaves a hole, which the repair lane transcribes beside it. Both resume from what the journal says is acknowledged, five
seconds earlier, and `seam` tells which words are new. What becomes of holes is in `repairs`, how a session is had at
all in `attempts`.

Where a gate listens first, the live lane has a session only while somebody speaks; what lies between is *unsent*, and
acknowledged as such. `roomtone transcribe` makes holes of it.
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

import structlog
import trio

from roomtone.journal.keys import room_key
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.spans import Span, Spans
from roomtone.speech.backfill import Backfill, already_set
from roomtone.speech.gate import Gate, GateSettings
from roomtone.speech.pause import ends_quiet, last_pause
from roomtone.speech.reconnect import Reconnector
from roomtone.speech.sender import wait_piece
from roomtone.speech.session import TERMINATION_TIMEOUT_S, SessionOutcome, StreamingSession
from roomtone.speech.session_journal import SessionContext

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAX_CATCH_UP_S = 20
"""Seconds behind the head up to which one session catches up; beyond, the rest is a hole for the repair lane."""
PAUSE_TIMEOUT_S = 60.0
"""Seconds that relieving a session waits for a pause in the speech."""
WATCHDOG_INTERVAL_S = 5.0
"""Seconds between looks at whether a session still hears."""
OVERLAP_S = 6
"""Seconds that both sessions are sent where no pause comes."""
SHARED_LEAST = 2
"""Seconds, likewise, where the old session is about to end: with fewer the seam would lie in a word. Where it ends
before them, what it has not heard is a hole."""
MAX_SESSION_S = 10_200.0
"""Seconds after which a session is relieved where the service names no end: ten minutes before its three hours."""
ROLLOVER_MARGIN_S = 180.0
"""Seconds before the end that the service names at which the next session is opened, a quarter of short ones."""
MIN_SESSION_S = 10.0
"""Seconds that every session lasts at the service; one that is said to last less is told by another clock than ours."""
COVERAGE_COMMIT_INTERVAL_S = 10.0
"""Seconds between commits of what the gate, or the budget, holds back."""


_NEVER = 1 << 62  # no position


async def transcribe(
    desk: SessionContext,
    *,
    realtime: bool,
    first: Literal["newest", "oldest"] = "newest",
    longest: float = MAX_SESSION_S,
    utc: Callable[[], float] = time.time,
    gating: GateSettings | None = None,
    leaving: trio.Event | None = None,
) -> None:
    """Transcribe the room until its spool has ended and nothing in it is pending.

    `realtime` rooms follow the head and leave holes behind a slow remote endpoint; others are read in order at the
    endpoint's pace. Holes are repaired `first` newest or oldest. A session is relieved after `longest` seconds, or
    before it expires; `utc` gives Unix seconds, for the service says when that is. With `gating` sessions are open only
    while somebody speaks. `leaving`: the daemon stops, or the room does. A session that is up drains then; where none
    is, and one more attempt finds none, what is pending is left to the next start, as holes are.

    Resources: at most two sessions, three while one relieves another. Errors: those of the journal and the spool; the
    network's and the service's are waited out, for ever.
    """
    leaving = trio.Event() if leaving is None else leaving
    lanes = _Lanes(desk, realtime=realtime, first=first, longest=longest, utc=utc, leaving=leaving)
    await lanes.load()
    try:
        async with lanes.listening(gating):
            await lanes.live()
            await lanes.repair()
    finally:
        lanes.tell_left()


async def repair(desk: SessionContext) -> None:
    """Transcribe what is in holes, those that a person has asked for included, and nothing else."""
    lanes = _Lanes(desk, realtime=False, first="oldest", longest=MAX_SESSION_S, utc=time.time, leaving=trio.Event())
    await lanes.load()
    await lanes.repair()


async def withhold(desk: SessionContext) -> None:
    """Send nothing of what is recorded: it is unsent, and acknowledged as such. Until the spool has ended."""
    lanes = _Lanes(desk, realtime=False, first="oldest", longest=MAX_SESSION_S, utc=time.time, leaving=trio.Event())
    await lanes.load()
    await lanes.withhold_all()


class _Lanes:
    def __init__(
        self,
        desk: SessionContext,
        *,
        realtime: bool,
        first: Literal["newest", "oldest"],
        longest: float,
        utc: Callable[[], float],
        leaving: trio.Event,
    ) -> None:
        self._desk = desk
        self._leaves_holes = realtime and desk.endpoint.remote
        self._longest = longest
        self._utc = utc
        self._acknowledged = 0
        self._again = True
        self._attempts = Reconnector(desk, leaving)
        self._repairs = Backfill(desk, self._attempts, first=first, leaving=leaving)
        self._leaving = leaving
        self._gate: Gate | None = None
        self._open: list[StreamingSession] = []
        self._until: int | None = None
        self._doubted_after = math.inf

    async def load(self) -> None:
        """Where the journal says that this room's transcript stands."""
        desk = self._desk
        await self._attempts.load()
        self._acknowledged = await desk.journal.mark(room_key(self._desk.room, "acknowledged")) or 0
        if not desk.spool.recorded():
            desk.spool.date(*await self._last_captured())
        # Where all of the spool is settled, its last session has heard the end of it: nothing is to be sent again.
        self._again = self._acknowledged < desk.spool.end
        await self._repairs.load()
        await self._repairs.take_wishes(self._acknowledged)

    async def _last_captured(self) -> tuple[int, datetime]:
        """The last position that the journal knows to be recorded, and its time; now where it knows none."""
        desk, done = self._desk, self._acknowledged
        known = await desk.journal.covered(desk.room, max(0, done - 1))
        times = [(cover.end, cover.until) for cover in known if cover.state == "captured"]
        return max(times, default=(done, datetime.fromtimestamp(self._utc(), UTC)))

    @asynccontextmanager
    async def listening(self, gating: GateSettings | None) -> AsyncIterator[None]:
        """A gate that goes on where the journal says it was, if there is to be one."""
        desk = self._desk
        state = await desk.journal.mark(room_key(self._desk.room, "gate"))
        if gating is None:
            if state is not None:
                await desk.journal.commit(Mark(room_key(self._desk.room, "gate"), None))
            yield
            return
        known = await desk.journal.mark(room_key(self._desk.room, "acknowledged"))
        recorded = Span(desk.spool.first, desk.spool.end)
        self._gate = Gate(
            desk.spool, gating, gating.recall(state, rate=desk.rate, acknowledged=known, recorded=recorded)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._gate.run)
            nursery.start_soon(self._note_for_ever)
            yield
            nursery.cancel_scope.cancel()

    # --- the live lane -----------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Follow the head until the spool has ended and all of it is settled, or in a hole."""
        while await self._wait_for_work():
            begun = trio.current_time()
            self._doubted_after = await self._repairs.doubted_after()
            ending = await self._chain()
            self._again = not ending.complete
            for passage in self._open:
                end = min(passage.position, self._acknowledged)
                if passage.deaf_since is not None and passage.deaf_since < end:
                    await self._repairs.doubt(Span(passage.deaf_since, end))
            settled = sum(passage.progress for passage in self._open) / self._desk.rate
            if not await self._attempts.wait_out(ending, trio.current_time() - begun, progress=settled):
                return

    async def _wait_for_work(self) -> bool:
        """Until there is something that a session must hear. False: there never will be."""
        if self._gate is None:
            return await wait_piece(self._desk.spool, self._acknowledged, 1) is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repairs.mend_for_ever, lambda: self._acknowledged)
            found = await self._wait_for_speech(self._gate)
            nursery.cancel_scope.cancel()
        return found

    async def _wait_for_speech(self, gate: Gate) -> bool:
        """Until somebody has spoken; what is silent before that is unsent. False: the spool has ended."""
        while True:
            is_over, found = gate.over, None
            with trio.move_on_after(COVERAGE_COMMIT_INTERVAL_S):
                found = await gate.next_wanted(self._acknowledged)
            if found is not None and self._is_far(found) and gate.hearing.is_quiet:
                # Nobody speaks any more, and no session could be had while somebody did.
                await self._leave_hole(Span(self._acknowledged, gate.settled), acknowledged=gate.settled)
            elif found is not None:
                await self._withhold(found)
                return True
            else:
                await self._withhold(gate.settled)
                if is_over:
                    return False

    def _is_far(self, position: int) -> bool:
        return self._leaves_holes and self._desk.spool.end - position > MAX_CATCH_UP_S * self._desk.rate

    async def _chain(self) -> SessionOutcome:
        """Sessions that relieve one another, from the durable position to the first that ends without a successor."""
        start, floor = await self._choose_start()
        self._open, self._until = [], None
        passage = self._passage(start, floor, settled=already_set(), may_send=already_set())
        async with trio.open_nursery() as nursery:
            if not await self._attempts.begin(nursery, passage):
                return passage.ending
            beside = trio.CancelScope()
            nursery.start_soon(self._work_beside, beside, start)
            while not passage.over.is_set():
                with trio.move_on_after(self._relief_in(passage)):
                    await passage.over.wait()
                    break
                passage = await self._relieve(nursery, passage)
            beside.cancel()
        return passage.ending

    def _passage(self, start: int, floor: int, *, settled: trio.Event, may_send: trio.Event) -> StreamingSession:
        passage = StreamingSession(
            self._desk,
            start=start,
            floor=floor,
            until=self._until,
            marks=self._advance,
            settled=settled,
            may_send=may_send,
            doubted_after=self._doubted_after,
        )
        self._open.append(passage)
        return passage

    def _advance(self, acknowledged: int) -> Sequence[Mark]:
        self._acknowledged = max(self._acknowledged, acknowledged)
        mark = Mark(room_key(self._desk.room, "acknowledged"), self._acknowledged)
        if self._gate is None:
            return [mark]
        self._gate.hearing.forget(self._acknowledged)
        return [mark, Mark(room_key(self._desk.room, "gate"), self._gate.hearing.state())]

    async def _choose_start(self) -> tuple[int, int]:
        """Where the next session begins to read, and up to where all is settled."""
        spool, done = self._desk.spool, self._acknowledged
        if self._is_far(done):
            done = await self._pause_before(spool.end)
            if self._gate is not None:
                # Speech that the gate is about to find may have begun there.
                done = max(self._acknowledged, min(done, self._gate.settled))
            await self._leave_hole(Span(self._acknowledged, done), acknowledged=done)
            return done, done
        return (self._repairs.again_from(done) if self._again else done), done

    async def _pause_before(self, head: int) -> int:
        """The last pause within the seconds that a session catches up with, or the head itself."""
        begin = position = max(0, head - MAX_CATCH_UP_S * self._desk.rate)
        audio = bytearray()
        while position < head and (piece := await self._desk.spool.read(position, head - position)) is not None:
            if piece.position > position:
                begin, audio = piece.position, bytearray()
            audio += piece.audio
            position = piece.position + len(piece.audio) // 2
        pause = last_pause(bytes(audio), self._desk.rate)
        return head if pause is None else max(begin + pause, self._acknowledged)

    async def _work_beside(self, scope: trio.CancelScope, start: int) -> None:
        """What goes on while a chain of sessions that began at `start` does."""
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._repairs.mend_for_ever, lambda: self._acknowledged)
                nursery.start_soon(self._doubt_for_ever)
                if self._gate is not None:
                    nursery.start_soon(self._close_in_silence, self._gate, start)

    # --- the gate ----------------------------------------------------------------------------------------------------

    async def _close_in_silence(self, gate: Gate, start: int) -> None:
        """End the sessions of this chain, which began at `start`, when nobody has spoken for long enough."""
        self._until = await gate.fall_silent(start)
        for passage in self._open:
            passage.end_by(self._until)

    async def _withhold(self, end: int) -> None:
        """Everything up to that position is unsent, and settled so."""
        if end > self._acknowledged:
            rows = self._unsent(Spans([(self._acknowledged, end)]))
            await self._desk.journal.commit(*rows, *self._advance(end))

    def _unsent(self, spans: Spans) -> Sequence[CoverageSpan]:
        at = self._desk.spool.at
        return [CoverageSpan(self._desk.room, start, end, "unsent", None, at(start), at(end)) for start, end in spans]

    async def _note_for_ever(self) -> None:
        """What the gate has heard while no session could be had must not be heard again after a crash."""
        noted = None
        while self._gate is not None:
            await trio.sleep(COVERAGE_COMMIT_INTERVAL_S)
            state = self._gate.hearing.state()
            if state["wanted"] and state != noted:
                await self._desk.journal.commit(Mark(room_key(self._desk.room, "gate"), state))
                noted = state

    async def withhold_all(self) -> None:
        """Send nothing; return when the spool has ended."""
        spool, is_over = self._desk.spool, False
        while not is_over:
            with trio.move_on_after(COVERAGE_COMMIT_INTERVAL_S):
                is_over = not await spool.wait_past(_NEVER)
            await self._withhold(spool.end)

    # --- relieving a session -----------------------------------------------------------------------------------------

    def _relief_in(self, passage: StreamingSession) -> float:
        """Seconds until this session is to be relieved."""
        whole = trio.current_time() - passage.begun_at + self._left(passage)
        life = min(self._longest, whole - min(ROLLOVER_MARGIN_S, whole / 4))
        return max(0.0, passage.begun_at + life - trio.current_time())

    def _left(self, passage: StreamingSession) -> float:
        """Seconds until the service ends this session, as far as it says so and our two clocks agree."""
        if passage.expires_at is None:
            return math.inf
        left = passage.expires_at.timestamp() - self._utc()
        # A clock that is hours ahead would have every session relieved as soon as it begins.
        return left if trio.current_time() - passage.begun_at + left >= MIN_SESSION_S else math.inf

    async def _relieve(self, nursery: trio.Nursery, old: StreamingSession) -> StreamingSession:
        """Open the next session before the old one ends, and switch in a pause. The old one where that fails."""
        settled, may_send = trio.Event(), trio.Event()
        new = self._passage(old.position, old.position, settled=settled, may_send=may_send)
        paused = await self._attempts.begin(nursery, new) and await self._wait_for_pause(old, new)
        if new.over.is_set():
            log.warning("session.unrelieved", room=self._desk.room, reason=new.ending.text)
            with trio.move_on_after(self._attempts.next_delay(new.ending)):
                await old.over.wait()
            return old
        if old.over.is_set():
            done = old.acknowledged
            new.begin_at(self._repairs.again_from(done), done)
            settled.set()
        else:
            begin = seam = old.end_at_once() if paused else old.position
            if not paused:
                # Nobody paused. Each session hears its own edge badly, so both are sent this, and the seam is inside.
                shared = round(min(OVERLAP_S, max(SHARED_LEAST, self._left(old) - 1)) * self._desk.rate)
                seam = begin + shared // 2
                old.share_until(begin + shared, seam)
            new.begin_at(begin, seam)
            nursery.start_soon(self._settle, old, seam, settled)
        may_send.set()
        return new

    async def _wait_for_pause(self, old: StreamingSession, new: StreamingSession) -> bool:
        """Until the last 300 ms that the old session was sent are a pause, or one of the two is over. False: no pause
        came in time.
        """
        left = self._left(old)
        with trio.move_on_after(
            max(0.0, min(PAUSE_TIMEOUT_S, max(left - OVERLAP_S - TERMINATION_TIMEOUT_S, left / 2)))
        ):
            while not (old.over.is_set() or new.over.is_set()):
                if await self._pauses(old):
                    return True
                await trio.sleep(self._desk.frame / self._desk.rate)
        return old.over.is_set()

    async def _pauses(self, passage: StreamingSession) -> bool:
        """Whether nobody spoke in the last 300 ms that this session was sent."""
        begin = max(0, passage.position - 5 * self._desk.rate)
        if passage.position == begin:
            return True
        piece = await self._desk.spool.read(begin, passage.position - begin)
        return piece is None or ends_quiet(piece.audio, self._desk.rate)

    async def _settle(self, old: StreamingSession, end: int, settled: trio.Event) -> None:
        """Let the new session's words into the journal when the old one's are there, or are a hole up to `end`."""
        await old.over.wait()
        if old.acknowledged < end:
            await self._leave_hole(Span(old.acknowledged, end), acknowledged=end)
        settled.set()

    # --- doubting a session ------------------------------------------------------------------------------------------

    async def _doubt_for_ever(self) -> None:
        """End a session of this chain that answers and seems to hear nothing, in a pause if one comes."""
        while True:
            await trio.sleep(WATCHDOG_INTERVAL_S)
            for passage in self._open:
                if passage.deaf_since is not None and not passage.over.is_set():
                    await self._part_in_pause(passage)

    async def _part_in_pause(self, passage: StreamingSession) -> None:
        """End a session in a pause of the speech, unless it says something meanwhile."""
        ends_by = trio.current_time() + PAUSE_TIMEOUT_S
        while passage.deaf_since is not None:
            if await self._pauses(passage) or trio.current_time() >= ends_by:
                passage.end_at_once()
                return
            await trio.sleep(self._desk.frame / self._desk.rate)

    # --- the holes ---------------------------------------------------------------------------------------------------

    async def _leave_hole(self, hole: Span, *, acknowledged: int) -> None:
        """Everything up to `acknowledged` is settled, or in a hole: of this one, what the gate wants heard."""
        holes = Spans([hole]) if self._gate is None else self._gate.hearing.passages(hole.start, hole.end)
        unsent = self._unsent(Spans([hole]) - holes)
        await self._desk.journal.commit(*unsent, *self._advance(acknowledged), self._repairs.add(holes))
        log.info("hole.left", room=self._desk.room, seconds=round((hole.end - hole.start) / self._desk.rate, 1))

    async def repair(self) -> None:
        """Transcribe what is in holes; when leaving, none."""
        await self._repairs.mend()

    def tell_left(self) -> None:
        """Where the room is left before all of it is transcribed: say how much is left, in one line."""
        desk = self._desk
        recorded = Spans([(desk.spool.first, desk.spool.end)])
        left = (Spans([(self._acknowledged, desk.spool.end)]) | self._repairs.holes) & recorded
        if left and self._leaving.is_set():
            seconds = round(left.total / desk.rate, 1)
            log.warning("transcript.pending", room=desk.room, seconds=seconds, until="the next start")
