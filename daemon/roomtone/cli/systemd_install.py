"""The files of an installed service and their content, and checks that the service can see the program.

Nothing here changes the machine; `cli/commands/service.py` does.
"""

import os
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import msgspec

UNIT = "roomtone.service"
GROUP = "roomtone-config"
"""Members may read the configuration of the system service, and ask for its status. Not `roomtone`: that is the name of
the dynamic user, which systemd refuses to create beside a group of the same name.
"""
UNIT_HEADER = "# Written by `roomtone service install`. Put your changes into a drop-in: systemctl edit roomtone\n"

_HIDDEN = {
    "/home": "ProtectHome= hides it from the service",
    "/root": "ProtectHome= hides it from the service",
    "/run/user": "ProtectHome= hides it from the service",
    "/tmp": "PrivateTmp= hides it from the service",  # noqa: S108 - no file is made there
    "/var/tmp": "PrivateTmp= hides it from the service",  # noqa: S108 - no file is made there
}
_CREDENTIAL = """\
# The key of the speech service, readable by the service only.
[Service]
LoadCredential=assemblyai-api-key:{key}
"""


class Installation(msgspec.Struct, frozen=True):
    """The paths of an installed service. `key_dropin` and `catalog` are None where not needed."""

    user: bool
    unit: Path
    key: Path
    key_dropin: Path | None
    catalog: Path | None
    configuration: Path

    @property
    def manager(self) -> tuple[str, ...]:
        """The systemctl command for the manager that runs the service."""
        return ("systemctl", "--user") if self.user else ("systemctl",)


def system_installation() -> Installation:
    """A service of the machine, in systemd's search paths for files of the administrator."""
    return Installation(
        user=False,
        unit=Path("/etc/systemd/system", UNIT),
        key=Path("/etc/credstore/roomtone.assemblyai-api-key"),
        key_dropin=None,
        catalog=Path("/usr/lib/systemd/catalog/roomtone.catalog"),
        configuration=Path("/etc/roomtone/roomtone.toml"),
    )


def user_installation(environ: Mapping[str, str]) -> Installation:
    """A service of this user's desktop session."""
    given = Path(environ.get("XDG_CONFIG_HOME", ""))
    folder = given if given.is_absolute() else Path.home() / ".config"
    return Installation(
        user=True,
        unit=folder / "systemd/user" / UNIT,
        key=folder / "roomtone/assemblyai-api-key",
        key_dropin=folder / "systemd/user" / f"{UNIT}.d" / "key.conf",
        catalog=None,
        configuration=folder / "roomtone/roomtone.toml",
    )


def find_program() -> Path:
    """The `roomtone` script beside the running interpreter."""
    return Path(sysconfig.get_path("scripts"), "roomtone")


def program_parts() -> Iterator[Path]:
    """The paths that the service must be able to read: script, interpreter, libraries, package."""
    yield find_program()
    yield Path(sys.executable)
    yield Path(sys.executable).resolve()
    yield Path(sys.prefix)
    yield Path(sys.base_prefix)
    yield Path(__file__).resolve()


def find_invisible(paths: Iterable[Path]) -> list[str]:
    """A line for each of these paths that the system service cannot see, with the reason."""
    found: dict[str, None] = {}
    for path in paths:
        if reason := _why_invisible(path):
            found[reason] = None
    return list(found)


def _why_invisible(path: Path) -> str | None:
    # Both paths count: a link below /home cannot be followed, wherever it leads.
    for way in (path.absolute(), path.resolve()):
        for folder, reason in _HIDDEN.items():
            if way.is_relative_to(folder):
                return f"{way}: {reason}"
        for part in (*reversed(way.parents), way):
            if not _is_open(part):
                return f"{path}: {part} is closed to other users (mode {stat.S_IMODE(part.stat().st_mode):04o})"
    return None


def _is_open(path: Path) -> bool:
    """True if any user may enter the folder, or read the file."""
    mode = path.stat().st_mode
    return bool(mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH))


def compose_unit(template: str, program: Path, configuration: Path) -> str:
    """The unit with the real paths of the program and the configuration."""
    lines = template.splitlines(keepends=True)
    body = lines[next(index for index, line in enumerate(lines) if line.startswith("[")) :]
    command = f"ExecStart={_quote(program)} run --config {_quote(configuration)}\n"
    return UNIT_HEADER + "\n" + "".join(command if line.startswith("ExecStart=") else line for line in body)


def compose_key_dropin(key: Path) -> str:
    """The drop-in that gives the key to a user's service."""
    return UNIT_HEADER + "\n" + _CREDENTIAL.format(key=str(key).replace("%", "%%"))


def installed_at() -> float:
    """The Unix time of the last installation of any package: a process that started earlier runs older code."""
    libraries = Path(sysconfig.get_path("purelib"))
    return max((found.stat().st_mtime for found in libraries.glob("*.dist-info")), default=0.0)


def read_shipped_file(name: str) -> str:
    """A file of the folder systemd/: the wheel carries it as roomtone/systemd, the repository at its root."""
    packaged = resources.files("roomtone") / "systemd" / name
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[3] / "systemd" / name).read_text("utf-8")


def find_files_without_group(configuration: Path, plugins: Iterable[Path], group: int) -> Iterator[tuple[Path, int]]:
    """Files that do not belong to the group yet or are open to others, each with the mode that it needs: the
    configuration, its folder, and the drop-in files there. Other files are not ours, and links may lead anywhere.
    """
    folder = configuration.parent
    inside = [place for place in plugins if place.is_relative_to(folder) and place != folder]
    ours = [folder, configuration, *inside, *(one for place in inside for one in sorted(place.rglob("*")))]
    for one in dict.fromkeys(ours):
        if one.is_symlink() or not one.exists():
            continue
        status = one.stat()
        mode = stat.S_IMODE(status.st_mode)
        wanted = (mode | (0o050 if one.is_dir() else 0o040)) & ~0o027
        if status.st_gid != group or mode != wanted:
            yield one, wanted


def _quote(path: Path) -> str:
    """Quote for systemd's command lines, with specifiers and variables taken literally."""
    text = os.fspath(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if " " in text or "\\" in text else text
