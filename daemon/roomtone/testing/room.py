"""A scripted room for tests, with a real journal, a real live feed and real delivery.

    async with open_room(folder, {"notes": Notes(path="notes.md")}) as room:
        await room.say("Hello there.", speaker="Ada")
        await room.lose(seconds=3, cause="device")
        await room.delivered()
    assert "Hello there." in (folder / "notes.md").read_text()

Its own clock begins at noon and advances with the script, so that a test makes the same files each time. A second room
in the same folder goes on where the first one ended, as the daemon does after a restart.
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
"""Called before each acknowledgement, with the sink's name and the seq up to which it has everything."""

Fact = TypeVar("Fact", bound=Durable)


class FakeRoom:
    """The room. Its methods commit events and return them as the journal has them, with their seq and id."""

    def __init__(self, journal: Journal, folder: Path, name: str, rate: int, position: int) -> None:
        self.name = name
        self.rate = rate
        self.position = position
        """The position of the next sample, which is also the time since noon."""
        self.journal = journal
        self.live = Live()
        self.deliveries: dict[str, SinkRunner] = {}
        self._folder = folder

    @property
    def at(self) -> datetime:
        """The present time in this room."""
        return self.time_of(self.position)

    def time_of(self, position: int) -> datetime:
        """The time of a position, UTC."""
        return NOON + timedelta(seconds=position / self.rate)

    async def start(self) -> RecordingStarted:
        """The source has its first samples."""
        return await self._one(
            RecordingStarted(room=self.name, position=self.position, at=self.at, rate=self.rate, source="script")
        )

    async def stop(self) -> RecordingStopped:
        """The source ends for now."""
        return await self._one(RecordingStopped(room=self.name, position=self.position, at=self.at, reason="stopping"))

    async def say(self, text: str, *, speaker: str | None = None, session_id: str = "script") -> Turn:
        """Say this: the words come one by one as interim text, and then as a turn."""
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
        """Close a segment of audio: these samples, 16 bits each."""
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
        """Lose this many seconds of audio."""
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
        """Commit any events in one transaction: they come in one batch."""
        return await self.journal.commit(*events)

    async def delivered(self, timeout: float = 60.0) -> None:
        """Return when every sink has acknowledged everything. Fails after the timeout, with the sinks' status."""
        with trio.move_on_after(timeout):
            while any(each.status().behind for each in self.deliveries.values()):  # noqa: ASYNC110 - a cursor wakes no task
                await trio.sleep(0.005)
            return
        raise AssertionError(f"not delivered after {timeout:g} s: {[self.status(name) for name in self.deliveries]}")

    def status(self, sink: str) -> SinkStatus:
        """The sink's status at this moment."""
        return self.deliveries[sink].status()

    async def refused(self, sink: str) -> list[Refusal]:
        """The events that the sink has refused."""
        return await self.journal.refused(sink)

    async def replay(self, sink: str, after: int = 0) -> None:
        """Deliver everything after that seq again, as `roomtone sinks replay` does."""
        await self.journal.commit(Mark(sink_key(sink, "rewind"), after))
        self.deliveries[sink].check_controls()
        while await self.journal.mark(sink_key(sink, "rewind")) is not None:  # noqa: ASYNC110 - a mark wakes no task
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

    Leaving it delivers the waiting events and leaves the sinks. Errors of a sink are in its `status`; only those of the
    journal come out here.
    """
    state = folder / ".room"
    state.mkdir(parents=True, exist_ok=True)
    async with open_journal(state / "journal.sqlite") as journal, trio.open_nursery() as nursery:
        position = await journal.mark(room_key(name, "script"))
        room = FakeRoom(journal, state, name, rate, position or 0)
        for sink_name, sink in sinks.items():
            if await journal.cursor(sink_name) is None:
                await journal.advance(sink_name, 0)  # regardless of its `start`, and before the first commit
            room.deliveries[sink_name] = runner = SinkRunner(
                sink,
                context_of(folder, sink_name, {name: rate}),
                journal=cast("Journal", _ObservedJournal(journal, witness)) if witness else journal,
                live=room.live,
            )
            nursery.start_soon(runner.run)
        yield room
        for runner in room.deliveries.values():
            runner.finish()


def context_of(folder: Path, name: str, rates: Mapping[str, int]) -> Context:
    """The daemon's context for a sink of this name, with all paths below `folder`."""
    state = folder / ".room" / "sinks" / name
    state.mkdir(parents=True, exist_ok=True)
    return Context(name=name, folder=folder, state=state, rates=dict(rates))


class _ObservedJournal:
    """The journal, with a callback before an acknowledgement becomes durable."""

    def __init__(self, journal: Journal, witness: Witness) -> None:
        self._journal = journal
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def advance(self, sink: str, seq: int, *marks: Mark) -> None:
        self._witness(sink, seq)
        await self._journal.advance(sink, seq, *marks)
