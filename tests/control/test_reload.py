"""Laws of a reload: the new file applies to every running part, or to none.

Rooms are muted, so that none of them has a source; all else is the daemon's own.
"""

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog
import trio
import trio.testing

from delivery.test_manager import Diary, commit
from roomtone.budget.governor import open_governor
from roomtone.budget.limits import Budget
from roomtone.capture.sources import Microphone
from roomtone.config.active import ActiveConfig
from roomtone.config.model import Config, GateConfig, Room, ServiceConfig, Storage
from roomtone.config.toml_file import ConfigError
from roomtone.control.reload import Reloader
from roomtone.delivery.manager import SinkManager
from roomtone.events import Notice
from roomtone.journal.journal import Journal, open_journal
from roomtone.journal.keys import room_key
from roomtone.journal.records import Mark
from roomtone.live import Live
from roomtone.llm.analyst import open_analyst
from roomtone.llm.completion import GatewayConfig
from roomtone.llm.conversations import AnalysisPrompt
from roomtone.llm.prompt_task import mark_key
from roomtone.monitoring.liveness import Liveness
from roomtone.monitoring.room_state import RoomStates
from roomtone.rooms import Rooms, RoomServices, RoomSettings
from roomtone.speech.endpoint import open_endpoints
from roomtone.speech.recognizer_process import RecognizerConfig
from roomtone.testing.inline import run_inline

ROOM = Room(source=Microphone())
SUMMARY = AnalysisPrompt(prompt="{{transcript}}", model="any")


class Daemon(NamedTuple):
    """A daemon's parts at work, and the file that the next reload reads: a Config, or what reading it raises."""

    reloader: Reloader
    active: ActiveConfig
    journal: Journal
    manager: SinkManager
    rooms: Rooms
    file: list[Config | ConfigError]

    async def reload(self, config: Config | ConfigError) -> list[str]:
        self.file[:] = [config]
        return await self.reloader.reload()

    @property
    def sinks(self) -> set[str]:
        return {runner.name for runner in self.manager}


@asynccontextmanager
async def open_daemon(folder: Path, config: Config, reread: Any = None) -> AsyncIterator[Daemon]:
    active, live, file = ActiveConfig(config, None), Live(), list[Config | ConfigError]()

    def read() -> Config:
        if reread is not None:
            reread()
        (found,) = file
        if isinstance(found, ConfigError):
            raise found
        return found

    async with (
        open_journal(folder / "journal.sqlite", run_sync=run_inline) as journal,
        open_governor(journal, Budget) as governor,
        open_analyst(journal, active.llm_settings(), lambda _: None, governor) as analyst,
        open_endpoints(RecognizerConfig(), journal) as endpoints,
        trio.open_nursery() as nursery,
    ):
        await journal.commit(*[Mark(room_key(room, "muted"), {"until": None}) for room in ("desk", "attic", "hall")])
        health = Liveness(config.rooms, 0.0)
        services = RoomServices(folder / "spool", {}, journal, live, endpoints, health, RoomStates(), governor, analyst)
        rooms = Rooms(nursery, services)
        sinks = SinkManager(
            nursery,
            journal=journal,
            live=live,
            folder=folder,
            state=folder / "sinks",
            rates=config.rates,
        )
        for name, sink in config.sinks.items():
            sinks.begin(name, sink)
        for name, room in config.rooms.items():
            await rooms.begin(name, RoomSettings.of(active, room))
        reloader = Reloader(active, read, {}, services, rooms=rooms, sinks=sinks)
        yield Daemon(reloader, active, journal, sinks, rooms, file)
        sinks.finish()
        rooms.stop(0)


def configured(folder: Path, **settings: Any) -> Config:
    tables: dict[str, Any] = {"service": ServiceConfig(), "rooms": {"desk": ROOM}, "sinks": {}} | settings
    return Config(path=folder / "roomtone.toml", **tables)


async def test_sinks_come_and_go(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A sink that is gone gets nothing more and is left; a new one begins; one that changed follows itself."""
    pages: dict[str, list[Any]] = {name: [] for name in ("gone", "kept", "changed", "new")}
    diary = {name: Diary(pages=pages[name], name=name) for name in pages}
    before = configured(tmp_path, sinks={name: diary[name] for name in ("gone", "kept", "changed")})
    other = msgspec.structs.replace(diary["changed"], name="other")
    after = configured(tmp_path, sinks={"kept": diary["kept"], "changed": other, "new": diary["new"]})
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, before) as daemon:
            await trio.sleep(1)
            await commit(daemon.journal, 1)
            await trio.sleep(1)
            said = await daemon.reload(after)
            await trio.sleep(1)
            assert daemon.sinks == {"kept", "changed", "new"}
            await commit(daemon.journal, 2)
            await trio.sleep(1)
    assert sorted(said) == ["sink changed begins again", "sink gone ends", "sink new begins"]
    assert pages == {
        "gone": ["gone opens", 1, "gone closes"],
        "kept": ["kept opens", 1, 2, "kept closes"],
        "changed": ["changed opens", 1, "changed closes", "other opens", 2, "other closes"],
        "new": ["new opens", 2, "new closes"],
    }


async def test_rooms_come_and_go(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A room that is gone is closed, a new one is opened, and each sink knows the new one's rate."""
    after = configured(tmp_path, rooms={"attic": msgspec.structs.replace(ROOM, rate=8_000)})
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, configured(tmp_path)) as daemon:
            await trio.sleep(1)
            said = await daemon.reload(after)
            await trio.sleep(1)
            assert [room.name for room in daemon.rooms] == ["attic"]
            assert daemon.manager.rates["attic"] == 8_000
            assert await daemon.reload(after) == ["nothing has changed"]
    assert sorted(said) == ["room attic begins", "room desk ends"]


