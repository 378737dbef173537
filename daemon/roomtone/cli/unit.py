"""The systemd service that runs with a configuration, and running a command as that service.

Recordings of a service belong to a dynamic user, in a folder that only root can reach. Its keys are credentials, and
its unit limits where it may write. A command that reads the state, opens sinks or needs keys is therefore run again by
systemd, in a transient unit with the settings of the service: the same user, folders, credentials and limits.
Rejected: root's own rights (SQLite and sinks would create files of root), and switching to the owner of the folder
(which cannot reach the folder, has no keys, and can write to places that the unit makes read-only).
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

MIN_SYSTEMD_EXIT_CODE = 200
"""Exit codes from here on are systemd's own: it could not prepare the service."""
SYSTEMD_EXIT_CODES = {
    203: "the program of ExecStart= is missing or not executable; call `roomtone service install` again",
    216: "a group of SupplementaryGroups= or Group= does not exist",
    217: "the user of User= does not exist",
    226: "a folder that the unit names, as in ReadWritePaths=, does not exist; write - before it",
    243: "a credential that the unit names does not exist; give its name without a path, from /etc/credstore",
}
STATE_PROPERTIES = ("ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus", "NRestarts")

_LIFE = re.compile(
    r"Exec(Start|Stop|Reload|Condition)|Type$|Restart|Notify|Watchdog|Timeout|Kill|FinalKill|SendSIG|Success|Remain|PIDFile|GuessMainPID|OOMPolicy|"
    r"WorkingDirectory|Standard(Input|Output|Error)|TTY|FileDescriptorStore|Sockets|BusName|Runtime"
)
"""Settings of the life cycle of a service, which a command does not share. All others are for identity and rights."""
_PASSED = ("TERM", "LANG", "LC_ALL", "LC_TIME", "TZ", "NO_COLOR")


class Unit(msgspec.Struct, frozen=True):
    """An installed service: the lines of its [Service] sections in order of precedence, drop-ins included.

    `user` is True for a service of the user's own manager; `runtime` is that manager's folder.
    """

    name: str
    user: bool
    program: Path
    configuration: Path
    settings: tuple[tuple[str, str], ...]
    runtime: str | None = None

    @property
    def scope(self) -> tuple[str, ...]:
        """The options of systemctl and systemd-run that select the manager."""
        return ("--user",) if self.user else ()

    @property
    def short(self) -> str:
        """The name without its suffix, as users type it."""
        return self.name.removesuffix(".service")

    @property
    def state(self) -> Path | None:
        """The state folder that systemd gives the service, by the path that the service sees."""
        named = [value for key, value in self.settings if key == "StateDirectory" and value]
        return Path("/var/lib", named[-1].split()[0].partition(":")[0]) if named and not self.user else None

    def source(self, credential: str) -> str | None:
        """The line by which systemd finds the credential: the last one counts, and an empty one resets them."""
        found = None
        for key, value in self.settings:
            if key.startswith("LoadCredential") and (not value or value.partition(":")[0] == credential):
                found = f"{key}={value}" if value else None
        return found


def find_unit(configuration: Path | None, environ: Mapping[str, str] = os.environ, name: str = UNIT) -> Unit | None:
    """The service of the machine or of this user that runs with this configuration, or None."""
    for user in (False, True):
        unit = read_unit(user=user, environ=environ, name=name)
        if unit and configuration and os.path.realpath(unit.configuration) == os.path.realpath(configuration):
            return unit
    return None


def read_unit(*, user: bool, environ: Mapping[str, str] = os.environ, name: str = UNIT) -> Unit | None:
    """The installed service of this name, or None where it is not installed or its manager does not run."""
    if not Path("/run/systemd/system").is_dir() or not shutil.which("systemctl"):
        return None
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    if user and not os.path.isdir(runtime):  # noqa: PTH112 - False also without the right to look
        return None
    text = _run(["systemctl", *(["--user"] if user else []), "cat", name], runtime)
    return parse(text, name=name, user=user, runtime=runtime if user else None) if text else None


def parse(text: str, *, name: str, user: bool, runtime: str | None = None) -> Unit | None:
    """The unit from the output of `systemctl cat`; None if it does not run `roomtone run --config`. Pure."""
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
    """The keys and values of all [Service] sections, with continued lines joined."""
    section = ""
    without_comments = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    for line in without_comments.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section == "[Service]" and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()


