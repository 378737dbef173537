"""A person's wish to forget, carried out everywhere: in the rooms and the sinks; and the proof that it is."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
import trio

from roomtone.capture.segment import SPOOL
from roomtone.echoes import Passage, Spools, has_any, stands_outside
from roomtone.events import Durable
from roomtone.forgetting import Premises, Removed, forget, rooms_known
from roomtone.inquiry import Forgot, Refused
from roomtone.outlets import Outlets
from roomtone.remains import Search, files_from_before, needles, search
from roomtone.sinks import Sink

HEARING = 60.0
"""Seconds that the sinks have to remove what they have of it, until the answer says that they still do."""
LOOK = 0.05
SEARCHING = 120.0
"""Seconds that searching the files may take."""
LISTENING = 60.0
"""Seconds to find out whether sound was recorded at another time too."""

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
                found, remains = await self._look(removed)
                lines.append(_searched(found, is_clean=not remains))
                left += remains + ([] if found.is_whole else ["there was no time to search every file"])
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

    async def _look(self, removed: Sequence[Removed]) -> tuple[Search, list[str]]:
        """What was searched, and what is left of it."""
        events: list[Durable] = [event for one in removed for event in one.events]
        sound = [piece for one in removed for piece in one.sound]
        places = [self._state, *self._outlets.holdings(self._sinks())]
        since = min(one.stretch.from_ for one in removed)
        found = await trio.to_thread.run_sync(partial(search, places, needles(events, sound), since, SEARCHING))
        left = await self._words_left(found)
        left |= await trio.to_thread.run_sync(self._sound_left, removed, found, files_from_before(places, since))
        return found, [f"{path} still has some of it" for path in sorted(left)]

    async def _words_left(self, found: Search) -> set[Path]:
        """The files with events and texts of it, but for texts that were said at another time too."""
        return {
            path
            for path, needle in found.found
            if not needle.is_sound and not (needle.text and await self._premises.journal.says(needle.text))
        }

    def _sound_left(self, removed: Iterable[Removed], found: Search, before: Iterable[Path]) -> set[Path]:
        """The files with sound of it, but for sound that was recorded at another time too. For a worker thread."""
        gone: dict[str, list[tuple[int, int]]] = {}
        passages: list[Passage] = []
        for one in removed:
            start, end = one.stretch.start, one.stretch.end
            gone.setdefault(one.room, []).append((start, end))
            passages += self._outlets.audio_at(self._sinks(), one.room, start, end)
        spools = Spools(self._state / SPOOL, gone)
        heard = [(path, needle.data) for path, needle in found.found if needle.is_sound]
        passages += [
            passage for path in {path for path, _ in heard if spools.has(path)} for passage in spools.passages(path)
        ]
        elsewhere = [(path, sound) for path, sound in heard if not spools.has(path)]
        known = stands_outside({sound for _, sound in elsewhere}, spools, before, LISTENING)
        sounds = {sound for _, sound in heard}
        return {path for path, sound in elsewhere if sound not in known} | {
            passage.path for passage in passages if has_any(passage, sounds)
        }


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


def _searched(found: Search, *, is_clean: bool) -> str:
    sealed = f" ({found.sealed} compressed ones were made anew, and are not searched)" if found.sealed else ""
    result = "nothing of it is left" if is_clean else "something is left"
    return f"searched {found.files} files, {found.size / 1e6:.1f} MB{sealed}: {result}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
