"""Laws of `roomtone service install`, of what stands beside an installed service, and of what its administrator does to
it, in a real systemd.
"""

import re
import time
from collections.abc import Iterator

import pytest

from support.systemd_guest import LOG, PREFIX, PROGRAM, REPOSITORY, ROOM, Installed, booted, installed
from support.systemd_lab import Guest

pytestmark = pytest.mark.timeout(300)

KEY = "/etc/credstore/roomtone.assemblyai-api-key"
CONFIGURATION = "/etc/roomtone/roomtone.toml"
METADATA = "/lib/python3*/site-packages/roomtone-*.dist-info/METADATA"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with booted(tmp_path_factory.mktemp("guest"), {PREFIX: installed()}) as guest:
        # The program as a layer of the guest's own, which a test may upgrade.
        guest.run("mkdir", "-p", "/run/upper", "/run/work")
        layers = f"lowerdir={PREFIX},upperdir=/run/upper,workdir=/run/work"
        guest.run("mount", "-t", "overlay", "overlay", "-o", layers, PREFIX)
        yield guest


@pytest.fixture
def roomtone(guest: Guest) -> Iterator[Installed]:
    roomtone = Installed(guest)
    roomtone.configure(ROOM + LOG)
    yield roomtone
    roomtone.remove()


def drop_ins() -> str:
    """What systemd/README.md says of a folder elsewhere and of a sink's secret, to the letter."""
    text = (REPOSITORY / "systemd/README.md").read_text().partition("## Where things are")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (.*)$", text, re.MULTILINE)
    assert lines.count("[Service]") == 2
    return "\n".join(line for line in lines if line != "[Service]")


ELSEWHERE = """
[sinks.far]
kind = "jsonl"
path = "/srv/recordings/events.jsonl"
[sinks.hook]
kind = "webhook"
url = "http://127.0.0.1:9/events"
secret_file = "/run/credentials/roomtone.service/hook.secret"
"""


