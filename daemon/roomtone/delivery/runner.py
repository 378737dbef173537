"""Brings every durable event to one sink, at least once and in order: open, pump batches from the cursor, on any
failure leave, back off, open again.

Each sink is one task with its own cursor in the journal, so that it cannot slow or lose another sink, or anything else.
This module is the plugin boundary: every exception of a sink ends here, as a log entry and a later attempt. Errors of
the journal pass through, and so does cancellation.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from roomtone import paths
from roomtone.concurrency import leaves_of, wait_any
from roomtone.delivery.batch import Batch, SinkFailed
from roomtone.delivery.controls import Retry, SinkControls, cancel_mark, control_mark, controls_of, pins_mark
from roomtone.delivery.executor import HookExecutor
from roomtone.delivery.health import SinkHealth, SinkStatus
from roomtone.delivery.hooks import SinkHooks, open_sink, validate_hooks
from roomtone.delivery.quarantine import CrashGuard
from roomtone.events import Audio, Durable, kind_of
from roomtone.journal.journal import Journal, JournalError
from roomtone.journal.keys import sink_prefix
from roomtone.journal.records import Mark
from roomtone.live import Live, LiveEvent
from roomtone.sinks import Context, Sink, wants

MAX_BATCH_EVENTS = 1000
"""A batch has at most this many events. The cursor is made durable after this many unwanted ones, too."""

SPEECH_HOOKS = frozenset(("turn", "answer", "analysis", "audio", "interim"))
"""The hooks that get speech: its words or its sound."""

MAX_WARNINGS = 8
"""At most this many warnings of a sink wait to become notices; the newest are kept."""

_CANCELLED = (
    "its own code cancelled it: a cancel scope or a crashed task around the `yield` of `open` does that, or a hook "
    "that raises trio.Cancelled"
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class SinkRunner:
    """One sink at work, from its cursor on. `over` is set when its context is left and nothing of it runs any more."""

    def __init__(self, sink: Sink, context: Context, *, journal: Journal, live: Live) -> None:
        self.name = context.name
        self.over = trio.Event()
        self._sink = sink
        self._journal = journal
        self._live = live
        self._warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        self._context = msgspec.structs.replace(context, warn=self._warnings.append)
        self._closing = trio.Event()
        self._is_leaving = False
        self._log = log.bind(sink=self.name)
        self._health = SinkHealth(self.name, type(sink), journal, self._closing)
        self._refused = 0
        self._cursor = journal.tip
        self._durable_cursor = journal.tip
        self._batch_limit = MAX_BATCH_EVENTS
        self._guard = CrashGuard(self.name, sink, journal)
        self._controls = SinkControls()
        self._controls_changed = trio.Event()
        self._kinds = frozenset[str]()

    def has(self, seq: int) -> bool:
        """True if the sink has acknowledged everything up to this event."""
        return self._cursor >= seq

    def misses_forgotten(self) -> bool:
        """True if its hooks, as far as they are known, get speech but not the event `forgotten`."""
        return not SPEECH_HOOKS.isdisjoint(self._kinds) and "forgotten" not in self._kinds

    def status(self) -> SinkStatus:
        """The status at this moment."""
        return SinkStatus(
            name=self.name,
            kind=str(self._sink.__struct_config__.tag),
            state=self._health.state,
            behind=max(0, self._journal.tip - self._cursor),
            refused=self._refused,
            error=self._health.error,
        )

    async def run(self) -> None:
        """Deliver until `leave` is called, or until `finish` is and everything is delivered or a last attempt failed.

        Resources: the sink's context is left before this returns. Errors: those of the journal.
        """
        try:
            await self._begin()
            await self._run_attempts()
        finally:
            self.over.set()

    async def _run_attempts(self) -> None:
        while await self._may_run():
            is_last = self._closing.is_set()
            failure = await self._attempt()
            if failure is None:
                if self._controls.paused is None or self._is_leaving:
                    return
                continue
            async with self._guard.surviving():
                delay = await self._health.on_failure(failure, self._journal.tip - self._cursor)
            if not is_last:
                await self._back_off(trio.current_time() + delay)
            behind = self._journal.tip - self._cursor
            if self._closing.is_set() and (is_last or self._is_leaving or not behind):
                if behind and not self._is_leaving:
                    self._log.warning("sink.behind", events=behind)
                return

    def check_controls(self) -> None:
        """Read the controls again soon: another process has written the journal. See `delivery/controls.py`."""
        self._controls_changed.set()

    def finish(self) -> None:
        """Have `run` return once everything is delivered: no more events will be committed."""
        self._closing.set()

    def leave(self) -> None:
        """Have `run` return after the current batch: another runner goes on from the cursor."""
        self._is_leaving = True
        self._closing.set()

    async def _begin(self) -> None:
        """Find the cursor. An unknown sink gets one now: otherwise it would begin elsewhere at each start."""
        cursor = await self._journal.cursor(self.name)
        if cursor is None:
            # In a journal that was begun anew after damage every sink is unknown, and every event in it is new to all.
            from_oldest = self._sink.start == "oldest" or self._journal.renewed
            cursor = 0 if from_oldest else self._cursor  # the tip at construction: before anything else began
            await self._journal.advance(self.name, cursor)
        self._cursor = self._durable_cursor = cursor
        pins = pins_mark(self.name, self._sink)
        if await self._journal.mark(pins.key) != pins.value:
            await self._journal.commit(pins)
        await self._guard.begin()
        await self._health.begin()
        await self._read_controls()

    async def _read_controls(self) -> None:
        """Read the controls of this sink. A rewind is carried out here, the others by their users."""
        self._controls_changed = trio.Event()
        controls = controls_of(self.name, await self._journal.marks(sink_prefix(self.name)))
        if controls.rewind is not None:
            self._cursor = min(self._cursor, controls.rewind)
            self._durable_cursor = min(self._durable_cursor, controls.rewind)
            await self._journal.rewind(self.name, controls.rewind, cancel_mark(self.name, "rewind"))
            self._log.info("sink.rewound", seq=controls.rewind)
        self._controls = msgspec.structs.replace(controls, rewind=None)
        self._refused = await self._journal.count_refused(self.name)

    async def _may_run(self) -> bool:
        """Wait while the sink is paused. Returns False at the end: the events wait for the next start."""
        if self._controls_changed.is_set():
            await self._read_controls()
        while self._controls.paused is not None:
            self._health.on_paused(self._controls.paused.reason)
            if self._closing.is_set():
                return False
            await wait_any(self._closing.wait, self._controls_changed.wait)
            await self._read_controls()
        return True

    async def _back_off(self, until: float) -> None:
        """Return at that time, at `finish` or `leave`, or when the controls change."""
        controls = self._controls
        with trio.move_on_at(until):
            while not self._closing.is_set() and self._controls == controls:
                await wait_any(self._closing.wait, self._controls_changed.wait)
                if self._controls_changed.is_set():
                    await self._read_controls()

    async def _attempt(self) -> BaseException | None:
        """Open the sink and pump. Returns the failure, or None when the pump has returned and the sink was left.

        A sink's own code can cancel the attempt, and a cancel scope hides that. So `pumped` proves the end, not the
        absence of an exception.
        """
        failure: BaseException | None = None
        pumped = trio.Event()
        try:
            # A nursery for each attempt: tasks that a sink leaves running in it end with the attempt.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._open_and_serve, nursery, pumped)
        except* JournalError:
            raise
        except* BaseException as group:  # noqa: BLE001 - the plugin boundary
            await trio.lowlevel.checkpoint_if_cancelled()
            failure = leaves_of(group)[0]  # the others are nearly always its consequences
        if failure is None and not pumped.is_set():
            return SinkFailed(_CANCELLED)
        return failure

    async def _open_and_serve(self, attempt: trio.Nursery, pumped: trio.Event) -> None:
        """From opening to leaving, each within the sink's timeout: one deadline serves both, one after the other."""
        cause: Exception | None = None
        where = "opening"
        with trio.CancelScope() as timeout:
            async with AsyncExitStack() as stack:
                async with self._guard.attempting("opening"):
                    timeout.deadline = trio.current_time() + self._sink.timeout
                    self._make_state_folder()
                    plugin = await stack.enter_async_context(open_sink(self._sink, self._context))
                    timeout.deadline = float("inf")
                try:
                    await self._serve(validate_hooks(plugin, name=self.name), pumped)
                except Exception as error:
                    cause = error
                    raise
                finally:
                    where = "leaving"
                    timeout.deadline = trio.current_time() + self._sink.timeout
        # Reached even if the context swallowed the failure, or took so long to leave that it was cancelled.
        if cause is not None:
            raise cause
        if timeout.cancelled_caught:
            raise SinkFailed(f"{where} took longer than {self._sink.timeout:g} s")
        if not pumped.is_set():
            raise SinkFailed(_CANCELLED)
        attempt.cancel_scope.cancel()

    def _make_state_folder(self) -> None:
        try:
            paths.private_folder(self._context.state)
        except paths.StateError as error:
            raise SinkFailed(str(error)) from None  # our own text: the status may show it

    async def _serve(self, hooks: SinkHooks, pumped: trio.Event) -> None:
        self._kinds = frozenset((*hooks.kinds, *hooks.live))
        async with trio.open_nursery() as nursery:  # inside the context: it waits for a thread that is in a hook
            executor = HookExecutor(hooks, timeout_s=self._sink.timeout, nursery=nursery, on_overdue=self._on_overdue)
            if hooks.live:
                nursery.start_soon(self._follow_live, executor)
            await self._pump(executor)
            pumped.set()
            nursery.cancel_scope.cancel()

    async def _pump(self, executor: HookExecutor) -> None:
        """Deliver batches from the cursor on. Returns at the tip after `finish`, and to leave or to pause."""
        self._health.on_opened()
        while not self._is_leaving:
            if self._controls_changed.is_set():
                await self._read_controls()
            if self._controls.paused is not None:
                return
            if self._controls.retry is not None:
                await self._retry_refused(self._controls.retry, executor)
                continue
            is_closing, tip = self._closing.is_set(), self._journal.tip
            events = await self._journal.read(self._cursor, 1 if self._guard.is_suspect else self._batch_limit)
            if events:
                await self._deliver(events, executor)
                self._health.on_batch()
            else:
                self._cursor = max(self._cursor, tip)  # past rows that cannot be read
                if is_closing:
                    await self._advance(self._cursor)
                    return
            if not executor.is_stuck:  # in a live hook
                await self._health.on_idle()
            while self._warnings:
                await self._health.warn(self._warnings.popleft())
            if not events:
                # A hung live hook delays the recovery, and its return wakes no task: so poll.
                await self._wait_for_more(trio.current_time() + 1 if executor.is_stuck else self._health.recovery_at)

    async def _deliver(self, events: Sequence[Durable], executor: HookExecutor) -> None:
        wanted = self._wanted(events, executor)
        if not wanted:
            self._cursor = events[-1].seq
            if self._cursor - self._durable_cursor >= MAX_BATCH_EVENTS:
                await self._advance(self._cursor)
            return
        batch = Batch(wanted, executor.hooks)
        async with self._guard.attempting("an event", wanted[0].seq, wanted[-1].seq):
            await executor.deliver(batch)
            await self._acknowledge(batch, events[-1].seq)
            self._raise_failure(batch)

    async def _retry_refused(self, retry: Retry, executor: HookExecutor) -> None:
        """Deliver the refused events that the operator wants retried: by seq, before all new ones."""
        refusals = await self._journal.refused(self.name, retry.after, self._batch_limit)
        events = [refusal.event for refusal in refusals if refusal.event and refusal.seq <= retry.until]
        batch = Batch(self._wanted(events, executor), executor.hooks)
        if batch.events:
            async with self._guard.attempting("an event", batch.events[0].seq, batch.events[-1].seq):
                await executor.deliver(batch)
                await self._acknowledge_again(batch, retry)
                self._raise_failure(batch)
        else:
            await self._acknowledge_again(batch, Retry(refusals[-1].seq if refusals else retry.until, retry.until))

    def _wanted(self, events: Sequence[Durable], executor: HookExecutor) -> list[Durable]:
        return [
            _without_lost_file(event)
            for event in events
            if wants(self._sink, event) and executor.hooks.hooks_for(event)
        ]

    def _raise_failure(self, batch: Batch) -> None:
        """Raise the failure of the batch, and choose the size of the next one."""
        if failure := batch.flush_error or batch.error:
            self._batch_limit = 1  # one by one, to find the event that fails
            raise failure
        self._batch_limit = (
            min(MAX_BATCH_EVENTS, self._batch_limit * 2) if batch.done == len(batch.events) else batch.done
        )

    async def _acknowledge(self, batch: Batch, last: int) -> None:
        """Move the cursor past the returned events, and past unwanted ones before the first that has not returned."""
        if batch.flush_error or not batch.done:
            return
        for seq, reason in batch.refused:
            await self._journal.refuse(self.name, seq, reason)
            self._refused += 1
            self._log.warning("event.refused", seq=seq)  # without the reason, which may quote the event
        is_whole = batch.done == len(batch.events)
        seq = last if is_whole else batch.events[batch.done].seq - 1
        await self._advance(seq, *self._guard.settle(batch.done))

    async def _acknowledge_again(self, batch: Batch, retry: Retry) -> None:
        """Remove what has returned from the refused events, and save how far the retry has come."""
        if batch.flush_error:
            return
        again = {seq for seq, _ in batch.refused}
        tried = [event.seq for event in batch.events[: batch.done]]
        accepted = [seq for seq in tried if seq not in again]
        left = Retry(tried[-1] if tried else retry.after, retry.until)
        self._controls = msgspec.structs.replace(self._controls, retry=left if left.after < left.until else None)
        mark = control_mark(self.name, left) if self._controls.retry else cancel_mark(self.name, "retry")
        await self._journal.settle_refused(self.name, accepted, batch.refused, mark, *self._guard.settle(batch.done))
        self._refused -= len(accepted)

    async def _advance(self, seq: int, *marks: Mark) -> None:
        if seq > self._durable_cursor:
            await self._journal.advance(self.name, seq, *marks)
            self._durable_cursor = seq
        self._cursor = seq

    async def _wait_for_more(self, until: float) -> None:
        """Return at an event after the cursor, at `finish` or `leave`, at a change of the controls, or at that time."""
        with trio.move_on_at(until):
            await wait_any(
                self._closing.wait, self._controls_changed.wait, partial(self._journal.wait_after, self._cursor)
            )

    async def _follow_live(self, executor: HookExecutor) -> None:
        """Deliver live events. A failure costs that one event and a log entry."""
        failures = 0
        with self._live.subscribe(wanted=partial(self._wants_live, executor.hooks)) as feed:
            async for event in feed:
                try:
                    await executor.deliver_live(event)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary
                    failures += 1
                    self._health.on_live_error(error, failures)

    def _wants_live(self, hooks: SinkHooks, event: LiveEvent) -> bool:
        kind, rooms, kinds = kind_of(event), self._sink.rooms, self._sink.kinds
        return kind in hooks.live and (not rooms or event.room in rooms) and (not kinds or kind in kinds)

    async def _on_overdue(self, text: str) -> None:
        await self._health.on_stuck(text, self._sink.timeout)


def _without_lost_file(event: Durable) -> Durable:
    """Without its file if the quota has taken the segment. The check costs microseconds: the folder is the spool's."""
    if isinstance(event, Audio) and event.file is not None and not Path(event.file).exists():
        return msgspec.structs.replace(event, file=None)
    return event
