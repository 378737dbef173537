"""Finds the sink that ends the whole process: a crash in C, `os._exit`, a loop that the watchdog had to end.

Such a sink cannot be contained, so it is found afterwards. While a sink is on probation, each step is noted in the
journal before it is taken. A note that is found at the next start names the step in which the process ended. Once is
chance; twice running, at the same place, is this sink: it is paused, and the rest goes on.

A sink is on probation for its first thousand events after its file or its table changed, and after an unclean stop.
Rejected: taking turns among suspects, boot ids, and attempts for live hooks. A sink that was in the same event both
times by chance is paused too; its notice says so, and `roomtone sinks resume` ends it.
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

from roomtone.delivery.controls import Pause, control_mark
from roomtone.events import notice
from roomtone.journal.journal import Journal
from roomtone.journal.keys import sink_key, sink_prefix
from roomtone.journal.records import Mark
from roomtone.sinks import Sink

PROBATION_EVENTS = 1000
"""Events after which a sink's probation ends."""
MAX_STRIKES = 2
"""Consecutive starts that find the same sink at the same place."""

Place: TypeAlias = Literal["opening", "an event"]

T = TypeVar("T")

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Probation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The probation of a sink: `left` events are to go for the file and table with this digest."""

    digest: str
    left: int


class Suspicion(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process ended `strikes` times in a row at this place of the sink: at the event `seq` of a batch to `last`."""

    place: Place
    seq: int = 0
    last: int = 0
    strikes: int = 1


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The current step of a sink, if any, with the first and last seq of its batch; and the suspicion against it."""

    place: Place | None = None
    seq: int = 0
    last: int = 0
    suspicion: Suspicion | None = None

    def after_start(self) -> "Attempt":
        """The judgement at the next start."""
        if self.place is None:  # it took no step in that run, or completed it
            return self
        before = self.suspicion
        is_same = before is not None and (before.place, before.seq) == (self.place, self.seq)
        strikes = before.strikes + 1 if before and is_same else 1
        return Attempt(suspicion=Suspicion(self.place, self.seq, self.last, strikes))

    def begin(self, place: Place, seq: int, last: int) -> "Attempt":
        """The sink is about to take this step."""
        return msgspec.structs.replace(self, place=place, seq=seq, last=last)

    def end(self) -> "Attempt":
        """The step is completed. The suspicion ends when everything that it covers is completed."""
        before = self.suspicion
        if before is None or (self.place == before.place and self.last >= before.last):
            return Attempt()
        if self.place == before.place:
            before = Suspicion(before.place, 0, before.last, 0)
        return Attempt(suspicion=before)


class CrashGuard:
    """Guards one sink during its probation."""

    def __init__(self, name: str, sink: Sink, journal: Journal) -> None:
        self._name = name
        self._sink = sink
        self._journal = journal
        self._attempt = Attempt()
        self._probation = Probation("", PROBATION_EVENTS)

    @property
    def is_proven(self) -> bool:
        return self._probation.left <= 0

    @property
    def is_suspect(self) -> bool:
        """True if the process has ended in the sink: then it gets one event at a time, to find the event."""
        return self._attempt.suspicion is not None

    async def begin(self) -> None:
        """Read the notes of the last run. Pauses the sink, with a notice, after enough strikes."""
        marks = await self._journal.marks(sink_prefix(self._name))
        digest = digest_of(self._sink)  # reads a few small files, once, before the first delivery
        probation = _read(marks.get(sink_key(self._name, "proof")), Probation)
        is_known = probation is not None and probation.digest == digest and not self._journal.interrupted
        self._probation = probation if probation is not None and is_known else Probation(digest, PROBATION_EVENTS)
        attempt = _read(marks.get(sink_key(self._name, "trial")), Attempt)
        if attempt is not None:
            self._attempt = attempt.after_start()
        suspicion = self._attempt.suspicion
        if suspicion is not None and suspicion.strikes >= MAX_STRIKES:
            await self._pause(suspicion)
        elif attempt is not None:
            await self._journal.commit(self._probation_mark(), self._attempt_mark())
        else:
            await self._journal.commit(self._probation_mark())

    @asynccontextmanager
    async def attempting(self, place: Place, seq: int = 0, last: int = 0) -> AsyncIterator[None]:
        """Around a step that may end the process: the journal notes it before, and its end after.

        If the sink raises, the step ends only after `surviving` has contained the exception: reading an exception runs
        code of the sink, too.
        """
        if self.is_proven:
            yield
            return
        self._attempt = self._attempt.begin(place, seq, last)
        await self._journal.commit(self._attempt_mark())
        async with self.surviving():
            yield

    @asynccontextmanager
    async def surviving(self) -> AsyncIterator[None]:
        """The end of an attempt, unless an exception leaves this context: then its mark stays in the journal."""
        try:
            yield
        except trio.Cancelled:  # at a stop, or by the timeout: the process goes on, so the mark is worth a moment
            await self._clear()
            raise
        else:
            await self._clear()

    def settle(self, events: int) -> tuple[Mark, ...]:
        """The marks to commit with the acknowledgement of this many events."""
        if self.is_proven:
            return ()
        self._attempt = self._attempt.end()
        self._probation = Probation(self._probation.digest, max(0, self._probation.left - events))
        if self.is_proven:
            log.debug("sink.proven", sink=self._name)
            self._attempt = Attempt()
        return self._probation_mark(), self._attempt_mark()

    async def _clear(self) -> None:
        if self._attempt.place is not None:
            self._attempt = self._attempt.end()
            with trio.move_on_after(1, shield=True):
                await self._journal.commit(self._attempt_mark())

    async def _pause(self, suspicion: Suspicion) -> None:
        doing = "was opened" if suspicion.place == "opening" else f"had event {suspicion.seq}"
        reason = f"the daemon ended twice in a row while it {doing}"
        log.error("sink.paused", sink=self._name, reason=reason)
        self._attempt = Attempt()
        now = datetime.now(UTC)
        await self._journal.commit(
            self._probation_mark(),
            self._attempt_mark(),
            control_mark(self._name, Pause(now, "roomtone", reason)),
            notice(
                "sink.paused",
                f"Sink {self._name} is paused: {reason}. Events wait for it in the journal. "
                f"Repair it, then run: roomtone sinks resume {self._name}",
                at=now,
                severity="error",
            ),
        )

    def _probation_mark(self) -> Mark:
        return Mark(sink_key(self._name, "proof"), msgspec.to_builtins(self._probation))

    def _attempt_mark(self) -> Mark:
        is_blank = self._attempt.place is None and self._attempt.suspicion is None
        return Mark(sink_key(self._name, "trial"), None if is_blank else msgspec.to_builtins(self._attempt))


def digest_of(sink: Sink) -> str:
    """A short digest of the sink: of its table, and of the Python files of its plugin."""
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
