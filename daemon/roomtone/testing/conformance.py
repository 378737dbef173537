"""The conformance kit: tests of a sink's part of the contract, with the daemon's own delivery.

In a pytest module one line makes a test for each law:

    test_conformance = conformance_tests(make_sink, read_back)

`make_sink(folder)` returns the sink, which must write below the folder, or an async context manager that yields it, for
one that needs a receiver. `read_back(folder)` returns the arrived events, oldest first: by default their ids, otherwise
their values by `key`. Doubled entries are allowed, for delivery is at least once; the first entry of each counts. Use
`keeps=False` for a sink that hands events on and keeps nothing of them.
"""

import resource
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
SEGMENT_SAMPLES = 16_000
"""Samples in a segment of audio; each of segment n has the value n."""
MAX_STEP_S = 1.0
"""Seconds that a step of an asynchronous hook may take at most: it blocks the loop."""
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
"""Difficult texts of turns, which a sink must accept or refuse."""

MakeSink: TypeAlias = Callable[[Path], Sink | AbstractAsyncContextManager[Sink]]
ReadBack: TypeAlias = Callable[[Path], Sequence[Hashable]]
Key: TypeAlias = Callable[[Any], Hashable]


class LawBroken(AssertionError):  # noqa: N818 - it states a fact about the sink
    """The sink breaks the contract. The text says how."""


def conformance_tests(
    make_sink: MakeSink,
    read_back: ReadBack,
    *,
    key: Key | None = None,
    kinds: Sequence[str] = ("turn",),
    keeps: bool = True,
) -> Callable[..., None]:
    """A pytest test with a case for each law. Bind it to a name that begins with `test_`.

    `read_back` finds events of these `kinds`; events of all other kinds come in between. `key` gives the value of an
    event in `read_back`, by default its id. `keeps`: the sink keeps events in files of its own, and can forget them.
    """
    import pytest  # noqa: PLC0415 - `check` runs without pytest

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
    """Test one of the LAWS in an empty folder. Raises LawBroken."""

    async def run() -> None:
        made = make_sink(folder)
        async with nullcontext(made) if isinstance(made, Sink) else made as sink:
            await LAWS[law](Bench(sink, read_back, folder, key or _id, tuple(kinds), keeps=keeps))

    trio.run(run)


