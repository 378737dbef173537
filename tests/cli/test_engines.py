"""`roomtone engines`: what there is, and how it does on a recording."""

import json
import subprocess
import sys
from pathlib import Path

import soundfile
from click.testing import CliRunner

from roomtone.cli import group
from support.word_error import RATE, demo_audio, demo_lines


def test_engines_are_listed_and_the_one_in_use_is_marked(tmp_path: Path) -> None:
    """Engines with model, size and license; the configured one has a star, or the line says why it does not open."""
    config = tmp_path / "roomtone.toml"
    config.write_text('[rooms.desk]\nsource = { kind = "file", path = "a.wav" }\n[recognizer]\nmodel = "weights"\n')
    done = CliRunner().invoke(group, ["engines", "--config", str(config)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["* moonshine", "  pocketsphinx"]
    assert f"{str(tmp_path / 'weights')!r}: there is no such folder" in lines[0]
    assert "BSD" in lines[1]


def test_an_engine_is_tried_on_a_recording(tmp_path: Path) -> None:
    """Words and figures of the user's own audio, whatever its rate and channels."""
    samples = memoryview(demo_audio(5)).cast("h").tolist()
    soundfile.write(tmp_path / "talk.wav", [[sample / 32_768] * 2 for sample in samples], RATE)
    (tmp_path / "said.txt").write_text(demo_lines()[0])
    test = ("engines", "test", str(tmp_path / "talk.wav"), "--text", str(tmp_path / "said.txt"), "--json")
    # In a process of its own, whose memory is measured.
    done = subprocess.run((sys.executable, "-m", "roomtone", *test), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["turns"] == [demo_lines()[0].replace("morning.", "morning,")]
    assert result["word_error_rate"] == 0
    assert 0 < result["cpu_per_second"] < 2
    assert result["memory_mb"] < 400
    assert 0 < result["latency"] < 5


def test_check_says_how_fast_the_engine_is(tmp_path: Path) -> None:
    """The engine is opened and decodes five seconds; one that does not open is named with its reason."""
    speech = tmp_path / "speech.wav"
    soundfile.write(speech, [0.0] * RATE, RATE)
    config = tmp_path / "roomtone.toml"
    room = f'[service]\nstate = "state"\n[rooms.desk]\nsource = {{ kind = "file", path = "{speech}" }}\n'
    room += '[rooms.desk.streaming]\nendpoint = "local"\n'
    config.write_text(room)
    assert "moonshine tiny-en takes 0." in CliRunner().invoke(group, ["check", "--config", str(config)]).output
    config.write_text(room + '[recognizer]\nmodel = "weights"\n')
    done = CliRunner().invoke(group, ["check", "--config", str(config)])
    assert done.exit_code == 1
    [recognizer] = [line for line in done.output.splitlines() if " recognizer " in line]
    assert recognizer.startswith("FAULT")
    assert "there is no such folder" in recognizer
    assert "pocketsphinx takes its place" in recognizer
