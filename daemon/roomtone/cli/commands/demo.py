"""`roomtone demo`: play a recorded conversation through the whole daemon."""

import os
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

import click
import tomli_w
import trio

from roomtone import daemon
from roomtone.cli.commands.check import recognizer_fault
from roomtone.cli.commands.sinks import open_for_reading
from roomtone.cli.demo_receiver import Receiver, open_receiver
from roomtone.cli.display import Screen, open_display
from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.cli.output import say
from roomtone.cli.recording_summary import RecordingCoverage, Tally, coverage_of
from roomtone.config import loader
from roomtone.delivery.plugins import load_plugins
from roomtone.legible import count_of
from roomtone.monitoring import logs
from roomtone.protocol import parameters

ROOM = "meeting"


@click.command(short_help="Play a recorded conversation through the whole recorder.")
@click.option(
    "--directory",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="The folder for all files of the demo.",
)
@click.option(
    "--endpoint",
    metavar="ENDPOINT",
    default="local",
    show_default=True,
    help="local, assemblyai, assemblyai-eu, or a ws:// or wss:// address.",
)
@click.option("--fast", is_flag=True, help="As fast as the recognizer can process it, instead of in real time.")
def command(directory: Path, endpoint: str, *, fast: bool) -> None:
    """Play a recorded conversation through the whole recorder and watch.

    Half a minute of two voices is recorded, transcribed by the local recognizer, written as WAV and JSON lines, and
    posted to a webhook receiver that this command starts itself. It needs no microphone, no key and no account. At the
    end it lists the files that it wrote, and accounts for every sample. Ctrl-C ends it early and cleanly.
    """
    begun = time.time()
    tally = Tally()
    with _log(directory) as log, open_display(terminal=sys.stdout.isatty()) as display:
        logs.configure("info", log)
        receiver = trio.run(partial(_play, directory, endpoint, fast=fast, display=display, tally=tally))
    coverage = _coverage(directory, tally)
    for line in summary(directory, begun, tally, coverage, receiver.posts):
        say(line)
    say("", "next: `roomtone init` writes a configuration for your microphone, and `roomtone run` records it")
    if coverage is None or coverage.captured + coverage.lost < coverage.samples:
        raise CommandFailure(f"some samples are not accounted for; see {directory / 'roomtone.log'}")


@contextmanager
def _log(directory: Path) -> Iterator[TextIO]:
    """Open the log file in the folder: the terminal is for captions."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "roomtone.log").open("a", encoding="utf-8")
    except OSError as error:
        text = f"{directory}: cannot be written: {error.strerror}; name another folder with --directory"
        raise CommandFailure(text, Exit.CANTCREAT) from None
    with file:
        yield file


async def _play(directory: Path, endpoint: str, *, fast: bool, display: Any, tally: Tally) -> Receiver:
    # The daemon would wait until a recognizer is installed; a demo fails instead.
    if endpoint == parameters.LOCAL and (fault := await recognizer_fault()):
        raise CommandFailure(fault)
    with _recording() as recording:
        async with open_receiver() as receiver:
            tables = tables_of(recording, endpoint, receiver.url, fast=fast)
            path = directory / "roomtone.toml"
            path.write_text(HEADER + tomli_w.dumps(tables), encoding="utf-8")
            config = loader.decode(tables, path, load_plugins(()))
            config.sinks["screen"] = Screen(display=display, tally=tally)
            # The demo stays in its folder, even under systemd.
            environ = {name: value for name, value in os.environ.items() if name != "STATE_DIRECTORY"}
            await daemon.run(config, environ, lambda: config)
    return receiver


def tables_of(recording: Path, endpoint: str, url: str, *, fast: bool) -> dict[str, Any]:
    """The configuration of the demo. Nothing in it is special. Pure."""
    source = {"kind": "file", "path": str(recording), "pace": "fast" if fast else "realtime"}
    return {
        "service": {"state": "state"},
        "rooms": {ROOM: {"source": source, "streaming": {"endpoint": endpoint}}},
        "sinks": {
            "recordings": {"kind": "wav", "directory": "recordings"},
            "log": {"kind": "jsonl", "path": "events.jsonl"},
            "hook": {"kind": "webhook", "url": url},
        },
    }


HEADER = "# The configuration of the last `roomtone demo`. Its webhook receiver ended with it.\n\n"


def summary(
    directory: Path, begun: float, tally: Tally, coverage: RecordingCoverage | None, posts: int
) -> Iterator[str]:
    """The lines of the summary."""
    yield ""
    yield f"written to {directory}"
    for path in sorted(directory.rglob("*")):
        is_ours = path.suffix in {".wav", ".json", ".jsonl"} and "state" not in path.relative_to(directory).parts
        if is_ours and path.stat().st_mtime >= begun - 1:
            yield f"  {path.relative_to(directory)}  {path.stat().st_size:,} bytes"
    kinds = ", ".join(f"{count}\N{NO-BREAK SPACE}{kind}" for kind, count in tally.kinds.most_common())
    text = f"events     {sum(tally.kinds.values())} ({kinds})"
    for line in textwrap.wrap(text, 79, subsequent_indent=" " * 11):
        yield line.replace("\N{NO-BREAK SPACE}", " ")
    yield f"webhook    {count_of(posts, 'request')} received; audio events are not posted"
    yield f"words      {tally.words} (turns: {tally.kinds['turn']})"
    if coverage is None:
        yield "recorded   nothing"
        return
    seconds = coverage.samples / tally.rate
    lost = f", {coverage.lost:,} lost ({', '.join(dict.fromkeys(tally.causes))})" if coverage.lost else ""
    yield f"recorded   {coverage.share(coverage.captured)} of {coverage.samples:,} samples ({seconds:.1f} s){lost}"
    heard = coverage.transcribed + coverage.silent
    pending = "" if heard == coverage.samples else f"; {coverage.samples - heard:,} samples are not transcribed yet"
    yield (
        f"heard      {coverage.share(heard)}: {coverage.share(coverage.transcribed)} speech, "
        f"{coverage.share(coverage.silent)} silence{pending}"
    )


def _coverage(directory: Path, tally: Tally) -> RecordingCoverage | None:
    if tally.start is None or tally.end <= tally.start:
        return None
    with open_for_reading(directory / "state" / "journal.sqlite") as journal:
        return coverage_of(journal.covers(ROOM, tally.start), tally.start, tally.end)


@contextmanager
def _recording() -> Iterator[Path]:
    """The recording as a file, even if the package is in an archive."""
    with resources.as_file(resources.files("roomtone") / "demo" / "meeting.flac") as path:
        yield path
