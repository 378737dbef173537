"""A person's wish to forget, carried out everywhere: in the rooms and the sinks; and the proof that it is."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
import trio

from roomtone.control import Forgot, Refused
from roomtone.events import Durable
from roomtone.forgetting import Premises, Removed, forget, rooms_known
from roomtone.outlets import Outlets
from roomtone.remains import Search, needles, search
from roomtone.sinks import Sink

HEARING = 60.0
"""Seconds that the sinks have to remove what they have of it, until the answer says that they still do."""
LOOK = 0.05
SEARCHING = 120.0
"""Seconds that searching the files may take."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Erasure:
    """Forgets, one wish at a time. `sinks` are all that are configured, also those that are not at work, `unloaded` the
    names of those whose plugin does not load.
    """

    def __init__(
        self,
        state: Path,
        premises: Premises,
        *,
        outlets: Outlets,
        sinks: Callable[[], Mapping[str, Sink]],
        unloaded: Callable[[], Iterable[str]],
    ) -> None:
        self._state = state
        self._premises = premises
        self._outlets = outlets
        self._sinks = sinks
        self._unloaded = unloaded
        self._turn = trio.Lock()

    async def forget(self, room: str | None, since: datetime, until: datetime) -> Forgot | Refused:
        """Leave nothing of what the room, or every room, has heard between these times (UTC).

        Errors: those of the journal.
        """
        async with self._turn:
            rates = await rooms_known(self._premises.journal)
            if room is not None and room not in rates:
                return Refused((f"nothing was ever recorded of {room!r}; rooms with recordings: {_listed(rates)}",))
            if since >= (until := min(until, datetime.now(UTC))):
                return Refused(("that time is empty, or still to come",))
            lines, left, removed = list[str](), list[str](), list[Removed]()
            for name in [room] if room else sorted(rates):
                try:
                    if one := await forget(name, rates[name], since, until, self._premises):
                        removed.append(one)
                        left += _still_there(name, one)
                    lines.append(f"{name}: {_told(one)}")
                except* OSError as group:
                    left.append(f"{name}: {group.exceptions[0]}; it is tried again at the next start")
            if removed:
                left += await self._wait_for_sinks()
                found = await self._look(removed)
                lines.append(_searched(found))
                left += await self._remains(found)
            return Forgot(tuple(lines), tuple(left))

    async def _wait_for_sinks(self) -> list[str]:
        """Who has not heard of it within the time."""
        seq = self._premises.journal.tip
        with trio.move_on_after(HEARING):
            while any(  # noqa: ASYNC110 - a cursor tells nobody
                not outlet.has(seq) and _may_hear(outlet.status().state) for outlet in self._outlets
            ):
                await trio.sleep(LOOK)
        late = [outlet.status() for outlet in self._outlets if not outlet.has(seq)]
        return [
            f"sink {one.name} has not heard of it yet ({one.state}{f': {one.error}' if one.error else ''})"
            for one in late
        ] + [f"sink {name} is not at work: it hears of it when it is" for name in self._idle()]

    def _idle(self) -> list[str]:
        at_work = {outlet.name for outlet in self._outlets}
        return [name for name in (*self._sinks(), *self._unloaded()) if name not in at_work]

    async def _look(self, removed: Iterable[Removed]) -> Search:
        events: list[Durable] = [event for one in removed for event in one.events]
        sound = [piece for one in removed for piece in one.sound]
        places = [self._state, *self._outlets.holdings(self._sinks())]
        since = min(one.stretch.from_ for one in removed)
        return await trio.to_thread.run_sync(partial(search, places, needles(events, sound), since, SEARCHING))

    async def _remains(self, found: Search) -> list[str]:
        """What was found, but for texts that were said at another time too."""
        left = {
            f"{path} still has some of it"
            for path, needle in found.found
            if not (needle.text and await self._premises.journal.says(needle.text))
        }
        return sorted(left) + ([] if found.is_whole else ["there was no time to search every file"])


def _may_hear(state: str) -> bool:
    """Whether it is worth waiting for: a receiver may be away for days."""
    return state in {"opening", "active", "stuck"}


def _told(one: Removed | None) -> str:
    if one is None:
        return "nothing was recorded then"
    stretch = one.stretch
    begin, end = (time.astimezone() for time in (stretch.from_, stretch.until))
    seconds = (stretch.until - stretch.from_).total_seconds()
    return f"{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} is forgotten: {seconds:.1f} s, {len(one.events)} events"


def _still_there(name: str, one: Removed) -> Iterator[str]:
    if one.is_late:
        yield f"{name}: what was heard after {one.stretch.until.astimezone():%H:%M:%S} has not come yet; ask again"
    if not one.is_compact:
        yield f"{name}: the journal's file cannot be written anew now, see the log; the next start tries again"


def _searched(found: Search) -> str:
    sealed = f" ({found.sealed} compressed ones were made anew, and are not searched)" if found.sealed else ""
    result = "something is left" if found.found else "nothing of it is left"
    return f"searched {found.files} files, {found.size / 1e6:.1f} MB{sealed}: {result}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
