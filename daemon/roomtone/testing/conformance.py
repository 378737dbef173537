"""The conformance kit: whether a sink keeps its part of the contract, tried with the daemon's own delivery.

In a test module of pytest it is one line, which makes one test for each law:

    test_conformance = conformance_tests(make_sink, read_back)

`make_sink(folder)` gives the sink with everything that it writes below the folder, or an async context manager that
gives it, for one that needs a receiver. `read_back(folder)` gives what has arrived there, oldest first: by default the
ids of the events, else what `key` makes of one. Doubled entries are allowed, for delivery is at least once; what counts
is the first coming of each. A sink that hands on what it gets, and keeps nothing of it, is tried with `keeps=False`.
"""

import resource
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec
import trio

from roomtone import events
from roomtone.delivery.batch import Batch
from roomtone.delivery.errors import explain
from roomtone.delivery.executor import HookExecutor
from roomtone.delivery.hooks import open_sink, validate_hooks
from roomtone.events import Audio, Durable, Forgotten, kind_of
from roomtone.forget.search import SearchRequest, ids_of, long_texts, search
from roomtone.sinks import Sink, wants
from roomtone.testing.room import NOON, FakeRoom, context_of, open_room

NAME = "sink"
ROOM = "desk"
RATE = 16_000
SEGMENT = 16_000
"""Samples in a segment of audio; each of segment n has the value n."""
STALL = 1.0
"""Seconds for which no step of an asynchronous hook may keep the loop."""
LAW_TIMEOUT_S = 20.0

HOSTILE = (
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and ﷽",
    "lines\nof\r\ntext\u2028and more\x0b\x0c\x85",
    "NUL \0 and \x1b[31mcontrol\x7f",
    "\"quotes\" 'and' \\backslashes\\ {braces} %s $HOME <b>&amp;</b> --> ``` #",
    "עברית \u202e العربية e\u0301",
    "",
    "   ",
    "x" * 1_000_000,
)
"""Texts of turns that a sink has to live with."""

MakeSink: TypeAlias = Callable[[Path], Sink | AbstractAsyncContextManager[Sink]]
ReadBack: TypeAlias = Callable[[Path], Sequence[Hashable]]
Key: TypeAlias = Callable[[Any], Hashable]


class LawBroken(AssertionError):  # noqa: N818 - it says what is true of the sink
    """The sink does not keep the contract. Says which law, and what was seen."""


def conformance_tests(
    make_sink: MakeSink,
    read_back: ReadBack,
    *,
    key: Key | None = None,
    kinds: Sequence[str] = ("turn",),
    keeps: bool = True,
) -> Callable[..., None]:
    """A test for pytest with a case for each law, to be bound to a name that begins with `test_`.

    `kinds` are those that `read_back` finds again; events of all other kinds come in between. `key` says what it finds
    of an event, by default its id. `keeps`: what it finds lies in files of the sink's own, which can forget it.
    """
    import pytest  # noqa: PLC0415 - the kit runs without it too, see `check`

    @pytest.mark.parametrize("law", list(LAWS))
    def test_conformance(law: str, tmp_path: Path) -> None:
        check(law, make_sink, read_back, tmp_path, key=key, kinds=kinds, keeps=keeps)

    return test_conformance


def check(
    law: str,
    make_sink: MakeSink,
    read_back: ReadBack,
    folder: Path,
    *,
    key: Key | None = None,
    kinds: Sequence[str] = ("turn",),
    keeps: bool = True,
) -> None:
    """Try one of the LAWS in an empty folder. Raises LawBroken."""

    async def try_it() -> None:
        made = make_sink(folder)
        async with nullcontext(made) if isinstance(made, Sink) else made as sink:
            await LAWS[law](Bench(sink, read_back, folder, key or _id, tuple(kinds), keeps=keeps))

    trio.run(try_it)


