"""The whole daemon, from the source to the sinks, as its users run it."""

import signal
import struct
import subprocess
from array import array
from pathlib import Path

import pytest
import trio

from support.daemon import COMMAND, DEMO, SINKS, error_rate, events, recordings, run, words, write_wav
from support.pulse import open_pulse
from support.receiver import open_receiver

RATE = 16_000
SAID = words((DEMO / "meeting.txt").read_text())


def pcm(path: Path) -> bytes:
    """The demo's recording as 16-bit PCM."""
    import soundfile

    audio, rate = soundfile.read(path, dtype="int16")
    assert rate == RATE
    return bytes(audio.tobytes())


@pytest.mark.parametrize("pace", ["fast", "realtime"])
def test_a_file_is_recorded_bit_for_bit(tmp_path: Path, pace: str) -> None:
    """The output of a file room is its input, nothing missing and nothing twice, and `run` ends by itself."""
    audio = pcm(DEMO / "meeting.flac")[: 2 * (9 * RATE + 777)]
    write_wav(tmp_path / "talk.wav", audio)

    with run(
        tmp_path, f'[rooms.desk]\nsource = {{ kind = "file", path = "talk.wav", pace = "{pace}" }}\n{SINKS}'
    ) as daemon:
        assert daemon.finish() == 0, daemon.log

    assert [recorded for _, _, recorded in recordings(tmp_path)] == [audio]
    assert "Traceback" not in daemon.log
    kinds = [event["kind"] for event in events(tmp_path)]
    assert kinds[0] == "recording_started"
    assert {"turn", "session_started", "session_ended", "recording_stopped"} <= set(kinds)
    assert {event["speech_model"] for event in events(tmp_path, "session_started")} == {"moonshine-tiny-en"}
    seqs = [event["seq"] for event in events(tmp_path)]
    assert seqs == sorted(set(seqs))
    heard = words(" ".join(event["text"] for event in events(tmp_path, "turn")))
    assert error_rate(SAID[: len(heard)], heard) < 0.3


