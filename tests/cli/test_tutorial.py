"""What a first user wants: words with a language model's answer to each, and a summary, on a terminal."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import tomli_w
import trio

from roomtone.testing import fake_gateway as fake
from roomtone.testing.encoded_speech import quiet, speak
from roomtone.testing.fake_gateway import Limited, Mishap
from roomtone.testing.fake_service import open_service
from support.daemon import COMMAND, events, write_wav

README = Path(__file__).parents[2] / "README.md"
RATE = 16_000
STANDSTILL = {"loop.stalled", "loop.resumed", "rooms.unaccounted", "rooms.accounted"}
"""What a daemon says that a loaded machine has not let run for half a minute."""
SAID = speak(range(1, 9), RATE, turn=4) + quiet(0.5, RATE)


def tables(service: str, gateway: str) -> dict[str, Any]:
    """The README's configuration of this, whose source and endpoints are those of the test."""
    block = re.search(r"```toml\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert block is not None
    found = tomllib.loads(block[1])
    desk = found["rooms"]["desk"]
    assert desk["streaming"]["llm_gateway"]["model"] == "claude-sonnet-4-6"
    desk |= {"source": {"kind": "file", "path": "talk.wav", "pace": "fast"}, "frame_ms": 50}
    desk["streaming"]["endpoint"] = service
    return {
        "service": {"state": "state"},
        "rooms": {"desk": desk},
        "gateway": {"endpoint": gateway, "prices": {"claude-sonnet-4-6": {"input": 3, "output": 15}}},
        "analysis": {"summary": {"prompt": "Sum up:\n\n{{transcript}}", "model": "claude-sonnet-4-6"}},
        "sinks": {name: found["sinks"][name] for name in ("archive", "log")},
    }


async def roomtone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = dict(os.environ) | {"ASSEMBLYAI_API_KEY": "topsecret"}
    command = [*COMMAND, *arguments, "--config", str(folder / "roomtone.toml")]
    return await trio.run_process(  # type: ignore[return-value]
        command, env=environ, cwd=folder, capture_stdout=True, capture_stderr=True, check=False
    )


async def play(folder: Path, *mishaps: Mishap) -> tuple[str, str, fake.FakeGateway]:
    """Run until the file has ended. What stands on the terminal, the log, and the language model."""
    write_wav(folder / "talk.wav", SAID)
    async with open_service(key="topsecret") as service, fake.open_gateway(mishaps=mishaps) as gateway:
        (folder / "roomtone.toml").write_text(tomli_w.dumps(tables(service.url, gateway.url)))
        done = await roomtone(folder, "run", "--print")
    shown, log = bytes(done.stdout).decode(), bytes(done.stderr).decode()  # type: ignore[arg-type]
    assert done.returncode == 0, log
    (record,) = service.sessions
    assert record.query["speech_model"] == "u3-rt-pro"
    assert record.query["format_turns"] == "true"
    return shown, log, gateway


async def test_the_tutorial(tmp_path: Path) -> None:
    """Session, each turn and its answer, the conversation's summary, the durations and the recording are printed."""
    shown, log, gateway = await play(tmp_path)

    (session,) = events(tmp_path, "session_started")
    turns = [event["text"] for event in events(tmp_path, "turn")]
    assert len(turns) == 2
    wanted = [f"Session {session['session_id']} is open", f"Heard: {turns[0]}", "Answer of the language model: Provide"]
    wanted += [f"Transcript: {turns[0]}", f"Heard: {turns[1]}", "Session", "s of audio heard, open for"]
    wanted += ["Analysis [summary] (claude-sonnet-4-6, 0.00", f"] {turns[0]}", f"] {turns[1]}", "Audio saved to"]
    places = [shown.find(text, 0 if i == 0 else shown.find(wanted[i - 1])) for i, text in enumerate(wanted)]
    assert -1 not in places, shown
    seconds = len(SAID) / 2 / RATE
    assert f"({seconds:.2f} s)" in shown
    assert [line for line in log.splitlines() if json.loads(line)["event"] not in STANDSTILL] == []
    (analysis,) = events(tmp_path, "analysis")
    assert analysis["text"] in shown
    assert len(gateway.requests) == 1
    assert gateway.keys == [None]  # the account's key is for nobody else


async def test_the_past_is_asked_about(tmp_path: Path) -> None:
    """`roomtone analyze` asks about what was said, says what that takes, and prints the answer alone to stdout.

    The run before it, which ends by itself, has waited for a language model that asked for a moment.
    """
    shown, _, busy = await play(tmp_path, Limited("2"))
    assert "Analysis [summary]" in shown
    assert len(busy.requests) == 2
    async with fake.open_gateway(mishaps=[Limited("1")]) as gateway:
        found = tomllib.loads((tmp_path / "roomtone.toml").read_text())
        found["gateway"]["endpoint"] = gateway.url
        (tmp_path / "roomtone.toml").write_text(tomli_w.dumps(found))
        done = await roomtone(tmp_path, "analyze", "--from", "1h", "--prompt", "summary")
        nothing = await roomtone(tmp_path, "analyze", "--from", "2h", "--to", "1h", "--prompt", "summary")
        wrong = await roomtone(tmp_path, "analyze", "--from", "1h", "--prompt", "sumary")

    (analysis,) = events(tmp_path, "analysis")
    assert bytes(done.stdout).decode() == analysis["text"] + "\n"  # type: ignore[arg-type]
    told = bytes(done.stderr).decode()  # type: ignore[arg-type]
    spent = json.loads(bytes((await roomtone(tmp_path, "coverage", "--json")).stdout))["spent"]["rooms"]["desk"]  # type: ignore[arg-type]
    # Two turns, the analysis of the run, and this one.
    assert spent["day"]["requests"] == 4
    assert spent["day"]["models"] > 0
    assert "desk: 2 turns, 8 words, about" in told
    assert "retrying in" in told
    assert nothing.returncode == 1
    assert b"no turns in that stretch of time" in nothing.stderr  # type: ignore[operator]
    assert wrong.returncode == 2
    assert b'did you mean "summary"?' in wrong.stderr  # type: ignore[operator]