class Bench:
    """A sink, and what its laws need: events, ways to deliver them, and a look at what has arrived."""

    def __init__(
        self, sink: Sink, read_back: ReadBack, folder: Path, key: Key, kinds: tuple[str, ...], *, keeps: bool
    ) -> None:
        self.sink = sink
        self.folder = folder
        self.kinds = kinds
        self.keeps = keeps
        self.context = context_of(folder, NAME, {ROOM: RATE})
        self._read_back = read_back
        self._key = key
        self._made = 0
        (folder / ".room").mkdir(parents=True, exist_ok=True)

    def events(self, count: int, text: str = "") -> list[Durable]:
        """So many events of the kinds that are found again, and one of each other kind in between."""
        others = [kind for kind in events.KINDS if kind not in self.kinds]
        chosen: list[Durable] = []
        for number in range(count):
            chosen.append(self.event(self.kinds[number % len(self.kinds)], text))
            if number < len(others) and others[number] != "forgotten":  # it would take away what is to be found
                chosen.append(self.event(others[number], text))
        return chosen

    def event(self, kind: str, text: str = "") -> Durable:
        """The next event, of this kind; with an id, which the journal replaces by its own."""
        self._made += 1
        number = self._made
        position = (number - 1) * SEGMENT
        at = NOON + timedelta(seconds=position / RATE)
        made = _fields(kind, number, text or f"This is number {number}.", at)
        if kind == "audio":
            file = self.folder / ".room" / f"{number}.pcm"
            file.write_bytes(array("h", [number % 30_000]) * SEGMENT)
            made["file"] = str(file)
        envelope = {"kind": kind, "seq": number, "id": _number(number), "room": ROOM, "position": position, "at": at}
        event: Durable = msgspec.convert(envelope | made, Durable)
        return event

    @asynccontextmanager
    async def room(self, witness: Callable[[str, int], None] | None = None) -> AsyncIterator[FakeRoom]:
        """The sink at work in the daemon's delivery."""
        async with open_room(self.folder, {NAME: self.sink}, name=ROOM, rate=RATE, witness=witness) as room:
            yield room

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Callable[[Sequence[Durable]], Awaitable[Batch]]]:
        """The sink opened once; yields what takes events through its hooks and a flush, and acknowledges nothing."""

        async def overdue(text: str) -> None:
            raise LawBroken(f"the sink hangs: {text}")

        async with trio.open_nursery() as nursery:
            async with open_sink(self.sink, self.context) as plugin:
                hooks = validate_hooks(plugin, name=NAME)
                worker = HookExecutor(hooks, timeout=self.sink.timeout, nursery=nursery, on_overdue=overdue)

                async def deliver(given: Sequence[Durable]) -> Batch:
                    batch = Batch([each for each in given if wants(self.sink, each) and hooks.hooks_for(each)], hooks)
                    await worker.deliver(batch)
                    return batch

                yield deliver
            nursery.cancel_scope.cancel()

    async def deliver_all(self, given: Sequence[Durable]) -> None:
        """Take all of them through the sink, in as many batches as it needs."""
        async with self.session() as deliver:
            left = list(given)
            while left:
                batch = await deliver(left)
                if failure := batch.flush_error or batch.error:
                    raise LawBroken(f"the sink fails on good events: {explain(failure)}") from failure
                if batch.refused:
                    raise LawBroken(f"the sink refuses a good event: {batch.refused[0][1]}")
                last = batch.events[batch.done - 1].seq if batch.done else left[-1].seq
                left = [event for event in left if event.seq > last] if batch.done < len(batch.events) else []

    def expect(self, given: Sequence[Durable], what: str, *, besides: Sequence[Durable] = ()) -> None:
        """All of these have arrived, in this order, and nothing that was not sent; `besides` may have, or not."""
        wanted = [self._key(event) for event in given if kind_of(event) in self.kinds]
        optional = {self._key(event) for event in besides}
        found = [key for key in dict.fromkeys(self._read_back(self.folder)) if key not in optional]
        if found == list(dict.fromkeys(wanted)):
            return
        missing = [each for each in wanted if each not in found]
        unknown = [each for each in found if each not in wanted]
        fault = f"{len(missing)} missing, such as {_short(missing[0])}" if missing else "in another order"
        fault = f"{len(unknown)} that nobody sent, such as {_short(unknown[0])}" if unknown and not missing else fault
        raise LawBroken(f"{what}: of {len(wanted)} events {fault}")

    def has(self, given: Sequence[Durable]) -> list[Hashable]:
        """Which of these have not arrived."""
        found = set(self._read_back(self.folder))
        return [key for event in given if kind_of(event) in self.kinds and (key := self._key(event)) not in found]

    def files_with(self, given: Sequence[Durable]) -> list[Path]:
        """The sink's files that have anything of these. It must be closed: see `forget/search.py`."""
        places = [place for place in self.folder.iterdir() if place.name != ".room"]
        order = SearchRequest(
            places=(*map(str, places), str(self.context.state)),
            since=NOON,
            seconds=LAW_TIMEOUT_S,
            ids=ids_of(given),
            texts=long_texts(given),
            sounds=tuple(_samples(event)[:4000] for event in given if isinstance(event, Audio)),
        )
        return [Path(path) for path in search(order).left]


