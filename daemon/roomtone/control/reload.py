"""Reload: a running daemon takes another configuration. Only the parts that changed are restarted.

The whole file is checked first. If anything in it is wrong, the old configuration stays active.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

import msgspec
import structlog
import trio

from roomtone.capture.recovery import RateChanged, check_rate
from roomtone.config.active import ActiveConfig
from roomtone.config.model import Config, find_key, missing_detectors
from roomtone.config.toml_file import ConfigError
from roomtone.delivery.manager import SinkManager
from roomtone.events import notice
from roomtone.journal.journal import Journal
from roomtone.monitoring import prometheus
from roomtone.rooms import Rooms, RoomServices, RoomSettings
from roomtone.secret import Secret
from roomtone.sinks import Module, Sink

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

RELOADABLE_KEYS = frozenset({"plugins", "api_key_file", "grace", "sync_interval"})
"""The keys of [service] that a reload applies; the others apply from the next start on."""


class Changes(msgspec.Struct, frozen=True):
    """The difference between two configurations: names of rooms and sinks."""

    rooms_gone: tuple[str, ...]
    rooms_new: tuple[str, ...]
    rooms_kept: tuple[str, ...]
    sinks_gone: tuple[str, ...]
    sinks_new: tuple[str, ...]
    sinks_changed: tuple[str, ...]


def compare(before: Config, after: Config) -> Changes:
    """The difference between two configurations. Pure."""
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
    """True if two tables mean the same sink. The class of a drop-in file is made anew each time; its module is not,
    while the file is the same.
    """
    if isinstance(before, Module) and isinstance(after, Module) and before.module is after.module:
        return msgspec.structs.asdict(before) == msgspec.structs.asdict(after)
    return before == after


class Reloader:
    """Reads the configuration again by `reread`, and applies it; one reload at a time. `reread` raises ConfigError."""

    def __init__(
        self,
        active: ActiveConfig,
        reread: Callable[[], Config],
        environ: Mapping[str, str],
        services: RoomServices,
        *,
        rooms: Rooms,
        sinks: SinkManager,
    ) -> None:
        self._active = active
        self._reread = reread
        self._environ = environ
        self._journal = services.journal
        self._analyst = services.analyst
        self._rooms = rooms
        self._sinks = sinks
        self._turn = trio.Lock()

    async def reload(self) -> list[str]:
        """Read, check, and apply. Returns a line for each thing that is different now.

        Raises ConfigError or RateChanged with what is wrong; then nothing has changed.
        """
        async with self._turn:
            try:
                # In a thread: reading plugins may take its time, and what runs must not wait for it.
                config = await trio.to_thread.run_sync(self._reread)
                key = find_key(config, self._environ)
                await check_rates(config, self._journal)
            except (ConfigError, RateChanged) as error:
                log.error("configuration.refused", error=str(error))  # noqa: TRY400 - the error's text says it all
                raise
            if self._rooms.closed:
                raise ConfigError("the daemon is ending")
            with trio.CancelScope(shield=True), self._rooms.held():
                lines = await self._apply(config, key)
            log.info("configuration.reloaded", changes=len(lines))
            return lines or ["nothing has changed"]

    async def _apply(self, after: Config, key: Secret | None) -> list[str]:
        before, settings = self._active.config, self._active.llm_settings()
        self._active.config, self._active.key = after, key
        changes = compare(before, after)
        lines = list(_left_for_later(before, after))
        if settings != self._active.llm_settings():
            self._analyst.change(self._active.llm_settings())
        if (before.gateway, before.analysis) != (after.gateway, after.analysis):
            lines.append("language models are asked by the new tables")
        lines += self._change_sinks(changes)
        lines += await self._report_lacking(before)
        lines += await self._change_rooms(changes)
        return lines

    def _change_sinks(self, changes: Changes) -> Iterator[str]:
        config = self._active.config
        self._sinks.rates.update(config.rates)
        for name in changes.sinks_gone:
            self._sinks.end(name)
            yield f"sink {name} ends"
        for name in (*changes.sinks_new, *changes.sinks_changed):
            self._sinks.begin(name, config.sinks[name])
            yield f"sink {name} begins" + (" again" if name in changes.sinks_changed else "")

    async def _report_lacking(self, before: Config) -> list[str]:
        """Report what this configuration lacks and the one before did not. Returns a line for each."""
        after = self._active.config
        broken = {name: why for name, why in after.unloaded.items() if before.unloaded.get(name) != why}
        missing = [one for one in lacking(after) if one not in lacking(before)]
        await report_unloaded(broken, self._journal)
        await report_lacking(missing, self._journal)
        return [*(f"sink {name} gets nothing: {why}" for name, why in broken.items()), *(text for _, text in missing)]

    async def _change_rooms(self, changes: Changes) -> list[str]:
        rooms, lines = self._active.config.rooms, list[str]()
        for name in changes.rooms_new:
            await self._rooms.begin(name, RoomSettings.of(self._active, rooms[name]))
            lines.append(f"room {name} begins")
        for name in changes.rooms_kept:
            said = await self._rooms.change(name, RoomSettings.of(self._active, rooms[name]))
            lines += [f"room {name}: {said}"] if said else []
        for name in changes.rooms_gone:
            self._rooms.end(name)
            lines.append(f"room {name} ends")
        return lines


async def check_rates(config: Config, journal: Journal) -> None:
    """Check the rates of all rooms. Raises RateChanged for one that was recorded at another rate before."""
    for name, rate in config.rates.items():
        await check_rate(name, rate, journal)


async def report_unloaded(unloaded: Mapping[str, str], journal: Journal) -> None:
    """Report sinks whose plugin does not load: all else runs without them, so the operator would not notice."""
    for name, reason in unloaded.items():
        log.error("sink.unloaded", sink=name, reason=reason)
        text = (
            f"Sink {name} gets nothing: {reason}. All else works, and its events wait in the journal. "
            "Repair it, then run: roomtone reload"
        )
        await journal.commit(notice("sink.unloaded", text, at=datetime.now(UTC), severity="error"))


def lacking(config: Config) -> list[tuple[str, str]]:
    """The features that are configured and whose packages are not installed: each a code, and a text."""
    found = [
        (
            "gate.unavailable",
            f"Room {name} has no gate: {why}. It is recorded, and no paid session is opened for it",
        )
        for name, why in missing_detectors(config).items()
    ]
    if why := prometheus.lacking(config.service):
        found.append(("metrics.unavailable", f"Metrics are not served: {why}. All else works"))
    return found


async def report_lacking(found: Iterable[tuple[str, str]], journal: Journal) -> None:
    """Report features that cannot run: recording goes on without them, so the operator would not notice."""
    for code, text in found:
        log.error(code, error=text)
        await journal.commit(notice(code, text, at=datetime.now(UTC), severity="error"))


def _left_for_later(before: Config, after: Config) -> Iterator[str]:
    for key in after.service.__struct_fields__:
        if key not in RELOADABLE_KEYS and getattr(before.service, key) != getattr(after.service, key):
            yield f"[service] {key} holds from the next start on"
    if before.recognizer != after.recognizer:
        yield "[recognizer] holds from the next start on"
