"""Laws of `roomtone.config.toml_file`: what is not TOML, or not a value, gets a line that says what to do."""

import re
from pathlib import Path

import pytest

from roomtone.config.toml_file import ConfigError, read


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = 1\nb = = 2\n", "line 2, column 5: Invalid value"),
        (b"[rooms", "end of document"),
        (b"a = 1\na = 2\n", "line 2, column 6: Cannot overwrite a value"),
        (b"a = 1\nb = '\xff'\n", "line 2: not UTF-8"),
        (
            b"[rooms.desk]\nrate = 8000\n[rooms.desk]\n",
            "line 3, column 12: [rooms.desk] stands here a second time; write all its keys into one table",
        ),
        (
            b"[service]\ngrace = 4,5\n",
            (
                "line 2, column 10: Expected newline or end of document after a statement; "
                "one key = value a line, text in quotes, 4.5 and not 4,5"
            ),
        ),
        (b"[service]\nlog_level = debug\n", "line 2, column 13: Invalid value; text stands in quotes"),
        (b"[a]\nb = { c = 1, c = 2 }\n", "line 2, column 19: Duplicate inline table key 'c'; leave one of the two"),
        (b"[a]\nb = { c = 1 }\nb.d = 2\n", "line 3, column 8: Cannot mutate immutable namespace"),
        (
            b'a = "C:\\Users"\n',
            "line 1, column 10: Invalid hex value; write a backslash twice, or the text in single quotes",
        ),
        (b'a = "b\n"\n', "line 1, column 7: Illegal character '\\n'; its closing quote is missing in this line"),
        (b"rooms:\n", "line 1, column 6: Expected '=' after a key"),
        (b'{"rooms": {}}', "line 1, column 1: Invalid statement; a line is a [table], or key = value, or a # comment"),
        ("[rooms]".encode("utf-16"), "line 1: not UTF-8; save the file as UTF-8"),
        ("\n[rooms]".encode("utf-16-be"), "line 1: holds NUL bytes; save the file as UTF-8 text"),
        (b"a = " + b"[" * 3000 + b"]" * 3000, "is nested too deeply"),
        (b".".join([b"a"] * 3000) + b" = 1", "[a]: is nested too deeply"),
        (b"[storage]\nspool_gb = inf\n", "[storage] spool_gb = inf: must be a finite number"),
        (b"[a]\nb = [{ c = nan }]\n", "[a.b[0]] c = nan: must be a finite number"),
        (b'[a]\nb = ["\\u0000"]\n', '[a] b[0] = "\\u0000": must not contain NUL'),
    ],
)
def test_no_toml(tmp_path: Path, content: bytes, says: str) -> None:
    """A file that is no TOML is named with the place."""
    path = tmp_path / "roomtone.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {re.escape(says)}"):
        read(path)


def test_byte_order_mark(tmp_path: Path) -> None:
    """The mark that some editors put first is not an error."""
    path = tmp_path / "roomtone.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b"[rooms.desk]")

    assert read(path)["rooms"]


def test_absent(tmp_path: Path) -> None:
    """The message about a missing file says how to write one; a folder is not a file."""
    with pytest.raises(ConfigError, match=r"roomtone init --output .*absent\.toml"):
        read(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        read(tmp_path)


def test_line_ends_and_tabs(tmp_path: Path) -> None:
    """The line ends of Windows and tabs before a key are TOML."""
    path = tmp_path / "roomtone.toml"
    path.write_bytes(b"[a]\r\n\tb = 1\r\n")

    assert read(path) == {"a": {"b": 1}}
