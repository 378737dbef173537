"""What the recorder writes into the journal about audio: always all the facts of one thing together. Pure."""

from roomtone.capture.account import Lost
from roomtone.capture.segment import Segment
from roomtone.events import Audio, Gap
from roomtone.facts import Cover, Fact, Mark


def key(room: str, name: str) -> str:
    """The key of a room's mark.

    `rate`: Hz, by its first sample. `audio`: the position up to which segments are in the journal. `stopped`: where
    and when the last run came to its end. `file`: the file that is being recorded and where it began.
    """
    return f"room/{room}/{name}"


def audio_entry(room: str, rate: int, segment: Segment) -> list[Fact]:
    """A segment is closed."""
    return [
        Audio(
            room=room,
            position=segment.position,
            at=segment.at,
            samples=segment.samples,
            rate=rate,
            file=str(segment.path),
            fresh=segment.fresh,
        ),
        Cover(
            room=room,
            start=segment.position,
            end=segment.end,
            state="captured",
            cause=None,
            from_=segment.at,
            until=segment.when(segment.end, rate),
        ),
        Mark(key(room, "audio"), segment.end),
    ]


def loss_entry(room: str, lost: Lost) -> list[Fact]:
    """Positions, or only time, are missing."""
    start, end, from_, until, cause = lost.start, lost.end, lost.from_, lost.until, lost.cause
    return [
        Gap(room=room, position=start, at=from_, start=start, end=end, from_=from_, until=until, cause=cause),
        Cover(room=room, start=start, end=end, state="lost", cause=cause, from_=from_, until=until),
    ]
