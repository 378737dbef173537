"""Holes: where a session may begin beside them."""

from datetime import timedelta
from pathlib import Path

import pytest
import trio

from roomtone.spans import Spans
from roomtone.speech.backfill import RESEND_S, Backfill
from roomtone.speech.reconnect import Reconnector
from roomtone.testing.fake_service import open_service
from support.virtual_room import BEGAN, RATE, open_room, reach


@pytest.mark.parametrize(
    ("hole", "done", "begins"),
    [
        (None, 60, 60 - RESEND_S),
        (None, 2, 0),
        ((20, 50), 60, 60 - RESEND_S),
        ((20, 58), 60, 58),
        ((20, 60), 60, 60),
        ((60, 80), 60, 60 - RESEND_S),
    ],
)
async def test_what_is_sent_again(
    hole: tuple[int, int] | None, done: int, begins: int, tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Some seconds before what is settled, and nothing of a hole: who hears its end twice would say it twice."""
    async with open_service(port=None) as service, open_room(tmp_path, reach(service)) as room:
        await room.spool.append(bytes(2 * RATE * 100), BEGAN + timedelta(seconds=0))
        reconnector = Reconnector(room.context, trio.Event())
        backfill = Backfill(room.context, reconnector, first="newest", leaving=trio.Event())
        if hole is not None:
            backfill.add(Spans([(hole[0] * RATE, hole[1] * RATE)]))
        assert backfill.resend_from(done * RATE) == begins * RATE