def continue_as_service(given: Path | None, environ: Mapping[str, str] = os.environ) -> None:
    """Run this command as the service of this configuration, and end this process with its exit code. Returns if the
    service does not exist, or if the command already runs inside it.

    Raises CommandFailure for a caller without the rights.
    """
    if INSIDE in environ or environ.get("STATE_DIRECTORY"):
        return
    path = find(given, environ)
    unit = find_unit(path, environ)
    if path is None or unit is None:
        return
    if not unit.user and os.geteuid() != 0:
        again = shlex.join([str(unit.program), *sys.argv[1:]])
        raise CommandFailure(f"{path}: {unit.name} runs with it, and only root may read its state: sudo {again}")
    sys.exit(_run_inside(unit, path.absolute(), sys.argv[1:], environ))


def _run_inside(unit: Unit, path: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    name = f"{unit.short}-command-{os.getpid()}.service"
    with subprocess.Popen(  # noqa: S603 - our own arguments and the caller's
        command_line(unit, name, path, arguments, environ), env=dict(environ) | _at(unit.runtime)
    ) as process:

        def end(number: int, frame: FrameType | None) -> None:
            del number, frame
            _run(["systemctl", *unit.scope, "stop", name], unit.runtime)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, end)
        code = process.wait()
    if code >= MIN_SYSTEMD_EXIT_CODE:
        reason = SYSTEMD_EXIT_CODES.get(code, f"exit code {code} of systemd")
        raise CommandFailure(f"the command cannot run as {unit.name}: {reason}; see: journalctl --unit {name}")
    return Exit.INTERRUPTED if code < 0 else code


def command_line(unit: Unit, name: str, path: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The arguments that run a command in a unit of this name, with the settings of the service. Pure."""
    inside = [f"{INSIDE}={path}", *(f"{key}={environ[key]}" for key in _PASSED if key in environ)]
    # A configuration names secrets in the credentials folder of the running service.
    credentials = f"/run/credentials/{name}:/run/credentials/{unit.name}"
    own = [("KillSignal", "SIGINT"), *([] if unit.user else [("BindReadOnlyPaths", f"-{credentials}")])]
    return [
        *("systemd-run", *unit.scope, "--quiet", "--collect", "--wait", "--pipe", "--pty", f"--unit={name}"),
        *(f"--setenv={one}" for one in inside),
        *(f"--property={key}={value}" for key, value in (*unit.settings, *own)),
        *("--", str(unit.program), *(word.replace("$", "$$") for word in arguments)),
    ]


def service_environment(path: Path, environ: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """The environment that locates the files of this configuration: for a service, with its STATE_DIRECTORY."""
    unit = None if INSIDE in environ else find_unit(path, environ)
    return environ if unit is None or unit.state is None else {**environ, "STATE_DIRECTORY": str(unit.state)}


def why_not_running(unit: Unit) -> str | None:
    """The reason why a service does not run, and what to do; None if it runs."""
    properties = show(unit, *STATE_PROPERTIES)
    state, start = properties.get("ActiveState", ""), f"systemctl {' '.join([*unit.scope, 'start', unit.short])}"
    if state in {"active", "reloading", "deactivating"}:
        return None
    if reason := explain(properties):
        return f"{unit.name} {reason}; see: {log_command(user=unit.user, name=unit.short)}"
    return f"{unit.name} is starting" if state == "activating" else f"{unit.name} is stopped; start it with: {start}"


def explain(properties: Mapping[str, str]) -> str | None:
    """The failure of the service, from the properties that systemd shows, or None. Pure."""
    result, code = properties.get("Result", "success"), int(properties.get("ExecMainStatus") or 0)
    is_failed = properties.get("ActiveState") == "failed" or properties.get("SubState") == "auto-restart"
    if not is_failed or (result == "success" and not code):
        return None
    failure = "has failed" if properties.get("ActiveState") == "failed" else "keeps failing"
    if properties.get("ExecMainCode") != "1":  # CLD_EXITED
        return f"{failure} ({result})"
    known = {int(exit_code): text for exit_code, text in MEANINGS.items()} | SYSTEMD_EXIT_CODES
    return f"{failure} (exit code {code}: {known[code]})" if code in known else f"{failure} (exit code {code})"


def show(unit: Unit, *properties: str) -> dict[str, str]:
    """The current properties of the service."""
    shown = _run(["systemctl", *unit.scope, "show", unit.name, "--property", ",".join(properties)], unit.runtime)
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def log_command(*, user: bool, name: str = "roomtone") -> str:
    """The command that shows the log of the service."""
    return f"journalctl {'--user-unit' if user else '--unit'} {name} --catalog --pager-end"


def _run(argv: Sequence[str], runtime: str | None) -> str:
    """The output of one of systemd's programs; empty where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments only
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=os.environ | _at(runtime)
        )
    except OSError:
        return ""
    return "" if done.returncode else done.stdout


def _at(runtime: str | None) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": runtime} if runtime else {}
