"""The service that runs with a configuration, as systemd knows it, and how a command goes on as that service.

What a service has recorded belongs to a user that exists for it alone, in a folder that only root can reach; its keys
are credentials, and its unit says where it may write. So a command that looks there, opens its sinks or needs its keys
is run again by systemd in a unit of its own with the settings of the service: the same user, folders, credentials and
limits. Rejected: root's own rights (SQLite and sinks make files, which would be root's), and root becoming the owner of
the folder (he cannot reach it, has no keys, and finds a place writable that the unit makes read-only).
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import msgspec

from roomtone.cli.config_option import INSIDE, find
from roomtone.cli.exit_codes import MEANINGS, CommandFailure, Exit
from roomtone.cli.systemd_install import UNIT

FIRST_OF_SYSTEMD = 200
"""Exit codes from here on are systemd's own: what it could not prepare for a service."""
TROUBLES = {
    203: "the program of ExecStart= is not there, or may not be run; call `roomtone service install` again",
    216: "a group of SupplementaryGroups= or Group= is not there",
    217: "the user of User= is not there",
    226: "a folder that the unit names, as in ReadWritePaths=, is not there; write - before it",
    243: "a credential that the unit names is not there; give its name without a path, from /etc/credstore",
}
SHOWN = ("ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus", "NRestarts")

_LIFE = re.compile(
    r"Exec(Start|Stop|Reload|Condition)|Type$|Restart|Notify|Watchdog|Timeout|Kill|FinalKill|SendSIG|Success|Remain|PIDFile|GuessMainPID|OOMPolicy|"
    r"WorkingDirectory|Standard(Input|Output|Error)|TTY|FileDescriptorStore|Sockets|BusName|Runtime"
)
"""Settings of how a service lives, which a command does not share. All others are about what it is and may do."""
_PASSED = ("TERM", "LANG", "LC_ALL", "LC_TIME", "TZ", "NO_COLOR")


class Unit(msgspec.Struct, frozen=True):
    """An installed service: the lines of its [Service] section in the order in which they count, drop-ins included.

    `user` says whether it is of the user's own manager; `runtime` is that manager's folder.
    """

    name: str
    user: bool
    program: Path
    configuration: Path
    settings: tuple[tuple[str, str], ...]
    runtime: str | None = None

    @property
    def scope(self) -> tuple[str, ...]:
        """What systemctl, systemd-run and the like must be told."""
        return ("--user",) if self.user else ()

    @property
    def short(self) -> str:
        """The name as people type it."""
        return self.name.removesuffix(".service")

    @property
    def state(self) -> Path | None:
        """The folder that systemd gives the service for its state, by the path that the service sees."""
        named = [value for key, value in self.settings if key == "StateDirectory" and value]
        return Path("/var/lib", named[-1].split()[0].partition(":")[0]) if named and not self.user else None

    def source(self, credential: str) -> str | None:
        """The line by which systemd finds the credential: of several the last one counts, an empty one ends them."""
        found = None
        for key, value in self.settings:
            if key.startswith("LoadCredential") and (not value or value.partition(":")[0] == credential):
                found = f"{key}={value}" if value else None
        return found


def find_unit(configuration: Path | None, environ: Mapping[str, str] = os.environ, name: str = UNIT) -> Unit | None:
    """The service that runs with this configuration, of the machine or of this user; None where there is none."""
    for user in (False, True):
        unit = read_unit(user=user, environ=environ, name=name)
        if unit and configuration and os.path.realpath(unit.configuration) == os.path.realpath(configuration):
            return unit
    return None


def read_unit(*, user: bool, environ: Mapping[str, str] = os.environ, name: str = UNIT) -> Unit | None:
    """The service of this name as it is installed, or None where it is not, or there is no such manager."""
    if not Path("/run/systemd/system").is_dir() or not shutil.which("systemctl"):
        return None
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    if user and not os.path.isdir(runtime):  # noqa: PTH112 - False also where it may not be looked at
        return None
    text = _run(["systemctl", *(["--user"] if user else []), "cat", name], runtime)
    return parse(text, name=name, user=user, runtime=runtime if user else None) if text else None


