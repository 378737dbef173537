"""The delay before the next attempt at a session: as long as the service asks for, or the operator needs."""

from pathlib import Path

import pytest
import trio

from roomtone.protocol.close_codes import RetryAdvice
from roomtone.speech.reconnect import REFUSED_RETRY_S, Reconnector
from roomtone.speech.session import SessionOutcome
from roomtone.testing.fake_service import open_service
from support.virtual_room import open_room, reach


@pytest.mark.parametrize(
    ("advice", "wait", "least"),
    [
        (RetryAdvice.RETRY, 0.0, 0.0),
        (RetryAdvice.BACK_OFF, 0.0, 0.0),
        (RetryAdvice.BACK_OFF, 7.0, 7.0),
        (RetryAdvice.BACK_OFF_A_MINUTE, 0.0, 60.0),
        (RetryAdvice.BACK_OFF_A_MINUTE, 600.0, 600.0),
        (RetryAdvice.FATAL, 0.0, REFUSED_RETRY_S),
        (RetryAdvice.FATAL, 7.0, REFUSED_RETRY_S),
    ],
)
async def test_the_next_attempt(
    advice: RetryAdvice, wait: float, least: float, tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """No sooner than that, and at most the first back-off of half a second later."""
    async with open_service(port=None) as service, open_room(tmp_path, reach(service)) as room:
        outcome = SessionOutcome(complete=False, advice=advice, text="", wait=wait)
        assert least <= Reconnector(room.context, trio.Event()).next_delay(outcome) <= least + 0.5
