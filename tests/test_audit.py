"""The audit of the packages: what is found fails, what nobody knows is said, and no silence passes for a clean bill."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent.parent / ".ci" / "audit.py"


@pytest.fixture
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_found_fails(audit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each vulnerability is named with its package; packages that nobody knows are named too, and fail nothing."""
    clean = {"name": "trio", "version": "1", "vulns": []}
    unknown = {"name": "ours", "skip_reason": "not found"}
    broken = {"name": "old", "version": "2", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}

    assert audit.judge([clean, unknown]) == 0
    said = capsys.readouterr()
    assert said.out == "1 of 2 packages audited, 0 vulnerable\n"
    assert said.err == "NOT AUDITED: ours\n"
    assert audit.judge([clean, broken]) == 1
    assert "VULNERABLE: old 2: PYSEC-1, PYSEC-2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("""echo '{"dependencies": [{"name": "jinja2", "skip_reason": "not found"}]}'""", "it has no data here"),
        ("""echo '{"dependencies": [{"name": "jinja2", "vulns": []}]}'""", "it has no data here"),
        ("echo nothing of the kind", "pip-audit has failed: "),
        ("echo no route to host >&2; exit 1", "pip-audit has failed: no route to host"),
    ],
)
def test_no_data_is_no_clean_bill(audit: Any, tmp_path: Path, program: str, said: str) -> None:
    """Whoever does not know the vulnerable is not believed about the rest: behind a mirror all seems well."""
    path = tmp_path / "pip-audit"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o755)
    with pytest.raises(audit.NotAudited, match=re.escape(said)):
        audit.audit(str(path))


def test_who_knows_the_vulnerable_is_asked_about_the_rest(audit: Any, tmp_path: Path) -> None:
    """And what it says of the rest counts."""
    path = tmp_path / "pip-audit"
    path.write_text("""#!/bin/sh
case "$*" in
  *--requirement*) echo '{"dependencies": [{"name": "jinja2", "vulns": [{"id": "CVE-1"}]}]}'; exit 1;;
  *--path*) echo '{"dependencies": [{"name": "trio", "version": "1", "vulns": []}]}';;
esac
""")
    path.chmod(0o755)
    assert audit.judge(audit.audit(str(path))) == 0