def parse(text: str, *, name: str, user: bool, runtime: str | None = None) -> Unit | None:
    """The unit of what `systemctl cat` prints; None for one that does not run `roomtone run --config`. Pure."""
    settings = list(_settings(text))
    starts = [value for key, value in settings if key == "ExecStart" and value]
    try:
        argv = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(starts[-1])] if starts else []
        named = argv[argv.index("--config") + 1]
    except (ValueError, IndexError):
        return None
    kept = tuple((key, value.replace("%%", "%")) for key, value in settings if not _LIFE.match(key))
    return Unit(name, user, Path(argv[0].lstrip("-@:+!")), Path(named), kept, runtime)


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values of all [Service] sections, with continued lines joined."""
    section = ""
    without_comments = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    for line in without_comments.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section == "[Service]" and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()


def enter(given: Path | None, environ: Mapping[str, str] = os.environ) -> None:
    """Go on as the service that runs with this configuration: the command is run there, and this process ends with its
    exit code. Returns where there is no such service, or this is inside of it already.

    Raises Failure for a caller who may not.
    """
    if INSIDE in environ or environ.get("STATE_DIRECTORY"):
        return
    path = find(given, environ)
    unit = find_unit(path, environ)
    if path is None or unit is None:
        return
    if not unit.user and os.geteuid() != 0:
        again = shlex.join([str(unit.program), *sys.argv[1:]])
        raise CommandFailure(
            f"{path}: {unit.name} runs with it, and only its own user and root see what it has: sudo {again}"
        )
    sys.exit(_run_inside(unit, path.absolute(), sys.argv[1:], environ))


def _run_inside(unit: Unit, path: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    name = f"{unit.short}-command-{os.getpid()}.service"
    with subprocess.Popen(  # noqa: S603 - our own words, and the caller's
        command_line(unit, name, path, arguments, environ), env=dict(environ) | _at(unit.runtime)
    ) as process:

        def end(number: int, frame: FrameType | None) -> None:
            del number, frame
            _run(["systemctl", *unit.scope, "stop", name], unit.runtime)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, end)
        code = process.wait()
    if code >= FIRST_OF_SYSTEMD:
        why = TROUBLES.get(code, f"exit code {code} of systemd")
        raise CommandFailure(f"this cannot be run as {unit.name} is: {why}; see: journalctl --unit {name}")
    return Exit.INTERRUPTED if code < 0 else code


def command_line(unit: Unit, name: str, path: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The words that run a command in a unit of this name, with the settings of the service. Pure."""
    inside = [f"{INSIDE}={path}", *(f"{key}={environ[key]}" for key in _PASSED if key in environ)]
    # A configuration names secrets by the folder that the service has while it runs.
    credentials = f"/run/credentials/{name}:/run/credentials/{unit.name}"
    own = [("KillSignal", "SIGINT"), *([] if unit.user else [("BindReadOnlyPaths", f"-{credentials}")])]
    return [
        *("systemd-run", *unit.scope, "--quiet", "--collect", "--wait", "--pipe", "--pty", f"--unit={name}"),
        *(f"--setenv={one}" for one in inside),
        *(f"--property={key}={value}" for key, value in (*unit.settings, *own)),
        *("--", str(unit.program), *(word.replace("$", "$$") for word in arguments)),
    ]


def environment(path: Path, environ: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """What says where the things of this configuration are: for a service, as it has it."""
    unit = None if INSIDE in environ else find_unit(path, environ)
    return environ if unit is None or unit.state is None else {**environ, "STATE_DIRECTORY": str(unit.state)}


def standing(unit: Unit) -> str | None:
    """Why a service does not run, and what to do; None where it does, or just begins."""
    facts = show(unit, *SHOWN)
    state, begin = facts.get("ActiveState", ""), f"systemctl {' '.join([*unit.scope, 'start', unit.short])}"
    if state in {"active", "reloading", "deactivating"}:
        return None
    if reason := explain(facts):
        return f"{unit.name} {reason}; see: {logs(user=unit.user, name=unit.short)}"
    return f"{unit.name} begins" if state == "activating" else f"{unit.name} is stopped; start it with: {begin}"


def explain(facts: Mapping[str, str]) -> str | None:
    """How the service has ended, by what systemd shows of it; None where it has not failed. Pure."""
    result, code = facts.get("Result", "success"), int(facts.get("ExecMainStatus") or 0)
    is_failed = facts.get("ActiveState") == "failed" or facts.get("SubState") == "auto-restart"
    if not is_failed or (result == "success" and not code):
        return None
    what = "has failed" if facts.get("ActiveState") == "failed" else "ends again and again"
    if facts.get("ExecMainCode") != "1":  # CLD_EXITED
        return f"{what} ({result})"
    known = {int(exit_code): text for exit_code, text in MEANINGS.items()} | TROUBLES
    return f"{what} (exit code {code}: {known[code]})" if code in known else f"{what} (exit code {code})"


def show(unit: Unit, *properties: str) -> dict[str, str]:
    """Properties of the service as systemd has them at the moment."""
    shown = _run(["systemctl", *unit.scope, "show", unit.name, "--property", ",".join(properties)], unit.runtime)
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def logs(*, user: bool, name: str = "roomtone") -> str:
    """The command that shows the log of the service."""
    return f"journalctl {'--user-unit' if user else '--unit'} {name} --catalog --pager-end"


def _run(argv: Sequence[str], runtime: str | None) -> str:
    """What one of systemd's programs prints; nothing where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - our own words only
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=os.environ | _at(runtime)
        )
    except OSError:
        return ""
    return "" if done.returncode else done.stdout


def _at(runtime: str | None) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": runtime} if runtime else {}