async def test_a_room_that_is_kept_is_changed(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """The changed part of a room is restarted, and reported."""
    after = configured(tmp_path, rooms={"desk": msgspec.structs.replace(ROOM, source=Microphone(device="other"))})
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, configured(tmp_path)) as daemon:
            assert await daemon.reload(after) == ["room desk: source begins again"]
            assert daemon.rooms["desk"].settings.table == after.rooms["desk"]


async def test_language_models_are_asked_by_the_new_tables(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A prompt that a reload brings is at work after it."""
    after = configured(tmp_path, gateway=GatewayConfig(endpoint="http://127.0.0.1:9/v1"), analysis={"summary": SUMMARY})
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, configured(tmp_path)) as daemon:
            await trio.sleep(1)
            assert await daemon.reload(after) == ["language models are asked by the new tables"]
            await trio.sleep(1)
            assert mark_key("summary", "desk") in await daemon.journal.marks("")


async def test_what_holds_from_the_next_start_on_is_said(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A key of [service] that a reload cannot change is named, one that it can is not, and both are in force."""
    after = configured(tmp_path, service=ServiceConfig(state="elsewhere", grace=9.0), storage=Storage(spool_days=7))
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, configured(tmp_path)) as daemon:
            assert await daemon.reload(after) == ["[service] state holds from the next start on"]
            assert daemon.active.config is after


async def test_a_file_that_is_wrong_changes_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A file that cannot be read, a rate that the room does not have: all is as it was."""
    new = {"other": Diary(pages=[], name="other")}
    wrong: list[tuple[Config | ConfigError, str]] = [
        (ConfigError("line 3"), "line 3"),
        (configured(tmp_path, sinks=new, rooms={"hall": ROOM}), "before"),
    ]
    with structlog.testing.capture_logs() as logs:
        async with open_daemon(tmp_path, before := configured(tmp_path)) as daemon:
            await daemon.journal.commit(Mark(room_key("hall", "rate"), 8_000))
            for config, text in wrong:
                with pytest.raises(Exception, match=text):
                    await daemon.reload(config)
                assert daemon.active.config is before
                assert daemon.sinks == set()
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["configuration.refused"] * 2


async def test_a_gate_without_its_packages_is_reported_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A voice detector that is not installed stops no reload: the room is recorded, and one notice says what to do."""
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    gated = configured(tmp_path, rooms={"desk": msgspec.structs.replace(ROOM, gate=GateConfig(mode="speech"))})
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, configured(tmp_path)) as daemon:
            first, second = await daemon.reload(gated), await daemon.reload(gated)
            notices = await daemon.journal.select("", ["notice"], 0, 1)
    assert any(line.startswith("Room desk has no gate") for line in first)
    assert second == ["nothing has changed"]
    assert [event.code for event in notices if isinstance(event, Notice)] == ["gate.unavailable"]


async def test_a_plugin_that_no_longer_loads_is_told_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A sink whose plugin is broken is a notice at the reload that finds it, and again only with another reason."""
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, configured(tmp_path)) as daemon:
            first = await daemon.reload(configured(tmp_path, unloaded={"lamp": "no bulb"}))
            assert await daemon.reload(configured(tmp_path, unloaded={"lamp": "no bulb"})) == ["nothing has changed"]
            second = await daemon.reload(configured(tmp_path, unloaded={"lamp": "no socket"}))
            notices = await daemon.journal.select("", ["notice"], 0, 1)
    assert (first, second) == (["sink lamp gets nothing: no bulb"], ["sink lamp gets nothing: no socket"])
    assert [notice.code for notice in notices if isinstance(notice, Notice)] == ["sink.unloaded"] * 2


async def test_who_asks_may_go_away(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A client that hangs up when the file has been read and found right leaves no half of a reload."""
    after = configured(tmp_path, rooms={}, sinks={"new": Diary(pages=[], name="new")}, unloaded={"lamp": "no bulb"})
    client = trio.CancelScope()
    before = configured(tmp_path, rooms={})
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, before, lambda: trio.from_thread.run_sync(client.cancel)) as daemon:
            with client:
                await daemon.reload(after)
            assert daemon.sinks == {"new"}
            assert len(await daemon.journal.select("", ["notice"], 0, 1)) == 1


async def test_one_reload_at_a_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Two clients that ask concurrently get one reload after the other."""
    inside: list[int] = []

    def slowly() -> None:
        inside.append(len(inside))
        assert inside == [0]
        time.sleep(0.05)
        inside.clear()

    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, configured(tmp_path), slowly) as daemon, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(daemon.reload, configured(tmp_path))


async def test_no_reload_once_the_rooms_are_closed(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A daemon that is about to end begins nothing new."""
    with structlog.testing.capture_logs():
        async with open_daemon(tmp_path, before := configured(tmp_path)) as daemon:
            daemon.rooms.stop(0)
            await daemon.rooms.wait_closed()
            with pytest.raises(ConfigError, match="ending"):
                await daemon.reload(configured(tmp_path, sinks={"new": Diary(pages=[], name="new")}))
            assert (daemon.sinks, daemon.active.config) == (set(), before)
