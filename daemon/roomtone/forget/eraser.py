"""The command to forget, carried out in the rooms and the sinks; and the proof that it was."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog
import trio

from roomtone.config.active import ActiveConfig
from roomtone.delivery.manager import SinkManager
from roomtone.durable import remove
from roomtone.events import Durable
from roomtone.forget.room import ForgetScope, Removed, clamp, forget, rooms_known
from roomtone.forget.search import MTIME_TOLERANCE, Search, SearchRequest, ids_of, long_texts
from roomtone.journal.schema import find_asides
from roomtone.journal.words import program_words, telling_words, tokens
from roomtone.legible import count_of
from roomtone.sinks import Module, Sink
from roomtone.spool.segment import SPOOL_FOLDER

SINKS_TIMEOUT_S = 60.0
"""Seconds that the sinks have to remove what they have of it; then the answer says that they still do."""
CHECK_INTERVAL_S = 0.05
SEARCH_TIMEOUT_S = 480.0
"""Seconds that searching the files may take."""
STARTING = 30.0
"""Seconds more for the start and the answer of the program that searches."""
COMMAND: Final = (sys.executable, "-P", "-m", "roomtone.forget.search")
"""`-P`: the working folder must not be searched for modules."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Erased(NamedTuple):
    """The result: a line for each thing done; what is `left`, or not done yet; and why it was `refused`, if it was."""

    lines: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Eraser:
    """Handles requests to forget, one at a time, also for the sinks that are configured and do not run."""

    def __init__(self, state: Path, scope: ForgetScope, manager: SinkManager, active: ActiveConfig) -> None:
        self._state = state
        self._scope = scope
        self._manager = manager
        self._active = active
        self._turn = trio.Lock()

    async def forget(self, room: str | None, since: datetime, until: datetime) -> Erased:
        """Leave nothing of what the room, or every room, has heard between these times (UTC).

        Errors: those of the journal.
        """
        async with self._turn:
            rates = await rooms_known(self._scope.journal)
            if room is not None and room not in rates:
                return Erased(
                    refused=(f"nothing was ever recorded of {room!r}; rooms with recordings: {_listed(rates)}",)
                )
            since, until = clamp(since, until, datetime.now(UTC))
            if since >= until:
                return Erased(refused=("that time is empty, or in the future",))
            lines, left, removed = list[str](), list[str](), list[Removed]()
            for name in [room] if room else sorted(rates):
                try:
                    if one := await forget(name, rates[name], since, until, self._scope):
                        removed.append(one)
                        left += _still_there(name, one)
                    lines.append(f"{name}: {_told(one)}")
                except* OSError as group:
                    left.append(f"{name}: {group.exceptions[0]}; it is tried again at the next start")
            if removed:
                left += await self._wait_for_sinks()
                await self._prove(removed, rates, lines, left)
            elif not left:
                left.append("nothing was recorded in that time, so nothing was forgotten")
            return Erased(tuple(lines), tuple(left))

    async def _prove(
        self, removed: Sequence[Removed], rates: Mapping[str, int], lines: list[str], left: list[str]
    ) -> None:
        """Remove what cannot be searched reliably, search the rest, and report both."""
        since = min(one.stretch.from_ for one in removed)
        gone, stuck = await trio.to_thread.run_sync(_remove_asides, self._state, since)
        lines += [f"removed {path}: a damaged database, which may have had some of it" for path in gone]
        holdings = self._manager.holdings(self._active.config.all_sinks)
        remains = [*stuck, *await self._unreached(removed, holdings)]
        places = [self._state, *(path for paths in holdings.values() for path in paths)]
        try:
            found = await _search(await self._request(removed, places, rates, since))
        except (OSError, _SearchFailed) as error:
            left += [*remains, f"the files could not be searched: {error}"]
            return
        remains += [f"{path} still has some of it" for path in found.left]
        remains += [f"{reason}; so it was not searched" for reason in found.unread]
        lines.append(_searched(found, is_clean=not remains))
        lines += [f"{path} has words of it, and may have them from another time" for path in found.doubtful]
        lines += [
            f"the same sound was also recorded at {at.astimezone():%Y-%m-%d %H:%M:%S} in {room}"
            for room, at in found.again
        ]
        left += remains + ([] if found.is_whole else ["the time did not suffice to search every file"])

    async def _wait_for_sinks(self) -> list[str]:
        """Reports of sinks that have not acknowledged it within the time."""
        seq = self._scope.journal.tip
        with trio.move_on_after(SINKS_TIMEOUT_S):
            while any(  # noqa: ASYNC110 - a cursor has no event
                not runner.has(seq) and _may_hear(runner.status().state) for runner in self._manager
            ):
                await trio.sleep(CHECK_INTERVAL_S)
        late = [runner.status() for runner in self._manager if not runner.has(seq)]
        return [
            f"sink {one.name} has not removed it yet ({one.state}{f': {one.error}' if one.error else ''})"
            for one in late
        ] + [f"sink {name} is not running: it is notified when it runs" for name in self._idle()]

    def _idle(self) -> list[str]:
        at_work = {runner.name for runner in self._manager}
        return [name for name in (*self._active.config.all_sinks, *self._active.config.unloaded) if name not in at_work]

    async def _unreached(self, removed: Sequence[Removed], holdings: Mapping[str, Sequence[Path]]) -> list[str]:
        """The sinks that were neither told, for want of a hook or a table, nor searched."""
        rooms, tables = {one.room for one in removed}, self._active.config.all_sinks
        deaf = [
            f"sink {runner.name} has no hook `forgotten`, and names no files in `holdings`: it was neither notified "
            "nor searched"
            for runner in self._manager
            if runner.misses_forgotten()
            and not holdings.get(runner.name)
            and not rooms.isdisjoint(_rooms_of(tables.get(runner.name)) or rooms)
        ]
        known = {runner.name for runner in self._manager} | {
            *self._active.config.all_sinks,
            *self._active.config.unloaded,
        }
        gone = [name for name in await self._scope.journal.cursors() if name not in known]
        return deaf + [
            f"sink {name} is not configured: it was neither notified nor searched; `roomtone sinks forget {name}` "
            "takes it off this list"
            for name in gone
        ]

    async def _request(
        self, removed: Sequence[Removed], places: Iterable[Path], rates: Mapping[str, int], since: datetime
    ) -> SearchRequest:
        events: list[Durable] = [event for one in removed for event in one.events]
        sinks = self._active.config.all_sinks
        named = tokens(" ".join([*rates, *sinks, *(type(sink).__name__ for sink in sinks.values())]).encode())
        known = await trio.to_thread.run_sync(program_words, list(_sources(sinks.values())))
        return SearchRequest(
            places=tuple(str(place.absolute()) for place in places),
            since=since,
            seconds=SEARCH_TIMEOUT_S,
            ids=ids_of(events),
            texts=long_texts(events),
            words=tuple(telling_words(events, known | named)),
            sounds=tuple(dict.fromkeys(piece for one in removed for piece in one.sound)),
            journal=str((self._state / "journal.sqlite").absolute()),
            spool=str((self._state / SPOOL_FOLDER).absolute()),
            gone=tuple((one.room, one.stretch.start, one.stretch.end) for one in removed),
            rates=dict(rates),
        )


