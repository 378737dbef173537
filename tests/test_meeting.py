"""A meeting room as its users run it: sessions while somebody speaks, and a summary of each conversation, once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trio
from click.testing import CliRunner

from roomtone.cli.commands.coverage import command as coverage
from roomtone.testing.encoded_speech import numbers_in, quiet, speak
from roomtone.testing.fake_gateway import FakeGateway, Silent, open_gateway
from roomtone.testing.fake_service import FakeService, open_service
from support.daemon import SINKS, Run, events, run, write_wav
from support.meeting import Signal, sentences_in
from support.word_error import RATE, demo_audio

CLOSE_AFTER = 5.0
PREROLL = 2.0
FIRST, SECOND = range(1, 9), range(9, 17)


def talk(numbers: range, sentence: Signal) -> bytes:
    """Somebody speaks, which a voice detector hears, between words that only the fake service does.

    The first of them comes before the voice, where no detector can have opened anything yet.
    """
    voice = np.rint(sentence).astype("<i2").tobytes()
    return speak(numbers[:1], RATE, break_=0.2) + voice + quiet(0.2, RATE) + speak(numbers[1:], RATE)


def tables(service: FakeService, gateway: FakeGateway) -> str:
    return f"""
[rooms.desk]
source = {{ kind = "file", path = "day.wav", pace = "realtime" }}
[rooms.desk.gate]
mode = "speech"
close_after = {CLOSE_AFTER}
[rooms.desk.streaming]
endpoint = "{service.url}"
[gateway]
endpoint = "{gateway.url}"
[analysis.summary]
prompt = "Sum up: {{{{transcript}}}}"
model = "one"
{SINKS}"""


def summaries(folder: Path) -> list[list[int]]:
    return [numbers_in(event["text"]) for event in events(folder, "analysis")]


async def test_a_day_with_two_conversations(tmp_path: Path) -> None:
    """Sessions surround the speech, the gate's closing ends a conversation, and its summary comes once, though the
    daemon is killed while the language model thinks, and again when it has answered; no first word is lost, and all of
    it is accounted for.
    """
    first, second, *_ = sorted(sentences_in(demo_audio()), key=len)
    talks = [talk(FIRST, first), talk(SECOND, second)]
    audio = quiet(4, RATE) + talks[0] + quiet(11, RATE) + talks[1] + quiet(1, RATE)
    write_wav(tmp_path / "day.wav", audio)

    def think(daemon: Run) -> None:
        daemon.wait_for(lambda: gateway.requests)
        assert not events(tmp_path, "recording_stopped")
        assert not summaries(tmp_path)

    def answer(daemon: Run) -> None:
        daemon.wait_for(lambda: summaries(tmp_path))

    def go_on(daemon: Run) -> None:
        assert daemon.finish() == 0, daemon.log
        assert "Traceback" not in daemon.log

    async with open_service() as service, open_gateway(mishaps=[Silent()]) as gateway:
        config = tables(service, gateway)
        for life in (think, answer, go_on):
            await trio.to_thread.run_sync(live, tmp_path, config, life)

    assert next(event["reason"] for event in events(tmp_path, "session_ended")) == "terminated"
    asked = [numbers_in(request["messages"][0]["content"]) for request in gateway.requests]
    assert asked == [list(FIRST), list(FIRST), list(SECOND)]
    assert summaries(tmp_path) == [list(FIRST), list(SECOND)]
    turns = sorted(events(tmp_path, "turn"), key=lambda turn: int(turn["position"]))
    assert [number for turn in turns for number in numbers_in(turn["text"])] == [*FIRST, *SECOND]
    longest = max(map(len, talks)) / 2 / RATE + PREROLL + CLOSE_AFTER + 3
    assert [session.number for session in service.sessions if session.audio_seconds > longest] == []
    account = json.loads(CliRunner().invoke(coverage, ["--config", str(tmp_path / "roomtone.toml"), "--json"]).output)
    (room,) = account["rooms"]
    assert (account["explained"], room["pending"]) == (True, 0)
    assert room["unsent"] > 5 * RATE


def live(folder: Path, config: str, life: Callable[[Run], None]) -> None:
    """Run the daemon, which is killed at the end of this life."""
    with run(folder, config) as daemon:
        life(daemon)
