"""Which words of a new session an old one has already said. Pure: words in, indexes out.

After a session has died, the next one is sent the last seconds again, so that some words are heard twice. Times alone
cannot tell which: two hearings of one word differ by a quarter of a second, and a turn's first word may start a second
early; measured over thousands of kills, times alone double or lose a word in 10 to 50 % of them. So the two hearings
are aligned by their text, and time only says which words may be the same one.

The old turns keep what they have: they are in the journal. Each owns the stretch from its first word to its last, so
that what lies between two old turns, such as a hole that is being repaired, is the new session's.
"""

from collections.abc import Sequence

from roomtone.events import Word

SAME_TEXT = 0.9
"""Seconds by which the ends of one word may differ between two hearings that agree on its text."""
SAME_PLACE = 0.52
"""Seconds, likewise, where the two disagree: only the place says it is one word. Two jitters of a quarter second."""
NEW = 0.15
"""Seconds that a word must end past an old turn to be new, where nothing of that turn could be aligned."""


def fold(text: str) -> str:
    """A word's text for comparison: without case and punctuation."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def near(turns: Sequence[Sequence[Word]], new: Sequence[Word], rate: int) -> list[Sequence[Word]]:
    """The old turns that may have words in common with the new ones: those within a second of them."""
    if not new:
        return []
    begin, end = min(word.start for word in new) - rate, max(word.end for word in new) + rate
    return [turn for turn in turns if turn and turn[-1].end > begin and turn[0].start < end]


def align(old: Sequence[Word], new: Sequence[Word], rate: int) -> list[tuple[int, int]]:
    """The pairs (index in old, index in new) that are one word heard twice, both ascending.

    The longest common subsequence, where a pair of the same text counts three and a pair of the same place but another
    text counts one (a word heard differently must not be taken for two); of equal sums the one whose times agree best.
    """
    texts, others = [fold(word.text) for word in old], [fold(word.text) for word in new]
    best: list[list[tuple[float, float]]] = [[(0.0, 0.0)] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in range(len(old) - 1, -1, -1):
        for j in range(len(new) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            apart = abs(old[i].end - new[j].end) / rate
            if apart <= SAME_TEXT and (worth := _worth(apart, is_same=texts[i] == others[j])):
                count, agreement = best[i + 1][j + 1]
                best[i][j] = max(best[i][j], (count + worth, agreement - apart))
    return _walk(best, len(old), len(new))


def _worth(apart: float, *, is_same: bool) -> int:
    return 3 if is_same else int(apart <= SAME_PLACE)


def _walk(best: list[list[tuple[float, float]]], olds: int, news: int) -> list[tuple[int, int]]:
    pairs = []
    i = j = 0
    while i < olds and j < news:
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            pairs.append((i, j))
            i, j = i + 1, j + 1
    return pairs


def unheard(turns: Sequence[Sequence[Word]], new: Sequence[Word], rate: int) -> list[int]:
    """The indexes of the words in `new` that none of the old turns owns, ascending: those are to be journalled.

    A turn owns the new words from its first match to its last; where none of its words matches, those that end inside
    it, or at most 0.15 s past it.
    """
    turns = near(turns, new, rate)
    pairs = align([word for turn in turns for word in turn], new, rate)
    owned: set[int] = set()
    first = 0
    for turn in turns:
        matched = [(i - first, j) for i, j in pairs if first <= i < first + len(turn)]
        first += len(turn)
        # A turn's first start may be a second early; its first end is not.
        begin, end = turn[0].end - SAME_PLACE * rate, turn[-1].end + NEW * rate
        if matched:
            (before, left), (_, right) = matched[0], matched[-1]
            owned.update(range(left, right + 1))
            # As many words before the first match as the turn has there, heard differently or only in half.
            owned.update(j for j in range(max(0, left - before), left) if new[j].end > begin)
        else:
            owned.update(j for j, word in enumerate(new) if begin < word.end <= end)
    return [j for j in range(len(new)) if j not in owned]
