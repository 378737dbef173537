"""Small pieces of structured concurrency."""

import pytest
import trio
import trio.testing

from roomtone.concurrency import Restartable


async def test_work_runs_again_after_an_error_and_after_a_cancellation() -> None:
    """A room that has failed is restarted with the same Restartable, whatever ended its streaming."""
    restartable, ran = Restartable(), list[str]()

    async def fail() -> None:
        ran.append("failed")
        raise OSError

    async def wait() -> None:
        ran.append("waited")
        await trio.sleep_forever()

    async def end() -> None:
        ran.append("ended")

    with pytest.raises(OSError, match=r"^$"):
        await restartable.run(fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restartable.run, wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await restartable.run(end)
    assert ran == ["failed", "waited", "ended"]
