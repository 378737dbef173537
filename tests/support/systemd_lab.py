"""A real systemd for tests: PID 1 of throw-away namespaces, over a copy-on-write view of this machine's own root.

    with boot(tmp_path) as guest:
        guest.run("systemctl", "start", "roomtone")

What the guest writes is gone with it, and nothing of this machine is changed. It has its own processes, hostname,
devices, network (only `lo`) and cgroup subtree; so it needs root, and systemd and util-linux as programs.

This file is a program too: `boot` runs it again, first in a mount namespace of its own (`build`), then as the first
process of the new PID namespace (`become_init`), which becomes systemd.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

OWN = {"run": "mode=755", "tmp": "mode=1777", "var/tmp": "mode=1777", "dev": "mode=755"}
"""Folders that the guest has to itself, each with the options of its file system."""
INIT = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "mount", "umount", "pivot_root", "systemctl", "journalctl")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
NOT_WANTED = [
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
    "systemd-remount-fs.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journald-audit.socket",
    "systemd-initctl.socket",
    "systemd-update-utmp.service",
    "systemd-logind.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "timers.target",
    "getty.target",
    "remote-fs.target",
]
"""Units that need hardware, a console or a network, or would only cost time."""
HYBRID = ("systemd", "memory", "pids", "devices")
"""The hierarchies of cgroup v1 that a guest gets whose limits are to hold. On many machines, as in most containers,
these controllers are not to be had in v2: systemd then takes MemoryMax= and TasksMax= and enforces neither.
"""
BOOTING = 60.0
"""Seconds that a boot may take on a busy machine; it takes half a second on an idle one."""


class Unbootable(Exception):  # noqa: N818 - it says what is true of the machine
    """No guest can be booted here; the text says why, and what helps."""


class Guest:
    """The booted system. `root` is its file system, seen from here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def run(
        self, *argv: str, check: bool = True, text: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as root, with `text` on its standard input."""
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        enter = ["nsenter", "--target", str(self.pid), "--all", "env", "--ignore-environment", *environment]
        done = subprocess.run(
            [*enter, *argv], input=text or "", capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def path(self, path: str) -> Path:
        """Where this absolute path of the guest lies for us. Beware of absolute symlinks on the way."""
        return self.root / path.lstrip("/")

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """A file in the guest, with the folders above it."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        shown = self.run("systemctl", "show", unit, "--property", ",".join(names)).stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """What journald has of these matches, oldest first, as fields."""
        self.run("journalctl", "--sync")
        shown = self.run("journalctl", "--output=json", "--all", "--no-pager", "--quiet", *arguments).stdout
        return [json.loads(line) for line in shown.splitlines()]


@contextmanager
def boot(folder: Path, binds: Mapping[str, Path] | None = None, *, limits: bool = False) -> Iterator[Guest]:
    """Boot a guest and halt it at the end. `binds`: paths in the guest, each with the folder of ours that it shows.

    `folder` is any empty place of ours. With `limits`, those of memory and tasks are enforced. Raises Unbootable where
    no guest can be.
    """
    _check_means()
    with ExitStack() as stack:
        groups = stack.enter_context(_cgroups(HYBRID if limits else ()))
        log = stack.enter_context((folder / "boot.log").open("w+b"))
        plan = {
            "overlay": str(folder / "overlay"),
            "cgroups": {hierarchy: str(group) for hierarchy, group in groups.items()},
            "binds": {inside: str(outside) for inside, outside in {**_hidden(), **(binds or {})}.items()},
        }
        (folder / "overlay").mkdir()
        # The guest must not outlive a test run that is killed.
        outer = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
        with subprocess.Popen(
            [*outer, sys.executable, __file__, "build", json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process:
            try:
                guest = _await_boot(process, folder / "boot.log")
                if limits and not guest.show("init.scope", "MemoryCurrent")["MemoryCurrent"].isdecimal():
                    raise Unbootable(
                        "no controller of memory is to be had here: neither of cgroup v1 nor, for us, of v2"
                    )
                yield guest
            finally:
                process.kill()  # its child is the guest's init, and with that everything in the guest ends


def _hidden() -> dict[str, Path]:
    """The tests and their interpreter, where they lie in a folder of which the guest has its own, as a clone in /tmp
    does: the guest shows them at the same path.
    """
    ours = {Path(sys.prefix), Path(__file__).resolve().parent.parent}
    return {str(path): path for path in sorted(ours) if any(path.is_relative_to(f"/{name}") for name in OWN)}


def _check_means() -> None:
    if os.geteuid() != 0:
        raise Unbootable("booting a systemd in namespaces needs root: run the tests with sudo")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise Unbootable(f"missing: {', '.join(missing)}; apt-get install systemd util-linux")
    if not INIT.exists():
        raise Unbootable(f"{INIT} is missing; apt-get install systemd")


@contextmanager
def _cgroups(hybrid: Sequence[str]) -> Iterator[dict[str, Path]]:
    """A cgroup of our own below the one that we are in, which becomes the guest's root of cgroups: of v2, under "", and
    of each of these hierarchies of v1 that this machine has.
    """
    mounted = _hierarchies()
    if "" not in mounted:
        raise Unbootable("no cgroup2 hierarchy is mounted here; mount -t cgroup2 cgroup2 somewhere")
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    name = f"roomtone-test-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        groups: dict[str, Path] = {}
        for hierarchy in ("", *(each for each in hybrid if each in mounted)):
            below = own.get(hierarchy) or own.get(f"name={hierarchy}") or "/"
            group = mounted[hierarchy] / below.lstrip("/") / name
            try:
                group.mkdir()
            except OSError as error:
                raise Unbootable(f"{group}: {error.strerror}; a container must allow cgroups (--privileged)") from None
            stack.callback(_remove_groups, group)
            groups[hierarchy] = group
        yield groups


def _hierarchies() -> dict[str, Path]:
    """Where hierarchies of cgroups are mounted here: v2 under "", those of v1 by their controller, or their name."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, (kind, _, options) = line.split()[4], line.split(" - ")[1].split()
        if kind == "cgroup2":
            found.setdefault("", Path(place))
        elif kind == "cgroup":
            for option in options.split(","):
                found.setdefault(option.removeprefix("name="), Path(place))
    return found


def _remove_groups(group: Path) -> None:
    """The kernel needs a moment after the last process has died."""
    for path in [*sorted(group.rglob("*/"), reverse=True), group]:
        for _ in range(100):
            try:
                path.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.02)
            else:
                break


