"""Where the daemon's things lie: the configuration, the state, and what relative paths begin at."""

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
"""Whatever is made and however: what was said in a room is for the daemon's user alone."""


class StateError(Exception):
    """The state folder cannot be used; the text says why and what to do."""


class StateInUse(StateError):  # noqa: N818 - it says what is true of the folder
    """Another process holds the state folder."""


def configurations(environ: Mapping[str, str], here: Path) -> tuple[Path, ...]:
    """Where a configuration is looked for, in this order, unless one is named."""
    return (
        here / FILE,
        _xdg(environ, "XDG_CONFIG_HOME", ".config") / "roomtone" / FILE,
        Path("/etc/roomtone", FILE),
    )


def find_configuration(given: Path | None, environ: Mapping[str, str], here: Path) -> Path | None:
    """The configuration to use: the one given, $ROOMTONE_CONFIG, else the first that exists; None where none does.

    One that was named is returned whether it exists or not: to fall back from a misspelt name would run another.
    Raises PermissionError, which names the file, where none is seen and this user may not look into all the places.
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
            forbidden = error  # as in the working folder of somebody else: another place may have one all the same
    if forbidden:
        raise forbidden
    return None


def foreign_hand(path: Path) -> str | None:
    """Who else than root and this user could change what is at this path, or put another in its place, in words; None
    where nobody could. All folders above it count, and the links on the way. In a folder with the sticky bit nobody can
    replace what is not theirs; a group of which this user's is the first is the user's own.
    """
    absolute = path.absolute()
    real = absolute.resolve()
    for place in dict.fromkeys((absolute, real, *real.parents, *absolute.parents)):
        try:
            status = place.lstat()
        except OSError:
            continue  # then it cannot be read either, and whoever reads it says so
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
    """The path with `~` written out. Raises FileNotFoundError, which names it, where nobody has such a home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        text = "there is no such home folder here; write the whole path"
        raise FileNotFoundError(errno.ENOENT, text, str(path)) from None


def state_folder(configured: str | None, folder: Path, environ: Mapping[str, str]) -> Path:
    """Where the journal and the spool lie: `[service] state`, $STATE_DIRECTORY of systemd, else the XDG state folder.

    `folder` is where a relative `[service] state` begins: the configuration's own.
    """
    if configured:
        return folder / expand(configured)
    if given := _state_directory(environ):
        return given
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "roomtone"


def sinks_folder(folder: Path, environ: Mapping[str, str]) -> Path:
    """Where relative paths of sinks begin: systemd's state directory, for a service may write nowhere else, else the
    configuration's folder.
    """
    return _state_directory(environ) or folder


def control_socket(state: Path, environ: Mapping[str, str]) -> Path:
    """Where the daemon with this state is asked: in $RUNTIME_DIRECTORY of systemd, else the XDG runtime folder, where
    several daemons of one user have names of their own, else in the state folder.
    """
    if given := _first(environ.get("RUNTIME_DIRECTORY", "")):
        return given / SOCKET
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute() and os.path.isdir(runtime):  # noqa: PTH112 - False also where it may not be looked at
        name = hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:12]
        return runtime / "roomtone" / f"{name}.{SOCKET}"
    return state / SOCKET


def control_sockets(state: Path, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where to look for a running daemon: one with this state, however it was started, else the service of this user,
    else the system's. A shell without XDG_RUNTIME_DIR, as of `su` and cron, finds what a session has started.
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
    """The folder, made for this user only where it is missing. Raises StateError where it cannot be made."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(_unusable(folder, error)) from None
    return folder


@contextmanager
def lock(state: Path) -> Iterator[None]:
    """Hold the state folder, made where it is missing: two daemons in one would write over each other's positions.

    The lock is the kernel's (flock), so it ends with the process however that ends, also where a plugin has forked a
    child that lives on. Raises StateError where the folder cannot be made, written or locked, or named in an event;
    StateInUse where another process holds it.
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
    """Of several, which systemd joins with colons, the first is ours."""
    return _first(environ.get("STATE_DIRECTORY", ""))


def _first(folders: str) -> Path | None:
    first = folders.partition(":")[0]
    return Path(first) if first else None


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    """The XDG base directory specification: a relative value is invalid and to be ignored."""
    given = Path(environ.get(variable, ""))
    return given if given.is_absolute() else _home(environ) / default


def _home(environ: Mapping[str, str]) -> Path:
    """In a container, the user may be unknown to the system and HOME unset: then it is /, as Docker has it."""
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return Path("/")
