"""Laws of the service as its unit says it is, and of the command line that goes on as the service: pure."""

from pathlib import Path

from roomtone.cli.config_option import INSIDE
from roomtone.cli.systemd_install import compose_unit, read_shipped_file
from roomtone.cli.unit import Unit, command_line, explain, parse

TEXT = """\
# /etc/systemd/system/roomtone.service
[Unit]
Description=[Service]
[Service]
Type=notify
ExecStart="/opt/my 100%%/roomtone" run --config /srv/$$x.toml
Restart=always
User=roomtone
StateDirectory=roomtone
LoadCredential=assemblyai-api-key:roomtone.assemblyai-api-key
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
MemoryDenyWriteExecute=yes

# /etc/systemd/system/roomtone.service.d/override.conf
[Service]
; a comment
ReadWritePaths=/srv/a \\
# another one
  /srv/b
RuntimeDirectory=other
"""


def unit(text: str = TEXT, *, user: bool = False) -> Unit:
    found = parse(text, name="roomtone.service", user=user)
    assert found
    return found


def test_a_unit_is_read_as_systemd_reads_it() -> None:
    """Program and configuration where they are, and in their order the settings of what the service is and may do."""
    found = unit()

    assert (found.program, found.configuration) == (Path("/opt/my 100%/roomtone"), Path("/srv/$x.toml"))
    assert found.state == Path("/var/lib/roomtone")
    assert found.settings == (
        ("User", "roomtone"),
        ("StateDirectory", "roomtone"),
        ("LoadCredential", "assemblyai-api-key:roomtone.assemblyai-api-key"),
        ("SystemCallFilter", "@system-service"),
        ("SystemCallFilter", "~@privileged @resources"),
        ("MemoryDenyWriteExecute", "yes"),
        ("ReadWritePaths", "/srv/a    /srv/b"),
    )


def test_what_does_not_run_roomtone_is_no_service_of_ours() -> None:
    """A unit of that name with another program, with none, or with half a line."""
    for start in ("/bin/true", "", '"/opt/roomtone', "roomtone run --config"):
        assert parse(f"[Service]\nExecStart={start}\n", name="roomtone.service", user=False) is None


def test_a_later_start_replaces_the_first() -> None:
    """As a drop-in does it: an empty line, then the new one."""
    found = unit(TEXT + "ExecStart=\nExecStart=/usr/bin/roomtone run --config /etc/other.toml\n")

    assert found.configuration == Path("/etc/other.toml")


def test_the_source_of_a_credential_is_the_last_one() -> None:
    """A second line of the same name replaces the first, and an empty one ends all."""
    plain = "LoadCredential=assemblyai-api-key:roomtone.assemblyai-api-key"
    sealed = "LoadCredentialEncrypted=assemblyai-api-key:roomtone.assemblyai-api-key"

    assert unit().source("assemblyai-api-key") == plain
    assert unit(f"{TEXT}\n{sealed}\nLoadCredential=hook.secret:x").source("assemblyai-api-key") == sealed
    assert unit(f"{TEXT}\nLoadCredential=\n").source("assemblyai-api-key") is None
    assert unit().source("hook.secret") is None


def test_a_command_is_what_the_service_is() -> None:
    """Of both shipped units: what says who and where, and what it may do; nothing of how it lives, no environment but
    what a terminal needs, and its words as they are.
    """
    for template, user in (("roomtone.service", False), ("user/roomtone.service", True)):
        text = compose_unit(read_shipped_file(template), Path("/opt/roomtone"), Path("/etc/c.toml"))
        argv = command_line(
            unit(text, user=user),
            "c.service",
            Path("/etc/c.toml"),
            ["sinks", "pause", "$x"],
            {"TERM": "dumb", "A": "b"},
        )
        options, words = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
        keys = {option.partition("=")[2].partition("=")[0] for option in options if option.startswith("--property=")}

        assert ("--user" in options) == user
        assert words == ["/opt/roomtone", "sinks", "pause", "$$x"]
        assert {"UMask", "SystemCallFilter", "RestrictAddressFamilies", "MemoryDenyWriteExecute"} <= keys
        assert (
            user or {"User", "Group", "DynamicUser", "StateDirectory", "StateDirectoryMode", "LoadCredential"} <= keys
        )
        assert not keys & {
            "Type",
            "ExecStart",
            "ExecReload",
            "Restart",
            "RestartSec",
            "WatchdogSec",
            "RuntimeDirectory",
        }
        assert [option for option in options if option.startswith("--setenv")] == [
            f"--setenv={INSIDE}=/etc/c.toml",
            "--setenv=TERM=dumb",
        ]


def test_how_a_service_has_ended_is_explained() -> None:
    """By its exit code, ours or systemd's, or by how it was ended; a service that runs or was stopped has no reason."""
    failed = {"ActiveState": "failed", "Result": "exit-code", "ExecMainCode": "1"}

    assert explain({"ActiveState": "active", "Result": "success", "ExecMainStatus": "0"}) is None
    assert explain({"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}) is None
    assert explain({}) is None
    assert (
        explain(failed | {"ExecMainStatus": "78"}) == "has failed (exit code 78: the configuration is missing or wrong)"
    )
    assert explain(failed | {"ExecMainStatus": "5"}) == "has failed (exit code 5)"
    again = failed | {"ActiveState": "activating", "SubState": "auto-restart", "ExecMainStatus": "243"}
    assert str(explain(again)).startswith("keeps failing (exit code 243: a credential that the unit names")
    killed = failed | {"Result": "oom-kill", "ExecMainCode": "2", "ExecMainStatus": "9"}
    assert explain(killed) == "has failed (oom-kill)"
