"""Guests with a real systemd for tests, and Roomtone installed in them as an administrator would: a wheel in a venv
below /opt, made with an interpreter that a service can see.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from systemd_lab import Guest, Unbootable, boot

REPOSITORY = Path(__file__).parent.parent
PREFIX = "/opt/roomtone"
PROGRAM = f"{PREFIX}/bin/roomtone"


@contextmanager
def booted(folder: Path, binds: Mapping[str, Path] | None = None) -> Iterator[Guest]:
    """A guest, or the test ends here: under CI a machine that cannot boot one is a failure, elsewhere it is told."""
    with boot_or_tell(folder, binds) as guest:
        yield guest


@contextmanager
def boot_or_tell(folder: Path, binds: Mapping[str, Path] | None) -> Iterator[Guest]:
    booting = boot(folder, binds)
    try:
        guest = booting.__enter__()
    except Unbootable as error:
        if os.environ.get("CI"):
            pytest.fail(f"no systemd can be booted: {error}")
        pytest.skip(f"needs a systemd of its own: {error}")
    try:
        yield guest
    finally:
        booting.__exit__(None, None, None)


@cache
def installed() -> Path:
    """The folder that a guest shows as `PREFIX`: a venv with the wheel of this tree. Made beside our own packages, and
    kept there for the next time; the wheel itself is built and installed each time.
    """
    folder = Path(sys.prefix) / "guest"
    python = folder / "bin" / "python"
    if not python.exists():
        _pip_free_venv(folder)
    wheels = folder / "wheels"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, REPOSITORY], check=True, timeout=300)
    [wheel] = wheels.glob("roomtone-*.whl")
    into: list[str | Path] = [*pip, "--python", python, "install"]
    subprocess.run([*into, f"roomtone[local] @ file://{wheel}"], check=True, timeout=600)
    subprocess.run([*into, "--no-deps", "--force-reinstall", wheel], check=True, timeout=300)
    _move_scripts(folder)
    return folder


def _pip_free_venv(folder: Path) -> None:
    """With the machine's own interpreter: ours may lie in a home folder, which a service cannot see."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", folder], check=True, timeout=60)


def _move_scripts(folder: Path) -> None:
    """A script names its interpreter by the path at which it was installed; the guest has it at another."""
    script = folder / "bin" / "roomtone"
    script.write_text(script.read_text().replace(str(folder), PREFIX))
