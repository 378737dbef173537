"""Laws of `roomtone.delivery.errors`."""

import os
from pathlib import Path

import pytest

from roomtone.delivery.batch import SinkFailed
from roomtone.delivery.errors import explain, requested_delay


def raised(path: Path) -> OSError:
    """The exception of the standard library for a file in a missing folder."""
    try:
        path.write_text("")
    except OSError as error:
        return error
    raise AssertionError("the folder is there")


def test_file(tmp_path: Path) -> None:
    """The system's error for a file is shown as such, with the location in the sink's code, not in Python's."""
    path = tmp_path / "absent" / "file"

    text = explain(raised(path))

    assert text.startswith(f"{path}: No such file or directory ({__file__}:")
    assert "pathlib" not in text


class Wild(Exception):  # noqa: N818 - it is not an error here
    """An exception of a plugin's, nothing of which can be read."""

    def __str__(self) -> str:
        raise RuntimeError

    @property
    def retry_after(self) -> float:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad \ud800"), "ValueError: bad \\ud800"),
        (OSError(2, "gone", os.fsdecode(b"caf\xe9.txt")), "caf\\udce9.txt: gone"),
        (OSError(2, "gone", b"caf\xe9.txt"), "caf\\udce9.txt: gone"),
        (Wild(), "Wild: <Wild without a text>"),
        (SinkFailed("\ud800"), "\\ud800"),
    ],
)
def test_whatever_is_raised_is_read(error: Exception, text: str) -> None:
    """The text of any exception can be logged and journalled, and reading it raises nothing."""
    assert explain(error) == text
    assert requested_delay(error) == 0.0
