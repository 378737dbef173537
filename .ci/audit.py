"""Search the installed packages for known vulnerabilities. Exit code 1: found; 0: not found, or no data available.

Behind a mirror without such data, pip-audit reports "no known vulnerabilities" for every package. So it is first asked
about a release that is known to be vulnerable; if it does not report that one, its other answers do not count. Packages
that are not audited are printed, and are not a failure.
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Container
from pathlib import Path
from typing import Any

VULNERABLE = "jinja2==2.4.1"
"""Vulnerable since 2014 (CVE-2014-1402)."""
TIMEOUT_S = 180
"""Seconds for installing pip-audit, and for each of its runs."""


class NotAudited(Exception):  # noqa: N818 - not an error of the packages
    """The reason why an audit was not possible."""


def main() -> int:
    try:
        return judge(audit(install()))
    except NotAudited as reason:
        print(f"NOT AUDITED: {reason}", file=sys.stderr)
        return 0


def install() -> str:
    """Install pip-audit in an environment of its own: its thirty packages are not ours. Returns its path."""
    own = Path(sys.prefix) / "audit"
    call(sys.executable, "-m", "venv", str(own))
    call(str(own / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "pip-audit")
    return str(own / "bin/pip-audit")


def audit(program: str) -> list[dict[str, Any]]:
    """The report of pip-audit on each installed package. Raises NotAudited where it has no data."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(VULNERABLE)
        file.flush()
        known = ask(program, "--no-deps", "--disable-pip", "--requirement", file.name)
    if not any(package.get("vulns") for package in known):
        raise NotAudited(f"pip-audit knows nothing of {VULNERABLE}, so it has no data here")
    return ask(program, "--path", sysconfig.get_path("purelib"))


def ask(program: str, *options: str) -> list[dict[str, Any]]:
    """The packages of one report of pip-audit."""
    output = call(program, "--format", "json", "--progress-spinner", "off", "--timeout", "5", *options, codes=(0, 1))
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except ValueError as error:
        raise NotAudited(f"pip-audit has failed: {error}") from error
    return packages


def call(*command: str, codes: Container[int] = (0,)) -> str:
    """The output of a program. Raises NotAudited where it fails."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise NotAudited(f"{Path(command[0]).name} took longer than {TIMEOUT_S} s") from error
    if done.returncode not in codes or (done.returncode and not done.stdout):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NotAudited(f"{Path(command[0]).name} has failed: {last}")
    return done.stdout


def judge(packages: list[dict[str, Any]]) -> int:
    """Print vulnerable and unaudited packages. Returns the exit code."""
    skipped = [package for package in packages if "skip_reason" in package]
    found = [package for package in packages if package.get("vulns")]
    for package in found:
        ids = ", ".join(each["id"] for each in package["vulns"])
        print(f"VULNERABLE: {package['name']} {package['version']}: {ids}", file=sys.stderr)
    if skipped:
        print(f"NOT AUDITED: {', '.join(sorted(str(package['name']) for package in skipped))}", file=sys.stderr)
    print(f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(found)} vulnerable")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
