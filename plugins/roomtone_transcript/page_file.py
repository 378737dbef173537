"""The files of one page. New speech is appended, and only late or corrected entries cause the page to be written anew:
writing a whole day at each turn would wear out an SD card.
"""

from collections.abc import Sequence
from pathlib import Path

from roomtone import Answer, captions
from roomtone.captions import Captions, Cue
from roomtone.durable import append, make_folder, remove, replace
from roomtone_transcript import page
from roomtone_transcript.page import Entry, Place, Style


class PageFile:
    """A page at this path, with its captions beside it, as written since the sink was opened.

    Errors: OSError that names the file. Its content is then unknown, and the page must be written anew.
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
        """Write the whole page; without entries, remove it."""
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
        """Append these. Returns False if some belong elsewhere, or if the files have changed."""
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
        """Remember the end of the page. Only an answer to its last turn can be appended."""
        turns = self._turns | page.positions(entries)
        self._end = max(page.place(one, turns) for one in entries)
        self._turns = dict([max(turns.items(), key=lambda turn: turn[1])]) if turns else {}
        self._cues += len(cues)
        self._shown = max([self._shown, *(cue.start for cue in cues)])
