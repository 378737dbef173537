"""The descriptors of this process: the three standard ones, their limit, those that a fork must not keep, and a logger
that never blocks for long.
"""

import os
import resource
import select
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TextIO

MAX_DESCRIPTORS = 1 << 20
"""Upper bound where the system has no hard limit: programs that we start may close each number below it."""

WRITE_TIMEOUT_S = 0.5
"""Seconds that a line waits for a reader that does not read. The loop is blocked meanwhile, so later lines do not wait.
"""

_STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare() -> None:
    """Open what is closed of 0, 1 and 2, and allow as many descriptors as the system does.

    For a program's entry, before anything is opened: these are settings of the process.
    """
    fill_standard()
    raise_limit()


def fill_standard() -> None:
    """Open /dev/null for each of standard input, output and error that is closed.

    Otherwise the next open file would get the number, and printed text would go into a recording. Python's own streams
    are None then, which no code that prints expects.
    """
    for number, (name, mode) in enumerate(_STANDARD):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def raise_limit() -> None:
    """Raise the soft limit of descriptors, often 1,024 for the sake of select(), to the hard one: trio uses epoll."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def settle_output() -> None:
    """Flush the buffers, and drop what cannot be written: the interpreter would try again at its exit, complain, and
    end with an exit code of its own.
    """
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # ValueError: a plugin has closed it
            _open_null(number)


def copy_of(stream: TextIO) -> int | None:
    """A duplicate of the stream's descriptor; None if it has none, or is closed.

    It stays open when a plugin closes the stream, or its number.
    """
    try:
        return os.dup(stream.fileno())
    except (OSError, ValueError):
        return None


@contextmanager
def kept_from_forks(*descriptors: int) -> Iterator[None]:
    """Until the context is left, a child that a plugin forks closes these descriptors: a lock, a port or a lifeline
    that it kept would outlive us, and block our successor. Closing on exec does not help a child that never calls exec.

    Rejected: POSIX locks, which a fork does not inherit. Any code that opens and closes the same file in this process
    would drop them, and ports and pipes have none.
    """
    kept = _kept_from_forks()
    kept.update(descriptors)
    try:
        yield
    finally:
        kept.difference_update(descriptors)


@cache
def _kept_from_forks() -> set[int]:
    """One set for the process, registered once: a registration cannot be undone."""
    kept = set[int]()

    def close() -> None:
        while kept:
            with suppress(OSError):
                os.close(kept.pop())

    os.register_at_fork(after_in_child=close)
    return kept


class Lines:
    """A logger for structlog that writes lines, and its own factory.

    No failure of the stream ends or blocks the caller: a reader that is gone or does not read, a full disk, a plugin
    that closes it. Lines that cannot be written are counted in `lost`, and the next line carries their number.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = copy_of(stream)
        self._is_torn = False
        self.lost = 0

    def __call__(self, *_: object) -> "Lines":
        return self

    def add_lost_lines(self, _logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A processor: add the number of lines that are missing before this one."""
        return {**line, "lost_before": self.lost} if self.lost else line

    def msg(self, line: str) -> None:
        try:
            if self._descriptor is None:
                self._stream.write(line + "\n")
                self._stream.flush()
            else:
                self._write(self._descriptor, line.encode(self._stream.encoding, "backslashreplace") + b"\n")
        except (OSError, ValueError):  # ValueError: the stream is closed
            self.lost += 1
        else:
            self.lost = 0

    debug = info = warning = error = critical = exception = log = msg

    def _write(self, descriptor: int, line: bytes) -> None:
        """Write without blocking. Rejected: O_NONBLOCK, which all processes with this terminal or pipe would share. A
        pipe that is ready takes PIPE_BUF bytes (pipe(7)).
        """
        rest = memoryview(b"\n" + line if self._is_torn else line)
        ready = select.poll()
        ready.register(descriptor, select.POLLOUT)
        self._is_torn = False
        while rest:
            if not ready.poll(0 if self.lost else WRITE_TIMEOUT_S * 1000):
                raise BlockingIOError
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
            self._is_torn = bool(rest)


def _open_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)
