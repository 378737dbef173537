"""Laws of `roomtone.failure`."""

from pathlib import Path

from roomtone.failure import explain


def raised(path: Path) -> OSError:
    """What the standard library raises for a file in a folder that is not there."""
    try:
        path.write_text("")
    except OSError as error:
        return error
    raise AssertionError("the folder is there")


def test_file(tmp_path: Path) -> None:
    """What the system says of a file is told as such, with the place in the sink's code and not in Python's."""
    path = tmp_path / "absent" / "file"

    text = explain(raised(path))

    assert text.startswith(f"{path}: No such file or directory ({__file__}:")
    assert "pathlib" not in text
