"""`roomtone transcribe`: what was held back is transcribed, by the daemon or without one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from roomtone import cli, paths
from roomtone.cli.commands.transcribe import find_unsent
from roomtone.events import Turn
from roomtone.journal.journal import open_journal
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.spans import Spans
from roomtone.spool.spool import open_spool
from roomtone.testing.encoded_speech import numbers_in, quiet, speak
from roomtone.testing.fake_service import open_service

RATE = 8_000
BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
AUDIO = quiet(20, RATE) + speak(range(1, 9), RATE) + quiet(20, RATE) + speak(range(9, 17), RATE) + quiet(5, RATE)
LENGTH = len(AUDIO) // 2


def at(position: int) -> datetime:
    return BEGAN + timedelta(seconds=position / RATE)


def cover(state: str, start: int, end: int) -> CoverageSpan:
    return CoverageSpan("desk", start, end, state, None, at(start), at(end))  # type: ignore[arg-type]


def test_only_what_was_never_sent() -> None:
    """Between two times, what is unsent and not in the transcript; time without a source is no position."""
    later = CoverageSpan(
        "desk", 100 * RATE, 200 * RATE, "captured", None, *(BEGAN + timedelta(hours=at) for at in (1, 2))
    )
    covers = [
        cover("captured", 0, 100 * RATE),
        later,
        cover("unsent", 0, 60 * RATE),
        cover("silent", 20 * RATE, 25 * RATE),
        cover("transcribed", 25 * RATE, 30 * RATE),
        cover("unsent", 90 * RATE, 150 * RATE),
    ]

    assert find_unsent(covers, at(10 * RATE), at(95 * RATE)) == Spans(
        [(10 * RATE, 20 * RATE), (30 * RATE, 60 * RATE), (90 * RATE, 95 * RATE)]
    )
    assert find_unsent(covers, BEGAN + timedelta(hours=1.25), BEGAN + timedelta(hours=9)) == Spans(
        [(125 * RATE, 150 * RATE)]
    )


async def held_back(folder: Path, url: str) -> None:
    """A room of which nothing was sent."""
    (folder / "roomtone.toml").write_text(
        f'[service]\nstate = "state"\n[rooms.desk]\nsource = {{ kind = "microphone" }}\nrate = {RATE}\n'
        f'[rooms.desk.streaming]\nendpoint = "{url}"\n'
    )
    state = paths.private_folder(folder / "state")
    async with (
        open_spool(state / "spool" / "desk", rate=RATE) as spool,
        open_journal(state / "journal.sqlite") as journal,
    ):
        await spool.append(AUDIO, BEGAN)
        await spool.cut()
        marks = (Mark("room/desk/rate", RATE), Mark("room/desk/acknowledged", LENGTH))
        await journal.commit(*marks, cover("captured", 0, LENGTH), cover("unsent", 0, LENGTH))


def invoke(folder: Path, *arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STATE_DIRECTORY", raising=False)
        return CliRunner().invoke(cli.group, ["transcribe", "--config", str(folder / "roomtone.toml"), *arguments])


async def test_without_a_daemon(tmp_path: Path) -> None:
    """The command itself opens the sessions, and what is between the times is in the journal when it returns."""
    async with open_service() as service:
        await held_back(tmp_path, service.url)
        times = (at(19 * RATE).isoformat(), at(24 * RATE).isoformat())
        result = await trio.to_thread.run_sync(invoke, tmp_path, "--from", times[0], "--to", times[1])

        assert (result.exit_code, result.output.splitlines()[0]) == (0, "desk: 5 s to transcribe")
    async with open_journal(tmp_path / "state" / "journal.sqlite") as journal:
        turns = [event for event in await journal.read(0) if isinstance(event, Turn)]
        assert [number for turn in turns for number in numbers_in(turn.text)] == list(range(1, 9))
        assert await journal.marks("room/desk/wish/") == {}
        assert len(await journal.marks("spent/")) == 1
    again = invoke(tmp_path, "--from", times[0], "--to", times[1])
    assert again.output == "desk: nothing was held back\n"


async def test_a_budget_is_kept(tmp_path: Path) -> None:
    """When the budget is spent in the middle the sessions end; the rest is sent the next time, and nothing twice."""
    async with open_service() as service:
        await held_back(tmp_path, service.url)
        times = ("--from", at(16 * RATE).isoformat(), "--to", at(28 * RATE).isoformat())
        path = tmp_path / "roomtone.toml"
        given, budget = path.read_text(), "[budget]\ndaily = 1.0\nprices = { universal-3-5-pro = 3600.0 }\n"
        path.write_text(given + budget)
        result = await trio.to_thread.run_sync(invoke, tmp_path, *times)
        assert result.exit_code == 1
        assert "the budget is spent; the daemon, or this command, transcribes the rest" in result.output
        assert sum(session.open_seconds for session in service.sessions) < 4
        first = len(service.sessions)
        again = await trio.to_thread.run_sync(invoke, tmp_path, *times)
        assert again.exit_code == 1
        assert len(service.sessions) == first
        path.write_text(given)
        result = await trio.to_thread.run_sync(invoke, tmp_path, *times)
        assert result.exit_code == 0, result.output
    async with open_journal(tmp_path / "state" / "journal.sqlite") as journal:
        turns = sorted((turn for turn in await journal.read(0) if isinstance(turn, Turn)), key=lambda t: t.position)
        assert [number for turn in turns for number in numbers_in(turn.text)] == list(range(1, 9))


async def test_with_a_daemon(tmp_path: Path) -> None:
    """Where a daemon has the state, the wish is left for it."""
    await held_back(tmp_path, "ws://127.0.0.1:1/v3/ws")
    with paths.lock(tmp_path / "state"):
        result = await trio.to_thread.run_sync(invoke, tmp_path, "--from", BEGAN.isoformat())
    async with open_journal(tmp_path / "state" / "journal.sqlite") as journal:
        wishes = await journal.marks("room/desk/wish/")

    assert result.output.splitlines()[-1] == "the running daemon transcribes it"
    assert list(wishes.values()) == [[0, LENGTH]]


async def test_what_is_gone_is_said(tmp_path: Path) -> None:
    """Audio that is in the spool no more is counted, and no session is opened for it."""
    await held_back(tmp_path, "ws://127.0.0.1:1/v3/ws")
    for path in (tmp_path / "state" / "spool" / "desk").iterdir():
        path.unlink()
    result = invoke(tmp_path, "--from", BEGAN.isoformat())

    assert (result.exit_code, result.output) == (
        0,
        f"desk: 0 s to transcribe; {LENGTH / RATE:.0f} s are no longer in the spool\n",
    )
