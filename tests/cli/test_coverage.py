"""`roomtone coverage`: what the journal says of every sample, for people and for programs."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from roomtone import cli
from roomtone.events import Cause
from roomtone.journal.journal import open_journal
from roomtone.journal.records import CoverageSpan, Mark
from roomtone.testing.inline import run_inline

RATE = 16_000
MINUTE = 60 * RATE
BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONFIG = '[service]\nstate = "state"\n[rooms.desk]\nsource = { kind = "microphone" }\n'


def cover(state: str, start: int, end: int, *, cause: Cause | None = None) -> CoverageSpan:
    """These minutes of the desk."""
    times = (BEGAN + timedelta(minutes=minute) for minute in (start, end))
    return CoverageSpan("desk", start * MINUTE, end * MINUTE, state, cause, *times)  # type: ignore[arg-type]


WHOLE = (
    cover("captured", 0, 6),
    cover("transcribed", 0, 3),
    cover("silent", 3, 5),
    cover("lost", 6, 8, cause="device"),
    cover("captured", 8, 10),
)


async def journal(folder: Path, *covers: CoverageSpan) -> None:
    """A state with this coverage."""
    (folder / "roomtone.toml").write_text(CONFIG)
    async with open_journal(folder / "state" / "journal.sqlite", run_sync=run_inline) as opened:
        await opened.commit(Mark("room/desk/rate", RATE), *covers)


def invoke(folder: Path, *arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STATE_DIRECTORY", raising=False)
        command = ["coverage", "--config", str(folder / "roomtone.toml"), *arguments]
        return CliRunner().invoke(cli.group, command, terminal_width=100)


async def test_for_people(tmp_path: Path) -> None:
    """The share of each state, every cause with what it took, and a timeline, in plain characters off a terminal."""
    await journal(tmp_path, *WHOLE)
    result = invoke(tmp_path)

    assert result.exit_code == 0
    assert "\x1b" not in result.output
    lines = {line.split()[0]: line.split()[1:3] for line in result.output.splitlines()[3:]}
    assert lines["captured"] == ["80.00", "%"]
    assert lines["transcribed"] == ["37.50", "%"]
    assert lines["silent"] == ["25.00", "%"]
    assert lines["pending"] == ["37.50", "%"]
    assert "lost, device: 2:00 min, once, 1920000 samples" in result.output
    assert "unexplained: nothing" in result.output
    timeline = result.output.splitlines()[1].strip()
    assert [timeline.count(mark) for mark in "#.?!"] == pytest.approx([72 * n / 10 for n in (3, 2, 3, 2)], abs=2)


async def test_for_programs(tmp_path: Path) -> None:
    """`--json` gives samples, seconds, positions and UTC, and whether everything is explained."""
    await journal(tmp_path, *WHOLE)
    found = json.loads(invoke(tmp_path, "--json").output)

    assert found["explained"] is True
    (room,) = found["rooms"]
    assert (room["room"], room["captured"], room["pending"]) == ("desk", 8 * MINUTE, 3 * MINUTE)
    assert room["lost"] == [{"cause": "device", "times": 1, "samples": 2 * MINUTE, "seconds": 120.0}]
    assert room["from"] == "2026-01-01T12:00:00Z"


async def test_what_nothing_explains_is_a_fault(tmp_path: Path) -> None:
    """A hole in the account is shown, and is the exit code 1, for people and for programs."""
    await journal(tmp_path, cover("captured", 0, 6), cover("captured", 7, 10))

    result = invoke(tmp_path)
    assert result.exit_code == 1
    assert f"UNEXPLAINED: positions {6 * MINUTE} to {7 * MINUTE}" in result.output
    result = invoke(tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["explained"] is False


@pytest.mark.parametrize("since", ["2026-01-01T12:08:00+00:00", "2026-01-01T12:08Z"])
async def test_since(tmp_path: Path, since: str) -> None:
    """Only what was from then on counts."""
    await journal(tmp_path, *WHOLE)
    (room,) = json.loads(invoke(tmp_path, "--json", "--since", since).output)["rooms"]
    assert (room["captured"], room["pending"], room["lost"]) == (2 * MINUTE, 2 * MINUTE, [])


async def test_nothing_since_then(tmp_path: Path) -> None:
    """A time after the last sample is no error; a duration counts back from now."""
    await journal(tmp_path, *WHOLE)
    assert "nothing has been recorded since then" in invoke(tmp_path, "--since", "2h").output


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["--since", "9999999999d"], "neither a time like 2026-11-22T14:00 nor a duration like 2h", 2),
        (["--since", "0001-01-01T00:00+23:00"], "neither a time like 2026-11-22T14:00 nor a duration like 2h", 2),
        (["--since", "yesterday"], "neither a time like 2026-11-22T14:00 nor a duration like 2h", 2),
        (["--room", "kitchen"], 'unknown recorded room "kitchen"; known are "desk"', 2),
    ],
)
async def test_what_cannot_be_answered(tmp_path: Path, arguments: list[str], says: str, code: int) -> None:
    """A wrong time or room is one line that says what would be right."""
    await journal(tmp_path, *WHOLE)
    result = invoke(tmp_path, *arguments)
    assert says in result.output
    assert result.exit_code == code


def test_before_the_first_recording(tmp_path: Path) -> None:
    """A configuration that never ran has no coverage, and the command says so."""
    (tmp_path / "roomtone.toml").write_text(CONFIG)
    result = invoke(tmp_path)
    assert "nothing has been recorded with this configuration yet" in result.output
    assert result.exit_code == 1
