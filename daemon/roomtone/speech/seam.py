"""Decides which words of a new session an old one has already said. Pure: words in, indexes out.

After a session has died, the next one is sent the last seconds again, so that some words are heard twice. Times alone
cannot tell which: two hearings of one word differ by a quarter of a second, and a turn's first word may start a second
early; measured over thousands of kills, times alone double or lose a word in 10 to 50 % of them. So the two hearings
are aligned by their text, and time only says which words may be the same one.

The old turns keep what they have: they are in the journal. Each owns the stretch from its first word to its last, so
that what lies between two old turns, such as a hole that is being repaired, is the new session's.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice

from roomtone.events import Word
from roomtone.protocol.turns import fold

SAME_TEXT_S = 0.9
"""Seconds by which the ends of one word may differ between two hearings that agree on its text."""
SAME_PLACE_S = 0.52
"""Seconds, likewise, where the two disagree: only the place says it is one word. Two jitters of a quarter second."""
MAX_ALIGNED = 512
"""Words of each hearing that are aligned: two minutes of talk, of which five seconds are sent again. Where there are
more it is not speech, and comparing all of them would hold up the loop for minutes."""
NEW_WORD_S = 0.15
"""Seconds that a word must end past an old turn to be new, where nothing of that turn could be aligned."""


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
    olds, news = _within_reach(old, new, rate), _within_reach(new, old, rate)
    texts, others = [fold(old[i].text) for i in olds], [fold(new[j].text) for j in news]
    best: list[list[tuple[float, float]]] = [[(0.0, 0.0)] * (len(news) + 1) for _ in range(len(olds) + 1)]
    for i in range(len(olds) - 1, -1, -1):
        for j in range(len(news) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            apart = abs(old[olds[i]].end - new[news[j]].end) / rate
            if apart <= SAME_TEXT_S and (worth := _worth(apart, is_same=texts[i] == others[j])):
                count, agreement = best[i + 1][j + 1]
                best[i][j] = max(best[i][j], (count + worth, agreement - apart))
    return [(olds[i], news[j]) for i, j in _walk(best, len(olds), len(news))]


def _within_reach(words: Sequence[Word], others: Sequence[Word], rate: int) -> list[int]:
    """The indexes of the words that may be one of the others, at most MAX_ALIGNED: no other can be part of a pair."""
    ends = sorted(word.end for word in others)
    reach = SAME_TEXT_S * rate
    near_one = (i for i, word in enumerate(words) if _is_near(ends, word.end, reach))
    return list(islice(near_one, MAX_ALIGNED))


def _is_near(ends: Sequence[int], end: int, reach: float) -> bool:
    place = bisect_left(ends, end - reach)
    return place < len(ends) and ends[place] <= end + reach


def _worth(apart: float, *, is_same: bool) -> int:
    return 3 if is_same else int(apart <= SAME_PLACE_S)


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
        begin, end = turn[0].end - SAME_PLACE_S * rate, turn[-1].end + NEW_WORD_S * rate
        if matched:
            (before, left), (_, right) = matched[0], matched[-1]
            owned.update(range(left, right + 1))
            # As many words before the first match as the turn has there, heard differently or only in half.
            owned.update(j for j in range(max(0, left - before), left) if new[j].end > begin)
        else:
            owned.update(j for j, word in enumerate(new) if begin < word.end <= end)
    return [j for j in range(len(new)) if j not in owned]