class _SearchFailed(Exception):  # noqa: N818 - it says what is true
    """The program that searches has not answered. Says why."""


async def _search(request: SearchRequest) -> Search:
    """Search in a process of its own: see `forget/search.py` for why. Cancelling it kills the process.

    Errors: OSError where none can be started, SearchFailed.
    """
    with trio.move_on_after(request.seconds + STARTING):
        done = await trio.run_process(
            COMMAND, stdin=msgspec.json.encode(request), capture_stdout=True, capture_stderr=True, check=False
        )
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(done.stdout, type=Search)
        # The places of its traceback, and not what was raised there, which may quote.
        places = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line[:6] == "  File"]
        log.error("forgetting.unsearched", status=done.returncode, place=places[-1] if places else "")
        raise _SearchFailed(f"the program that searches has ended with {done.returncode}")
    raise _SearchFailed("the program that searches does not answer")


def _sources(sinks: Iterable[Sink]) -> Iterator[Path]:
    """The files that these sinks come from; of a package, its folder."""
    for sink in sinks:
        with suppress(TypeError, OSError):
            file = Path(inspect.getfile(type(sink).module if isinstance(sink, Module) else type(sink)))
            yield file.parent if file.name == "__init__.py" else file


def _remove_asides(state: Path, since: datetime) -> tuple[list[Path], list[str]]:
    """Remove the damaged databases that were put aside since then, for nothing in them can be relied on to be found.

    Returns those that are gone, and for each other one why it is not.
    """
    gone, stuck = list[Path](), list[str]()
    for path, at in find_asides(state):
        if at >= since - MTIME_TOLERANCE:
            try:
                remove(path)
                gone.append(path)
            except OSError as error:
                stuck.append(f"{path} may have some of it, and cannot be removed: {error.strerror}")
    return gone, stuck


def _rooms_of(sink: Sink | None) -> Sequence[str]:
    return () if sink is None else sink.rooms


def _may_hear(state: str) -> bool:
    """True if it is worth waiting for: a receiver may be away for days."""
    return state in {"opening", "active", "stuck"}


def _told(one: Removed | None) -> str:
    if one is None:
        return "nothing was recorded then"
    stretch = one.stretch
    begin, end = (time.astimezone() for time in (stretch.from_, stretch.until))
    seconds = (stretch.until - stretch.from_).total_seconds()
    count = count_of(len(one.events), "event")
    return f"{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} is forgotten: {seconds:.1f} s, {count}"


def _still_there(name: str, one: Removed) -> Iterator[str]:
    if one.is_late:
        yield f"{name}: audio after {one.stretch.until.astimezone():%H:%M:%S} is yet to arrive; run the command again"
    if not one.is_compact:
        yield f"{name}: the journal's file cannot be written anew now, see the log; the next start tries again"


def _searched(found: Search, *, is_clean: bool) -> str:
    sealed = f" ({found.sealed} compressed ones were made anew, and are not searched)" if found.sealed else ""
    result = "nothing of it is left" if is_clean else "something is left"
    return f"searched {found.files} files, {found.size / 1e6:.1f} MB{sealed}: {result}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
