"""Ask whether the installed packages have known vulnerabilities. Exit code 1: one has; 0: none has, or nobody can say.

pip-audit alone answers "no known vulnerabilities" where the service that it asks knows none of the packages: behind a
mirror, which has no such data. So it is first asked about a release that is known to be vulnerable; where it does not
say so, nothing that it says of the others counts. What is not audited is said aloud, and fails nothing.
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Container
from pathlib import Path
from typing import Any

KNOWN = "jinja2==2.4.1"
"""Vulnerable since 2014 (CVE-2014-1402)."""
PATIENCE = 180
"""Seconds that installing pip-audit may take, and each of its runs."""


class NotAudited(Exception):  # noqa: N818 - it says what is true, and is no error of the packages
    """Why nobody can say."""


def main() -> int:
    try:
        return judge(audit(install()))
    except NotAudited as reason:
        print(f"NOT AUDITED: {reason}", file=sys.stderr)
        return 0


def install() -> str:
    """pip-audit, in an environment of its own: it has thirty packages, which are none of ours."""
    own = Path(sys.prefix) / "audit"
    call(sys.executable, "-m", "venv", str(own))
    call(str(own / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "pip-audit")
    return str(own / "bin/pip-audit")


def audit(program: str) -> list[dict[str, Any]]:
    """What pip-audit knows of each package that is installed, if it knows anything of any."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(KNOWN)
        file.flush()
        known = ask(program, "--no-deps", "--disable-pip", "--requirement", file.name)
    if not any(package.get("vulns") for package in known):
        raise NotAudited(f"pip-audit knows nothing of {KNOWN}, so it has no data here")
    return ask(program, "--path", sysconfig.get_path("purelib"))


def ask(program: str, *what: str) -> list[dict[str, Any]]:
    """What pip-audit knows of each package."""
    output = call(program, "--format", "json", "--progress-spinner", "off", "--timeout", "5", *what, codes=(0, 1))
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except ValueError as error:
        raise NotAudited(f"pip-audit has failed: {error}") from error
    return packages


def call(*command: str, codes: Container[int] = (0,)) -> str:
    """What the program prints."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise NotAudited(f"{Path(command[0]).name} took longer than {PATIENCE} s") from error
    if done.returncode not in codes or (done.returncode and not done.stdout):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NotAudited(f"{Path(command[0]).name} has failed: {last}")
    return done.stdout


def judge(packages: list[dict[str, Any]]) -> int:
    """Say what was found, and what nobody knows about."""
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
