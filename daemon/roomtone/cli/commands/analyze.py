"""`roomtone analyze`: ask a language model about any stretch of the past."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import trio

from roomtone.backoff import Backoff
from roomtone.budget.ledger import Paid, Spent
from roomtone.cli.commands.coverage import Since
from roomtone.cli.commands.sinks import reading
from roomtone.cli.commands.sinks_control import writing
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.cli.output import say, say_json, say_text
from roomtone.cli.unit import enter
from roomtone.config.model import Config, find_key
from roomtone.journal.database import Database
from roomtone.journal.records import CoverageSpan
from roomtone.legible import legible
from roomtone.llm import conversations
from roomtone.llm.client import LLMClient, RequestFailed, Retryability
from roomtone.llm.completion import Completion
from roomtone.llm.conversations import AnalysisPrompt, Conversation, Progress
from roomtone.llm.prompt_task import Result, analyze
from roomtone.llm.settings import LLMSettings, RoomFacts
from roomtone.suggestions import unknown

MAX_ATTEMPTS = 6
"""Requests for one answer, where the failure is a passing one."""
MAX_RETRY_WAIT_S = 120.0
"""Seconds that a person is kept waiting between two of them."""


class Answered(msgspec.Struct, frozen=True):
    """What `--json` gives, one line for each room. Times are UTC, `cost` is in the currency of
    the budget, or null without a price.
    """

    room: str
    prompt: str
    start: datetime
    end: datetime
    text: str
    model: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None


class Job(NamedTuple):
    """What to ask about one room."""

    room: str
    prompt: AnalysisPrompt
    conversation: Conversation
    setting: LLMSettings


@click.command(short_help="Ask a language model about any stretch of the past.")
@config_option
@click.option(
    "--from", "since", type=Since(), metavar="TIME", required=True, help="A time, or a duration like 2h or 7d."
)
@click.option("--to", "until", type=Since(), metavar="TIME", help="A time, or how long ago. Default: now.")
@click.option("--prompt", "name", metavar="NAME", required=True, help="The table [analysis.NAME] to ask by.")
@click.option("--room", "chosen", metavar="NAME", multiple=True, help="Only this room; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one line for each room.")
def command(
    given: Path | None, since: datetime, until: datetime | None, name: str, chosen: tuple[str, ...], *, as_json: bool
) -> None:
    """Ask a language model, by a prompt of the configuration, about everything that was said in a stretch of time.

    The daemon may run meanwhile; the answer is printed and no event is made of it. What it will cost at most is said
    before it is asked, and what it did cost counts in the budget, which does not keep a person from asking.
    """
    enter(given)
    config, _ = load(given)
    journal = config.state(os.environ) / "journal.sqlite"
    jobs = list(jobs_of(config, name, chosen, since, until or datetime.now(UTC)))
    if not jobs:
        raise CommandFailure("nothing was said there that is in the journal")
    for job in jobs:
        with _progress(job.room) as progress:
            _tell(expected(job, config.budget.currency))
            result = trio.run(_ask, job, progress, partial(_pay, journal))
        answered = Answered(
            room=job.room,
            prompt=name,
            start=job.conversation.turns[0].at,
            end=job.conversation.until,
            text=result.completion.text,
            model=result.completion.model,
            requests=result.usage.requests,
            input_tokens=result.usage.input_tokens,
            output_tokens=result.usage.output_tokens,
            cost=result.cost,
        )
        if as_json:
            say_json(answered)
            continue
        if len(jobs) > 1:
            say(f"[{job.room}]")
        say_text(answered.text)
        cost = "" if answered.cost is None else f", {answered.cost:.4f} {config.budget.currency}"
        _tell(f"{answered.requests} requests, {answered.input_tokens} + {answered.output_tokens} tokens{cost}")


def jobs_of(config: Config, name: str, chosen: Sequence[str], since: datetime, until: datetime) -> Iterator[Job]:
    """What there is to ask about, room by room. Raises Failure and ConfigError with what is wrong."""
    if name not in config.analysis:
        raise CommandFailure(
            f"{config.path}: {unknown(f'prompt [analysis.{name}]', name, config.analysis)}", Exit.USAGE
        )
    if wrong := [room for room in chosen if room not in config.rooms]:
        raise CommandFailure(f"{config.path}: {unknown(f'room {wrong[0]}', wrong[0], config.rooms)}", Exit.USAGE)
    if since >= until:
        raise CommandFailure("--from must be before --to", Exit.USAGE)
    facts = {room: RoomFacts(table.rate, table.streaming) for room, table in config.rooms.items()}
    key = find_key(config, os.environ)
    setting = LLMSettings(config.gateway, config.analysis, facts, key, config.gateway_key_file)
    path = config.state(os.environ) / "journal.sqlite"
    if not path.exists():
        raise CommandFailure(f"{path}: nothing was recorded with this configuration yet")
    prompt = config.analysis[name]
    with reading(path) as database:
        for room in chosen or prompt.rooms or config.rooms:
            if conversation := said(database, room, facts[room].rate, since, until):
                yield Job(room, prompt, conversation, setting)


def said(database: Database, room: str, rate: int, since: datetime, until: datetime) -> Conversation | None:
    """All that was said in the room in this time, as one conversation."""
    spans = list(positions(database.covers(room, 0), rate, since, until))
    events = [event for start, end in spans for event in database.select(room, ["turn", "forgotten"], start, end)]
    turns = conversations.current(events)
    if not turns:
        return None
    ends = [max((word.end for word in turn.words), default=turn.position) for turn in turns]
    last = max(turn.at + timedelta(seconds=(end - turn.position) / rate) for turn, end in zip(turns, ends, strict=True))
    return Conversation(turns[0].position, max(ends), last, tuple(turns))


def positions(covers: Sequence[CoverageSpan], rate: int, since: datetime, until: datetime) -> Iterator[tuple[int, int]]:
    """The stretches of positions that were captured in this time. Pure."""
    for cover in covers:
        if cover.state != "captured" or cover.until <= since or cover.from_ >= until:
            continue
        start = cover.start + max(0, round((since - cover.from_).total_seconds() * rate))
        end = cover.end - max(0, round((cover.until - until).total_seconds() * rate))
        if start < end:
            yield start, end


def expected(job: Job, currency: str) -> str:
    """What asking will take, for a person."""
    parts = conversations.cut(conversations.lines(job.conversation.turns), job.prompt.portion)
    sent, got = conversations.estimate(job.prompt, parts)
    price = job.setting.access.price(job.prompt.model)
    cost = "" if price is None else f", at most {(sent * price.input + got * price.output) / 1e6:.4f} {currency}"
    return (
        f"{job.room}: {len(job.conversation.turns)} turns, {job.conversation.words} words, "
        f"about {sent} tokens to {job.prompt.model}{cost}"
    )


def _pay(journal: Path, room: str, spent: Spent) -> None:
    if spent.requests:
        with writing(journal) as database:
            database.put([Paid(room, time.time(), spent).mark])


async def _ask(job: Job, progress: Progress, pay: Callable[[str, Spent], None]) -> Result:
    access = job.setting.access
    gateway = LLMClient(access.timeout)

    async def ask(request: Mapping[str, Any]) -> Completion:
        model = request["model"]
        try:
            answer = await _ask_patiently(gateway, job, request)
        except RequestFailed as failed:
            pay(job.room, job.setting.spent(job.room, model, failed.usage))
            raise
        pay(job.room, job.setting.spent(job.room, model, answer.usage, answer.model))
        return answer

    try:
        return await analyze(job.prompt, job.room, job.conversation, ask, cost=job.setting.cost, progress=progress)
    except RequestFailed as failed:
        error = f"{failed}: {failed.said}" if failed.said else str(failed)
    raise CommandFailure(f"no answer: {error}")


async def _ask_patiently(gateway: LLMClient, job: Job, request: Mapping[str, Any]) -> Completion:
    backoff = Backoff(first=2.0)
    while True:
        try:
            return await gateway.ask(await job.setting.route(job.room), request)
        except RequestFailed as failed:
            delay = max(failed.wait, backoff.next())
            if (
                failed.verdict is not Retryability.PASSING
                or backoff.failures >= MAX_ATTEMPTS
                or delay > MAX_RETRY_WAIT_S
            ):
                raise
            _tell(f"{failed}; again in {delay:.0f} s")
        await trio.sleep(delay)


def _tell(text: str) -> None:
    """Beside the answer, which alone is on stdout."""
    say(text, err=True)


@contextmanager
def _progress(room: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield conversations.untold
        return
    from rich.console import Console  # noqa: PLC0415 - late: only a terminal wants it
    from rich.markup import escape  # noqa: PLC0415 - late, as above
    from rich.progress import Progress as Bar  # noqa: PLC0415 - late, as above

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(f"asking about {legible(room)}"), total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)