class Bench:
    """A sink with the tools of the laws: events, ways to deliver them, and the arrived events."""

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
        """This many events of the bench's kinds, and one of each other kind in between."""
        others = [kind for kind in events.KINDS if kind not in self.kinds]
        chosen: list[Durable] = []
        for number in range(count):
            chosen.append(self.event(self.kinds[number % len(self.kinds)], text))
            if number < len(others) and others[number] != "forgotten":  # it would remove the events that must be found
                chosen.append(self.event(others[number], text))
        return chosen

    def event(self, kind: str, text: str = "") -> Durable:
        """The next event, of this kind. The journal replaces its id."""
        self._made += 1
        number = self._made
        position = (number - 1) * SEGMENT_SAMPLES
        at = NOON + timedelta(seconds=position / RATE)
        made = _fields(kind, number, text or f"This is number {number}.", at)
        if kind == "audio":
            file = self.folder / ".room" / f"{number}.pcm"
            file.write_bytes(array("h", [number % 30_000]) * SEGMENT_SAMPLES)
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
        """The sink opened once; yields a call that takes events through its hooks and a flush."""

        async def overdue(text: str) -> None:
            raise LawBroken(f"the sink hangs: {text}")

        async with open_sink(self.sink, self.context) as plugin:
            hooks = validate_hooks(plugin, name=NAME)
            async with trio.open_nursery() as nursery:
                executor = HookExecutor(hooks, timeout_s=self.sink.timeout, nursery=nursery, on_overdue=overdue)

                async def deliver(given: Sequence[Durable]) -> Batch:
                    batch = Batch([each for each in given if wants(self.sink, each) and hooks.hooks_for(each)], hooks)
                    await executor.deliver(batch)
                    return batch

                yield deliver

    async def deliver_all(self, given: Sequence[Durable]) -> None:
        """Deliver all of them to the sink, in as many batches as it needs."""
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
        """Raises LawBroken unless all of these have arrived, in this order, and no others; `besides` are optional."""
        wanted = [self._key(event) for event in given if kind_of(event) in self.kinds]
        optional = {self._key(event) for event in besides}
        found = [key for key in dict.fromkeys(self._read_back(self.folder)) if key not in optional]
        if found == list(dict.fromkeys(wanted)):
            return
        missing = [each for each in wanted if each not in found]
        unknown = [each for each in found if each not in wanted]
        fault = f"{len(missing)} missing, such as {_short(missing[0])}" if missing else "in another order"
        fault = f"{len(unknown)} that were not sent, such as {_short(unknown[0])}" if unknown and not missing else fault
        raise LawBroken(f"{what}: of {len(wanted)} events {fault}")

    def missing(self, given: Sequence[Durable]) -> list[Hashable]:
        """The keys of these that have not arrived."""
        found = set(self._read_back(self.folder))
        return [key for event in given if kind_of(event) in self.kinds and (key := self._key(event)) not in found]

    def files_with(self, given: Sequence[Durable]) -> list[Path]:
        """The sink's files that contain data of these. It must be closed: see `forget/search.py`."""
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
    return array("h", [event.position // SEGMENT_SAMPLES % 30_000 + 1]).tobytes() * SEGMENT_SAMPLES


# The laws


async def keeps_the_order(bench: Bench) -> None:
    """Everything arrives in the order of the journal: many in one batch, and one by one."""
    async with bench.room() as room:
        sent = list(await room.commit(*bench.events(40)))
        await room.delivered(LAW_TIMEOUT_S)
        for _ in range(5):
            sent += await room.commit(*bench.events(1))
            await room.delivered(LAW_TIMEOUT_S)
    bench.expect(sent, "in order")


async def has_what_it_acknowledges(bench: Bench) -> None:
    """A reader finds an event at the moment of its acknowledgement: from then on it never comes again."""
    sent: list[Durable] = []
    early: list[Hashable] = []

    def witness(name: str, seq: int) -> None:
        early.extend(bench.missing([event for event in sent if event.seq <= seq]))

    async with bench.room(witness) as room:
        for count in (30, 1, 1, 5):
            # Known before the commit, for delivery may be quicker than this task.
            given = bench.events(count)
            first = room.journal.tip + 1
            sent += [msgspec.structs.replace(event, seq=first + place) for place, event in enumerate(given)]
            committed = await room.commit(*given)
            sent[-len(committed) :] = committed
            await room.delivered(LAW_TIMEOUT_S)
    if early:
        raise LawBroken(f"acknowledged before they can be read back: {len(early)} events, such as {_short(early[0])}")


async def takes_events_again(bench: Bench) -> None:
    """Events that come twice, as after a crash, do no harm, and later events are not lost."""
    async with bench.room() as room:
        sent = list(await room.commit(*bench.events(20)))
        await room.delivered(LAW_TIMEOUT_S)
        await room.replay(NAME, after=sent[4].seq)
        sent += await room.commit(*bench.events(5))
        await room.delivered(LAW_TIMEOUT_S)
    bench.expect(sent, "after a redelivery")


async def survives_cancellation(bench: Bench) -> None:
    """After a cancellation anywhere in its hooks, without an acknowledgement, it takes the same events again."""
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
    """It goes on where it was if it is left and opened again between any two events."""
    sent: list[Durable] = []
    for count in (1, 1, 6, 1, 3):
        async with bench.room() as room:
            sent += await room.commit(*bench.events(count))
            await room.delivered(LAW_TIMEOUT_S)
    bench.expect(sent, "over five openings")


async def takes_hostile_text(bench: Bench) -> None:
    """Emoji, newlines, NUL, nothing, and a megabyte: each arrives, or is refused alone, and stops no other."""
    async with bench.room() as room:
        sent = [event for text in HOSTILE for event in await room.commit(*bench.events(1, text))]
        sent += await room.commit(*bench.events(2))
        await room.delivered(LAW_TIMEOUT_S)
        refused = {refusal.seq for refusal in await room.refused(NAME)}
    bench.expect([event for event in sent if event.seq not in refused], "of hostile texts")
    if {event.seq for event in sent[-2:]} & refused:
        raise LawBroken("it refuses good events after hostile ones")


async def waits_with_an_empty_journal(bench: Bench) -> None:
    """Without events it opens, waits, and ends in order."""
    async with bench.room() as room:
        await trio.sleep(0.05)
        if (status := room.status(NAME)).state in {"failing", "configuration error"}:
            raise LawBroken(f"it fails before the first event: {status.error}")
    bench.expect([], "of an empty journal")


async def survives_a_full_disk(bench: Bench) -> None:
    """When a write fails halfway, only what is there is acknowledged, and with room again everything arrives whole.

    A limit on the size of files (RLIMIT_FSIZE) fails like a full disk, and needs no root.
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
    """At a stop it takes the waiting events and is left; killed during a write it goes on at the next start."""
    sent: list[Durable] = []
    for delay in (0.0, 0.002, 0.01):
        with trio.CancelScope() as scope:
            async with bench.room() as room:
                sent += await room.commit(*bench.events(8))
                await trio.sleep(delay)
                scope.cancel()
    with trio.fail_after(LAW_TIMEOUT_S):
        async with bench.room() as room:
            sent += await room.commit(*bench.events(8))
    bench.expect(sent, "after the end")


async def leaves_the_loop_alone(bench: Bench) -> None:
    """A step of an asynchronous hook never blocks the loop, and so everything else, for a second."""
    given = bench.events(10)
    for _ in range(3):  # a busy machine may cause this once, a hook causes it each time
        stopwatch = _Stopwatch()
        trio.lowlevel.add_instrument(stopwatch)
        try:
            await bench.deliver_all(given)
        finally:
            trio.lowlevel.remove_instrument(stopwatch)
        if stopwatch.longest < MAX_STEP_S:
            return
    raise LawBroken(f"it blocks the loop for {stopwatch.longest:.1f} s; write `def` instead of `async def`")


async def leaves_nothing_behind(bench: Bench) -> None:
    """When it is left, everything that it has opened is gone: files, sockets, threads, tasks."""
    left = []
    for _ in range(6):
        await bench.deliver_all(bench.events(2))
        left.append(_belongings())
    # The first openings may fill caches; growth with each later one is a leak.
    for what in left[-1]:
        if all(later[what] > earlier[what] for earlier, later in pairwise(left[2:])):
            raise LawBroken(f"each opening leaves something behind: {what} {[each[what] for each in left]}")


async def forgets_when_told(bench: Bench) -> None:
    """A forgotten stretch is in none of its files, and the events before and after it are where they were."""
    async with open_sink(bench.sink, bench.context) as plugin:
        if "forgotten" not in validate_hooks(plugin, name=NAME).kinds:
            raise LawBroken("it has no hook `forgotten`, so that its data could never be forgotten")
    given, gone, forgotten = _stretch(bench)
    await bench.deliver_all(given)
    bench.expect(given, "before anything is forgotten")
    await bench.deliver_all([forgotten])
    if not bench.keeps:
        return
    if len(bench.missing(gone)) < len(gone):
        raise LawBroken(f"of {len(gone)} events to forget it still has {len(gone) - len(bench.missing(gone))}")
    if files := bench.files_with(gone):
        raise LawBroken(f"{files[0]} still has forgotten data; with SQLite, set PRAGMA secure_delete = ON")
    left = [event for event in given if event not in gone]
    bench.expect(left, "after others were forgotten", besides=[forgotten])


async def names_its_files(bench: Bench) -> None:
    """Its files lie in its own state folder, or where `holdings` says: `roomtone forget` searches only there."""
    given, _, _ = _stretch(bench)
    await bench.deliver_all(given)
    named = [bench.context.state, *map(Path, bench.sink.holdings(bench.context))]
    for path in bench.files_with(given) if bench.keeps else ():
        if not any(path.is_relative_to(place) or str(path).startswith(f"{place}-") for place in named):
            raise LawBroken(f"{path} has data of its events, and `holdings` does not name it")


def _stretch(bench: Bench) -> tuple[list[Durable], list[Durable], Forgotten]:
    """Events, those among them that are to be forgotten, and the event `forgotten` for them."""
    given = [
        bench.event(bench.kinds[number % len(bench.kinds)], f"Sentence {number} of nine that tell of nothing.")
        for number in range(9)
    ]
    gone, forgotten = given[3:6], bench.event("forgotten")
    first, last = gone[0], given[6]
    times = {"start": first.position, "end": last.position, "from_": first.at, "until": last.at}
    event = msgspec.structs.replace(forgotten, position=first.position, at=first.at, **times)
    return given, gone, cast("Forgotten", event)


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
"""The laws by name."""


class _Stopwatch(trio.abc.Instrument):
    """Measures the longest step of any task."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = time.monotonic()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.monotonic()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.monotonic() - self._began)


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Meanwhile no file of this process can grow beyond the largest existing one."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and ".pcm" not in path.name]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max([65_536, *sizes]) + 1_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _belongings() -> dict[str, int]:
    """The countable resources of this process."""
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
    start = (number - 1) * SEGMENT_SAMPLES
    fields: dict[str, dict[str, Any]] = {
        "recording_started": {"rate": RATE, "source": text},
        "recording_stopped": {"reason": "stopping"},
        "session_started": {"session_id": "script", "endpoint": "script"},
        "session_ended": {"session_id": "script", "audio_seconds": 1, "session_seconds": 1, "reason": "terminated"},
        "turn": {"session_id": "script", "turn_order": number, "text": text},
        "answer": {"session_id": "script", "turn_order": number, "text": text, "response": {"text": text}},
        "analysis": {"name": "summary", "start": start, "end": start + SEGMENT_SAMPLES, "text": text, "response": {}},
        "audio": {"samples": SEGMENT_SAMPLES, "rate": RATE},
        # Without length: the room's audio has no hole for it.
        "gap": {"start": start, "end": start, "from": at, "until": at, "cause": "device"},
        "muted": {"until": None},
        "forgotten": {"start": start, "end": start + SEGMENT_SAMPLES, "from": at, "until": at},
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
