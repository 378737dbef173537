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


def align(old: Sequence[Word], new: Sequence[Word], rate: int) -> list[tuple[int, int]]:
    """The pairs (index in old, index in new) that are one word heard twice, both ascending.

    The longest common subsequence, where a pair of the same text counts three and a pair of the same place but another
    text counts one (a word heard differently must not be taken for two); of equal sums the one whose times agree best.
    """
    best: list[list[tuple[float, float]]] = [[(0.0, 0.0)] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in range(len(old) - 1, -1, -1):
        for j in range(len(new) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            if worth := _worth(old[i], new[j], rate):
                count, agreement = best[i + 1][j + 1]
                best[i][j] = max(best[i][j], (count + worth, agreement - abs(old[i].end - new[j].end) / rate))
    pairs = []
    i = j = 0
    while i < len(old) and j < len(new):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            pairs.append((i, j))
            i, j = i + 1, j + 1
    return pairs


def _worth(old: Word, new: Word, rate: int) -> int:
    apart = abs(old.end - new.end) / rate
    if fold(old.text) == fold(new.text):
        return 3 if apart <= SAME_TEXT else 0
    return 1 if apart <= SAME_PLACE else 0


def unheard(turns: Sequence[Sequence[Word]], new: Sequence[Word], rate: int) -> list[int]:
    """The indexes of the words in `new` that none of the old turns owns, ascending: those are to be journalled.

    A turn owns the new words from its first match to its last; where none of its words matches, those that end inside
    it, or at most 0.15 s past it.
    """
    turns = [turn for turn in turns if turn]
    pairs = align([word for turn in turns for word in turn], new, rate)
    owned: set[int] = set()
    first = 0
    for turn in turns:
        matched = [j for i, j in pairs if first <= i < first + len(turn)]
        first += len(turn)
        if matched:
            owned.update(range(matched[0], matched[-1] + 1))
            begin = turn[0].start - NEW * rate
            owned.update(j for j in range(matched[0]) if new[j].end > begin)
        else:
            begin, end = turn[0].start, turn[-1].end + NEW * rate
            owned.update(j for j, word in enumerate(new) if begin < word.end <= end)
    return [j for j in range(len(new)) if j not in owned]