async def test_a_microphone_is_recorded_transcribed_and_delivered(tmp_path: Path) -> None:
    """Speech played in a room is in the WAV file at its place, its words are in the turns, and every event arrives."""
    spoken = pcm(DEMO / "meeting.flac")[: 2 * 14 * RATE]
    async with open_receiver() as receiver:
        await trio.to_thread.run_sync(record_a_talk, tmp_path, spoken, receiver.url)
        delivered = [event for post in receiver.accepted for event in post.events]

    ((_, rate, recorded),) = recordings(tmp_path)
    assert rate == RATE
    assert match(spoken, recorded) > 0.8
    said = SAID[: len(SAID) * 14 // 32]
    heard = words(" ".join(event["text"] for event in events(tmp_path, "turn")))
    assert sum(word in heard for word in said) > 0.7 * len(said)
    logged = [event["id"] for event in events(tmp_path)]
    assert [event["id"] for event in delivered] == logged
    (stopped,) = events(tmp_path, "recording_stopped")
    assert stopped["position"] == len(recorded) // 2
    assert not events(tmp_path, "gap")


def record_a_talk(folder: Path, spoken: bytes, url: str) -> None:
    """Record what a microphone hears while this is played, and stop when its words have come."""
    config = f"""
[rooms.desk]
source = {{ kind = "microphone", device = "pulse" }}
{SINKS}
[sinks.hook]
kind = "webhook"
url = "{url}"
"""
    with open_pulse() as server, run(folder, config, env=server.env) as daemon:
        daemon.wait_for(lambda: events(folder, "session_started"))
        player = server.play(write_wav(folder / "talk.wav", spoken))
        assert player.wait(60) == 0
        daemon.wait_for(lambda: len(events(folder, "turn")) >= 3)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log


def match(spoken: bytes, recorded: bytes) -> float:
    """The share of the seconds played that are found in the recording, each by its correlation, and in their order.

    Second by second, for a sound server on a busy machine may put a pause between two of them.
    """
    import numpy as np

    played = np.frombuffer(spoken, dtype="<i2").astype(float)
    heard = np.frombuffer(recorded, dtype="<i2").astype(float)
    size = 1 << (RATE + len(heard)).bit_length()
    spectrum = np.fft.rfft(heard, size)
    energy = np.concatenate(([0.0], np.cumsum(heard**2)))
    places = []
    seconds = [
        part
        for start in range(0, len(played) - RATE, RATE)
        if np.abs(part := played[start : start + RATE]).max() > 1000
    ]
    for part in seconds:
        products = np.fft.irfft(spectrum * np.conj(np.fft.rfft(part, size)), size)[: len(heard) - RATE]
        norms = np.sqrt(np.dot(part, part) * (energy[RATE:-1] - energy[: -RATE - 1])) + 1.0
        place = int(np.argmax(products / norms))
        if products[place] / norms[place] > 0.9:
            places.append(place)
    assert places == sorted(places)
    return len(places) / len(seconds)


def test_a_command_that_ends(tmp_path: Path) -> None:
    """A command's output is recorded, and its exit 0 ends the recording."""
    samples = array("h", (i % 2_000 - 1_000 for i in range(3 * RATE))).tobytes()
    (tmp_path / "raw").write_bytes(samples)

    with run(
        tmp_path, f'[rooms.desk]\nsource = {{ kind = "command", argv = ["cat", "{tmp_path}/raw"] }}\n{SINKS}'
    ) as daemon:
        assert daemon.finish() == 0, daemon.log

    assert [recorded for _, _, recorded in recordings(tmp_path)] == [samples]


def test_two_rooms(tmp_path: Path) -> None:
    """Rooms do not see each other: each has its own audio, positions and turns."""
    first, second = (pcm(DEMO / "meeting.flac")[2 * start * RATE : 2 * (start + 5) * RATE] for start in (0, 5))
    write_wav(tmp_path / "first.wav", first)
    write_wav(tmp_path / "second.wav", second)
    rooms = "".join(
        f'[rooms.{name}]\nsource = {{ kind = "file", path = "{name}.wav", pace = "fast" }}\n'
        for name in ("first", "second")
    )

    with run(tmp_path, rooms + SINKS) as daemon:
        assert daemon.finish() == 0, daemon.log

    assert {path.name.split("_")[0]: audio for path, _, audio in recordings(tmp_path)} == {
        "first": first,
        "second": second,
    }
    assert {event["room"] for event in events(tmp_path, "turn")} == {"first", "second"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_heard(tmp_path: Path, number: signal.Signals) -> None:
    """After a signal the last turn arrives, the session terminates, the sinks have everything, and the status is 0."""
    with run(tmp_path, f'[rooms.desk]\nsource = {{ kind = "file", path = "{DEMO}/meeting.flac" }}\n{SINKS}') as daemon:
        daemon.wait_for(lambda: events(tmp_path, "turn"))
        daemon.signal(number)
        assert daemon.finish() == 0, daemon.log

    (ended,) = events(tmp_path, "session_ended")
    (stopped,) = events(tmp_path, "recording_stopped")
    assert ended["reason"] == "terminated"
    assert stopped["reason"] == "stopping"
    ((_, _, recorded),) = recordings(tmp_path)
    assert len(recorded) // 2 == stopped["position"] == ended["position"]
    assert "Traceback" not in daemon.log


def test_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    """After a crash a file room goes on at its durable position: the recording is the input, whole and once."""
    audio = pcm(DEMO / "meeting.flac")[: 2 * 12 * RATE]
    write_wav(tmp_path / "talk.wav", audio)
    config = f'[rooms.desk]\nsource = {{ kind = "file", path = "talk.wav", pace = "realtime" }}\n{SINKS}'
    with run(tmp_path, config) as daemon:
        spool = tmp_path / "state" / "spool" / "desk"
        daemon.wait_for(lambda: spool.exists() and sum(path.stat().st_size for path in spool.iterdir()) > 2 * 5 * RATE)
        daemon.signal(signal.SIGKILL)
        daemon.finish()
    with run(tmp_path, config) as daemon:
        assert daemon.finish() == 0, daemon.log

    assert b"".join(recorded for _, _, recorded in recordings(tmp_path)) == audio
    assert not events(tmp_path, "gap")
    ids = [event["id"] for event in events(tmp_path)]
    assert len(ids) == len(set(ids))


def test_an_unknown_device_is_named(tmp_path: Path) -> None:
    """A device that is not there is a notice that lists those there are; the daemon waits for it."""
    with open_pulse() as server:
        config = f'[rooms.desk]\nsource = {{ kind = "microphone", device = "no-such-device" }}\n{SINKS}'
        with run(tmp_path, config, env=server.env) as daemon:
            daemon.wait_for(lambda: events(tmp_path, "notice"))
            daemon.signal(signal.SIGTERM)
            assert daemon.finish() == 0, daemon.log

    text = events(tmp_path, "notice")[0]["text"]
    assert "no-such-device" in text
    assert "pulse" in text
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize(
    ("source", "explained"),
    [
        ('{ kind = "file", path = "absent.wav" }', "absent.wav"),
        ('{ kind = "file", path = "noise.wav" }', "noise.wav"),
        ('{ kind = "command", argv = ["sh", "-c", "echo broken pipe dream >&2; exit 3"] }', "broken pipe dream"),
        ('{ kind = "command", argv = ["no-such-program"] }', "no-such-program"),
    ],
)
def test_a_bad_source_is_explained(tmp_path: Path, source: str, explained: str) -> None:
    """A source that cannot be read is a notice that names it and says why; no traceback, and the daemon goes on."""
    (tmp_path / "noise.wav").write_bytes(struct.pack("<20I", *range(20)))
    with run(tmp_path, f"[rooms.desk]\nsource = {source}\n{SINKS}") as daemon:
        daemon.wait_for(lambda: events(tmp_path, "notice"))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log

    assert any(explained in event["text"] for event in events(tmp_path, "notice"))
    assert "Traceback" not in daemon.log


def test_without_an_engine_the_room_is_recorded(tmp_path: Path) -> None:
    """Where the recognizer's packages are missing, a notice says what to install, and the recording is whole."""
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "pocketsphinx.py").write_text("raise ImportError('not installed')\n")
    audio = pcm(DEMO / "meeting.flac")[: 2 * 3 * RATE]
    write_wav(tmp_path / "talk.wav", audio)
    config = f"""
[service]
state = "state"
grace = 6.0
[rooms.desk]
source = {{ kind = "file", path = "talk.wav", pace = "fast" }}
{SINKS}
"""
    with run(tmp_path, config, env={"PYTHONPATH": str(tmp_path / "shadow")}) as daemon:
        daemon.wait_for(lambda: events(tmp_path, "notice"))
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log

    assert "roomtone[local]" in events(tmp_path, "notice")[0]["text"]
    assert [recorded for _, _, recorded in recordings(tmp_path)] == [audio]
    assert "Traceback" not in daemon.log


def test_a_sink_that_cannot_write_harms_only_itself(tmp_path: Path) -> None:
    """A sink whose folder is not writable is behind and says so; the recording and the other sinks have everything."""
    (tmp_path / "file").write_text("no folder")
    audio = pcm(DEMO / "meeting.flac")[: 2 * 4 * RATE]
    write_wav(tmp_path / "talk.wav", audio)
    config = f'[rooms.desk]\nsource = {{ kind = "file", path = "talk.wav", pace = "fast" }}\n{SINKS}\n'
    config += '[sinks.broken]\nkind = "jsonl"\npath = "file/events.jsonl"\n'
    with run(tmp_path, config) as daemon:
        assert daemon.finish() == 0, daemon.log

    assert [recorded for _, _, recorded in recordings(tmp_path)] == [audio]
    assert events(tmp_path, "recording_stopped")
    failed = next(line for line in daemon.log.splitlines() if "sink.failed" in line)
    assert '"sink":"broken"' in failed
    assert str(tmp_path / "file") in failed
    assert "Traceback" not in daemon.log
    assert "Traceback" not in daemon.log


def test_two_daemons_do_not_share_a_state(tmp_path: Path) -> None:
    """A second daemon on one state folder is refused in one line."""
    config = f'[rooms.desk]\nsource = {{ kind = "file", path = "{DEMO}/meeting.flac" }}\n{SINKS}'
    with run(tmp_path, config) as daemon:
        daemon.wait_for(lambda: events(tmp_path, "recording_started"))
        command = [*COMMAND, "run", "--config", str(tmp_path / "roomtone.toml")]
        second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        daemon.signal(signal.SIGTERM)
        daemon.finish()

    assert second.returncode != 0
    assert "another roomtone runs" in second.stderr
    assert "Traceback" not in second.stderr