def _await_boot(outer: "subprocess.Popen[bytes]", log: Path) -> Guest:
    deadline = time.monotonic() + BOOTING
    state = "no init"
    while time.monotonic() < deadline and outer.poll() is None:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        # Before it is systemd, the child is this program, building.
        if children and _name_of(children[0]) == "systemd":
            guest = Guest(int(children[0]))
            state = guest.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in {"running", "degraded"}:
                return guest
        time.sleep(0.05)
    raise Unbootable(f"the guest did not boot ({state}):\n{log.read_text()}")


def _name_of(process: str) -> str:
    """Of the process, or nothing where it has just ended, as the mounts of `build` do."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def build(plan: dict[str, Any]) -> NoReturn:
    """In a mount namespace of our own: put the guest's root together, and go on as its init's first shape."""
    base = Path(plan["overlay"])
    _mount("tmpfs", base, "size=2g,mode=755")
    root, upper, work = base / "root", base / "upper", base / "work"
    for folder in (root, upper, work):
        folder.mkdir()
    _mount("overlay", root, f"lowerdir=/,upperdir={upper},workdir={work}")
    for name, options in OWN.items():
        _mount("tmpfs", root / name, options)
    _make_devices(root / "dev")
    for inside, outside in plan["binds"].items():
        target = root / inside.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        _run("mount", "--rbind", outside, target)
        _run("mount", "-o", "remount,bind,ro", target)
    _settle(root / "etc")
    for group in plan["cgroups"].values():
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    namespaces = ["--cgroup", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child"]
    program = [
        sys.executable,
        __file__,
        "become_init",
        json.dumps([str(root), [name for name in plan["cgroups"] if name]]),
    ]
    os.execvp("unshare", ["unshare", *namespaces, *program])


def _make_devices(dev: Path) -> None:
    """Nodes of our own, for a chmod in the guest must not reach this machine's."""
    for name, (major, minor) in DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    os.mknod(dev / "console", stat.S_IFCHR | 0o600, os.makedev(*DEVICES["null"]))
    for name in ("pts", "shm", "mqueue", "snd"):
        (dev / name).mkdir()
    _mount("devpts", dev / "pts", "newinstance,ptmxmode=0666,mode=620")
    _mount("tmpfs", dev / "shm", "mode=1777")
    for link, target in {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stderr": "fd/2"}.items():
        (dev / link).symlink_to(target)


def _settle(etc: Path) -> None:
    """A system of its own that starts nothing of this machine's, with a journal in memory that drops nothing."""
    units = etc / "systemd/system"
    for wants in units.glob("*.wants"):
        shutil.rmtree(wants)
    for unit in NOT_WANTED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/basic.target")
    for name, section, settings in (
        ("journald", "Journal", {"Storage": "volatile", "RateLimitIntervalSec": "0", "ReadKMsg": "no", "Audit": "no"}),
        ("system", "Manager", {"LogTarget": "journal", "ShowStatus": "no"}),
    ):
        folder = etc / f"systemd/{name}.conf.d"
        folder.mkdir(exist_ok=True)
        lines = [f"[{section}]", *(f"{key}={value}" for key, value in settings.items())]
        (folder / "test.conf").write_text("\n".join(lines) + "\n")
    (etc / "machine-id").unlink(missing_ok=True)
    (etc / "machine-id").write_text(uuid.uuid4().hex + "\n")
    (etc / "fstab").write_text("")


def become_init(root: Path, hybrid: Sequence[str]) -> NoReturn:
    """As the first process of the new PID namespace: go into the guest's root, and become systemd."""
    _mount("proc", root / "proc", "nosuid,nodev,noexec")
    _mount("sysfs", root / "sys", "nosuid,nodev,noexec,ro")
    _mount_cgroups(root / "sys/fs/cgroup", hybrid)
    _run("mount", "--bind", root / "proc/sys", root / "proc/sys")
    _run("mount", "-o", "remount,bind,ro", root / "proc/sys")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    (root / ".host").mkdir()
    os.chdir(root)
    _run("pivot_root", ".", ".host")
    os.chdir("/")
    _run("umount", "--lazy", "/.host")
    # systemd in a container leaves propagation to whoever made it; without this LoadCredential= gives an empty folder.
    _run("mount", "--make-rshared", "/")
    os.execve(INIT, ["systemd", "--system"], {"container": "test", "PATH": ENVIRONMENT["PATH"]})


def _mount_cgroups(place: Path, hybrid: Sequence[str]) -> None:
    """As systemd expects to find them: v2 alone, or v2 and some of v1 side by side, each in a folder of its name."""
    if not hybrid:
        _mount("cgroup2", place, "nosuid,nodev,noexec")
        return
    _mount("tmpfs", place, "mode=755,nosuid,nodev,noexec")
    (place / "unified").mkdir()
    _mount("cgroup2", place / "unified", "nosuid,nodev,noexec")
    for hierarchy in hybrid:
        (place / hierarchy).mkdir()
        chosen = "none,name=systemd" if hierarchy == "systemd" else hierarchy
        _mount("cgroup", place / hierarchy, f"nosuid,nodev,noexec,{chosen}")


def _mount(kind: str, target: Path, options: str) -> None:
    _run("mount", "-t", kind, "-o", options, kind, target)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


def main(arguments: Sequence[str]) -> NoReturn:
    step, plan = arguments[0], json.loads(arguments[1])
    match step:
        case "build":
            build(plan)
        case "become_init":
            root, hybrid = plan
            become_init(Path(root), hybrid)
        case _:
            sys.exit(f"no step {step}")


if __name__ == "__main__":
    main(sys.argv[1:])
