"""The hooks of the transcript sink: they put events as entries onto pages."""

from collections.abc import Callable, Mapping
from datetime import datetime, time
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec
import structlog

from roomtone import Analysis, Answer, Forgotten, Gap, SessionStarted, Turn, captions, hookimpl
from roomtone.captions import Captions, Cue
from roomtone.durable import remove
from roomtone_transcript.page import Entry, Style
from roomtone_transcript.page_file import PageFile
from roomtone_transcript.store import Page, Store

Split: TypeAlias = Literal["day", "session"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_MIN_GAP_S = 1.0
"""Seconds of the shortest gap that is shown on the page."""
_MAX_OPEN_PAGES = 100
"""Pages whose end is remembered. Beyond that the page that was written longest ago is dropped, and written anew at
its next entry.
"""
_RATE = 16_000
"""The rate in Hz of a room that is no longer in the configuration."""


class PageWriter:
    """Writes the pages. Their content follows from the entries alone, so a page can be written again at any time
    without doubling or misplacing an entry.

    Errors: OSError that names the file. Nothing of the batch is then acknowledged, and its pages are written again.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        style: Style,
        *,
        split: Split,
        captions: tuple[Captions, ...],
        rates: Mapping[str, int],
        warn: Callable[[str], None],
    ) -> None:
        self._store = store
        self._directory = directory
        self._style = style
        self._split = split
        self._captions = captions
        self._rates = rates
        self._warn = warn
        self._changed: set[Page] = set()
        self._new: dict[Page, dict[str, Entry]] = {}
        self._files: dict[Page, PageFile] = {}
        self._must_scrub = False

    @hookimpl
    def session_started(self, event: SessionStarted) -> None:
        """A session's page begins with the session, not with its first word."""
        if self._split == "session":
            self._begin(Page(event.room, event.session_id), event.at)

    @hookimpl
    def turn(self, event: Turn) -> None:
        """Put the turn onto its page, in the place of the turn that it corrects."""
        if event.is_test:
            return
        if event.supersedes:
            self._changed |= self._store.remove(event.supersedes)
        end = max((word.end for word in event.words), default=event.position)
        speakers = {word.speaker for word in event.words}
        if not self._captions and len(speakers) < 2:  # words are most of a turn's bytes
            event = msgspec.structs.replace(event, words=(), speaker=event.speaker or next(iter(speakers), None))
        self._put(event, event.session_id, event.at, event.position, end)
        self._changed |= self._store.answered(event)

    @hookimpl
    def answer(self, event: Answer) -> None:
        slim = msgspec.structs.replace(event, response={})
        self._put(slim, event.session_id, event.at, event.position, event.position)

    @hookimpl
    def analysis(self, event: Analysis) -> None:
        slim = msgspec.structs.replace(event, response={})
        self._put(slim, None, event.at, event.start, event.end)

    @hookimpl
    def gap(self, event: Gap) -> None:
        if (event.until - event.from_).total_seconds() >= _MIN_GAP_S:
            self._put(event, None, event.from_, event.start, event.end)

    @hookimpl
    def forgotten(self, event: Forgotten) -> None:
        """Remove the forgotten entries, and the answers to them, from their pages."""
        self._changed |= self._store.forget(event.room, event.start, event.end)
        # Also the pages of an earlier attempt whose batch did not complete: they were not written.
        self._changed |= self._store.pages(event.room, event.from_, event.until)
        self._must_scrub = True

    @hookimpl
    def flush(self) -> None:
        """First the entries, then the pages: after a crash in between, the batch comes again."""
        if self._must_scrub:
            self._store.scrub()
            self._must_scrub = False
        self._store.commit()
        for page in sorted(self._changed | self._new.keys()):
            self._write(page, list(self._new.get(page, {}).values()))
        self._changed.clear()
        self._new.clear()

    def _put(self, entry: Entry, session: str | None, at: datetime, start: int, end: int) -> None:
        """Put the entry on its page. An entry without a session is only on pages of days."""
        day = at.astimezone(self._style.zone)
        key = f"{day:%Y-%m-%d}" if self._split == "day" else session
        if key is None:
            return
        page = Page(entry.room, key)
        self._begin(page, at if self._split == "session" else datetime.combine(day, time(), self._style.zone))
        self._store.put(page, entry, start, end)
        self._new.setdefault(page, {})[entry.id] = entry

    def _begin(self, page: Page, start: datetime) -> None:
        if self._store.page(page) is not None:
            return
        self._store.begin(page, start, self._free_path(page, start))

    def _free_path(self, page: Page, start: datetime) -> Path:
        room = (
            page.room.replace("/", "_").replace("\0", "_").lstrip(".") or "_"
        )  # a room's name is one component of a path
        name = f"{start:%Y-%m-%d}" if self._split == "day" else f"{start.astimezone(self._style.zone):%Y-%m-%d_%H%M%S}"
        number, path = 1, self._directory / room / f"{room}_{name}{self._style.suffix}"
        free = path
        while free.exists() or self._store.is_taken(free):
            number += 1
            free = path.with_stem(f"{path.stem}_{number}")
        return free

    def _write(self, page: Page, new: list[Entry]) -> None:
        known = self._store.page(page)
        assert known is not None  # noqa: S101 - an entry is put on a page that has begun
        start, path = known
        if self._directory not in path.parents:
            self._move(page, start, path)
            self._write(page, new)
            self._remove(path)
            return
        file = self._files.pop(page, None)
        if file is None or page in self._changed or not file.append(new, self._cues(page, start, new)):
            entries = self._store.entries(page)
            file = PageFile(path, self._style, self._captions)
            file.write(self._title(page, start), entries, self._cues(page, start, entries))
        self._files[page] = file
        if len(self._files) > _MAX_OPEN_PAGES:
            del self._files[next(iter(self._files))]

    def _move(self, page: Page, start: datetime, path: Path) -> None:
        """Have the page written in the current directory: over the one that a user has moved there, if any."""
        moved = self._directory / path.parent.name / path.name
        is_moved = moved.exists() and _is_gone(path) and not self._store.is_taken(moved)
        self._store.move(page, moved if is_moved else self._free_path(page, start))
        self._store.commit()
        self._files.pop(page, None)

    def _remove(self, path: Path) -> None:
        """Remove a moved page from its former directory, or report that it stays."""
        try:
            for each in (path, *(path.with_suffix(f".{form}") for form in get_args(Captions))):
                remove(each)
        except OSError as error:
            log.warning("page.left", path=str(path), error=str(error))
            self._warn(
                f"{path} lies outside of {self._directory} and could not be removed: {error.strerror}. The page is "
                "now written in the new directory; remove the old file"
            )

    def _title(self, page: Page, start: datetime) -> str:
        local = start.astimezone(self._style.zone)
        when = f"{local:%Y-%m-%d}" if self._split == "day" else f"{local:%Y-%m-%d %H:%M:%S}"
        return f"{page.room}, {when} ({self._style.zone})"

    def _cues(self, page: Page, start: datetime, entries: list[Entry]) -> list[Cue]:
        rate = self._rates.get(page.room, _RATE)
        found: list[Cue] = []
        if not self._captions:
            return found
        for turn in entries:
            if isinstance(turn, Turn):
                began = (turn.at - start).total_seconds()

                def place(position: int, turn: Turn = turn, began: float = began) -> float:
                    return began + (position - turn.position) / rate

                found.extend(captions.cues(turn, place, self._style.speakers))
        return found


def _is_gone(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # this user may not look
        return False
