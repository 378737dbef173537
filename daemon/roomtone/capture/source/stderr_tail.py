"""The end of a program's standard error and its exit status, as a reason for users. Standard library only, pure."""

import re
import signal

_MAX_KEPT_BYTES = 4096
_MAX_LINES = 3
_MAX_LINE_CHARS = 300

_URL = re.compile(r"(?P<scheme>\w+://)(?:[^\s'\"]*@)?(?P<rest>[^\s'\"?]*)(?P<query>\?[^\s'\"]*)?")
_ENDS = re.compile(rb"[\r\n]+")


class StderrTail:
    """The last 4 KiB of what a program wrote to its standard error, whole lines only."""

    def __init__(self) -> None:
        self._bytes = b""
        # The first line has lost its beginning and is left out: it may be the password of a URL, without the scheme.
        self._torn = False

    def feed(self, portion: bytes) -> None:
        self._bytes += portion
        if len(self._bytes) > _MAX_KEPT_BYTES:
            self._bytes = self._bytes[-_MAX_KEPT_BYTES:]
            self._torn = True
        if self._torn and (end := _ENDS.search(self._bytes)):
            self._bytes = self._bytes[end.end() :]
            self._torn = False

    def after(self, text: str) -> str:
        """The text followed by the last three lines, on one line, without the secrets of URLs."""
        lines = [line.strip() for line in _ENDS.split(b"" if self._torn else self._bytes)]
        words = [redact(line.decode(errors="replace"))[:_MAX_LINE_CHARS] for line in lines if line][-_MAX_LINES:]
        return f"{text}: {' | '.join(words)}" if words else text


def redact(line: str) -> str:
    """The line without user, password and query of its URLs."""
    return _URL.sub(lambda url: url["scheme"] + url["rest"] + ("?..." if url["query"] else ""), line)


def describe(status: int) -> str:
    """An exit status in words: `ended with status 1`, `was ended by SIGSEGV`."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"
