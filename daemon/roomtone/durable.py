"""Files that survive a power cut: for the bundled sinks, and for whoever writes one that keeps files.

A file is durable when its bytes and its name are: fsync of a file says nothing of the folder that names it.
Everything is for the daemon's user only, whatever the umask: files 0600, folders 0700.
Errors: OSError that names the file or folder, from all of these.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = 0o600


def make_folder(folder: Path) -> None:
    """Make the folder and its parents where they are missing."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in this folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Put a file with these bytes in the place of what is there: readers and crashes see the old or the new, whole."""
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(new, path)


def put_in_place(new: Path, path: Path) -> None:
    """Give the finished file, whose bytes are durable, the name that it is for."""
    new.replace(path)
    sync_folder(path.parent)


def remove(path: Path) -> int:
    """Remove the file and return its size in bytes: 0 for one that is not there."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    sync_folder(path.parent)
    return size


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody else is in this context with this file, which is made where it is missing. It ends with the
    process too.

    `roomtone sinks test` opens a sink beside the daemon's: what must not be done by two at once asks here.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
