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
from roomtone.cli.commands.sinks import open_for_reading
from roomtone.cli.commands.sinks_control import open_for_writing
from roomtone.cli.config_option import config_option, load
from roomtone.cli.exit_codes import CommandFailure, Exit, check_names
from roomtone.cli.output import say, say_json, say_text
from roomtone.cli.unit import continue_as_service
from roomtone.config.model import Config, find_key
from roomtone.journal.database import Database
from roomtone.journal.records import CoverageSpan
from roomtone.legible import count_of, legible
from roomtone.llm import conversations
from roomtone.llm.client import LLMClient, RequestFailed, Retryability
from roomtone.llm.completion import Completion
from roomtone.llm.conversations import AnalysisPrompt, Conversation, Progress
from roomtone.llm.prompt_task import Result, analyze
from roomtone.llm.settings import LLMSettings, RoomFacts

MAX_ATTEMPTS = 6
"""Requests for one answer while failures are transient."""
MAX_RETRY_WAIT_S = 120.0
"""Seconds that a user waits between two requests at most."""


class AnalysisReport(msgspec.Struct, frozen=True):
    """The output of `--json`, one line for each room. Times are UTC; `cost` is in the currency of the budget, or null
    without a price.
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
    """One question about one room."""

    room: str
    prompt: AnalysisPrompt
    conversation: Conversation
    settings: LLMSettings


@click.command(short_help="Ask a language model about any stretch of the past.")
@config_option
@click.option("--from", "since", type=Since(), metavar="TIME", required=True, help="A time, or how long ago: 2h, 7d.")
@click.option("--to", "until", type=Since(), metavar="TIME", help="A time, or how long ago. Default: now.")
@click.option("--prompt", "name", metavar="NAME", required=True, help="The prompt: the table [analysis.NAME].")
@click.option("--room", "chosen", metavar="NAME", multiple=True, help="Only this room; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one line for each room.")
def command(
    given: Path | None, since: datetime, until: datetime | None, name: str, chosen: tuple[str, ...], *, as_json: bool
) -> None:
    """Ask a language model about everything that was said in a stretch of time, with a prompt from the configuration.

    The daemon may keep running. The answer is printed and does not become an event. The highest possible cost is shown
    before the model is asked. The actual cost counts in the budget, but the budget does not block this command.
    """
    continue_as_service(given)
    config, _ = load(given)
    journal = config.state(os.environ) / "journal.sqlite"
    jobs = list(plan_jobs(config, name, chosen, since, until or datetime.now(UTC)))
    if not jobs:
        raise CommandFailure("the journal has no turns in that stretch of time")
    for job in jobs:
        with _open_progress(job.room) as progress:
            _print_aside(describe_job(job, config.budget.currency))
            result = trio.run(_ask, job, progress, partial(_pay, journal))
        report = AnalysisReport(
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
            say_json(report)
            continue
        if len(jobs) > 1:
            say(f"[{job.room}]")
        say_text(report.text)
        cost = "" if report.cost is None else f", {report.cost:.4f} {config.budget.currency}"
        _print_aside(
            f"{count_of(report.requests, 'request')}, {report.input_tokens} + {report.output_tokens} tokens{cost}"
        )


def plan_jobs(config: Config, name: str, chosen: Sequence[str], since: datetime, until: datetime) -> Iterator[Job]:
    """The questions, room by room. Raises CommandFailure and ConfigError."""
    check_names("prompt", [name], config.analysis)
    check_names("room", chosen, config.rooms)
    if since >= until:
        raise CommandFailure("--from must be before --to", Exit.USAGE)
    facts = {room: RoomFacts(table.rate, table.streaming) for room, table in config.rooms.items()}
    key = find_key(config, os.environ)
    settings = LLMSettings(config.gateway, config.analysis, facts, key, config.gateway_key_file)
    path = config.state(os.environ) / "journal.sqlite"
    if not path.exists():
        raise CommandFailure(f"{path}: nothing has been recorded with this configuration yet")
    prompt = config.analysis[name]
    with open_for_reading(path) as database:
        for room in chosen or prompt.rooms or config.rooms:
            if conversation := find_conversation(database, room, facts[room].rate, since, until):
                yield Job(room, prompt, conversation, settings)


def find_conversation(
    database: Database, room: str, rate: int, since: datetime, until: datetime
) -> Conversation | None:
    """Everything that was said in the room in this time, as one conversation."""
    spans = list(find_spans(database.covers(room, 0), rate, since, until))
    events = [event for start, end in spans for event in database.select(room, ["turn", "forgotten"], start, end)]
    turns = conversations.current(events)
    if not turns:
        return None
    ends = [max((word.end for word in turn.words), default=turn.position) for turn in turns]
    last = max(turn.at + timedelta(seconds=(end - turn.position) / rate) for turn, end in zip(turns, ends, strict=True))
    return Conversation(turns[0].position, max(ends), last, tuple(turns))


def find_spans(
    covers: Sequence[CoverageSpan], rate: int, since: datetime, until: datetime
) -> Iterator[tuple[int, int]]:
    """The spans of positions that were captured in this time. Pure."""
    for span in covers:
        if span.state != "captured" or span.until <= since or span.from_ >= until:
            continue
        start = span.start + max(0, round((since - span.from_).total_seconds() * rate))
        end = span.end - max(0, round((span.until - until).total_seconds() * rate))
        if start < end:
            yield start, end


def describe_job(job: Job, currency: str) -> str:
    """The size and the highest cost of a question, for a user."""
    parts = conversations.cut(conversations.lines(job.conversation.turns), job.prompt.portion)
    sent, received = conversations.estimate(job.prompt, parts)
    price = job.settings.access.price(job.prompt.model)
    cost = "" if price is None else f", at most {(sent * price.input + received * price.output) / 1e6:.4f} {currency}"
    return (
        f"{job.room}: {count_of(len(job.conversation.turns), 'turn')}, {count_of(job.conversation.words, 'word')}, "
        f"about {sent} tokens to {job.prompt.model}{cost}"
    )


def _pay(journal: Path, room: str, spent: Spent) -> None:
    if spent.requests:
        with open_for_writing(journal) as database:
            database.put([Paid(room, time.time(), spent).mark])


async def _ask(job: Job, progress: Progress, pay: Callable[[str, Spent], None]) -> Result:
    access = job.settings.access
    gateway = LLMClient(access.timeout)

    async def ask(request: Mapping[str, Any]) -> Completion:
        model = request["model"]
        try:
            answer = await _ask_with_retries(gateway, job, request)
        except RequestFailed as failed:
            pay(job.room, job.settings.spent(job.room, model, failed.usage))
            raise
        pay(job.room, job.settings.spent(job.room, model, answer.usage, answer.model))
        return answer

    try:
        return await analyze(job.prompt, job.room, job.conversation, ask, cost=job.settings.cost, progress=progress)
    except RequestFailed as failed:
        error = f"{failed}: {failed.said}" if failed.said else str(failed)
    raise CommandFailure(f"no answer: {error}")


async def _ask_with_retries(gateway: LLMClient, job: Job, request: Mapping[str, Any]) -> Completion:
    backoff = Backoff(first=2.0)
    while True:
        try:
            return await gateway.ask(await job.settings.route(job.room), request)
        except RequestFailed as failed:
            delay = max(failed.wait, backoff.next())
            if (
                failed.verdict is not Retryability.PASSING
                or backoff.failures >= MAX_ATTEMPTS
                or delay > MAX_RETRY_WAIT_S
            ):
                raise
            _print_aside(f"{failed}; retrying in {delay:.0f} s")
        await trio.sleep(delay)


def _print_aside(text: str) -> None:
    """Print to standard error: standard output has only the answer."""
    say(text, err=True)


@contextmanager
def _open_progress(room: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; elsewhere nothing is shown."""
    if not sys.stderr.isatty():
        yield conversations.untold
        return
    from rich.console import Console  # noqa: PLC0415 - late: only a terminal needs it
    from rich.markup import escape  # noqa: PLC0415 - late, as above
    from rich.progress import Progress as Bar  # noqa: PLC0415 - late, as above

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(f"asking about {legible(room)}"), total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)
