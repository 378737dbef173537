"""`roomtone service`: make Roomtone a service of systemd, see how it does, and undo it."""

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
    MARK,
    UNIT,
    Installation,
    compose_key_dropin,
    compose_unit,
    find_program,
    installed_at,
    invisible,
    needs_group,
    program_parts,
    shipped,
    system_installation,
    user_installation,
)
from roomtone.cli.unit import explain, logs, read_unit
from roomtone.config.model import NEEDS_KEY, Config
from roomtone.secret import CREDENTIAL

SHOWN = (
    *("LoadState", "ActiveState", "SubState", "StatusText", "NRestarts", "ActiveEnterTimestamp"),
    *("Result", "ExecMainCode", "ExecMainStatus"),
)
LONGEST_KEY = 4096
"""Bytes of a file that could hold a key."""
NOT_ACTIVE = 3
NOT_INSTALLED = 4
"""As systemctl's own `status` answers."""

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Run Roomtone as a service of systemd.

    It starts with the machine, or with --user with your session.
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
    help="Take the key of the speech service from this file, - for standard input. Asked for on a terminal.",
)
@click.option("--no-start", is_flag=True, help="Install and enable, but do not start.")
def install(given: Path | None, key_from: str | None, *, user: bool, no_start: bool) -> None:
    """Write the unit, enable and start it.

    The key becomes a credential of systemd, which the service alone can read: it is in no configuration, no environment
    and no process list. Doing it twice changes nothing; after an upgrade, the service is started anew.
    """
    place = _place(user=user)
    _refuse_invisible_program(place)
    path = (given or place.configuration).absolute()
    config, _ = load(path)
    key = _read_key(key_from, place, config)
    changed = _is_outdated(place)
    changed |= _give_access(path, config) if not user else False
    changed |= _keep_key(place, key)
    template = shipped("user/" + UNIT if user else UNIT)
    changed |= _write(place.unit, compose_unit(template, find_program(), path))
    if place.catalog:
        _write(place.catalog, shipped("roomtone.catalog"), is_ours=True)
        _run("journalctl", "--update-catalog")
    _run(*place.manager, "daemon-reload")
    _run(*place.manager, "enable", "--quiet", UNIT)
    say(f"enabled {UNIT}: it starts with {'your session' if user else 'the machine'}")
    if not no_start:
        _start(place, changed=changed)
    if user:
        say("to record without a session too: loginctl enable-linger")


@command.command()
@_user_option
def uninstall(*, user: bool) -> None:
    """Stop the service, remove what install made.

    That is the unit, the key, the catalog and the group. The configuration and all recordings stay.
    """
    place = _place(user=user)
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
    """Say how the service does.

    The exit code is 0 when it runs, 3 when it does not, 4 when it is not installed.
    """
    place = _place(user=user, changes=False)
    shown = _run(*place.manager, "show", UNIT, "--property", ",".join(SHOWN))
    facts = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if facts.get("LoadState") == "not-found":
        say(f"roomtone: {UNIT} is not installed; install it with: {_again('install', user=user)}", err=True)
        sys.exit(NOT_INSTALLED)
    restarts = int(facts.get("NRestarts") or 0)
    since = facts.get("ActiveEnterTimestamp") or "never"
    say(f"{facts.get('ActiveState')} ({facts.get('SubState')}) since {since}")
    if text := facts.get("StatusText"):
        say(text)
    if reason := explain(facts):
        say(f"{UNIT} {reason}; see: {logs(user=user)}")
    if restarts:
        say(f"restarted {restarts} time{'s' * (restarts != 1)} by systemd: {logs(user=user)}")
    if facts.get("ActiveState") not in {"active", "reloading"}:
        sys.exit(NOT_ACTIVE)


def _place(*, user: bool, changes: bool = True) -> Installation:
    if not Path("/run/systemd/system").is_dir() or not shutil.which("systemctl"):
        raise CommandFailure(
            "this machine was not started by systemd; run the daemon by what it has, as `roomtone run`"
        )
    if user:
        return user_installation(os.environ)
    if changes and os.geteuid() != 0:
        raise CommandFailure(
            "only root changes the machine's services; call it with sudo, or with --user for your session"
        )
    return system_installation()


def _refuse_invisible_program(place: Installation) -> None:
    script = find_program()
    if not os.access(script, os.X_OK):
        raise CommandFailure(f"{script}: the command is not installed there; install Roomtone with pip, then try again")
    if place.user:
        return
    if lines := invisible(program_parts()):
        remedy = (
            "install the program where any user may read it:\n"
            "    python3 -m venv /opt/roomtone && /opt/roomtone/bin/pip install 'roomtone[local]'\n"
            "    /opt/roomtone/bin/roomtone service install\n"
            "or for your own session: roomtone service install --user"
        )
        raise CommandFailure("\n".join(["the service could not see the program:", *lines, remedy]))


