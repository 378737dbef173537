"""The account of a room's every position and every second, summed up from the journal's coverage. Pure.

The law: between the first and the last that the journal knows of, every position is captured or lost, and so is every
second. What is neither is *unexplained*, and is a fault of the daemon. What is captured is transcribed, silent, unsent
(the gate or the budget held it back), removed (the quota took it before it was transcribed), forgotten (a user wanted
it gone), or pending.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from roomtone.events import Cause
from roomtone.journal.records import CoverageSpan
from roomtone.spans import Spans

ROUNDING_TOLERANCE = timedelta(seconds=0.75)
"""Time between two stretches up to which it is the noise of clocks: less than 200 ms of lateness, and naps of the
machine of less than half a second, are never held to be lost (`capture/sample_accounting.py`).
"""

State: TypeAlias = Literal["silent", "unsent", "transcribed", "pending", "forgotten", "removed", "lost", "unexplained"]

WORST_FIRST: tuple[State, ...] = (
    "unexplained",
    "lost",
    "removed",
    "forgotten",
    "pending",
    "transcribed",
    "silent",
    "unsent",
)
"""A part of the timeline that has several states shows the first of these."""


class Loss(msgspec.Struct, frozen=True):
    """The losses of one cause: their number, the samples that the source produced, and the seconds in all."""

    cause: Cause
    times: int
    samples: int
    seconds: float


class Unexplained(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Positions `start` to `end`, and the time `from` to `until`, of which the journal does not say what they are."""

    start: int
    end: int
    from_: datetime
    until: datetime


