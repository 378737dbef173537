"""Another configuration in a daemon that runs: what has changed is begun again alone, all else is not touched.

The new file is checked as a whole first. One that is wrong in anything leaves the old one in force.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

import msgspec
import structlog
import trio

from roomtone.capture.recovery import RateChanged, check_rate
from roomtone.config.model import Config, Room, find_key, missing_detectors
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.manager import SinkManager
from roomtone.events import Notice
from roomtone.journal.journal import Journal
from roomtone.llm.analyst import Analyst
from roomtone.llm.settings import LLMSettings, RoomFacts
from roomtone.monitoring import prometheus
from roomtone.rooms import Rooms, RoomSettings
from roomtone.secret import Secret
from roomtone.sinks import Module, Sink

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

RELOADABLE_KEYS = frozenset({"plugins", "api_key_file", "grace", "sync_interval"})
"""The keys of [service] that a reload puts into force; the others hold from the next start on."""


class ActiveConfig(msgspec.Struct):
    """The configuration in force, and the key of the speech service."""

    config: Config
    key: Secret | None

    def setting(self) -> LLMSettings:
        """What language models are asked, and where."""
        rooms = {
            name: RoomFacts(room.rate, room.streaming, room.gate.mode == "speech")
            for name, room in self.config.rooms.items()
        }
        return LLMSettings(self.config.gateway, self.config.analysis, rooms, self.key, self.config.gateway_key_file)

    def plan(self, room: Room) -> RoomSettings:
        """What a room is to do."""
        return RoomSettings(room, self.config.folder, self.config.service.sync_interval, self.key)


class Changes(msgspec.Struct, frozen=True):
    """What differs between two configurations: names of rooms and sinks."""

    rooms_gone: tuple[str, ...]
    rooms_new: tuple[str, ...]
    rooms_kept: tuple[str, ...]
    sinks_gone: tuple[str, ...]
    sinks_new: tuple[str, ...]
    sinks_changed: tuple[str, ...]


def compare(before: Config, after: Config) -> Changes:
    """What differs. Pure."""
    return Changes(
        rooms_gone=tuple(before.rooms.keys() - after.rooms.keys()),
        rooms_new=tuple(after.rooms.keys() - before.rooms.keys()),
        rooms_kept=tuple(name for name in after.rooms if name in before.rooms),
        sinks_gone=tuple(before.sinks.keys() - after.sinks.keys()),
        sinks_new=tuple(after.sinks.keys() - before.sinks.keys()),
        sinks_changed=tuple(
            name for name, sink in after.sinks.items() if name in before.sinks and not is_same(before.sinks[name], sink)
        ),
    )


def is_same(before: Sink, after: Sink) -> bool:
    """Whether two tables mean the same sink. The class of a drop-in file is made anew each time; its module is not,
    while the file is the same.
    """
    if isinstance(before, Module) and isinstance(after, Module) and before.module is after.module:
        return msgspec.structs.asdict(before) == msgspec.structs.asdict(after)
    return before == after


class Reloader:
    """Puts what `reread` gives into force, one reload at a time. `reread` raises ConfigError."""

    def __init__(
        self,
        force: ActiveConfig,
        reread: Callable[[], Config],
        environ: Mapping[str, str],
        *,
        journal: Journal,
        rooms: Rooms,
        outlets: SinkManager,
        analyst: Analyst,
    ) -> None:
        self._force = force
        self._reread = reread
        self._environ = environ
        self._journal = journal
        self._rooms = rooms
        self._outlets = outlets
        self._analyst = analyst
        self._turn = trio.Lock()

    async def reload(self) -> list[str]:
        """Read, check, and put into force. A line for each thing that is different now.

        Raises ConfigError or RateChanged with what is wrong; then nothing has changed.
        """
        async with self._turn:
            try:
                # In a thread: reading plugins may take its time, and what runs must not wait for it.
                config = await trio.to_thread.run_sync(self._reread)
                key = find_key(config, self._environ)
                for name, table in config.rooms.items():
                    await check_rate(name, table.rate, self._journal)
            except (ConfigError, RateChanged) as error:
                log.error("configuration.refused", error=str(error))  # noqa: TRY400 - the error's text says it all
                raise
            if self._rooms.closed:
                raise ConfigError("the daemon is ending")
            with trio.CancelScope(shield=True), self._rooms.held():
                lines = await self._put_into_force(ActiveConfig(config, key))
            log.info("configuration.reloaded", changes=len(lines))
            return lines or ["nothing has changed"]

    async def _put_into_force(self, after: ActiveConfig) -> list[str]:
        before = ActiveConfig(self._force.config, self._force.key)
        changes = compare(before.config, after.config)
        self._force.config, self._force.key = after.config, after.key
        lines = list(_left_for_later(before.config, after.config))
        if before.setting() != after.setting():
            self._analyst.change(after.setting())
        if (before.config.gateway, before.config.analysis) != (after.config.gateway, after.config.analysis):
            lines.append("language models are asked by the new tables")
        self._outlets.rates.update({name: table.rate for name, table in after.config.rooms.items()})
        for name in changes.sinks_gone:
            self._outlets.end(name)
            lines.append(f"sink {name} ends")
        for name in (*changes.sinks_new, *changes.sinks_changed):
            self._outlets.begin(name, after.config.sinks[name])
            lines.append(f"sink {name} begins" + (" again" if name in changes.sinks_changed else ""))
        broken = {name: why for name, why in after.config.unloaded.items() if before.config.unloaded.get(name) != why}
        await tell_unloaded(broken, self._journal)
        lines += [f"sink {name} gets nothing: {why}" for name, why in broken.items()]
        missing = {code: text for code, text in lacking(after.config) if (code, text) not in lacking(before.config)}
        await tell_lacking(missing.items(), self._journal)
        lines += missing.values()
        for name in changes.rooms_new:
            await self._rooms.begin(name, after.plan(after.config.rooms[name]))
            lines.append(f"room {name} begins")
        for name in changes.rooms_kept:
            said = await self._rooms.change(name, after.plan(after.config.rooms[name]))
            lines += [f"room {name}: {said}"] if said else []
        for name in changes.rooms_gone:
            self._rooms.end(name)
            lines.append(f"room {name} ends")
        return lines


async def tell_unloaded(unloaded: Mapping[str, str], journal: Journal) -> None:
    """A plugin that an update has broken keeps nothing from running; and so somebody must be told."""
    for name, reason in unloaded.items():
        log.error("sink.unloaded", sink=name, reason=reason)
        text = (
            f"Sink {name} gets nothing: {reason}. Everything else runs without it, and its events wait in the journal; "
            "repair it, then: roomtone reload"
        )
        now = datetime.now(UTC)
        await journal.commit(Notice(room="", position=0, at=now, severity="error", code="sink.unloaded", text=text))


def lacking(config: Config) -> list[tuple[str, str]]:
    """What the configuration wants and whose packages are not installed: a code, and a text for a person."""
    found = [
        ("gate.unavailable", f"Room {name} has no gate: {why}. It is recorded, and nothing is sent that costs money")
        for name, why in missing_detectors(config).items()
    ]
    if why := prometheus.lacking(config.service):
        found.append(("metrics.unavailable", f"There are no metrics: {why}. Everything else runs without them"))
    return found


async def tell_lacking(found: Iterable[tuple[str, str]], journal: Journal) -> None:
    """What is secondary and cannot be had keeps nothing from recording; and so somebody must be told."""
    for code, text in found:
        log.error(code, error=text)
        now = datetime.now(UTC)
        await journal.commit(Notice(room="", position=0, at=now, severity="error", code=code, text=text))


def _left_for_later(before: Config, after: Config) -> Iterator[str]:
    for key in after.service.__struct_fields__:
        if key not in RELOADABLE_KEYS and getattr(before.service, key) != getattr(after.service, key):
            yield f"[service] {key} holds from the next start on"
    if before.recognizer != after.recognizer:
        yield "[recognizer] holds from the next start on"
