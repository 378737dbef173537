"""The faults of a network and a service, on real sockets and in real time: what each one costs, printed as a table."""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from conftest import Report
from roomtone.events import Event, SessionStarted
from roomtone.speech.transcriber import transcribe
from roomtone.testing.encoded_speech import numbers_in, speak
from roomtone.testing.fake_service import open_service
from roomtone.testing.faults import (
    GARBLED,
    Close,
    Deaf,
    Drop,
    Expire,
    Fault,
    Garble,
    HangUp,
    NoBegin,
    NoTermination,
    Refuse,
    Stall,
    TooEarly,
    script,
)
from support.daemon import SINKS, events, recordings, run, write_wav
from support.virtual_room import RATE, Room, open_room, reach

NUMBERS = list(range(1, 25))
SPEECH = speak(NUMBERS, RATE)
"""Some thirteen seconds."""

# Refusals and waits of a minute are tested on the virtual clock (test_transcriber).
FAULTS: dict[str, Sequence[Fault]] = {
    "FIN": [Drop("end", words=10)],
    "RST": [Drop("reset", words=10)],
    **{f"close {code}": [Close(code, words=10)] for code in (1006, 1011, 1013, 3005, 3008)},
    "expiry": [Expire(7.0)],
    "stalls for 5 s": [Stall(5.0, words=10)],
    "stalls without end": [Stall(None, words=10)],
    "silent in the handshake": [Deaf()],
    "hangs up in the handshake": [HangUp()],
    "HTTP 500": [Refuse(500)],
    "HTTP 503, no length": [Refuse(503, told=False)],
    "no Begin": [NoBegin()],
    "a turn before Begin": [TooEarly()],
    "no Termination": [NoTermination()],
    **{f"garbled: {name}": [Garble(name, words=10)] for name in GARBLED if name != "long"},
}


STRUCK = len(speak(NUMBERS[:10], RATE)) / 2 / RATE
"""Seconds of the speech after which faults of `words=10` strike."""


class Row(NamedTuple):
    """The cost of a fault: seconds without a session, samples, words, and samples that are unaccounted for."""

    fault: str
    recovery: float
    lost: int
    missing: int
    doubled: int
    unexplained: int


async def suffer(folder: Path, name: str, rows: list[Row]) -> None:
    """Speak in a room whose first connection has this fault; what it cost becomes a row."""
    async with (
        open_service(faults=script({0: FAULTS[name]})) as service,
        open_room(folder, reach(service), run_sync=trio.to_thread.run_sync) as room,
    ):
        begun = time.time()
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                await transcribe(room.context, realtime=True)
                nursery.cancel_scope.cancel()

            nursery.start_soon(follow)
            await room.record(SPEECH)
            room.spool.end_of_data()
        rows.append(await judge(name, room, begun))


async def judge(name: str, room: Room, begun: float) -> Row:
    """Compare what is on the disk and in the journal with what was said."""
    audio = b""
    while (piece := await room.spool.read(len(audio) // 2, len(SPEECH))) is not None:
        audio += piece.audio
    numbers = await room.numbers()
    sessions = [event for event in await room.journal.read(0) if isinstance(event, SessionStarted)]
    up = [committed_at(event) - begun for event in sessions]
    return Row(
        name,
        max(0.0, up[1] - STRUCK) if len(up) > 1 else up[0],
        (len(SPEECH) - len(audio)) // 2 if audio == SPEECH[: len(audio)] else len(SPEECH) // 2,
        len(set(NUMBERS) - set(numbers)),
        len(numbers) - len(set(numbers)),
        await room.unsettled(),
    )


def committed_at(event: Event) -> float:
    """The Unix time in an event's id, a UUIDv7."""
    return (uuid.UUID(event.id).int >> 80) / 1000


async def test_each_fault_costs_nothing(tmp_path: Path, report: Report) -> None:
    """After each fault no sample is lost or unexplained, no word missing or doubled; each in its own room."""
    rows: list[Row] = []
    with trio.fail_after(250):
        async with trio.open_nursery() as nursery:
            for number, name in enumerate(FAULTS):
                nursery.start_soon(suffer, tmp_path / str(number), name, rows)
    head = f"\n{'fault':32}{'seconds until a session is up':>30}{'samples lost':>14}{'missing':>9}{'doubled':>9}"
    table = [f"{head}{'unexplained':>13}"]
    table += [
        f"{row.fault:32}{row.recovery:30.1f}{row.lost:14}{row.missing:9}{row.doubled:9}{row.unexplained:13}"
        for row in sorted(rows)
    ]
    report("\n".join(table))

    assert len(rows) == len(FAULTS)
    assert [row for row in rows if any((row.lost, row.missing, row.doubled, row.unexplained))] == []


def test_the_daemon_in_bad_weather(tmp_path: Path) -> None:
    """With one fault after the other, the daemon's WAV file is the input, and every word is in the transcript once."""
    faults: dict[int, Sequence[Fault]] = {
        0: [Refuse(503)],
        1: [Drop("reset", words=6)],
        2: [Close(3005, words=6)],
        3: [Garble("half a turn", words=6)],
        4: [Stall(3.0, words=6), Drop("end", seconds=9)],
        5: [HangUp()],
    }
    numbers = list(range(1, 61))
    speech = speak(numbers, 16_000)
    write_wav(tmp_path / "talk.wav", speech)
    trio.run(weather, tmp_path, faults)

    assert b"".join(audio for _, _, audio in recordings(tmp_path)) == speech
    words = sorted((word["start"], word["text"]) for turn in events(tmp_path, "turn") for word in turn["words"])
    assert [number for _, text in words for number in numbers_in(text)] == numbers


async def weather(folder: Path, faults: dict[int, Sequence[Fault]]) -> None:
    """Run the daemon on a file, in real time, against a service with these faults, until it ends by itself."""
    async with open_service(faults=script(faults)) as service:
        await trio.to_thread.run_sync(play, folder, service.url)


def play(folder: Path, url: str) -> None:
    room = f'[rooms.desk]\nsource = {{ kind = "file", path = "talk.wav" }}\nstreaming = {{ endpoint = "{url}" }}\n'
    with run(folder, room + SINKS) as daemon:
        assert daemon.finish() == 0, daemon.log
        assert "Traceback" not in daemon.log
