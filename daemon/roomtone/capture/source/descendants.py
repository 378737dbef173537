"""The end of everything that a command has started, however far that has gone from it. Standard library only.

A process that calls `setsid`, forks twice, clears its environment or ignores signals has left its group, its parent and
its name. It is still a descendant: the kernel hands orphans to the nearest ancestor that asked for them (prctl(2),
PR_SET_CHILD_SUBREAPER). So the capture process asks for them, and at its end kills its children, generation after
generation, until the kernel says that there are none (ECHILD). That is a proof, and needs no list.

Where the capture process was killed itself, its orphans are elsewhere. The daemon then looks for the mark that each
source has in its environment and that all which it starts inherits.

Out of reach: processes of another user (`sudo`), until they end; a process that a driver holds in the kernel, until the
driver lets it go; what another service starts when it is asked (systemd-run, a container engine, a sound server); and,
only where the capture process was killed too, a process that has both left the group and cleared its environment.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "ROOMTONE_SOURCE"
"""The environment variable with the mark of a source: random, and no secret."""
SURVIVED_STATUS = 3
"""The exit status of a capture process that could not end all that it has started."""

_PR_SET_CHILD_SUBREAPER = 36
_END_TIMEOUT_S = 1.5
"""Seconds for descendants to end after SIGKILL: less than the daemon waits for the capture process."""
_RETRY_S = 0.005
_PROC = Path("/proc")


def adopt_orphans() -> None:
    """Have descendants whose parent has ended become children of this process. For the thread that starts them."""
    import ctypes  # noqa: PLC0415 - only a command needs it

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> bool:
    """Kill and reap the children of this process until there are none. False if some do not end in time."""
    parent, deadline = str(os.getpid()), time.monotonic() + _END_TIMEOUT_S
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        if time.monotonic() > deadline:
            return False
        kill_processes(lambda folder: _parent(folder) == parent)
        time.sleep(_RETRY_S)


def kill_processes(is_meant: Callable[[Path], bool]) -> int:
    """Send SIGKILL to each process whose folder in /proc `is_meant` accepts. Returns how many there are."""
    count = 0
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            # The descriptor stays with the process that is looked at, also when its number goes to another one.
            with suppress(OSError):
                process = os.pidfd_open(int(folder.name))
                try:
                    if is_meant(folder):
                        count += 1
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)
    return count


def has_mark(folder: Path, mark: str) -> bool:
    """True if the process began with this mark in its environment. Raises OSError where that may not be read."""
    return f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")


def _parent(folder: Path) -> str:
    # The name of the program, in parentheses, may have anything in it.
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