class Summary(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """One room's account from position `start` to `end`, which are the times `from` to `until` (UTC).

    `captured`, `transcribed` and the others up to `pending` are samples at `rate` Hz; `ratio` is the
    share of the time that was captured, whatever became of it; `twice` counts samples that are said to be both captured
    and lost, of which there are none.
    """

    room: str
    rate: int
    start: int
    end: int
    from_: datetime
    until: datetime
    ratio: float
    captured: int
    transcribed: int
    silent: int
    unsent: int
    removed: int
    forgotten: int
    pending: int
    twice: int
    lost: tuple[Loss, ...]
    unexplained: tuple[Unexplained, ...]

    @property
    def is_explained(self) -> bool:
        """True if the law holds."""
        return not self.unexplained and not self.twice


class TimelineSpan(NamedTuple):
    """A part of the timeline."""

    state: State
    from_: datetime
    until: datetime


def summarize(room: str, rate: int, covers: Iterable[CoverageSpan], *, since: datetime | None = None) -> Summary | None:
    """The account of the room's stretches, at `rate` Hz, from `since` on. None when there is nothing in them."""
    rows = _clip(list(covers), rate, since)
    audio = sorted((row for row in rows if row.state in {"captured", "lost"}), key=_place)
    if not audio:
        return None
    captured, lost = _spans(rows, "captured"), _spans(rows, "lost")
    # What a user has had forgotten is gone, whatever a session says later of the audio around it.
    forgotten = captured & _spans(rows, "forgotten")
    transcribed = (captured & _spans(rows, "transcribed")) - forgotten
    # What both a turn and a silence claim, at their edge, is the turn's; what was heard before it was removed counts.
    removed = (captured & _spans(rows, "removed")) - transcribed - forgotten
    silent = (captured & _spans(rows, "silent")) - transcribed - removed - forgotten
    unsent = (captured & _spans(rows, "unsent")) - transcribed - removed - forgotten - silent
    unexplained = tuple(_unexplained(audio))
    losses = tuple(_losses(audio, rate))
    missing = sum(loss.seconds for loss in losses) + sum(_seconds(one.from_, one.until) for one in unexplained)
    return Summary(
        room=room,
        rate=rate,
        start=audio[0].start,
        end=max(row.end for row in audio),
        from_=min(row.from_ for row in audio),
        until=max(row.until for row in audio),
        ratio=captured.total / rate / (captured.total / rate + missing) if captured else 0.0,
        captured=captured.total,
        transcribed=transcribed.total,
        silent=silent.total,
        unsent=unsent.total,
        removed=removed.total,
        forgotten=forgotten.total,
        pending=(captured - transcribed - silent - unsent - removed - forgotten).total,
        twice=(captured & lost).total,
        lost=losses,
        unexplained=unexplained,
    )


def draw(covers: Iterable[CoverageSpan], cells: int, *, rate: int, since: datetime | None = None) -> list[State | None]:
    """The room's time in equal parts: the worst state of each, None where there is nothing."""
    stretches = list(_stretches(_clip(list(covers), rate, since)))
    if not stretches:
        return []
    begin, end = min(one.from_ for one in stretches), max(one.until for one in stretches)
    width = max(_seconds(begin, end) / cells, 1e-6)
    parts: list[State | None] = [None] * cells
    for state in reversed(WORST_FIRST):
        for one in stretches:
            if one.state == state:
                first = min(int(_seconds(begin, one.from_) / width), cells - 1)
                last = max(first, min(int(_seconds(begin, one.until) / width - 1e-9), cells - 1))
                parts[first : last + 1] = [state] * (last + 1 - first)
    return parts


def _place(row: CoverageSpan) -> tuple[int, int, datetime]:
    return row.start, row.end, row.from_


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()


def _spans(rows: Sequence[CoverageSpan], state: str) -> Spans:
    return Spans((row.start, row.end) for row in rows if row.state == state)


def _clip(rows: list[CoverageSpan], rate: int, since: datetime | None) -> list[CoverageSpan]:
    """The rows from that time on. One position stands for it, so that what belongs together is cut in one place."""
    if since is None:
        return rows
    audio = sorted((row for row in rows if row.state in {"captured", "lost"} and row.until > since), key=_place)
    if not audio:
        return []
    first = audio[0]
    cut = first.start
    if first.from_ < since and first.start < first.end:
        cut = min(first.start + round(_seconds(first.from_, since) * rate), first.end)
    return [
        msgspec.structs.replace(row, start=max(row.start, cut), from_=max(row.from_, min(since, row.until)))
        for row in rows
        if row.end > cut or (row.start == row.end == cut and row.until > since)
    ]


def _unexplained(audio: Sequence[CoverageSpan]) -> Iterator[Unexplained]:
    """The spaces between the stretches, in positions or in time alone."""
    position, time = audio[0].start, audio[0].from_
    for row in audio:
        if row.start > position or row.from_ - time > ROUNDING_TOLERANCE:
            yield Unexplained(position, max(row.start, position), time, max(row.from_, time))
        # Samples that come after all others date the room anew, also where the clock was set back.
        is_next = row.start >= position and row.start < row.end
        position, time = max(position, row.end), row.until if is_next else max(time, row.until)


def _losses(audio: Sequence[CoverageSpan], rate: int) -> Iterator[Loss]:
    lost = [row for row in audio if row.state == "lost"]
    for cause in dict.fromkeys(row.cause for row in lost if row.cause is not None):
        rows = [row for row in lost if row.cause == cause]
        samples = Spans((row.start, row.end) for row in rows).total
        seconds = sum(max(_seconds(row.from_, row.until), (row.end - row.start) / rate) for row in rows)
        yield Loss(cause, len(rows), samples, round(seconds, 3))


def _stretches(rows: Sequence[CoverageSpan]) -> Iterator[TimelineSpan]:
    """The timeline: what is captured is pending, with what has become of it drawn over."""
    audio = sorted((row for row in rows if row.state in {"captured", "lost"}), key=_place)
    if audio:
        yield from (TimelineSpan("unexplained", one.from_, one.until) for one in _unexplained(audio))
    captured = [row for row in audio if row.state == "captured"]
    heard = Spans((row.start, row.end) for row in rows if row.state not in {"captured", "lost"})
    for row in captured:
        length = max(row.end - row.start, 1)
        for span in Spans([(row.start, row.end)]) - heard:
            share = [(edge - row.start) / length for edge in span]
            begin, end = (row.from_ + (row.until - row.from_) * part for part in share)
            yield TimelineSpan("pending", begin, end)
    for row in rows:
        if row.state != "captured" and row.from_ < row.until:
            yield TimelineSpan(row.state, row.from_, row.until)
