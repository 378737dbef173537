"""The files of one page. What is said next is put behind what stands there, and only what comes late, or is corrected,
has the page written anew: a day of talk written at each turn would wear an SD card out.
"""

from collections.abc import Sequence
from pathlib import Path

from roomtone import Answer, captions
from roomtone.captions import Captions, Cue
from roomtone.durable import append, make_folder, remove, replace
from roomtone_transcript import page
from roomtone_transcript.page import Entry, Place, Style


class PageFile:
    """A page at this path, and its captions beside it, as far as this life of the sink has written them.

    Errors: OSError that names the file. What stands there is then not known, and the page is to be written anew.
    """

    def __init__(self, path: Path, style: Style, forms: tuple[Captions, ...]) -> None:
        self._path = path
        self._style = style
        self._forms = {form: path.with_suffix(f".{form}") for form in forms}
        self._sizes: dict[Path, int] = {}
        self._end: Place | None = None
        self._turns: dict[tuple[str, int], int] = {}
        self._cues = 0
        self._shown = 0.0

    def write(self, title: str, entries: Sequence[Entry], cues: Sequence[Cue]) -> None:
        """Write the whole page; without entries there is none."""
        files = {path: captions.render(cues, form) for form, path in self._forms.items()}
        files[self._path] = page.render(title, entries, self._style)
        if not entries:
            for path in files:
                remove(path)
            return
        make_folder(self._path.parent)
        for path, data in files.items():
            replace(path, data)
            self._sizes[path] = len(data)
        self._end, self._cues, self._shown = None, 0, 0.0
        self._remember(entries, cues)

    def append(self, entries: Sequence[Entry], cues: Sequence[Cue]) -> bool:
        """Put these behind what stands there. False: that is not where all of them belong, or not what was written."""
        turns = self._turns | page.positions(entries)
        is_known = all((one.session_id, one.turn_order) in turns for one in entries if isinstance(one, Answer))
        if self._end is None or not is_known or min(page.place(one, turns) for one in entries) <= self._end:
            return False
        if any(cue.start < self._shown for cue in cues):
            return False
        more = sorted(entries, key=lambda one: page.place(one, turns))
        shown = captions.ordered(cues)
        files = {path: captions.render_more(shown, form, after=self._cues) for form, path in self._forms.items()}
        files[self._path] = page.render_more(more, self._style)
        for path, data in files.items():
            if not append(path, data, size=self._sizes[path]):
                return False
            self._sizes[path] += len(data)
        self._remember(more, shown)
        return True

    def _remember(self, entries: Sequence[Entry], cues: Sequence[Cue]) -> None:
        """Where the page ends now. Only the last turn can be answered behind it."""
        turns = self._turns | page.positions(entries)
        self._end = max(page.place(one, turns) for one in entries)
        self._turns = dict([max(turns.items(), key=lambda turn: turn[1])]) if turns else {}
        self._cues += len(cues)
        self._shown = max([self._shown, *(cue.start for cue in cues)])