def _samples(event: Audio) -> bytes:
    return array("h", [event.position // SEGMENT % 30_000 + 1]).tobytes() * SEGMENT


# The laws


async def keeps_the_order(bench: Bench) -> None:
    """Everything arrives, in the order of the journal: many at once, and one by one."""
    async with bench.room() as room:
        sent = list(await room.commit(*bench.events(40)))
        await room.delivered(LAW_TIMEOUT_S)
        for _ in range(5):
            sent += await room.commit(*bench.events(1))
            await room.delivered(LAW_TIMEOUT_S)
    bench.expect(sent, "in order")


async def has_what_it_acknowledges(bench: Bench) -> None:
    """At the moment of its acknowledgement an event is where a reader finds it: from then on it never comes again."""
    sent: list[Durable] = []
    early: list[Hashable] = []

    def witness(name: str, seq: int) -> None:
        early.extend(bench.has([event for event in sent if event.seq <= seq]))

    async with bench.room(witness) as room:
        for count in (30, 1, 1, 5):
            # Known before they are committed, for delivery may be quicker than this task.
            given = bench.events(count)
            first = room.journal.tip + 1
            sent += [msgspec.structs.replace(event, seq=first + place) for place, event in enumerate(given)]
            committed = await room.commit(*given)
            sent[-len(committed) :] = committed
            await room.delivered(LAW_TIMEOUT_S)
    if early:
        raise LawBroken(f"acknowledged and not there yet: {len(early)} events, such as {_short(early[0])}")


async def takes_events_again(bench: Bench) -> None:
    """Events that come twice, as after a crash, do no harm, and none after them is lost."""
    async with bench.room() as room:
        sent = list(await room.commit(*bench.events(20)))
        await room.delivered(LAW_TIMEOUT_S)
        await room.replay(NAME, after=sent[4].seq)
        sent += await room.commit(*bench.events(5))
        await room.delivered(LAW_TIMEOUT_S)
    bench.expect(sent, "after a redelivery")


async def survives_cancellation(bench: Bench) -> None:
    """Cancelled anywhere in its hooks, and left without an acknowledgement, it takes the same events again."""
    given = bench.events(12)
    for steps in (0, 1, 2, 3, 5, 8, 13, 21, 34):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery, bench.session() as deliver:
                nursery.start_soon(_cancel_after, steps, scope)
                await deliver(given)
                scope.cancel()
    await bench.deliver_all(given)
    bench.expect(given, "after being cancelled")


async def can_be_opened_again(bench: Bench) -> None:
    """Left and opened again between any two events, it goes on where it was."""
    sent: list[Durable] = []
    for count in (1, 1, 6, 1, 3):
        async with bench.room() as room:
            sent += await room.commit(*bench.events(count))
            await room.delivered(LAW_TIMEOUT_S)
    bench.expect(sent, "over five openings")


async def takes_hostile_text(bench: Bench) -> None:
    """Emoji, newlines, NUL, nothing, and a megabyte: each arrives, or is refused for itself, and stops no other."""
    async with bench.room() as room:
        sent = [event for text in HOSTILE for event in await room.commit(*bench.events(1, text))]
        sent += await room.commit(*bench.events(2))
        await room.delivered(LAW_TIMEOUT_S)
        refused = {refusal.seq for refusal in await room.refused(NAME)}
    bench.expect([event for event in sent if event.seq not in refused], "of hostile texts")
    if {event.seq for event in sent[-2:]} & refused:
        raise LawBroken("it refuses good events after hostile ones")


async def waits_with_an_empty_journal(bench: Bench) -> None:
    """With nothing to do it opens, waits, and ends in order."""
    async with bench.room() as room:
        await trio.sleep(0.05)
        if (status := room.status(NAME)).state in {"failing", "configuration error"}:
            raise LawBroken(f"it fails before anything has come: {status.error}")
    bench.expect([], "of an empty journal")


async def survives_a_full_disk(bench: Bench) -> None:
    """When a write fails halfway, nothing is acknowledged that is not there, and with room again all arrives whole.

    No file may grow beyond a limit meanwhile (RLIMIT_FSIZE), which fails as a full disk does, and needs no root.
    """
    before, given = bench.events(2), bench.events(10, "This is a long story. " * 3_000)
    await bench.deliver_all(before)
    acknowledged = 0
    with _full_disk(bench.folder):
        try:
            async with bench.session() as deliver:
                batch = await deliver(given)
                if batch.done and not batch.flush_error:
                    acknowledged = batch.events[batch.done - 1].seq
        except* Exception:  # noqa: BLE001, S110 - the plugin boundary: the sink may fail as it likes
            pass
    await bench.deliver_all([event for event in given if event.seq > acknowledged])
    bench.expect([*before, *given], "after a full disk")


async def ends_when_told(bench: Bench) -> None:
    """Told to stop it takes what waits and is left; killed in the middle of a write it goes on at the next start."""
    sent: list[Durable] = []
    for delay in (0.0, 0.002, 0.01):
        with trio.CancelScope() as scope:
            async with bench.room() as room:
                sent += await room.commit(*bench.events(8))
                await trio.sleep(delay)
                scope.cancel()
        while _is_in_hook():  # noqa: ASYNC110 - the process would be gone here, and its thread with it
            await trio.sleep(0.005)
    with trio.fail_after(LAW_TIMEOUT_S):
        async with bench.room() as room:
            sent += await room.commit(*bench.events(8))
    bench.expect(sent, "after the end")


async def leaves_the_loop_alone(bench: Bench) -> None:
    """No step of an asynchronous hook keeps the loop, and so everything else, for a second."""
    given = bench.events(10)
    for _ in range(3):  # a busy machine may do this once, a hook does it again
        stopwatch = _Stopwatch()
        trio.lowlevel.add_instrument(stopwatch)
        try:
            await bench.deliver_all(given)
        finally:
            trio.lowlevel.remove_instrument(stopwatch)
        if stopwatch.longest < STALL:
            return
    raise LawBroken(f"it keeps the loop for {stopwatch.longest:.1f} s; write `def` instead of `async def`")


async def leaves_nothing_behind(bench: Bench) -> None:
    """What an opening has made is gone when it is left: files, sockets, threads, tasks."""
    left = []
    for _ in range(6):
        await bench.deliver_all(bench.events(2))
        left.append(_belongings())
    # The first openings may fill caches; what grows with each one afterwards is a leak.
    for what in left[-1]:
        if all(later[what] > earlier[what] for earlier, later in pairwise(left[2:])):
            raise LawBroken(f"each opening leaves something behind: {what} {[each[what] for each in left]}")


async def forgets_when_told(bench: Bench) -> None:
    """A stretch that is to be forgotten is in none of its files, and what was before and after it is where it was."""
    async with open_sink(bench.sink, bench.context) as plugin:
        if "forgotten" not in validate_hooks(plugin, name=NAME).kinds:
            raise LawBroken("it has no hook `forgotten`, so that nothing of what it got could ever be forgotten")
    given, gone, forgotten = _stretch(bench)
    await bench.deliver_all(given)
    bench.expect(given, "before anything is forgotten")
    await bench.deliver_all([forgotten])
    if not bench.keeps:
        return
    if len(bench.has(gone)) < len(gone):
        raise LawBroken(f"told to forget {len(gone)} events, it has {len(gone) - len(bench.has(gone))} of them still")
    if files := bench.files_with(gone):
        raise LawBroken(f"{files[0]} still has what is forgotten; with SQLite, set PRAGMA secure_delete = ON")
    left = [event for event in given if event not in gone]
    bench.expect(left, "after others were forgotten", besides=[forgotten])


async def names_its_files(bench: Bench) -> None:
    """What it keeps lies in its own state folder, or where `holdings` says: `roomtone forget` searches only there."""
    given, _, _ = _stretch(bench)
    await bench.deliver_all(given)
    named = [bench.context.state, *map(Path, bench.sink.holdings(bench.context))]
    for path in bench.files_with(given) if bench.keeps else ():
        if not any(path.is_relative_to(place) or str(path).startswith(f"{place}-") for place in named):
            raise LawBroken(f"{path} has what it got, and `holdings` does not name it")


def _stretch(bench: Bench) -> tuple[list[Durable], list[Durable], Forgotten]:
    """Events, those among them that are to be forgotten, and what says so."""
    given = [
        bench.event(bench.kinds[number % len(bench.kinds)], f"Sentence {number} of nine that tell of nothing.")
        for number in range(9)
    ]
    gone, forgotten = given[3:6], bench.event("forgotten")
    first, last = gone[0], given[6]
    times = {"start": first.position, "end": last.position, "from_": first.at, "until": last.at}
    told = msgspec.structs.replace(forgotten, position=first.position, at=first.at, **times)
    return given, gone, cast("Forgotten", told)


Law: TypeAlias = Callable[[Bench], Awaitable[None]]

LAWS: Mapping[str, Law] = {
    law.__name__: law
    for law in (
        keeps_the_order,
        has_what_it_acknowledges,
        takes_events_again,
        survives_cancellation,
        can_be_opened_again,
        takes_hostile_text,
        waits_with_an_empty_journal,
        survives_a_full_disk,
        ends_when_told,
        leaves_the_loop_alone,
        leaves_nothing_behind,
        forgets_when_told,
        names_its_files,
    )
}
"""What is tried, by name."""


class _Stopwatch(trio.abc.Instrument):
    """How long the longest step of any task took."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = time.monotonic()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.monotonic()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.monotonic() - self._began)


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """No file of this process can grow beyond the largest one that is there."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and ".pcm" not in path.name]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max([65_536, *sizes]) + 1_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _is_in_hook() -> bool:
    """Whether a thread that a cancelled delivery has left behind is still in a hook."""
    for thread, frame in sys._current_frames().items():  # noqa: SLF001 - documented, and the only way to see
        step = frame if thread != threading.get_ident() else None
        while step is not None:
            if step.f_code is Batch.run.__code__:
                return True
            step = step.f_back
    return False


def _belongings() -> dict[str, int]:
    """What this process holds, as far as it can be counted."""
    descriptors = Path("/proc/self/fd")
    return {
        "descriptors": len(list(descriptors.iterdir())) if descriptors.exists() else 0,
        "threads": sum(not thread.name.startswith("Trio thread") for thread in threading.enumerate()),
        "tasks": _tasks_below(trio.lowlevel.current_root_task()),
    }


def _tasks_below(task: trio.lowlevel.Task | None) -> int:
    if task is None:
        return 0
    return 1 + sum(_tasks_below(child) for nursery in task.child_nurseries for child in nursery.child_tasks)


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


def _fields(kind: str, number: int, text: str, at: Any) -> dict[str, Any]:
    """The fields of an event beyond the envelope."""
    start = (number - 1) * SEGMENT
    fields: dict[str, dict[str, Any]] = {
        "recording_started": {"rate": RATE, "source": text},
        "recording_stopped": {"reason": "stopping"},
        "session_started": {"session_id": "script", "endpoint": "script"},
        "session_ended": {"session_id": "script", "audio_seconds": 1, "session_seconds": 1, "reason": "terminated"},
        "turn": {"session_id": "script", "turn_order": number, "text": text},
        "answer": {"session_id": "script", "turn_order": number, "text": text, "response": {"text": text}},
        "analysis": {"name": "summary", "start": start, "end": start + SEGMENT, "text": text, "response": {}},
        "audio": {"samples": SEGMENT, "rate": RATE},
        # Of no length: the room's sound has no hole for it.
        "gap": {"start": start, "end": start, "from": at, "until": at, "cause": "device"},
        "muted": {"until": None},
        "forgotten": {"start": start, "end": start + SEGMENT, "from": at, "until": at},
        "notice": {"severity": "info", "code": "sink.test", "text": text},
    }
    return fields.get(kind, {})


def _number(number: int) -> str:
    return f"01955100-0000-7000-8000-{number:012x}"


def _id(event: Durable) -> str:
    return event.id


def _short(value: Hashable) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
