"""`roomtone engines`: what there is, and how it does on a recording."""

import json
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
    done = CliRunner().invoke(
        group, ["engines", "test", str(tmp_path / "talk.wav"), "--text", str(tmp_path / "said.txt"), "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["turns"] == [demo_lines()[0].replace("morning.", "morning,")]
    assert result["word_error_rate"] == 0
    assert 0 < result["cpu_per_second"] < 2
    assert result["memory_mb"] < 400
    assert 0 < result["latency"] < 5
