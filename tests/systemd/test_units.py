"""Laws of the unit files that hold without a systemd: budgets that nest, and one protection in both."""

import configparser
import re
from pathlib import Path

import msgspec
import pytest

from roomtone.cli.systemd_install import UNIT_HEADER, compose_unit, find_invisible, read_shipped_file
from roomtone.config.model import ServiceConfig
from roomtone.daemon import LEAVING_TIMEOUT_S
from roomtone.sinks import Sink

UNITS = ("roomtone.service", "user/roomtone.service")
SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "min": 60.0}


def unit(name: str) -> configparser.SectionProxy:
    """The [Service] section; of a key that stands twice, the last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep the case of keys
    parser.read_string(read_shipped_file(name))
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    return parser["Service"]


def seconds(text: str) -> float:
    """A time span of systemd, of the forms that our units have."""
    found = re.fullmatch(r"(\d+)(ms|s|min)?", text)
    assert found, text
    return int(found[1]) * SECONDS[found[2] or ""]


@pytest.mark.parametrize("name", UNITS)
def test_budgets_nest(name: str) -> None:
    """A sink's timeout fits into the grace period, and the grace period into the unit's limit."""
    [timeout] = [field.default for field in msgspec.structs.fields(Sink) if field.name == "timeout"]

    assert timeout < ServiceConfig().grace
    assert ServiceConfig().grace + LEAVING_TIMEOUT_S < seconds(unit(name)["TimeoutStopSec"])


@pytest.mark.parametrize("name", UNITS)
def test_a_stall_is_written_down_before_the_watchdog_acts(name: str) -> None:
    """Half of the watchdog's time is more than any healthy report takes, and the start may take a slow source."""
    service = unit(name)

    assert seconds(service["WatchdogSec"]) == 60
    assert seconds(service["TimeoutStartSec"]) > 35
    assert seconds(service["RestartSec"]) <= 1


@pytest.mark.parametrize("name", UNITS)
def test_it_is_started_again_for_ever(name: str) -> None:
    """Whatever ends the daemon, it is started again, unless a person must mend the configuration."""
    service = unit(name)

    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "78"
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert service["KillMode"] == "mixed"


@pytest.mark.parametrize("name", UNITS)
def test_the_program_is_what_is_installed(name: str) -> None:
    """Neither an environment that leads Python or the linker elsewhere, nor the limit that select() asks for."""
    service = unit(name)

    assert {"PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_PRELOAD"} <= set(service["UnsetEnvironment"].split())
    assert int(service["LimitNOFILE"]) >= 16_384


def test_only_tcp_may_listen() -> None:
    """Of what the service may bind, UDP and all else is nothing that it needs."""
    lines = [line for line in read_shipped_file("roomtone.service").splitlines() if line.startswith("SocketBind")]

    assert lines == ["SocketBindDeny=any", "SocketBindAllow=ipv4:tcp", "SocketBindAllow=ipv6:tcp"]


def test_the_user_unit_protects_what_a_user_can() -> None:
    """What both managers can enforce is the same in both units."""
    system, user = unit("roomtone.service"), unit("user/roomtone.service")
    common = [
        key for key in user if key.startswith(("Restrict", "Lock", "Memory", "System", "Tasks", "NoNew", "UMask"))
    ]

    assert len(common) >= 10
    assert [key for key in common if user[key] != system[key]] == []


def test_the_unit_names_the_program_where_it_is() -> None:
    """Only the command line is changed, with what systemd would expand taken literally; the rest is as shipped."""
    text = compose_unit(read_shipped_file("roomtone.service"), Path("/opt/my 100%/roomtone"), Path("/srv/$x.toml"))

    assert text.startswith(UNIT_HEADER)
    assert '\nExecStart="/opt/my 100%%/roomtone" run --config /srv/$$x.toml\n' in text
    mine = [line for line in text.splitlines() if "=" in line and not line.startswith(("#", "ExecStart"))]
    theirs = [line for line in read_shipped_file("roomtone.service").splitlines() if "=" in line]
    assert mine == [line for line in theirs if not line.startswith(("#", "ExecStart"))]


def test_what_the_service_could_not_see_is_named() -> None:
    """Folders that the unit hides, and folders closed to others, are told with the reason; an open place is fine."""
    assert find_invisible([Path("/usr/bin/env")]) == []
    assert find_invisible([Path("/home/ana/venv")]) == ["/home/ana/venv: ProtectHome= hides it from the service"]
