"""Conversations, made of turns: their ends, their form for a language model, and their division. Pure.

A conversation is a run of turns without a long silence. It is *over* when what closes it is settled: a hole that is
still to be transcribed may hold the words that belong to it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from roomtone.events import Durable, Forgotten, Gap, RecordingStopped, SessionEnded, SessionStarted, Turn
from roomtone.llm import completion
from roomtone.spans import Spans

BYTES_PER_TOKEN = 3.5
"""English has four letters to a token; UTF-8 spends three bytes where other scripts have a token for each letter."""
AFTER = 5.0
"""Minutes of silence that end a conversation, where nothing else is said."""

Name = Annotated[str, Meta(min_length=1, max_length=200)]


class AnalysisPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[analysis.<name>]` table: what a language model is asked about each conversation when it is over."""

    prompt: Annotated[str, Meta(min_length=1)]
    """`{{transcript}}` becomes the conversation, `{{room}}`, `{{start}}` and `{{end}}` where and when it was."""
    model: Name
    max_tokens: Annotated[int, Meta(ge=1)] = 1000
    fallbacks: tuple[Name, ...] = ()
    """Models to ask, in this order, when the one before gives no answer."""
    system: str | None = None
    """The system prompt: the same fields are filled in."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    rooms: tuple[str, ...] = ()
    """Only conversations in these rooms; empty means all."""
    after: Annotated[float, Meta(gt=0, le=1440)] | None = None
    """Minutes of silence that end a conversation: AFTER, or, in a room with a gate, the end of its session."""
    longest: Annotated[float, Meta(ge=1, le=10_080)] = 240.0
    """Minutes after which a conversation without such a silence is cut at a turn."""
    context: Annotated[int, Meta(ge=500)] = 100_000
    """Tokens of the transcript that one request may hold; a longer one is asked about in parts."""
    least_words: Annotated[int, Meta(ge=1)] = 5
    """A conversation of fewer words is not asked about."""

    @property
    def times(self) -> int:
        """The number of times that a request holds the transcript."""
        return max(1, sum(completion.count(text, "transcript") for text in (self.prompt, self.system or "")))

    @property
    def portion(self) -> int:
        """Tokens that a part of the transcript may have."""
        return max(1, self.context // self.times)

    def request(self, model: str, transcript: str, values: Mapping[str, str]) -> dict[str, Any]:
        """The body that asks this model about the transcript."""
        known = {**values, "transcript": transcript}
        messages = [{"role": "user", "content": completion.fill(self.prompt, known)}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": completion.fill(self.system, known)})
        body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": self.max_tokens}
        return body if self.temperature is None else body | {"temperature": self.temperature}


class ConversationLimits(NamedTuple):
    """The ends of a conversation: this silence, the end of a session if `by_session`, and this length at the latest.

    `rate` is the room's, in Hz.
    """

    rate: int
    quiet: timedelta
    longest: timedelta
    by_session: bool = False


def limits_of(prompt: AnalysisPrompt, rate: int, *, gated: bool) -> ConversationLimits:
    """The limits of a conversation for this prompt in a room of this rate, whose sessions follow speech if `gated`."""
    minutes = AFTER if prompt.after is None else prompt.after
    by_session = gated and prompt.after is None
    return ConversationLimits(rate, timedelta(minutes=minutes), timedelta(minutes=prompt.longest), by_session)


class Conversation(NamedTuple):
    """Turns that belong together, by position; positions `start` to `end`, and the time of its last word."""

    start: int
    end: int
    until: datetime
    turns: tuple[Turn, ...]

    @property
    def words(self) -> int:
        return sum(len(turn.text.split()) for turn in self.turns)


def current(events: Iterable[Durable]) -> list[Turn]:
    """The turns that hold, by position: each correction in the place of what it corrects, and nothing forgotten."""
    events = list(events)
    turns = [event for event in events if isinstance(event, Turn)]
    gone = {turn.supersedes for turn in turns}
    forgotten = [event for event in events if isinstance(event, Forgotten)]
    kept = (
        turn
        for turn in turns
        if turn.id not in gone and not any(each.start < _end(turn) and turn.position < each.end for each in forgotten)
    )
    return sorted(kept, key=lambda turn: (turn.position, turn.seq))


def edges(events: Iterable[Durable], *, by_session: bool) -> list[int]:
    """Positions that no conversation spans: where a recording stopped and, if `by_session`, where no session was open.

    A session that is relieved ends after the next one has begun, and one that died has ended nothing. Of one that died
    with its daemon has no recorded end.
    """
    found: list[int] = []
    open_sessions: set[str] = set()
    for event in sorted(events, key=lambda event: event.seq):
        match event:
            case RecordingStopped():
                found.append(event.position)
            case Gap(cause="daemon down"):
                open_sessions.clear()
            case SessionStarted():
                open_sessions.add(event.session_id)
            case SessionEnded():
                open_sessions.discard(event.session_id)
                if by_session and not open_sessions and event.reason == "terminated":
                    found.append(event.position)
    return sorted(found)


def conversations_in(turns: Sequence[Turn], edges: Sequence[int], rules: ConversationLimits) -> list[Conversation]:
    """The conversations that these turns, in order of position, are."""
    found: list[Conversation] = []
    for turn in turns:
        end = _end(turn)
        until = turn.at + timedelta(seconds=(end - turn.position) / rules.rate)
        if found and _continues(found[-1], turn, edges, rules):
            last = found[-1]
            found[-1] = Conversation(last.start, max(last.end, end), max(last.until, until), (*last.turns, turn))
        else:
            found.append(Conversation(turn.position, end, until, (turn,)))
    return found


def _end(turn: Turn) -> int:
    return max((word.end for word in turn.words), default=turn.position)


def _continues(last: Conversation, turn: Turn, edges: Sequence[int], rules: ConversationLimits) -> bool:
    return not (
        turn.at - last.until >= rules.quiet
        or turn.at - last.turns[0].at >= rules.longest
        or any(last.turns[-1].position < edge <= turn.position for edge in edges)
    )


def first_over(
    turns: Sequence[Turn], edges: Sequence[int], rules: ConversationLimits, *, settled: Spans, head: int, now: datetime
) -> Conversation | None:
    """The first of these conversations, if it is over.

    `settled` are the positions whose transcript is known; `head` is the room's last recorded position. Silence counts
    in samples, and, while the room has no source and everything is settled, in time.
    """
    conversations = conversations_in(turns, edges, rules)
    if not conversations:
        return None
    first = conversations[0]
    known = settled.reach(first.start)
    if len(conversations) > 1:
        # Up to its own last word where the next one is a cut by length, so nothing waits for the end of it.
        return first if known >= conversations[1].start else None
    edge = next((edge for edge in edges if edge > first.turns[-1].position), None)
    is_silent = known >= first.end + rules.quiet.total_seconds() * rules.rate
    is_left = known >= head and now - first.until >= rules.quiet
    return first if is_silent or is_left or (edge is not None and known >= edge) else None


# --- what a language model gets ---------------------------------------------------------------------------------------


def values_of(room: str, conversation: Conversation) -> dict[str, str]:
    """The values that a prompt may name besides the transcript."""
    return {"room": room, "start": _moment(conversation.turns[0].at), "end": _moment(conversation.until)}


def lines(turns: Iterable[Turn]) -> Iterator[str]:
    """The transcript: a line for each turn, or each change of speaker in it, with the time (UTC) and the speaker."""
    for turn in turns:
        for speaker, text in _paragraphs(turn):
            name = f"{speaker}: " if speaker else ""
            yield f"[{turn.at.astimezone(UTC):%H:%M:%S}] {name}{' '.join(text.split())}"


def _paragraphs(turn: Turn) -> Iterator[tuple[str | None, str]]:
    speakers = {word.speaker for word in turn.words}
    if len(speakers) < 2:
        yield turn.speaker or next(iter(speakers), None), turn.text
        return
    for speaker, words in groupby(turn.words, key=lambda word: word.speaker):
        yield speaker, " ".join(word.text for word in words)


def tokens(text: str) -> int:
    """About how many tokens a text is, rather more than fewer."""
    return -(-len(text.encode()) * 2 // round(2 * BYTES_PER_TOKEN))


def cut(lines: Iterable[str], most: int) -> list[str]:
    """The lines in parts of at most `most` tokens, cut between lines, and inside one only where it is longer alone."""
    parts: list[list[str]] = []
    room = 0
    for line in lines:
        for piece in _fitting(line, most):
            size = tokens(piece) + 1
            if not parts or size > room:
                parts.append([])
                room = most
            parts[-1].append(piece)
            room -= size
    return ["\n".join(part) for part in parts]


def _fitting(line: str, most: int) -> Iterator[str]:
    while tokens(line) >= most:
        size = max(1, int((most - 1) * BYTES_PER_TOKEN))
        head = line.encode()[:size].decode("utf-8", "ignore")
        end = head.rfind(" ") if " " in head else len(head)
        yield line[:end]
        line = line[end:].lstrip()
    yield line


def part(number: int, count: int, text: str) -> str:
    """A part of a transcript that is longer than one request."""
    return f"(This is part {number} of {count} of one conversation.)\n\n{text}"


def combine(answers: Sequence[str], most: int) -> list[str]:
    """The next question, in place of a transcript, to make one answer of those to its parts.

    One text where they fit into `most` tokens, else several; fewer than there are answers, so that it comes to an end.
    """
    groups: list[list[str]] = []
    room = 0
    for number, answer in enumerate(answers, 1):
        text = f"Part {number}:\n{answer}"
        size = tokens(text) + 2
        if not groups or (size > room and len(groups[-1]) > 1):
            groups.append([])
            room = most
        groups[-1].append(text)
        room -= size
    if len(groups) > 1 and len(groups[-1]) == 1:
        single = groups.pop()
        groups[-1] += single
    return [_COMBINING + "\n\n".join(group) for group in groups]


_COMBINING = (
    "(The conversation was too long for one request. In its place stand the answers to this same task for its parts, "
    "in order. Make one answer of them, as if it were for the whole conversation, and do not mention the parts.)\n\n"
)


def estimate(prompt: AnalysisPrompt, parts: Sequence[str]) -> tuple[int, int]:
    """About how many tokens, at most, asking about these parts sends and gets back."""
    around = tokens(prompt.prompt) + tokens(prompt.system or "")
    sent = sum(prompt.times * tokens(text) + around for text in parts)
    got = prompt.max_tokens * len(parts)
    return (sent, got) if len(parts) < 2 else (sent + prompt.times * got + around, got + prompt.max_tokens)


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


Progress = Callable[[int, int], None]
"""Told how many requests are done, and how many there will be at least."""


def untold(done: int, count: int) -> None:
    """Reports no progress."""
