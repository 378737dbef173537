"""The times of words that an engine has heard without times: forced alignment by pocketsphinx.

It costs about 0.03 CPU s for each second of audio. A word that the dictionary lacks lies between its neighbors.
"""

import re
import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from roomtone.recognizer.adapter import INSTALL, spread
from roomtone.recognizer.engine import RATE, EngineUnavailable

FRAME = RATE // 100  # samples of one frame of pocketsphinx
_PART = re.compile(r"[a-z']+")


class SphinxAligner:
    """One decoder for all rooms, under a lock: an alignment is short."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._lock = threading.Lock()

    def align(self, audio: bytes, words: Sequence[str]) -> list[tuple[int, int]]:
        """Start and end of each word in samples, in order, within the audio."""
        end = len(audio) // 2
        with self._lock:
            parts = [self._parts(word) for word in words]
            found = iter(self._times(audio, [part for group in parts for part in group]))
        times: list[tuple[int, int] | None] = []
        for group in parts:
            inside = [time for _, time in zip(group, found, strict=False)]
            is_whole = bool(group) and len(inside) == len(group)
            times.append((inside[0][0], min(inside[-1][1], end)) if is_whole else None)
        return fill(words, times, end)

    def _parts(self, word: str) -> list[str]:
        """The entries of the dictionary that a word consists of; none if it lacks one."""
        if any(map(str.isdigit, word)):
            return []
        parts = [
            part.strip("'") if self._decoder.lookup_word(part) is None else part for part in _PART.findall(word.lower())
        ]
        return parts if all(part and self._decoder.lookup_word(part) is not None for part in parts) else []

    def _times(self, audio: bytes, parts: Sequence[str]) -> list[tuple[int, int]]:
        """The times of these words, as many as were found."""
        if not parts:
            return []
        decoder = self._decoder
        try:
            decoder.set_align_text(" ".join(parts))
            decoder.start_utt()
            decoder.process_raw(audio, full_utt=True)
            decoder.end_utt()
        except RuntimeError:  # pocketsphinx's only error: the text does not fit the audio at all
            return []
        segments = decoder.seg() or ()
        return [
            (segment.start_frame * FRAME, (segment.end_frame + 1) * FRAME)
            for segment in segments
            if not segment.word.startswith(("<", "[", "+"))
        ]


def fill(words: Sequence[str], times: Sequence[tuple[int, int] | None], end: int) -> list[tuple[int, int]]:
    """Times for all words: those that have none share the room between their neighbors. Pure."""
    filled: list[tuple[int, int]] = []
    for is_known, group in groupby(range(len(words)), key=lambda index: times[index] is not None):
        run = list(group)
        if is_known:
            filled += [time for index in run if (time := times[index]) is not None]
            continue
        after = times[run[-1] + 1] if run[-1] + 1 < len(words) else None
        begin = filled[-1][1] if filled else 0
        filled += spread([words[index] for index in run], begin, max(begin, after[0] if after else end))
    return filled


def open_aligner() -> SphinxAligner:
    """Load the acoustic model and the dictionary, 0.3 s and 40 MB. Raises EngineUnavailable."""
    try:
        from pocketsphinx import Decoder  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise EngineUnavailable(INSTALL.format(error.name or "pocketsphinx")) from error
    return SphinxAligner(Decoder(lm=None, loglevel="FATAL"))
