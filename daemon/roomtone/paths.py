"""The places of the daemon: its configuration, its state, and the folders at which relative paths begin."""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from roomtone.descriptors import kept_from_forks
from roomtone.legible import well_formed

FILE = "roomtone.toml"
VARIABLE = "ROOMTONE_CONFIG"
SOCKET = "control"
UMASK = 0o077
"""For all files that are made: what was said in a room is for the daemon's user alone."""


class StateError(Exception):
    """The state folder cannot be used; the text says why and what to do."""


class StateInUse(StateError):  # noqa: N818 - it says what is true of the folder
    """Another process holds the state folder."""


def configurations(environ: Mapping[str, str], here: Path) -> tuple[Path, ...]:
    """The places in which a configuration is looked for, in this order, unless one is named."""
    return (
        here / FILE,
        _xdg(environ, "XDG_CONFIG_HOME", ".config") / "roomtone" / FILE,
        Path("/etc/roomtone", FILE),
    )


def find_configuration(given: Path | None, environ: Mapping[str, str], here: Path) -> Path | None:
    """The configuration to use: the given one, $ROOMTONE_CONFIG, else the first that exists; None if there is none.

    A named one is returned even if it does not exist: after a misspelt name, another one would run. Raises
    PermissionError, which names the file, if none is found and this user may not look into all of the places.
    """
    if given is not None:
        return given
    if named := environ.get(VARIABLE):
        return expand(named)
    forbidden = None
    for path in configurations(environ, here):
        try:
            if path.is_file():
                return path
        except PermissionError as error:
            forbidden = error  # as in the working folder of another user: the next place may have one nevertheless
    if forbidden:
        raise forbidden
    return None


def foreign_hand(path: Path) -> str | None:
    """Describes which other user could change or replace the file at this path; None if only root and this user could.

    All folders above it count, and the links on the way. In a folder with the sticky bit users can only replace their
    own files. This user's primary group counts as the user.
    """
    absolute = path.absolute()
    real = absolute.resolve()
    for place in dict.fromkeys((absolute, real, *real.parents, *absolute.parents)):
        try:
            status = place.lstat()
        except OSError:
            continue  # then it cannot be read either, and the caller reports that
        if status.st_uid not in {0, os.geteuid()}:
            return f"{place} belongs to user {status.st_uid}"
        if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            continue
        if status.st_mode & stat.S_IWOTH:
            return f"{place} may be changed by everybody"
        if status.st_mode & stat.S_IWGRP and status.st_gid not in {0, os.getegid()}:
            return f"{place} may be changed by group {status.st_gid}"
    return None


def expand(path: str | Path) -> Path:
    """The path with `~` expanded. Raises FileNotFoundError, which names it, if there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        text = "there is no such home folder here; write the whole path"
        raise FileNotFoundError(errno.ENOENT, text, str(path)) from None


def state_folder(configured: str | None, folder: Path, environ: Mapping[str, str]) -> Path:
    """The folder of the journal and the spool: `[service] state`, $STATE_DIRECTORY of systemd, else the XDG state
    folder.

    `folder` is where a relative `[service] state` begins: the configuration's own.
    """
    if configured:
        return folder / expand(configured)
    if given := _state_directory(environ):
        return given
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "roomtone"


def sinks_folder(folder: Path, environ: Mapping[str, str]) -> Path:
    """The folder at which relative paths of sinks begin: systemd's state directory, for a service may write nowhere
    else, or else the configuration's folder.
    """
    return _state_directory(environ) or folder


def control_socket(state: Path, environ: Mapping[str, str]) -> Path:
    """The control socket of the daemon with this state: in $RUNTIME_DIRECTORY of systemd, else in the XDG runtime
    folder, in which each daemon of a user has a name of its own, else in the state folder.
    """
    if given := _first(environ.get("RUNTIME_DIRECTORY", "")):
        return given / SOCKET
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute() and os.path.isdir(runtime):  # noqa: PTH112 - False also where it may not be looked at
        name = hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:12]
        return runtime / "roomtone" / f"{name}.{SOCKET}"
    return state / SOCKET


def control_sockets(state: Path, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The sockets at which a running daemon may answer: one with this state, else the service of this user, else the
    system's. A shell without XDG_RUNTIME_DIR, as of `su` and cron, finds the daemon of a session too.
    """
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    bare = {name: value for name, value in environ.items() if name == "HOME"}
    places = (
        control_socket(state, environ),
        control_socket(state, {**bare, "XDG_RUNTIME_DIR": runtime}),
        control_socket(state, bare),
        Path(runtime, "roomtone", SOCKET),
        Path("/run/roomtone", SOCKET),
    )
    return tuple(dict.fromkeys(places))


def private_folder(folder: Path) -> Path:
    """The folder, which is made for this user only if it is missing. Raises StateError if it cannot be made."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(_unusable(folder, error)) from None
    return folder


@contextmanager
def lock(state: Path) -> Iterator[None]:
    """Lock the state folder, and make it if it is missing: two daemons would overwrite each other's positions.

    The lock is the kernel's (flock), so it ends with the process, even if a plugin has forked a child that survives.
    Raises StateError if the folder cannot be made, written, locked, or named in an event; StateInUse if another process
    holds it.
    """
    if str(state) != (shown := well_formed(str(state))):
        raise StateError(f"{shown}: the name of the state folder is not UTF-8; name another with [service] state")
    private_folder(state)
    try:
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateError(_unusable(state, error)) from None
    try:
        _take(descriptor, state)
        with kept_from_forks(descriptor):
            yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, state: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateInUse(
            f"{state}: another roomtone runs with this state; stop it first, or give this one its own [service] state"
        ) from None
    except OSError as error:
        raise StateError(f"{state}: the state cannot be locked: {error.strerror}; put it on a local disk") from None


def _unusable(folder: Path, error: OSError) -> str:
    why = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
    return (
        f"{folder}: the state cannot be written: {why}; give this user the folder, or name another with [service] state"
    )


def _state_directory(environ: Mapping[str, str]) -> Path | None:
    """The first of the folders, which systemd joins with colons."""
    return _first(environ.get("STATE_DIRECTORY", ""))


def _first(folders: str) -> Path | None:
    first = folders.partition(":")[0]
    return Path(first) if first else None


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    """By the XDG base directory specification: a relative value is invalid, and ignored."""
    given = Path(environ.get(variable, ""))
    return given if given.is_absolute() else _home(environ) / default


def _home(environ: Mapping[str, str]) -> Path:
    """In a container, the user may be unknown to the system and HOME unset: then it is /, as in Docker."""
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return Path("/")
