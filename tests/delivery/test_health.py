"""Laws of how a sink stands: who is told of it when, and when it is tried again."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from delivery.test_controls import PAUSE
from delivery.test_runner import Bad, Received, open_delivery, opens, sink
from roomtone.delivery.controls import cancel_mark, control_mark
from roomtone.delivery.health import SinkHealth
from roomtone.delivery.hooks import InvalidHook
from roomtone.events import Durable, Notice
from roomtone.journal.journal import Journal, open_journal
from roomtone.sinks import Context, Sink, hookimpl
from roomtone.testing.inline import run_inline
from roomtone_command import CommandSink
from roomtone_jsonl import Jsonl
from roomtone_transcript import TranscriptSink
from roomtone_wav import Wav
from roomtone_webhook import Webhook


async def test_no_notice_once_the_journal_is_closing(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """When no more events will come, none is made of a sink: the others would have to wait for it."""
    closing = trio.Event()
    with structlog.testing.capture_logs():
        async with open_journal(tmp_path / "journal.db", run_sync=run_inline) as journal:
            health = SinkHealth("made", Sink, journal, closing)
            await health.on_failure(InvalidHook("wrong"), 0)
            assert journal.tip == 1
            closing.set()
            await SinkHealth("other", Sink, journal, closing).on_failure(InvalidHook("wrong"), 0)
            await SinkHealth("third", Sink, journal, closing).on_stuck("a hook takes longer", 30.0)
            assert journal.tip == 1


class Failing:
    """Fails at each event, and notes when."""

    def __init__(self, **attributes: Any) -> None:
        self.calls: list[float] = []
        self._attributes = attributes

    @hookimpl
    async def event(self, event: Durable) -> None:
        self.calls.append(trio.current_time())
        error = OSError("away")
        for name, value in self._attributes.items():
            setattr(error, name, value)
        raise error


async def test_a_pause_begins_the_back_off_anew(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that goes on after a pause is tried soon and often at first, however long it has failed before."""
    failing = Failing()
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opens(failing)))
            await around.commit(1)
            await trio.sleep(3600)
            await around.journal.commit(PAUSE)
            delivery.check_controls()
            await trio.sleep(1)
            await around.journal.commit(cancel_mark("made", "paused"))
            delivery.check_controls()
            resumed = trio.current_time()
            await trio.sleep(10)
            # At once, and after at most 0.5, 1, 2 and 4 seconds.
            assert len([call for call in failing.calls if call >= resumed]) >= 5
            await around.journal.commit(PAUSE)


