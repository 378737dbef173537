"""A room that says what a test tells it, with everything behind it real: the journal, the live feed, the delivery.

    async with open_room(folder, {"notes": Notes(path="notes.md")}) as room:
        await room.say("Hello there.", speaker="Ada")
        await room.lose(seconds=3, cause="device")
        await room.delivered()
    assert "Hello there." in (folder / "notes.md").read_text()

Its clock is its own: it begins at noon and goes on by what is said, so that a test gives the same files each time. A
second room in the same folder goes on where the first one was, as the daemon does over a restart.
"""

import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import trio

from roomtone.delivery.health import SinkStatus
from roomtone.delivery.runner import SinkRunner
from roomtone.events import Audio, Cause, Durable, Gap, Interim, RecordingStarted, RecordingStopped, Turn, Word
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.keys import room_key, sink_key
from roomtone.journal.records import Mark, Refusal
from roomtone.live import Live
from roomtone.sinks import Context, Sink

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
WORDS_A_SECOND = 2.5

Witness = Callable[[str, int], None]
"""Is told of each acknowledgement before it is made: the sink's name, and the seq up to which it has everything."""

Fact = TypeVar("Fact", bound=Durable)


class FakeRoom:
    """The room. Its methods commit events and return them as the journal has them, with their seq and id."""

    def __init__(self, journal: Journal, folder: Path, name: str, rate: int, position: int) -> None:
        self.name = name
        self.rate = rate
        self.position = position
        """The next sample's, which is also how much time has passed since noon."""
        self.journal = journal
        self.live = Live()
        self.deliveries: dict[str, SinkRunner] = {}
        self._folder = folder

    @property
    def at(self) -> datetime:
        """What time it is in this room."""
        return self.time_of(self.position)

    def time_of(self, position: int) -> datetime:
        """The time of a position, UTC."""
        return NOON + timedelta(seconds=position / self.rate)

    async def start(self) -> RecordingStarted:
        """The source is there."""
        return await self._one(
            RecordingStarted(room=self.name, position=self.position, at=self.at, rate=self.rate, source="script")
        )

    async def stop(self) -> RecordingStopped:
        """No more will come for now."""
        return await self._one(RecordingStopped(room=self.name, position=self.position, at=self.at, reason="stopping"))

    async def say(self, text: str, *, speaker: str | None = None, session_id: str = "script") -> Turn:
        """Somebody says this: the words come one by one as interim text, and then there is the turn."""
        start, words = self.position, list[Word]()
        for word in text.split() or [text]:
            end = self.position + round(self.rate / WORDS_A_SECOND)
            words.append(Word(text=word, start=self.position, end=end, confidence=1.0, speaker=speaker))
            self.position = end
            said = " ".join(each.text for each in words)
            at = self.time_of(start)
            self.live.publish(
                Interim(room=self.name, position=start, at=at, session_id=session_id, turn_order=start, text=said)
            )
        return await self._one(
            Turn(
                room=self.name,
                position=start,
                at=self.time_of(start),
                session_id=session_id,
                turn_order=start,
                text=text,
                words=tuple(words),
                speaker=speaker,
            )
        )

    async def record(self, samples: Sequence[int]) -> Audio:
        """A segment of audio is closed: these samples, 16 bit each."""
        start = self.position
        file = self._folder / f"{self.name}_{start:016d}.pcm"
        file.write_bytes(struct.pack(f"<{len(samples)}h", *samples))
        self.position += len(samples)
        return await self._one(
            Audio(
                room=self.name,
                position=start,
                at=self.time_of(start),
                samples=len(samples),
                rate=self.rate,
                file=str(file),
            )
        )

    async def lose(self, seconds: float, cause: Cause = "overrun") -> Gap:
        """So much is missing, and why."""
        start, self.position = self.position, self.position + round(seconds * self.rate)
        return await self._one(
            Gap(
                room=self.name,
                position=start,
                at=self.time_of(start),
                start=start,
                end=self.position,
                from_=self.time_of(start),
                until=self.at,
                cause=cause,
            )
        )

    async def commit(self, *events: Durable) -> tuple[Durable, ...]:
        """Any events, in one transaction: they come in one batch."""
        return await self.journal.commit(*events)

    async def delivered(self, timeout: float = 60.0) -> None:
        """Return when every sink has acknowledged everything. Fails, with what the sinks say, when that never comes."""
        with trio.move_on_after(timeout):
            while any(delivery.status().behind for delivery in self.deliveries.values()):  # noqa: ASYNC110 - a cursor wakes nobody
                await trio.sleep(0.005)
            return
        raise AssertionError(f"not delivered after {timeout:g} s: {[self.status(name) for name in self.deliveries]}")

    def status(self, sink: str) -> SinkStatus:
        """How the sink stands at this moment."""
        return self.deliveries[sink].status()

    async def refused(self, sink: str) -> list[Refusal]:
        """What the sink has refused."""
        return await self.journal.refused(sink)

    async def replay(self, sink: str, after: int = 0) -> None:
        """Everything after that seq comes again, as with `roomtone sinks replay`."""
        await self.journal.commit(Mark(sink_key(sink, "rewind"), after))
        self.deliveries[sink].look()
        while await self.journal.mark(sink_key(sink, "rewind")) is not None:  # noqa: ASYNC110 - nobody tells of it
            await trio.sleep(0.005)

    async def _one(self, event: Fact) -> Fact:
        (committed,) = await self.journal.commit(event, Mark(room_key(self.name, "script"), self.position))
        return cast("Fact", committed)


@asynccontextmanager
async def open_room(
    folder: Path,
    sinks: Mapping[str, Sink],
    *,
    name: str = "desk",
    rate: int = 16_000,
    witness: Witness | None = None,
) -> AsyncIterator[FakeRoom]:
    """A room whose events are delivered to these sinks, from the first one on; its state lies in `folder`/.room.

    Leaving it ends it in order: what waits is delivered, and the sinks are left. Errors of sinks are theirs: see
    `status`; only the journal's come out here.
    """
    state = folder / ".room"
    state.mkdir(parents=True, exist_ok=True)
    closing = trio.Event()
    async with open_journal(state / "journal.sqlite") as journal, trio.open_nursery() as nursery:
        position = await journal.mark(room_key(name, "script"))
        room = FakeRoom(journal, state, name, rate, position or 0)
        for sink_name, sink in sinks.items():
            if await journal.cursor(sink_name) is None:
                await journal.advance(sink_name, 0)  # whatever its `start` says, and before anything is committed
            room.deliveries[sink_name] = delivery = SinkRunner(
                sink_name,
                sink,
                journal=cast("Journal", _Witnessed(journal, witness)) if witness else journal,
                live=room.live,
                context=context_of(folder, sink_name, {name: rate}),
                closing=closing,
            )
            nursery.start_soon(delivery.run)
        yield room
        closing.set()


def context_of(folder: Path, name: str, rates: Mapping[str, int]) -> Context:
    """What the daemon tells a sink of this name, with everything below `folder`."""
    state = folder / ".room" / "sinks" / name
    state.mkdir(parents=True, exist_ok=True)
    return Context(name=name, folder=folder, state=state, rates=dict(rates))


class _Witnessed:
    """The journal, with somebody who is told before an acknowledgement becomes durable."""

    def __init__(self, journal: Journal, witness: Witness) -> None:
        self._journal = journal
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def advance(self, sink: str, seq: int, *marks: Mark) -> None:
        self._witness(sink, seq)
        await self._journal.advance(sink, seq, *marks)