def _give_access(path: Path, config: Config) -> bool:
    """The service reads the configuration as a member of a group, so that nobody else has to be let in."""
    if config.service.state:
        raise CommandFailure(
            f'{path}: [service] state = "{config.service.state}": the service may write below /var/lib/roomtone only; '
            "remove the key, systemd gives the folder"
        )
    if path.parent != system_installation().configuration.parent:
        if lines := invisible([path]):
            lines.append(f"move it to {system_installation().configuration}, where `install` gives the service access")
            raise CommandFailure("\n".join(["the service could not read the configuration:", *lines]))
        return False
    _run("groupadd", "--system", "--force", GROUP)
    group = grp.getgrnam(GROUP).gr_gid
    plugins = [config.folder / os.path.expanduser(name) for name in config.service.plugins]  # noqa: PTH111 - it leaves what it does not know
    changes = list(needs_group(path, plugins, group))
    for one, mode in changes:
        os.chown(one, -1, group)
        one.chmod(mode)
    if changes:
        say(f"{path.parent}: readable by root and the group {GROUP}, which the service is in, and nobody else")
    return bool(changes)


def _return_configuration(folder: Path) -> None:
    """Give what the group had back to root's own group, and end the group."""
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
    """The key to keep, or None when there is none, or one is kept already, or the unit takes it from elsewhere."""
    if line := _foreign_source(place):
        if key_from is None:
            return None
        raise CommandFailure(
            f"the service takes its key by {line}, and would not see another in {place.key}: replace it where that "
            f"line finds it, then: {' '.join(place.manager)} restart roomtone; or remove the line: "
            f"{' '.join(place.manager)} edit roomtone"
        )
    if key_from == "-":
        return _checked(sys.stdin.buffer.read(LONGEST_KEY), "standard input")
    named = key_from or (config.service.api_key_file and str(config.folder / config.service.api_key_file))
    if named and not (key_from is None and place.key.exists()):
        try:
            with paths.expand(named).open("rb") as file:
                return _checked(file.read(LONGEST_KEY), named)
        except OSError as error:
            raise CommandFailure(f"{named}: the key cannot be read: {error.strerror}") from None
    endpoints = {room.streaming.endpoint for room in config.rooms.values()}
    if place.key.exists() or not sys.stdin.isatty() or not endpoints & {None, *NEEDS_KEY}:
        return None
    answer: str = click.prompt(
        "Key of AssemblyAI (empty: none, speech is recognized on this machine)",
        default="",
        hide_input=True,
        show_default=False,
    )
    return _checked(answer.encode(), "the answer") if answer.strip() else None


def _foreign_source(place: Installation) -> str | None:
    """The line of the installed unit that takes the key from elsewhere than `install` would write it to."""
    unit = read_unit(user=place.user)
    line = unit.source(CREDENTIAL) if unit else None
    ours = {f"LoadCredential={CREDENTIAL}:{where}" for where in (place.key, place.key.name)}
    return None if line in ours else line


def _is_outdated(place: Installation) -> bool:
    """True if what runs is older than what is installed, or than what systemd would read of its unit."""
    asked = ("show", UNIT, "--timestamp=unix", "--property=NeedDaemonReload,ExecMainStartTimestamp")
    shown = _run(*place.manager, *asked, check=False)
    facts = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    started = facts.get("ExecMainStartTimestamp", "").removeprefix("@")
    return facts.get("NeedDaemonReload") == "yes" or (started.isdecimal() and int(installed_at()) > int(started))


def _checked(text: bytes, origin: str) -> str:
    key = text.strip().decode("ascii", "replace")
    if not key or len(text) == LONGEST_KEY or not (key.isascii() and key.isprintable() and " " not in key):
        raise CommandFailure(f"{origin} holds no key; it must be one word of printable ASCII, and nothing else")
    return key


def _keep_key(place: Installation, key: str | None) -> bool:
    if key is None:
        return False
    changed = _write(place.key, key + "\n", mode=0o600, is_ours=True)
    if place.key_dropin:
        changed |= _write(place.key_dropin, compose_key_dropin(place.key))
    return changed


def _write(path: Path, text: str, *, mode: int = 0o644, is_ours: bool = False) -> bool:
    """The file with this content, whole or not at all. False when it had it already."""
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
    if path.exists() and not path.read_text("utf-8").startswith(MARK):
        raise CommandFailure(
            f"{path} is there and was not written by `roomtone service install`; move it away first",
            Exit.CANTCREAT,
        )


def _start(place: Installation, *, changed: bool) -> None:
    """Started anew where something has changed: a running daemon must not keep an old unit or key."""
    _run(*place.manager, "reset-failed", UNIT, check=False)
    try:
        _run(*place.manager, "restart" if changed else "start", UNIT)
    except CommandFailure:
        raise CommandFailure(f"{UNIT} did not start; why: {logs(user=place.user)}") from None
    text = _run(*place.manager, "show", UNIT, "--property", "StatusText", "--value").strip()
    say(f"started: {text}")
    say(f"see it: {_again('status', user=place.user)}, or {logs(user=place.user)}")


def _run(*argv: str, check: bool = True) -> str:
    """The output of one of systemd's programs. Raises Failure with what it said."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - our own words only
    except OSError as error:
        raise CommandFailure(f"{argv[0]}: cannot be run: {error.strerror}") from None
    if check and done.returncode:
        raise CommandFailure(f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def _again(verb: str, *, user: bool) -> str:
    return f"roomtone service {verb}{' --user' * user}"