async def test_orders_reach_a_sink_that_rests(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that has asked for an hour is paused, and goes on, and is tried again, within the hour."""
    failing = Failing(retry_after=3600.0)
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opens(failing)))
            await around.commit(1)
            await trio.sleep(10)
            delivery.check_controls()  # another process has written the journal: a control of another sink
            await trio.sleep(1)
            assert (delivery.status().state, len(failing.calls)) == ("failing", 1)
            await around.journal.commit(PAUSE)
            delivery.check_controls()
            await trio.sleep(1)
            assert delivery.status().state == "paused"
            await around.journal.commit(cancel_mark("made", "paused"))
            delivery.check_controls()
            await trio.sleep(1)
            assert (delivery.status().state, len(failing.calls)) == ("failing", 2)
            await around.journal.commit(control_mark("made", 0))
            delivery.check_controls()
            await trio.sleep(1)
            assert await around.journal.mark("sink/made/rewind") is None


async def test_status_of_a_sink_that_waits_is_what_failed_last(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The last failure is in the status until the sink is active again."""
    failing, received = Failing(), Received()
    plugin: list[object] = [failing]

    def opening(context: Context) -> AbstractAsyncContextManager[object]:
        return opens(plugin[0])(context)

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            delivery = around.deliver(sink(opening))
            await around.commit(1)
            await trio.sleep(10)
            assert (delivery.status().state, "OSError" in (delivery.status().error or "")) == ("failing", True)
            plugin[0] = received
            await trio.sleep(100)
            assert (delivery.status().state, delivery.status().error) == ("active", None)


async def test_what_a_sink_warns_of_is_a_notice(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink that goes on without something says so in a notice each; of very many, the newest are kept."""

    class Careful(Received):
        @hookimpl
        async def event(self, event: Durable) -> None:
            await super().event(event)
            for number in range(20 if event.seq == 1 else 0):
                told[0].warn(f"old/{number} cannot be reached")

    careful, told = Careful(), list[Context]()

    def opening(context: Context) -> AbstractAsyncContextManager[object]:
        told.append(context)
        return opens(careful)(context)

    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(opening))
            await around.commit(1)
            await trio.sleep(1)
            notices = await around.journal.select("", ["notice"], 0, 1)
    texts = [(notice.code, notice.text) for notice in notices if isinstance(notice, Notice)]
    assert texts == [("sink.warning", f"Sink made: old/{number} cannot be reached") for number in range(12, 20)]
    assert [entry["event"] for entry in logs] == ["sink.warning"] * 8
    assert len(careful.seqs) == 9


@pytest.mark.parametrize(
    ("made", "missing", "hint"),
    [
        (Jsonl(path="out/events.jsonl"), "out", "ReadWritePaths="),
        (Wav(directory="out"), "out", "ReadWritePaths="),
        (TranscriptSink(directory="out"), "out", "ReadWritePaths="),
        (
            Webhook(url="http://127.0.0.1:9/", secret_file="hook.secret"),
            "hook.secret",
            "secret_file: No such file or directory; it must",
        ),
        (Webhook(url_file="hook.url"), "hook.url", "url_file: No such file or directory; it must"),
        (
            CommandSink(argv=("true",), environment_files={"KEY": "key"}),
            "key",
            "environment_files: KEY: No such file or directory; it must",
        ),
        (CommandSink(argv=("./send",)), "send", "argv: there is no such program"),
    ],
    ids=str,
)
async def test_a_sink_without_its_place_fails_alone_and_comes_back(
    tmp_path: Path, autojump_clock: trio.abc.Clock, made: Sink, missing: str, hint: str
) -> None:
    """One line names the file and what to do, others get their events, and when the file is there it goes on."""
    place, good = tmp_path / missing, Received()
    if missing == "out":
        place.write_text("a file in the folder's place")
    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            delivery, _ = around.deliver(made), around.deliver(sink(opens(good)), "good")
            await around.commit(1)
            await until(lambda: delivery.status().state == "failing" and bool(good.seqs))
            error = delivery.status().error or ""
            assert (missing in error, hint in error, "\n" in error) == (True, True, False)
            if missing == "out":
                place.unlink()
            else:
                place.write_text("whsec_" + "A" * 32 if "secret" in missing else "http://127.0.0.1:9/")
                place.chmod(0o700)
            await until(lambda: delivery.status().error != error)
            around._nursery.cancel_scope.cancel()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what happens in threads, whatever time passes for trio."""
    with trio.fail_after(100_000):
        while not is_so():  # noqa: ASYNC110 - a status wakes no task
            await trio.sleep(1)


@pytest.mark.parametrize(("place", "text"), [("open", "opening"), ("leave", "leaving")])
async def test_what_took_too_long_is_named(
    tmp_path: Path, autojump_clock: trio.abc.Clock, place: str, text: str
) -> None:
    """A context that hangs is ended after the timeout, and the log says where it was."""
    bad = Bad(place, trio.sleep_forever)
    with structlog.testing.capture_logs() as logs:
        async with open_delivery(tmp_path) as around:
            around.deliver(sink(bad.opening, timeout=5.0))
            await around.commit(1)
            await trio.sleep(60)
    assert logs[0]["error"] == f"{text} took longer than 5 s"


async def test_a_recovery_after_a_restart_is_announced(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A sink whose failure was announced and that works after the restart is announced as recovered, once."""

    @asynccontextmanager
    async def refusing(context: Context) -> AsyncIterator[object]:
        raise OSError("away")
        yield

    async def codes(journal: Journal) -> list[str]:
        notices = await journal.select("", ["notice"], 0, 1)
        return [each.code for each in notices if isinstance(each, Notice)]

    with structlog.testing.capture_logs():
        async with open_delivery(tmp_path) as around:
            await around.commit(1)
            around.deliver(sink(refusing))
            await trio.sleep(600)
            assert await codes(around.journal) == ["sink.failing"]
        for _ in range(2):
            async with open_delivery(tmp_path) as around:
                around.deliver(sink(opens(Received())))
                await trio.sleep(600)
                assert await codes(around.journal) == ["sink.failing", "sink.recovered"]
