"""A room on the virtual clock, in which numbers are spoken, and what its transcript has made of them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import trio

from roomtone.concurrency import RunSync
from roomtone.events import Turn
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.records import CoverageSpan
from roomtone.live import Live
from roomtone.protocol.parameters import Streaming, build_query
from roomtone.protocol.session_parameters import SessionParameters
from roomtone.speech.connection import open_connection
from roomtone.speech.endpoint import Endpoint
from roomtone.speech.session_context import SessionContext
from roomtone.spool.spool import Spool, open_spool
from roomtone.testing.encoded_speech import numbers_in
from roomtone.testing.fake_service import FakeService
from roomtone.testing.inline import run_inline

RATE = 8_000
FRAME = RATE // 5
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Room(NamedTuple):
    """A room that is recorded: its spool, its journal, and the context of its sessions."""

    spool: Spool
    journal: Journal
    context: SessionContext

    async def record(self, audio: bytes, *, live: bool = True) -> None:
        """Append the audio as a microphone would, a frame when its last sample has come; not `live`: without delay."""
        for start in range(0, len(audio), 2 * FRAME):
            frame = audio[start : start + 2 * FRAME]
            if live:
                await trio.sleep(len(frame) / 2 / RATE)
            await self.spool.append(frame, BEGAN + timedelta(seconds=self.spool.end / RATE))

    async def turns(self) -> list[Turn]:
        """The turns of the journal that were not superseded, by position."""
        found = await self.journal.select("desk", ["turn"], 0, 1 << 60)
        turns = [event for event in found if isinstance(event, Turn)]
        superseded = {turn.supersedes for turn in turns}
        return [turn for turn in turns if turn.id not in superseded]

    async def numbers(self) -> list[int]:
        """The numbers of the transcript, by position."""
        words = sorted((word.start, word.text) for turn in await self.turns() for word in turn.words)
        return [number for _, text in words for number in numbers_in(text)]

    async def unsettled(self) -> int:
        """Samples before the head that are neither transcribed nor silent, or are both."""
        settled = sorted(
            (cover.start, cover.end) for cover in await self.covers() if cover.state in {"transcribed", "silent"}
        )
        missing, position = 0, 0
        for start, end in settled:
            missing += abs(start - position)
            position = max(position, end)
        return missing + self.spool.end - position

    async def covers(self) -> Sequence[CoverageSpan]:
        return await self.journal.covered("desk")


def reach(service: FakeService, *, remote: bool = True, streaming: Streaming | None = None) -> Endpoint:
    """The service, through streams in memory or on its socket."""
    query = build_query(streaming or Streaming(), RATE)
    in_memory = service.url.startswith("ws://service.test")
    return Endpoint(
        name="service",
        remote=remote,
        ping_timeout_s=10.0,
        open=lambda: open_connection(f"{service.url}?{query}", connect=service.connect if in_memory else None),
    )


@asynccontextmanager
async def open_room(
    folder: Path,
    endpoint: Endpoint,
    *,
    two_finals: bool = False,
    run_sync: RunSync = run_inline,
    spool_folder: str = "spool",
    sync_interval: float = 1.0,
    parameters: SessionParameters | None = None,
    **more: Any,
) -> AsyncIterator[Room]:
    """The room in this folder, as an earlier one has left it; `run_sync` touches the disk.

    `parameters` are those of its sessions; `more` goes to the SessionContext.
    """
    async with (
        open_spool(folder / spool_folder, rate=RATE, sync_interval=sync_interval, run_sync=run_sync) as spool,
        open_journal(folder / "journal.sqlite", run_sync=run_sync) as journal,
    ):
        context = SessionContext(
            room="desk",
            rate=RATE,
            frame=FRAME,
            spool=spool,
            journal=journal,
            live=Live(),
            endpoint=endpoint,
            parameters=parameters or SessionParameters(Streaming()),
            speech_model=None,
            two_finals=two_finals,
            seam=trio.Lock(),
            **more,
        )
        yield Room(spool, journal, context)
