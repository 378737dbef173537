"""The tail of a program's standard error."""

from hypothesis import given
from hypothesis import strategies as st

from roomtone.capture.source.stderr_tail import StderrTail, describe, redact


def test_the_last_three_lines_are_the_reason_on_one_line() -> None:
    """Whatever ends a line, progress marks included, a reason is one line for a log."""
    tail = StderrTail()
    tail.feed(b"one\ntwo\r\nsize= 1\rsize= 2\n\n  cannot open\n")
    assert tail.after("ffmpeg ended") == "ffmpeg ended: size= 1 | size= 2 | cannot open"
    assert StderrTail().after("ffmpeg ended") == "ffmpeg ended"


@given(st.lists(st.binary(max_size=3000)))
def test_years_of_chatter_take_no_room(portions: list[bytes]) -> None:
    """However much a program says, 4 KiB of it are kept, and a reason is short."""
    tail = StderrTail()
    for portion in portions:
        tail.feed(portion)
        assert len(tail._bytes) <= 4096
    assert len(tail.after("").encode()) <= 3 * 4 * 300 + 10


def test_a_password_in_a_url_is_never_said() -> None:
    """Programs repeat the URLs they were given: user, password and query do not pass, nor the rest of a cut line."""
    line = "rtsp://admin:p@ss/w@10.0.0.8:554/live?token=abc: Connection refused"
    assert redact(line) == "rtsp://10.0.0.8:554/live?... Connection refused"
    assert redact("[in#0 @ 0x55] Error opening input: I/O error") == "[in#0 @ 0x55] Error opening input: I/O error"
    tail = StderrTail()
    tail.feed(b"rtsp://admin:secret@10.0.0.8/" + b"x" * 4090 + b"\nthe end\n")
    assert tail.after("") == ": the end"
    for portion in (
        b"rtsp://admin:secret@10.0.0.8/" + b"x" * 4080,
        b"x" * 5000,
        b":secret",
        b"@10.0.0.8/ refused",
        b"\nreally the end",
    ):
        tail.feed(portion)
        assert "secret" not in tail.after("")
    assert tail.after("") == ": really the end"


def test_an_ending_is_said_in_words() -> None:
    """People know signals by name."""
    assert describe(3) == "ended with status 3"
    assert describe(-11) == "was ended by SIGSEGV"
    assert describe(-40) == "was ended by signal 40"
