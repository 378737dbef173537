"""Opens files for writing in folders that others may write in, and names the file in every error.

A name in such a folder may be a trap: a symbolic link, a pipe, or a file of another user's. So what is new is made
under a name that is not taken, and what is there is written to only when it is ours.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = 0o600

_UNSYNCABLE = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}
"""Given for the fsync of a folder by file systems that have none (PostgreSQL passes over them, too)."""
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Not through a symbolic link, not waiting for the other end of a pipe, and not for a child."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError inside gets the path, where it has none: calls by descriptor name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in this folder are on the disk, as far as its file system can say so."""
    with named(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _UNSYNCABLE:
                raise
        finally:
            os.close(descriptor)


def create_file(path: Path) -> int:
    """A new file for the daemon's user only, as a descriptor to read and write. A file of that name is removed."""
    with named(path):
        path.unlink(missing_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, PRIVATE)


def open_file(path: Path, flags: int = 0) -> int:
    """The file, as a descriptor to read and write; `flags` are those of `os.open`, O_CREAT among them.

    Raises OSError, which names it and says what to do, for what is not a regular file that is ours.
    """
    with named(path):
        try:
            descriptor = os.open(path, os.O_RDWR | flags | _SAFELY, PRIVATE)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise OSError(errno.ELOOP, "is a symbolic link; name the file that it leads to") from None
        try:
            _check(os.fstat(descriptor), path.parent.stat())
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _check(file: os.stat_result, folder: os.stat_result) -> None:
    """Raises OSError for what another user may have put there.

    What the folder's owner has put there is as the folder is: so it is on file systems that keep neither owners nor
    modes, where everything has those of the mount.
    """
    if not stat.S_ISREG(file.st_mode):
        raise OSError(errno.EINVAL, "The path must name a regular file")
    if file.st_uid not in {os.geteuid(), folder.st_uid}:
        raise OSError(errno.EPERM, f"belongs to user {file.st_uid}; remove it, or give it to user {os.geteuid()}")
    if file.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_IWOTH:
        raise OSError(errno.EPERM, "may be changed by every user of this machine; run: chmod o-w")