def test_a_sink_whose_folder_or_secret_is_missing_fails_alone(roomtone: Installed) -> None:
    """With the drop-ins of systemd/README.md and neither folder nor secret, all rooms are recorded and the other sinks
    get their events; with both, nothing fails. `check` says of each what the service would find.
    """
    guest = roomtone.guest
    guest.run("groupadd", "--force", "recordings")
    roomtone.configure(ROOM + LOG + ELSEWHERE)
    roomtone.install("--no-start")
    roomtone.drop_in(drop_ins())
    checked = guest.run(PROGRAM, "check", check=False)
    guest.run("systemctl", "start", "roomtone")
    roomtone.wait(lambda: roomtone.events("recording_started"), "recording_started")

    assert checked.returncode == 1
    assert re.findall(r"FAULT  sink (\w+)", checked.stdout) == ["far", "hook"]
    assert roomtone.show("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert not guest.path("/srv/recordings").exists()

    guest.run("install", "-d", "--group=recordings", "--mode=0770", "/srv/recordings")
    guest.write("/etc/credstore/roomtone.hook.secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 0o600)
    guest.run("systemctl", "restart", "roomtone")
    far = guest.path("/srv/recordings/events.jsonl")
    roomtone.wait(lambda: far.exists() and far.read_text(), "events in the other folder")
    guest.run("systemctl", "stop", "roomtone")
    assert guest.run(PROGRAM, "check", check=False).stdout.count("FAULT") == 0
    guest.run("rm", "-rf", "/srv/recordings")


def test_a_folder_that_the_service_may_not_write_is_told(roomtone: Installed) -> None:
    """Root may write there, and anybody; the unit lets the service write nowhere but in its state."""
    roomtone.guest.run("mkdir", "--mode=0777", "/srv/open")
    roomtone.configure(ROOM + ELSEWHERE.partition("[sinks.hook]")[0].replace("/srv/recordings", "/srv/open"))
    roomtone.install("--no-start")
    checked = roomtone.guest.run(PROGRAM, "check", check=False)

    assert checked.returncode == 1
    assert "the daemon can write (its user, and ReadWritePaths= under systemd)" in checked.stdout
    assert roomtone.guest.run("ls", "/srv/open").stdout == ""


def test_a_check_leaves_nothing_behind(roomtone: Installed) -> None:
    """Before there is a service: root looks whether all would run, and no file is there that was not."""
    guest = roomtone.guest
    roomtone.configure(ROOM + LOG + '[sinks.archive]\nkind = "wav"\ndirectory = "recordings"\n')
    find = ("find", "/etc/roomtone", "/root", "!", "-path", "*/pulse*")
    before = guest.run(*find).stdout
    guest.run(PROGRAM, "check")

    assert guest.run(*find).stdout == before
    assert before.split()[:2] == ["/etc/roomtone", CONFIGURATION]


def test_what_is_not_ours_keeps_its_mode(roomtone: Installed) -> None:
    """Of the configuration's folder the service gets the configuration and the plugins."""
    guest = roomtone.guest
    guest.write("/etc/roomtone/hook.secret", "secret", 0o600)
    guest.write("/etc/roomtone/notes/plan.txt", "plan", 0o600)
    guest.write("/etc/roomtone/plugins/mine.py", "", 0o600)
    roomtone.install("--no-start")
    modes = guest.run("find", "/etc/roomtone", "-printf", "%f %m %g\n").stdout.split("\n")

    assert sorted(filter(None, modes)) == [
        "hook.secret 600 root",
        "mine.py 640 roomtone-config",
        "notes 755 root",
        "plan.txt 600 root",
        "plugins 750 roomtone-config",
        "roomtone 750 roomtone-config",
        "roomtone.toml 640 roomtone-config",
    ]


def test_an_upgrade_is_in_force_after_install(roomtone: Installed) -> None:
    """What runs says its own version, not the one that was installed under it; `install` starts the new one, once."""
    guest = roomtone.guest
    roomtone.install()
    old = roomtone.show("MainPID")
    guest.run("sh", "-c", f"sleep 1.1; sed -i 's/^Version: .*/Version: 9.9.9/' {PREFIX}{METADATA}")
    guest.run("sh", "-c", f"touch {PREFIX}{METADATA.rpartition('/')[0]}")
    before = guest.run(PROGRAM, "status").stdout
    roomtone.install()
    new = roomtone.show("MainPID")
    after = guest.run(PROGRAM, "status").stdout
    roomtone.install()
    again = roomtone.show("MainPID")
    guest.run("sh", "-c", f"touch --date='2020-01-01' {PREFIX}{METADATA.rpartition('/')[0]}")

    assert before.startswith("roomtone 0.")
    assert new != old
    assert after.startswith("roomtone 9.9.9,")
    assert again == new


def test_a_changed_unit_is_in_force_after_install(roomtone: Installed) -> None:
    """A drop-in of which systemd says that it has not read it yet counts as a change."""
    roomtone.install("--no-start")
    roomtone.drop_in("Environment=A=0")
    roomtone.install()
    old = roomtone.show("MainPID")
    time.sleep(1.1)
    roomtone.guest.write("/etc/systemd/system/roomtone.service.d/test.conf", "[Service]\nEnvironment=A=1\n")
    roomtone.install()

    assert roomtone.show("MainPID") != old
    assert roomtone.show("Environment") == {"Environment": "A=1"}


@pytest.mark.parametrize(
    "line",
    [
        "LoadCredentialEncrypted=assemblyai-api-key:roomtone.assemblyai-api-key",
        "LoadCredential=assemblyai-api-key:/etc/roomtone/assemblyai-api-key",
    ],
)
def test_a_key_that_would_not_count_is_refused(roomtone: Installed, line: str) -> None:
    """Where a drop-in takes the key from elsewhere, another one is not written, and said to be in force by nobody."""
    roomtone.install("--no-start")
    roomtone.drop_in(line)
    refused = roomtone.install("--no-start", "--key-from", "-", text="a-secret-key-of-nobody\n", check=False)

    assert refused.returncode == 1
    assert f"the service takes its key from {line}, " in refused.stderr
    assert not roomtone.guest.path(KEY).exists()
    assert roomtone.install("--no-start").returncode == 0


@pytest.mark.parametrize(
    ("key_from", "text", "told"),
    [
        ("~nouser/k", "", "there is no such home folder here"),
        ("/etc/absent", "", "No such file or directory"),
        ("/etc", "", "Is a directory"),
        ("-", "first\nsecond\n", "standard input does not hold a key; it must be a single word"),
        ("-", "two words", "standard input does not hold a key"),
        ("-", "", "standard input does not hold a key"),
        ("-", "schlüssel", "standard input does not hold a key"),
        ("/dev/zero", "", "/dev/zero does not hold a key"),
    ],
)
def test_what_is_no_key_is_refused(roomtone: Installed, key_from: str, text: str, told: str) -> None:
    """In a line, before anything is changed."""
    refused = roomtone.install("--key-from", key_from, text=text, check=False)

    assert refused.returncode == 1
    assert told in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not roomtone.guest.path(KEY).exists()
    assert not roomtone.guest.path("/etc/systemd/system/roomtone.service").exists()


def test_init_leaves_the_service_its_configuration(roomtone: Installed) -> None:
    """Written over, it keeps owner, group and mode: the service can read it at its next start. What comes next on this
    machine is said.
    """
    guest = roomtone.guest
    roomtone.install("--no-start")
    find = ("stat", "--format=%U %G %a", CONFIGURATION)
    before = guest.run(*find).stdout
    said = guest.run(PROGRAM, "init", "--yes", "--force", "--output", CONFIGURATION).stdout

    assert guest.run(*find).stdout == before == "root roomtone-config 640\n"
    assert f"next: roomtone check --config {CONFIGURATION}, then roomtone service install\n" in said


@pytest.mark.parametrize(
    ("mode", "text"), [(0o600, ROOM), (0o640, "[rooms.desk]\nsource = 1\n"), (0o640, '[sinks.x]\nkind = "wv"\n' + ROOM)]
)
def test_a_configuration_that_cannot_be_used_is_not_tried_for_ever(roomtone: Installed, mode: int, text: str) -> None:
    """Not readable, or wrong: a person must mend it, the service is not started again and again, and its status and all
    that ask it say why.
    """
    guest = roomtone.guest
    roomtone.install("--no-start")
    guest.path(CONFIGURATION).write_text(text)
    guest.path(CONFIGURATION).chmod(mode)
    guest.run("systemctl", "start", "roomtone", check=False)
    status = guest.run(PROGRAM, "service", "status", check=False)
    reason = "roomtone.service has failed (exit code 78: the configuration is missing or wrong); see: journalctl"

    assert roomtone.show("ActiveState", "NRestarts") == {"ActiveState": "failed", "NRestarts": "0"}
    assert status.returncode == 3
    assert reason in status.stdout
    assert reason in guest.run(PROGRAM, "mute", check=False).stderr


def test_a_unit_that_cannot_be_prepared_is_explained(roomtone: Installed) -> None:
    """What systemd itself could not do for the service is said by its status, and by a command that would go on as the
    service.
    """
    guest = roomtone.guest
    roomtone.install("--no-start")
    roomtone.drop_in("ReadWritePaths=/srv/absent")
    guest.run("systemctl", "start", "roomtone", check=False)
    status = guest.run(PROGRAM, "service", "status", check=False)
    coverage = guest.run(PROGRAM, "coverage", check=False)

    assert "roomtone.service keeps failing (exit code 226: a folder that the unit names" in status.stdout
    assert coverage.returncode == 1
    assert "the command cannot run as roomtone.service: a folder that the unit names" in coverage.stderr


def test_packages_that_are_missing_stop_no_recording(roomtone: Installed) -> None:
    """A missing extra of a secondary part is a notice, and `check` finds it; all rooms are recorded."""
    guest = roomtone.guest
    gate = '[rooms.desk.gate]\nmode = "speech"\n'
    roomtone.configure('[service]\nmetrics = "127.0.0.1:9464"\n' + ROOM + gate + LOG)
    roomtone.install()
    notices = roomtone.wait(lambda: (found := roomtone.events("notice"))[1:] and found, "two notices")
    checked = guest.run(PROGRAM, "check", check=False)

    assert roomtone.recorded() > 0
    assert [notice["code"] for notice in notices] == ["gate.unavailable", "metrics.unavailable"]
    assert "pip install 'roomtone[gate]'" in notices[0]["text"]
    assert "pip install 'roomtone[metrics]'" in notices[1]["text"]
    assert checked.returncode == 1
    assert re.findall(r"FAULT  (\w+)", checked.stdout) == ["room", "metrics"]


def test_a_command_ends_with_its_caller(roomtone: Installed) -> None:
    """What goes on as the service is not left behind where the caller is interrupted or ended."""
    guest = roomtone.guest
    camera = 'source = { kind = "command", argv = ["/bin/sleep", "60"] }'
    roomtone.configure(re.sub("source = .*", camera, ROOM) + LOG)
    roomtone.install("--no-start")
    for name in ("INT", "TERM"):
        ended = guest.run(
            "timeout", f"--signal={name}", "--preserve-status", "4", PROGRAM, "check", "--sources", check=False
        )
        assert ended.returncode != 0
        units = guest.run("systemctl", "list-units", "--plain", "--no-legend", "roomtone-command-*").stdout
        assert units == ""
