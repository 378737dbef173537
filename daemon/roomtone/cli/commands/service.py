"""`roomtone service`: install, inspect and remove the systemd service."""

import grp
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from roomtone import paths
from roomtone.cli.config_option import load
from roomtone.cli.exit_codes import CommandFailure, Exit
from roomtone.cli.output import say
from roomtone.cli.systemd_install import (
    GROUP,
    UNIT,
    UNIT_HEADER,
    Installation,
    compose_key_dropin,
    compose_unit,
    find_files_without_group,
    find_invisible,
    find_program,
    installed_at,
    program_parts,
    read_shipped_file,
    system_installation,
    user_installation,
)
from roomtone.cli.unit import explain, log_command, read_unit
from roomtone.config.model import NEEDS_KEY, Config
from roomtone.secret import CREDENTIAL

SHOWN = (
    *("LoadState", "ActiveState", "SubState", "StatusText", "NRestarts", "ActiveEnterTimestamp"),
    *("Result", "ExecMainCode", "ExecMainStatus"),
)
MAX_KEY_BYTES = 4096
"""Bytes that are read of a file with a key; longer files are refused."""
NOT_ACTIVE_CODE = 3
NOT_INSTALLED_CODE = 4
"""Exit codes of `systemctl status`."""

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Run Roomtone as a systemd service.

    It starts with the machine; with --user, it starts with your session.
    """


def _user_option(command: Command) -> Command:
    return click.option("--user", is_flag=True, help="For your desktop session instead of the machine.")(command)


@command.command()
@_user_option
@click.option(
    "--config",
    "-c",
    "given",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration. Default: /etc/roomtone/roomtone.toml, with --user ~/.config/roomtone/roomtone.toml.",
)
@click.option(
    "--key-from",
    metavar="FILE",
    help="Read the key of the speech service from this file, or - for standard input. Without it, a terminal is asked.",
)
@click.option("--no-start", is_flag=True, help="Install and enable, but do not start.")
def install(given: Path | None, key_from: str | None, *, user: bool, no_start: bool) -> None:
    """Write, enable and start the unit.

    The key becomes a systemd credential that only the service can read: it is not in the configuration, the environment
    or the process list. A second call changes nothing; after an upgrade it restarts the service.
    """
    place = _find_installation(user=user)
    _refuse_invisible_program(place)
    path = (given or place.configuration).absolute()
    config, _ = load(path)
    key = _read_key(key_from, place, config)
    changed = _is_outdated(place)
    changed |= _give_access(path, config) if not user else False
    changed |= _keep_key(place, key)
    template = read_shipped_file("user/" + UNIT if user else UNIT)
    changed |= _write(place.unit, compose_unit(template, find_program(), path))
    if place.catalog:
        _write(place.catalog, read_shipped_file("roomtone.catalog"), is_ours=True)
        _run("journalctl", "--update-catalog")
    _run(*place.manager, "daemon-reload")
    _run(*place.manager, "enable", "--quiet", UNIT)
    say(f"enabled {UNIT}: it starts with {'your session' if user else 'the machine'}")
    if not no_start:
        _start(place, changed=changed)
    if user:
        say("to record without a login session: loginctl enable-linger")


@command.command()
@_user_option
def uninstall(*, user: bool) -> None:
    """Stop the service, and remove the files that `install` wrote.

    They are the unit, the key, the catalog and the group. The configuration and all recordings stay.
    """
    place = _find_installation(user=user)
    if place.unit.exists():
        _refuse_foreign(place.unit)
        _run(*place.manager, "disable", "--now", "--quiet", UNIT)
        say(f"stopped and disabled {UNIT}")
    for path in (place.unit, place.key, place.key_dropin, place.catalog):
        if path and path.exists():
            path.unlink()
            say(f"removed {path}")
    if place.key_dropin and place.key_dropin.parent.is_dir() and not any(place.key_dropin.parent.iterdir()):
        place.key_dropin.parent.rmdir()
    if place.catalog:
        _run("journalctl", "--update-catalog")
        _return_configuration(place.configuration.parent)
    _run(*place.manager, "daemon-reload")
    say("the configuration, the recordings and the journal of events stay where they are")


@command.command()
@_user_option
def status(*, user: bool) -> None:
    """Show the state of the service.

    The exit code is 0 if it runs, 3 if it does not, and 4 if it is not installed.
    """
    place = _find_installation(user=user, changes=False)
    shown = _run(*place.manager, "show", UNIT, "--property", ",".join(SHOWN))
    properties = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if properties.get("LoadState") == "not-found":
        say(f"roomtone: {UNIT} is not installed; install it with: {_command_line('install', user=user)}", err=True)
        sys.exit(NOT_INSTALLED_CODE)
    restarts = int(properties.get("NRestarts") or 0)
    since = properties.get("ActiveEnterTimestamp") or "never"
    say(f"{properties.get('ActiveState')} ({properties.get('SubState')}) since {since}")
    if text := properties.get("StatusText"):
        say(text)
    if reason := explain(properties):
        say(f"{UNIT} {reason}; see: {log_command(user=user)}")
    if restarts:
        say(f"restarted {restarts} time{'s' * (restarts != 1)} by systemd: {log_command(user=user)}")
    if properties.get("ActiveState") not in {"active", "reloading"}:
        sys.exit(NOT_ACTIVE_CODE)


def _find_installation(*, user: bool, changes: bool = True) -> Installation:
    if not Path("/run/systemd/system").is_dir() or not shutil.which("systemctl"):
        raise CommandFailure(
            "this machine was not started by systemd; run the daemon with its service manager, as `roomtone run`"
        )
    if user:
        return user_installation(os.environ)
    if changes and os.geteuid() != 0:
        raise CommandFailure("only root can change the machine's services; use sudo, or --user for your session")
    return system_installation()


def _refuse_invisible_program(place: Installation) -> None:
    script = find_program()
    if not os.access(script, os.X_OK):
        raise CommandFailure(f"{script}: the command is not installed; install Roomtone with pip, then try again")
    if place.user:
        return
    if lines := find_invisible(program_parts()):
        remedy = (
            "install the program where every user can read it:\n"
            "    python3 -m venv /opt/roomtone && /opt/roomtone/bin/pip install 'roomtone[local]'\n"
            "    /opt/roomtone/bin/roomtone service install\n"
            "or for your own session: roomtone service install --user"
        )
        raise CommandFailure("\n".join(["the service would not see the program:", *lines, remedy]))


def _give_access(path: Path, config: Config) -> bool:
    """Let the service read the configuration as a member of a group, so that other users need no access."""
    if config.service.state:
        raise CommandFailure(
            f'{path}: [service] state = "{config.service.state}": the service can write below /var/lib/roomtone only; '
            "remove the key: systemd provides the folder"
        )
    if path.parent != system_installation().configuration.parent:
        if lines := find_invisible([path]):
            lines.append(
                f"move it to {system_installation().configuration}, where `install` gives access to the service"
            )
            raise CommandFailure("\n".join(["the service would not be able to read the configuration:", *lines]))
        return False
    _run("groupadd", "--system", "--force", GROUP)
    group = grp.getgrnam(GROUP).gr_gid
    plugins = [config.folder / os.path.expanduser(name) for name in config.service.plugins]  # noqa: PTH111 - it leaves unknown users as they are
    changes = list(find_files_without_group(path, plugins, group))
    for one, mode in changes:
        os.chown(one, -1, group)
        one.chmod(mode)
    if changes:
        say(f"{path.parent}: now readable by root and the group {GROUP} only, which the service is a member of")
    return bool(changes)


def _return_configuration(folder: Path) -> None:
    """Return the group's files to root's own group, and remove the group."""
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return
    for one in (folder, *folder.rglob("*")) if folder.is_dir() else ():
        if not one.is_symlink() and one.stat().st_gid == group:
            os.chown(one, -1, 0)
    _run("groupdel", GROUP)
    say(f"removed the group {GROUP}")


def _read_key(key_from: str | None, place: Installation, config: Config) -> str | None:
    """The key to store. None if there is none, if one is stored already, or if the unit takes it from elsewhere."""
    if line := _foreign_source(place):
        if key_from is None:
            return None
        raise CommandFailure(
            f"the service takes its key from {line}, and would ignore one in {place.key}: replace it where that "
            f"line points, then: {' '.join(place.manager)} restart roomtone; or remove the line: "
            f"{' '.join(place.manager)} edit roomtone"
        )
    if key_from == "-":
        return _checked(sys.stdin.buffer.read(MAX_KEY_BYTES), "standard input")
    named = key_from or (config.service.api_key_file and str(config.folder / config.service.api_key_file))
    if named and not (key_from is None and place.key.exists()):
        try:
            with paths.expand(named).open("rb") as file:
                return _checked(file.read(MAX_KEY_BYTES), named)
        except OSError as error:
            raise CommandFailure(f"{named}: the key cannot be read: {error.strerror}") from None
    endpoints = {room.streaming.endpoint for room in config.rooms.values()}
    if place.key.exists() or not sys.stdin.isatty() or not endpoints & {None, *NEEDS_KEY}:
        return None
    answer: str = click.prompt(
        "AssemblyAI key (empty: none, speech is recognized on this machine)",
        default="",
        hide_input=True,
        show_default=False,
    )
    return _checked(answer.encode(), "the answer") if answer.strip() else None


def _foreign_source(place: Installation) -> str | None:
    """The line of the installed unit that takes the key from another place than `install` writes it to, or None."""
    unit = read_unit(user=place.user)
    line = unit.source(CREDENTIAL) if unit else None
    ours = {f"LoadCredential={CREDENTIAL}:{where}" for where in (place.key, place.key.name)}
    return None if line in ours else line


def _is_outdated(place: Installation) -> bool:
    """True if the running process is older than the installed program or the unit files."""
    asked = ("show", UNIT, "--timestamp=unix", "--property=NeedDaemonReload,ExecMainStartTimestamp")
    shown = _run(*place.manager, *asked, check=False)
    properties = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    started = properties.get("ExecMainStartTimestamp", "").removeprefix("@")
    return properties.get("NeedDaemonReload") == "yes" or (started.isdecimal() and int(installed_at()) > int(started))


def _checked(text: bytes, origin: str) -> str:
    key = text.strip().decode("ascii", "replace")
    if not key or len(text) == MAX_KEY_BYTES or not (key.isascii() and key.isprintable() and " " not in key):
        raise CommandFailure(f"{origin} does not hold a key; it must be a single word of printable ASCII")
    return key


def _keep_key(place: Installation, key: str | None) -> bool:
    if key is None:
        return False
    changed = _write(place.key, key + "\n", mode=0o600, is_ours=True)
    if place.key_dropin:
        changed |= _write(place.key_dropin, compose_key_dropin(place.key))
    return changed


def _write(path: Path, text: str, *, mode: int = 0o644, is_ours: bool = False) -> bool:
    """Write the file atomically. Returns False if it already had this content."""
    if path.exists() and path.read_text("utf-8") == text and path.stat().st_mode & 0o777 == mode:
        return False
    if not is_ours:
        _refuse_foreign(path)
    path.parent.mkdir(mode=0o755 if mode & 0o004 else 0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    new.replace(path)
    say(f"wrote {path}")
    return True


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.read_text("utf-8").startswith(UNIT_HEADER):
        raise CommandFailure(
            f"{path} exists and was not written by `roomtone service install`; move it away first",
            Exit.CANTCREAT,
        )


def _start(place: Installation, *, changed: bool) -> None:
    """Start the service, or restart it after a change: a running daemon must not keep an old unit or key."""
    _run(*place.manager, "reset-failed", UNIT, check=False)
    try:
        _run(*place.manager, "restart" if changed else "start", UNIT)
    except CommandFailure:
        raise CommandFailure(f"{UNIT} did not start; see: {log_command(user=place.user)}") from None
    text = _run(*place.manager, "show", UNIT, "--property", "StatusText", "--value").strip()
    say(f"started: {text}")
    say(f"see: {_command_line('status', user=place.user)}, or {log_command(user=place.user)}")


def _run(*argv: str, check: bool = True) -> str:
    """The output of one of systemd's programs. Raises CommandFailure with its error output."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments only
    except OSError as error:
        raise CommandFailure(f"{argv[0]}: cannot be run: {error.strerror}") from None
    if check and done.returncode:
        raise CommandFailure(f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def _command_line(verb: str, *, user: bool) -> str:
    return f"roomtone service {verb}{' --user' * user}"
