"""Finds the sink that ends the whole process: a crash in C, `os._exit`, a loop that the watchdog had to end.

Such a sink cannot be contained, so it is found afterwards. While a sink is unproven, the journal is told what it is
about to do before it does it. What stands there at the next start is what the process ended in; once is chance, and
twice running, at the same place, is this sink: it is paused, and the rest goes on.

A sink is unproven for its first thousand events after its file or its table changed, and after an unclean stop.
Rejected: turns for suspects, boot ids and trials of live hooks. A sink that was in the middle of the same event at both
ends by chance is paused too, which its notice says and `roomtone sinks resume` ends.
"""

import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import msgspec
import structlog
import trio

from roomtone.delivery.controls import Pause, mark_of
from roomtone.events import Notice
from roomtone.journal.journal import Journal
from roomtone.journal.keys import sink_key, sink_prefix
from roomtone.journal.records import Mark
from roomtone.sinks import Sink

PROBATION_EVENTS = 1000
"""Events after which a sink is proven."""
MAX_STRIKES = 2
"""Starts running that find the same sink at the same place."""

Place: TypeAlias = Literal["opening", "an event"]

T = TypeVar("T")

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Probation(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a sink is proven: `left` events are to go for the file and table with this digest."""

    digest: str
    left: int


class Suspicion(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process ended `strikes` starts running while the sink was there: at the event `seq`, of a batch to `last`."""

    place: Place
    seq: int = 0
    last: int = 0
    strikes: int = 1


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a sink is doing, if anything, with the first and last seq of its batch; and what it is suspected of."""

    place: Place | None = None
    seq: int = 0
    last: int = 0
    suspicion: Suspicion | None = None

    def after_start(self) -> "Attempt":
        """What is to be thought of it at the next start."""
        if self.place is None:  # it had not its turn in that run, or came through
            return self
        before = self.suspicion
        is_same = before is not None and (before.place, before.seq) == (self.place, self.seq)
        strikes = before.strikes + 1 if before and is_same else 1
        return Attempt(suspicion=Suspicion(self.place, self.seq, self.last, strikes))

    def begin(self, place: Place, seq: int, last: int) -> "Attempt":
        """It is about to do this."""
        return msgspec.structs.replace(self, place=place, seq=seq, last=last)

    def end(self) -> "Attempt":
        """It has come through. It is cleared when it has come through all that it is suspected of."""
        before = self.suspicion
        if before is None or (self.place == before.place and self.last >= before.last):
            return Attempt()
        if self.place == before.place:
            before = Suspicion(before.place, 0, before.last, 0)
        return Attempt(suspicion=before)


class CrashGuard:
    """One sink on its way from unproven to proven."""

    def __init__(self, name: str, sink: Sink, journal: Journal) -> None:
        self._name = name
        self._sink = sink
        self._journal = journal
        self._trial = Attempt()
        self._record = Probation("", PROBATION_EVENTS)

    @property
    def is_proven(self) -> bool:
        return self._record.left <= 0

    @property
    def is_suspect(self) -> bool:
        """Whether the process has ended in it: then it gets one event at a time, so that each shows."""
        return self._trial.suspicion is not None

    async def begin(self) -> None:
        """Look at what stands in the journal from the last run. Pauses the sink, with a notice, when it is enough."""
        marks = await self._journal.marks(sink_prefix(self._name))
        digest = digest_of(self._sink)  # reads a few small files, once, before anything is delivered
        record = _read(marks.get(sink_key(self._name, "proof")), Probation)
        is_known = record is not None and record.digest == digest and not self._journal.interrupted
        self._record = record if record is not None and is_known else Probation(digest, PROBATION_EVENTS)
        trial = _read(marks.get(sink_key(self._name, "trial")), Attempt)
        if trial is not None:
            self._trial = trial.after_start()
        suspicion = self._trial.suspicion
        if suspicion is not None and suspicion.strikes >= MAX_STRIKES:
            await self._pause(suspicion)
        elif trial is not None:
            await self._journal.commit(self._proof_mark(), self._trial_mark())
        else:
            await self._journal.commit(self._proof_mark())

    @asynccontextmanager
    async def trial(self, place: Place, seq: int = 0, last: int = 0) -> AsyncIterator[None]:
        """Around what may end the process: the journal knows of it before, and knows that it is over after.

        When the sink raises it is not over before `surviving` has contained what was raised: reading an exception
        runs code of the sink's, too.
        """
        if self.is_proven:
            yield
            return
        self._trial = self._trial.begin(place, seq, last)
        await self._journal.commit(self._trial_mark())
        async with self.surviving():
            yield

    @asynccontextmanager
    async def surviving(self) -> AsyncIterator[None]:
        """The end of a trial, unless an exception leaves this context: then the mark stays in the journal."""
        try:
            yield
        except trio.Cancelled:  # told to stop, or by its timeout: the process goes on, which is worth a moment
            await self._clear()
            raise
        else:
            await self._clear()

    def settle(self, events: int) -> tuple[Mark, ...]:
        """So many events have returned: what to commit together with the acknowledgement."""
        if self.is_proven:
            return ()
        self._trial = self._trial.end()
        self._record = Probation(self._record.digest, max(0, self._record.left - events))
        if self.is_proven:
            log.debug("sink.proven", sink=self._name)
            self._trial = Attempt()
        return self._proof_mark(), self._trial_mark()

    async def _clear(self) -> None:
        if self._trial.place is not None:
            self._trial = self._trial.end()
            with trio.move_on_after(1, shield=True):
                await self._journal.commit(self._trial_mark())

    async def _pause(self, suspicion: Suspicion) -> None:
        doing = "was opened" if suspicion.place == "opening" else f"had event {suspicion.seq}"
        reason = f"the daemon ended twice running while it {doing}"
        log.error("sink.paused", sink=self._name, reason=reason)
        self._trial = Attempt()
        now = datetime.now(UTC)
        await self._journal.commit(
            self._proof_mark(),
            self._trial_mark(),
            mark_of(self._name, Pause(now, "roomtone", reason)),
            Notice(
                room="",
                position=0,
                at=now,
                severity="error",
                code="sink.paused",
                text=f"Sink {self._name} is paused: {reason}. Events wait for it in the journal. "
                f"Repair it, then: roomtone sinks resume {self._name}",
            ),
        )

    def _proof_mark(self) -> Mark:
        return Mark(sink_key(self._name, "proof"), msgspec.to_builtins(self._record))

    def _trial_mark(self) -> Mark:
        is_blank = self._trial.place is None and self._trial.suspicion is None
        return Mark(sink_key(self._name, "trial"), None if is_blank else msgspec.to_builtins(self._trial))


def digest_of(sink: Sink) -> str:
    """What the sink is made of, in a few letters: its table, and the Python files of its plugin."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(msgspec.json.encode(sink, enc_hook=repr))
    module = sys.modules.get(type(sink).__module__)
    for file in _files(getattr(module, "__file__", None)):
        try:
            digest.update(file.read_bytes())
        except OSError:
            continue
    return digest.hexdigest()


def _files(module: str | None) -> list[Path]:
    if module is None:
        return []
    file = Path(module)
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _read(value: object, wanted: type[T]) -> T | None:
    try:
        return None if value is None else msgspec.convert(value, wanted)
    except msgspec.ValidationError:  # of another version
        return None
