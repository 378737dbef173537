"""A part of the daemon that fails alone: an unexpected error in it ends neither another part nor the daemon."""

import os
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.concurrency import leaves_of
from roomtone.events import Notice, notice
from roomtone.journal.journal import Journal, JournalError

LONGEST_RETRY_S = 30.0
"""The longest back-off: a room that is tried as often as this is still accounted for (`monitoring/liveness.py`)."""
NOTICE_TIMEOUT_S = 5.0
"""Seconds that the notice may wait for a journal on a full disk. The log has the same."""

FAILED = "part.failed"
"""The code of the notice, and the name of the log line."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def supervise(
    part: str,
    run: Callable[[], Awaitable[None]],
    journal: Journal,
    *,
    room: str = "",
    until: trio.Event | None = None,
) -> None:
    """Run a part of the daemon until it returns. When it raises, log it, notify, and begin it again after a back-off.

    `part` names it for the operator; `until` says that it is to end: it is not begun again then. The first failure is
    reported, then the 2nd, 4th, 8th, ... The text of an exception is not: it may quote speech.

    Errors: JournalError, for nothing goes on without the journal.
    """
    backoff, failures = Backoff(longest=LONGEST_RETRY_S), 0
    while True:
        begun = trio.current_time()
        leaves: list[BaseException] = []
        try:
            await run()
        except* JournalError:
            raise
        except* Exception as group:  # noqa: BLE001 - this is the place
            leaves = leaves_of(group)
        if not leaves:
            return
        failures += 1
        backoff.healthy_for(trio.current_time() - begun)
        pause = backoff.next()
        if is_worth_saying(failures):
            log.error(FAILED, part=part, room=room, reason=place(leaves[0]), failures=failures, stack=stacks(leaves))
            with trio.move_on_after(NOTICE_TIMEOUT_S):
                await journal.commit(_notice(part, room, leaves[0]))
        if until is None:
            await trio.sleep(pause)
        elif not until.is_set():
            with trio.move_on_after(pause):
                await until.wait()
        if until is not None and until.is_set():
            return


def place(error: BaseException) -> str:
    """The class of an exception and where it was raised, without its text. Pure."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    # By its number: the error's own text may quote.
    why = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and isinstance(error.errno, int) else ""
    return f"{type(error).__name__}{why}{where}"


def stacks(errors: list[BaseException]) -> str:
    """The tracebacks of exceptions, without their texts. Pure."""
    return "\n".join(
        "".join(traceback.format_list(traceback.extract_tb(error.__traceback__))) + place(error) for error in errors
    )


def _notice(part: str, room: str, error: BaseException) -> Notice:
    text = f"{part} has failed and is restarted: {place(error)}. Please report it, with the log. All else goes on."
    return notice(FAILED, text, at=datetime.now(UTC), room=room, severity="error")
