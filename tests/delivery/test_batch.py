"""Laws of a batch: what is called, in which order, and what is acknowledged of it."""

from datetime import UTC, datetime
from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from roomtone.delivery.batch import Batch
from roomtone.delivery.hooks import Hook, validate_hooks
from roomtone.events import Durable, Notice
from roomtone.sinks import Unprocessable, hookimpl

NOW = datetime(2026, 1, 1, tzinfo=UTC)

OUTCOMES = {"take": None, "refuse": Unprocessable("no"), "raise": OSError("away"), "exit": SystemExit(1)}


def events(count: int) -> list[Durable]:
    return [
        Notice(seq=seq, room="desk", position=0, at=NOW, severity="info", code="a.b", text="")
        for seq in range(1, count + 1)
    ]


class Scripted:
    """Does with each event, and with the flush, what its script says; and notes what it was called for."""

    def __init__(self, script: list[str], flush: str) -> None:
        self.calls: list[Any] = []
        self._script = script
        self._flush = flush

    def _do(self, outcome: str) -> None:
        if error := OUTCOMES[outcome]:
            raise error

    @hookimpl
    def notice(self, event: Notice) -> None:
        self.calls.append(("notice", event.seq))

    @hookimpl
    def event(self, event: Durable) -> None:
        self.calls.append(("event", event.seq))
        self._do(self._script[event.seq - 1])

    @hookimpl
    def flush(self) -> None:
        self.calls.append("flush")
        self._do(self._flush)


async def call_in_loop(hook: Hook, arguments: Any) -> None:
    await trio.lowlevel.checkpoint()
    hook.call(*arguments)


@given(
    script=st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=12),
    flush=st.sampled_from(sorted(OUTCOMES)),
    in_loop=st.booleans(),
)
def test_acknowledges_what_returned_and_no_more(script: list[str], flush: str, *, in_loop: bool) -> None:
    """Whatever raises where: calls are in order and end at the first failure, refusals are set aside, flush follows,
    and the thread and the loop do the same.
    """
    plugin = Scripted(script, flush)
    batch = Batch(events(len(script)), validate_hooks(plugin, name="scripted"))
    if in_loop:
        trio.run(batch.run_async, call_in_loop)
    else:
        batch.run()

    failure = next((index for index, outcome in enumerate(script) if outcome in {"raise", "exit"}), None)
    done = len(script) if failure is None else failure
    called = done if failure is None else done + 1
    assert plugin.calls == [
        *((name, seq) for seq in range(1, called + 1) for name in ("notice", "event")),
        *(["flush"] if done else []),
    ]
    assert batch.done == done
    assert (batch.error is None) == (failure is None)
    found_alone = flush == "refuse" and done == 1
    if found_alone:
        assert batch.refused == [(1, "no")]
    else:
        assert batch.refused == [(index + 1, "no") for index in range(done) if script[index] == "refuse"]
    assert (batch.flush_error is not None) == (done > 0 and flush != "take" and not found_alone)


def test_nothing_done_is_not_flushed() -> None:
    """A batch whose first event fails is not flushed: there is nothing to make durable."""
    plugin = Scripted(["raise"], "take")
    Batch(events(1), validate_hooks(plugin, name="scripted")).run()

    assert plugin.calls == [("notice", 1), ("event", 1)]


async def test_cancellation_ends_a_batch(autojump_clock: trio.abc.Clock) -> None:
    """Cancelled in a hook, alone or with an error beside it, a batch calls nothing more and lets it pass."""

    async def make(hook: Hook, arguments: Any) -> None:
        hook.call(*arguments)
        if hook.name == "event" and arguments[0].seq == 2:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()

    plugin = Scripted(["take", "take"], "take")
    batch = Batch(events(2), validate_hooks(plugin, name="scripted"))
    with trio.move_on_after(1) as scope:
        await batch.run_async(make)

    assert scope.cancelled_caught
    assert plugin.calls[-1] == ("event", 2)
    assert (batch.done, batch.error) == (1, None)
