"""Brings every durable event to one sink, at least once and in order, for ever: open, pump batches from the cursor, on
any failure leave, back off, open again.

Each sink is one task with its own cursor in the journal, so that none can slow or lose another, or anything else. This
module is the plugin boundary: whatever a sink raises ends here, as a line in the log and a later attempt. What the
journal raises passes through, and so does cancellation.
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
from roomtone.delivery.audio_pins import pins_mark
from roomtone.delivery.batch import Batch, SinkFailed
from roomtone.delivery.controls import Retry, SinkControls, cancel, controls_of, mark_of
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
"""Events in a batch at most; also how many uninteresting ones may pass before the cursor is made durable."""

SPOKEN = frozenset(("turn", "answer", "analysis", "audio", "interim"))
"""The hooks that get what was said."""

WARNINGS = 8
"""Warnings of a sink that wait to become notices at most; the newest are kept."""

_CANCELLED = (
    "its own code has cancelled it: a cancel scope or a crashed task around the `yield` of `open` does that, or a "
    "hook that raises trio.Cancelled"
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class SinkRunner:
    """One sink and its way through the journal. Making it does nothing; `run` works, and `status` may always be asked.

    `closing` is set when no more events will be committed; then `run` returns as soon as the sink has everything. It is
    this sink's own event: `leave` sets it too.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        *,
        journal: Journal,
        live: Live,
        context: Context,
        closing: trio.Event,
    ) -> None:
        self._name = name
        self._sink = sink
        self._journal = journal
        self._live = live
        self._warnings: deque[str] = deque(maxlen=WARNINGS)
        self._context = msgspec.structs.replace(context, warn=self._warnings.append)
        self._closing = closing
        self._leaving = False
        self._log = log.bind(sink=name)
        self._standing = SinkHealth(name, type(sink), journal, closing)
        self._refused = 0
        self._cursor = journal.tip
        self._durable_cursor = journal.tip
        self._limit = MAX_BATCH_EVENTS
        self._proof = CrashGuard(name, sink, journal)
        self._orders = SinkControls()
        self._called = trio.Event()
        self._kinds = frozenset[str]()

    def has(self, seq: int) -> bool:
        """Whether the sink has acknowledged everything up to this event."""
        return self._cursor >= seq

    def is_deaf(self) -> bool:
        """True if its hooks get what is said and not what is to be forgotten, as far as they are known."""
        return not SPOKEN.isdisjoint(self._kinds) and "forgotten" not in self._kinds

    def status(self) -> SinkStatus:
        """How it stands at this moment."""
        return SinkStatus(
            name=self._name,
            kind=str(self._sink.__struct_config__.tag),
            state=self._standing.state,
            behind=max(0, self._journal.tip - self._cursor),
            refused=self._refused,
            error=self._standing.error,
        )

    async def run(self) -> None:
        """Deliver for ever, or, once `closing` is set, until everything is delivered or one last attempt has failed.

        Resources: the sink's context is left before this returns. Errors: those of the journal.
        """
        await self._begin()
        while await self._may_run():
            is_last = self._closing.is_set()
            failure = await self._attempt()
            if failure is None:
                if self._orders.paused is None or self._leaving:
                    return
                continue
            async with self._proof.surviving():
                delay = await self._standing.on_failure(failure, self._journal.tip - self._cursor)
            if not is_last:
                await self._rest(trio.current_time() + delay)
            behind = self._journal.tip - self._cursor
            if self._closing.is_set() and (is_last or self._leaving or not behind):
                if behind and not self._leaving:
                    self._log.warning("sink.behind", events=behind)
                return

    def look(self) -> None:
        """Have it look for orders, see `delivery/controls.py`: another process has written the journal."""
        self._called.set()

    def leave(self) -> None:
        """Have `run` return after the batch that is under way: another will go on from the cursor."""
        self._leaving = True
        self._closing.set()

    async def _begin(self) -> None:
        """Find the cursor. A sink that the journal does not know gets one now, or it would move with every start."""
        cursor = await self._journal.cursor(self._name)
        if cursor is None:
            # In a journal begun anew after damage every sink is unknown, and all that is in it is news to all.
            from_oldest = self._sink.start == "oldest" or self._journal.renewed
            cursor = 0 if from_oldest else self._cursor  # the tip when this was made: before anything else began
            await self._journal.advance(self._name, cursor)
        self._cursor = self._durable_cursor = cursor
        pins = pins_mark(self._name, self._sink)
        if await self._journal.mark(pins.key) != pins.value:
            await self._journal.commit(pins)
        await self._proof.begin()
        await self._obey()

    async def _obey(self) -> None:
        """Read the orders for this sink. Going back is done here, the others where they belong."""
        self._called = trio.Event()
        orders = controls_of(self._name, await self._journal.marks(sink_prefix(self._name)))
        if orders.rewind is not None:
            self._cursor = min(self._cursor, orders.rewind)
            self._durable_cursor = min(self._durable_cursor, orders.rewind)
            await self._journal.rewind(self._name, orders.rewind, cancel(self._name, "rewind"))
            self._log.info("sink.rewound", seq=orders.rewind)
        self._orders = msgspec.structs.replace(orders, rewind=None)
        self._refused = await self._journal.count_refused(self._name)

    async def _may_run(self) -> bool:
        """Wait for as long as the sink is paused. False: it is the end, and the events wait for the next start."""
        if self._called.is_set():
            await self._obey()
        while self._orders.paused is not None:
            self._standing.on_paused(self._orders.paused.reason)
            if self._closing.is_set():
                return False
            await wait_any(self._closing.wait, self._called.wait)
            await self._obey()
        return True

    async def _rest(self, until: float) -> None:
        """Return at that time, when `closing` is set, or when there are other orders."""
        orders = self._orders
        with trio.move_on_at(until):
            while not self._closing.is_set() and self._orders == orders:
                await wait_any(self._closing.wait, self._called.wait)
                if self._called.is_set():
                    await self._obey()

    async def _attempt(self) -> BaseException | None:
        """Open the sink and pump. None: everything is delivered and the sink was left; else what failed.

        A sink's own code can cancel it too, and scopes let nothing be seen of that: so the end is what is told by
        `pumped`, and not that nothing was raised.
        """
        failure: BaseException | None = None
        pumped = trio.Event()
        try:
            # A nursery for each attempt: whatever a sink leaves running in it ends with the attempt.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._session, nursery, pumped)
        except* JournalError:
            raise
        except* BaseException as group:  # noqa: BLE001 - the plugin boundary
            await trio.lowlevel.checkpoint_if_cancelled()
            failure = leaves_of(group)[0]  # the others are nearly always its consequences
        if failure is None and not pumped.is_set():
            return SinkFailed(_CANCELLED)
        return failure

    async def _session(self, attempt: trio.Nursery, pumped: trio.Event) -> None:
        """From opening to leaving, each within the sink's timeout: the deadline stands for one, then for the other."""
        cause: Exception | None = None
        where = "opening"
        with trio.CancelScope() as patience:
            async with AsyncExitStack() as stack:
                async with self._proof.trial("opening"):
                    patience.deadline = trio.current_time() + self._sink.timeout
                    paths.private_folder(self._context.state)
                    plugin = await stack.enter_async_context(open_sink(self._sink, self._context))
                    patience.deadline = float("inf")
                try:
                    await self._serve(validate_hooks(plugin, name=self._name), attempt, pumped)
                except Exception as error:
                    cause = error
                    raise
                finally:
                    where = "leaving"
                    patience.deadline = trio.current_time() + self._sink.timeout
        # Here too when the context has swallowed the failure, or was so long in leaving that it was cancelled.
        if cause is not None:
            raise cause
        if patience.cancelled_caught:
            raise SinkFailed(f"{where} took longer than {self._sink.timeout:g} s")
        if not pumped.is_set():
            raise SinkFailed(_CANCELLED)
        attempt.cancel_scope.cancel()

    async def _serve(self, hooks: SinkHooks, attempt: trio.Nursery, pumped: trio.Event) -> None:
        self._kinds = frozenset((*hooks.kinds, *hooks.live))
        worker = HookExecutor(hooks, timeout=self._sink.timeout, nursery=attempt, on_overdue=self._tell_stuck)
        async with trio.open_nursery() as nursery:
            if hooks.live:
                nursery.start_soon(self._follow_live, worker)
            await self._pump(worker)
            pumped.set()
            nursery.cancel_scope.cancel()

    async def _pump(self, worker: HookExecutor) -> None:
        """Batches from the cursor to the tip, for ever; returns at the tip when `closing` is set, or to `leave`."""
        self._standing.on_opened()
        while not self._leaving:
            if self._called.is_set():
                await self._obey()
            if self._orders.paused is not None:
                return
            if self._orders.retry is not None:
                await self._try_again(self._orders.retry, worker)
                continue
            is_closing, tip = self._closing.is_set(), self._journal.tip
            events = await self._journal.read(self._cursor, 1 if self._proof.is_suspect else self._limit)
            if events:
                await self._deliver(events, worker)
                self._standing.on_batch()
            else:
                self._cursor = max(self._cursor, tip)  # beyond rows that cannot be read
                if is_closing:
                    await self._advance(self._cursor)
                    return
            if not worker.is_stuck:  # in a live hook
                await self._standing.on_idle()
            while self._warnings:
                await self._standing.warn(self._warnings.popleft())
            if not events:
                # What is due waits for a live hook that hangs, whose return wakes nobody.
                await self._wait_for_more(trio.current_time() + 1 if worker.is_stuck else self._standing.due)

    async def _deliver(self, events: Sequence[Durable], worker: HookExecutor) -> None:
        wanted = self._wanted(events, worker)
        if not wanted:
            self._cursor = events[-1].seq
            if self._cursor - self._durable_cursor >= MAX_BATCH_EVENTS:
                await self._advance(self._cursor)
            return
        batch = Batch(wanted, worker.hooks)
        async with self._proof.trial("an event", wanted[0].seq, wanted[-1].seq):
            await worker.deliver(batch)
            await self._acknowledge(batch, events[-1].seq)
            self._judge(batch)

    async def _try_again(self, retry: Retry, worker: HookExecutor) -> None:
        """The refused events that a person wants tried again: by seq, and before all that are new."""
        refusals = await self._journal.refused(self._name, retry.after, self._limit)
        events = [refusal.event for refusal in refusals if refusal.event and refusal.seq <= retry.until]
        batch = Batch(self._wanted(events, worker), worker.hooks)
        if batch.events:
            async with self._proof.trial("an event", batch.events[0].seq, batch.events[-1].seq):
                await worker.deliver(batch)
                await self._acknowledge_again(batch, retry)
                self._judge(batch)
        else:
            await self._acknowledge_again(batch, Retry(refusals[-1].seq if refusals else retry.until, retry.until))

    def _wanted(self, events: Sequence[Durable], worker: HookExecutor) -> list[Durable]:
        return [_present(event) for event in events if wants(self._sink, event) and worker.hooks.hooks_for(event)]

    def _judge(self, batch: Batch) -> None:
        """Raise what the batch failed with; and choose how large the next one is."""
        if failure := batch.flush_error or batch.error:
            self._limit = 1  # one by one, until it is clear which event it is
            raise failure
        self._limit = min(MAX_BATCH_EVENTS, self._limit * 2) if batch.done == len(batch.events) else batch.done

    async def _acknowledge(self, batch: Batch, last: int) -> None:
        """Move the cursor over what has returned, and over what nobody wanted before the first that has not."""
        if batch.flush_error or not batch.done:
            return
        for seq, reason in batch.refused:
            await self._journal.refuse(self._name, seq, reason)
            self._refused += 1
            self._log.warning("event.refused", seq=seq)  # the reason may quote the event: it stands beside it
        is_whole = batch.done == len(batch.events)
        seq = last if is_whole else batch.events[batch.done].seq - 1
        await self._advance(seq, *self._proof.settle(batch.done))

    async def _acknowledge_again(self, batch: Batch, retry: Retry) -> None:
        """What was refused before and has returned now is no longer refused; how far this is stands beside it."""
        if batch.flush_error:
            return
        again = {seq for seq, _ in batch.refused}
        tried = [event.seq for event in batch.events[: batch.done]]
        accepted = [seq for seq in tried if seq not in again]
        left = Retry(tried[-1] if tried else retry.after, retry.until)
        self._orders = msgspec.structs.replace(self._orders, retry=left if left.after < left.until else None)
        mark = mark_of(self._name, left) if self._orders.retry else cancel(self._name, "retry")
        await self._journal.settle_refused(self._name, accepted, batch.refused, mark, *self._proof.settle(batch.done))
        self._refused -= len(accepted)

    async def _advance(self, seq: int, *marks: Mark) -> None:
        if seq > self._durable_cursor:
            await self._journal.advance(self._name, seq, *marks)
            self._durable_cursor = seq
        self._cursor = seq

    async def _wait_for_more(self, until: float) -> None:
        """Return when there is an event after the cursor, `closing` is set, there are orders, or that time has come."""
        with trio.move_on_at(until):
            await wait_any(self._closing.wait, self._called.wait, partial(self._journal.wait_after, self._cursor))

    async def _follow_live(self, worker: HookExecutor) -> None:
        """Hand on what is happening right now. A failure here costs the one live event and a line in the log."""
        failures = 0
        with self._live.subscribe(wanted=partial(self._wants_live, worker.hooks)) as feed:
            async for event in feed:
                try:
                    await worker.tell_live(event)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin boundary
                    failures += 1
                    self._standing.on_live_error(error, failures)

    def _wants_live(self, hooks: SinkHooks, event: LiveEvent) -> bool:
        kind, rooms, kinds = kind_of(event), self._sink.rooms, self._sink.kinds
        return kind in hooks.live and (not rooms or event.room in rooms) and (not kinds or kind in kinds)

    async def _tell_stuck(self, text: str) -> None:
        await self._standing.on_stuck(text, self._sink.timeout)


async def run_sink(
    name: str, sink: Sink, *, journal: Journal, live: Live, context: Context, closing: trio.Event
) -> None:
    """Deliver to one sink without looking at its status; see `Delivery.run`."""
    await SinkRunner(name, sink, journal=journal, live=live, context=context, closing=closing).run()


def _present(event: Durable) -> Durable:
    """The quota may have taken the segment since; asking costs microseconds, for the folder is the spool's own."""
    if isinstance(event, Audio) and event.file is not None and not Path(event.file).exists():
        return msgspec.structs.replace(event, file=None)
    return event
