"""No program of ours imports what lies in the folder that it happens to run in."""

import subprocess
import sys
from pathlib import Path

import pytest

TRAPS = ("json", "struct", "typing", "click", "trio", "msgspec", "sounddevice", "roomtone_wav")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with modules of names that we import, each of which says so."""
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text('open("caught", "w")\nraise SystemExit("caught")\n')
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("roomtone", "--version"), b""),
        (("roomtone", "sinks"), b""),
        (("roomtone.recognizer", "--help"), b""),
        (("roomtone.capture.source",), b'{"ring": 100, "rate": 100, "frame": 10, "source": {"kind": "no"}}\n'),
        (("roomtone.capture.source.devices",), b"{}\n"),
    ],
)
def test_a_program_imports_nothing_from_where_it_runs(trapped: Path, arguments: tuple[str, ...], said: bytes) -> None:
    """A module of a familiar name there is another's, and would run with the microphone and the key."""
    done = subprocess.run([sys.executable, "-m", *arguments], check=False, cwd=trapped, input=said, capture_output=True)
    assert not (trapped / "caught").exists()
    assert done.returncode in {0, 1}, done.stderr  # 1: a source whose input ends
    assert b"Traceback" not in done.stderr


def test_the_console_script_does_not_either(trapped: Path) -> None:
    """It is what the service runs."""
    script = Path(sys.executable).parent / "roomtone"
    subprocess.run([script, "sinks"], check=False, cwd=trapped, capture_output=True)
    assert not (trapped / "caught").exists()


def test_who_imports_us_keeps_a_path(tmp_path: Path) -> None:
    """A plugin's tests, run as `python -m pytest`, import from their own folder."""
    (tmp_path / "mine.py").write_text("import roomtone, beside; roomtone.Sink; print(beside.VALUE)\n")
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    done = subprocess.run([sys.executable, "-m", "mine"], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "7\n"
