"""Laws of Roomtone as a service, under a real systemd with the hardened unit, installed as an administrator does."""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from conftest import Report
from support.systemd_guest import LOG, PREFIX, PROGRAM, ROOM, Installed, Session, booted, installed
from support.systemd_lab import Guest

pytestmark = pytest.mark.timeout(300)

HIDDEN = "/root/roomtone"
COMMAND = 'kind = "command", argv = ["/usr/bin/python3", "/opt/tone.py"], restart = "always"'
MICROPHONE = 'kind = "microphone", device = "pulse"'
LOCAL = 'endpoint = "local"'
KEY = "/etc/credstore/roomtone.assemblyai-api-key"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    program = installed()
    with booted(tmp_path_factory.mktemp("guest"), {PREFIX: program, HIDDEN: program}) as guest:
        yield guest


@pytest.fixture
def roomtone(guest: Guest) -> Iterator[Installed]:
    roomtone = Installed(guest)
    roomtone.configure(ROOM + LOG)
    yield roomtone
    roomtone.remove()


@pytest.fixture(scope="module")
def ana(guest: Guest) -> Session:
    return Session(guest)


def first_sample(roomtone: Installed) -> float:
    """Seconds from the moment in which systemd began to start the service to the first recorded sample."""
    began = roomtone.wait(lambda: roomtone.events("recording_started"), "recording_started")[-1]["at"]
    starting = roomtone.guest.journal("--unit=roomtone", "--identifier=systemd", "--grep=Starting")[-1]
    return datetime.fromisoformat(began).timestamp() - int(starting["__REALTIME_TIMESTAMP"]) / 1e6


def lasting(gap: dict[str, str]) -> float:
    """Seconds that a gap takes."""
    return (datetime.fromisoformat(gap["until"]) - datetime.fromisoformat(gap["from"])).total_seconds()


def test_a_cold_start_records(roomtone: Installed, report: Report) -> None:
    """`systemctl start` returns when samples are on disk; the status says what records; the state is private."""
    roomtone.install()
    assert roomtone.recorded() > 0
    shown = roomtone.show("ActiveState", "StatusText", "NRestarts", "Result")
    assert shown == {"ActiveState": "active", "StatusText": "Recording desk", "NRestarts": "0", "Result": "success"}
    [entry] = roomtone.guest.journal("EVENT=service.started")
    assert entry["_SYSTEMD_UNIT"] == "roomtone.service"
    modes = roomtone.guest.run("find", "/var/lib/private/roomtone", "-perm", "/077").stdout
    assert modes == ""
    report(f"start to first recorded sample: {first_sample(roomtone):.2f} s")


def test_a_kill_costs_a_gap_and_no_more(roomtone: Installed, report: Report) -> None:
    """Killed, it is started again; what is missing is one gap with its cause, and recording goes on behind it."""
    roomtone.install()
    pid = roomtone.show("MainPID")["MainPID"]
    roomtone.guest.run("kill", "-KILL", pid)
    [gap] = roomtone.wait(lambda: roomtone.events("gap"), "a gap")
    roomtone.wait(lambda: len(roomtone.events("recording_started")) == 2, "recording after the kill")

    assert gap["cause"] == "daemon down"
    assert roomtone.show("NRestarts")["NRestarts"] == "1"
    report(f"audio lost by SIGKILL: {lasting(gap):.2f} s")


def test_a_restart_costs_a_gap(roomtone: Installed, report: Report) -> None:
    """`systemctl restart` ends cleanly, and what it costs is one gap."""
    roomtone.install()
    roomtone.guest.run("systemctl", "restart", "roomtone")
    [gap] = roomtone.wait(lambda: roomtone.events("gap"), "a gap")

    assert gap["cause"] == "daemon down"
    assert gap["start"] == gap["end"]
    assert roomtone.show("NRestarts")["NRestarts"] == "0"
    report(f"audio lost by systemctl restart: {lasting(gap):.2f} s")


HANGS_ONCE = """
import time
from pathlib import Path
from roomtone import hookimpl

@hookimpl
async def recording_started(event):
    hung = Path("/var/lib/roomtone/hung")
    if not hung.exists():
        hung.touch()
        time.sleep(3600)
"""


def test_a_hang_of_the_loop_is_written_down_and_ended(roomtone: Installed) -> None:
    """A plugin that blocks the loop: the log has the stack that blocks, the watchdog ends it, and recording goes on
    with the gap recorded.
    """
    roomtone.guest.write("/etc/roomtone/plugins/hangs.py", HANGS_ONCE)
    roomtone.install("--no-start")
    roomtone.drop_in("WatchdogSec=4")
    roomtone.guest.run("systemctl", "start", "roomtone", check=False)
    roomtone.wait(lambda: roomtone.events("gap"), "a gap")
    [stalled] = roomtone.guest.journal("EVENT=loop.stalled")

    assert "hangs.py" in stalled["MESSAGE"]
    assert "capture" in stalled["MESSAGE"]
    assert "Watchdog timeout" in roomtone.log()
    assert [gap["cause"] for gap in roomtone.events("gap")] == ["daemon down"]
    roomtone.wait(lambda: roomtone.show("StatusText")["StatusText"] == "Recording desk", "recording again")


def test_without_a_source_it_starts_and_says_so(roomtone: Installed) -> None:
    """A device that is not there keeps nobody waiting: it has started, the status says what is missing, and as long as
    the source is tried again the watchdog is content.
    """
    roomtone.configure(ROOM.replace("/opt/tone.py", "/opt/absent.py") + LOG)
    roomtone.install("--no-start")
    roomtone.drop_in("WatchdogSec=3")
    roomtone.guest.run("systemctl", "start", "roomtone")
    status = roomtone.show("StatusText")["StatusText"]
    time.sleep(8)

    assert re.fullmatch(r"Recording nothing; desk has no samples \(device\) since \d+ s", status)
    assert roomtone.show("NRestarts", "ActiveState") == {"NRestarts": "0", "ActiveState": "active"}


def test_a_stop_is_short_beside_a_dead_receiver(roomtone: Installed) -> None:
    """A receiver that takes the connection and never answers costs the grace period, not the service's limit."""
    hole = "import socket, time; s = socket.create_server(('127.0.0.1', 8099)); time.sleep(3600)"
    roomtone.guest.run("systemd-run", "--quiet", "--unit=hole", "/usr/bin/python3", "-c", hole)
    webhook = '[sinks.hook]\nkind = "webhook"\nurl = "http://127.0.0.1:8099/events"\n'
    roomtone.configure("[service]\ngrace = 5\n" + ROOM + LOG + webhook)
    roomtone.install()
    roomtone.wait(lambda: roomtone.events("recording_started"), "recording_started")
    roomtone.guest.run("systemctl", "stop", "roomtone", timeout=120)
    roomtone.guest.run("systemctl", "stop", "hole")

    assert roomtone.show("Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    assert "timed out" not in roomtone.log()
    assert [event["reason"] for event in roomtone.events("recording_stopped")] == ["stopping"]


def test_a_stop_lets_the_streaming_drain(roomtone: Installed) -> None:
    """The signal to stop is for the daemon alone: the recognizer lives until its session has ended as it should."""
    roomtone.install()
    roomtone.wait(lambda: roomtone.events("session_started"), "a session")
    roomtone.guest.run("systemctl", "stop", "roomtone")

    assert [event["reason"] for event in roomtone.events("session_ended")] == ["terminated"]
    assert roomtone.show("Result") == {"Result": "success"}


def test_the_key_is_a_credential(roomtone: Installed) -> None:
    """The key comes from standard input, lies where root alone reads it, and the service has it as a credential; no
    environment and no argument has it.
    """
    roomtone.configure(ROOM.replace(LOCAL, 'endpoint = "assemblyai"') + LOG)
    roomtone.install("--key-from", "-", text="a-secret-key-of-nobody\n")
    pid = roomtone.show("MainPID")["MainPID"]
    found = roomtone.guest.run(
        "grep", "--text", "a-secret-key-of-nobody", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline", check=False
    )

    assert found.stdout == ""
    assert roomtone.guest.run("stat", "--format=%a %U", KEY).stdout == "600 root\n"
    assert "a-secret-key-of-nobody" not in roomtone.log()


def test_without_a_network_recording_goes_on(roomtone: Installed) -> None:
    """With a key and no network the sessions fail, are tried again, and not one sample is missing."""
    roomtone.configure(ROOM.replace(LOCAL, 'endpoint = "assemblyai"') + LOG)
    roomtone.install("--no-start", "--key-from", "-", text="a-secret-key-of-nobody\n")
    roomtone.drop_in("PrivateNetwork=yes")
    roomtone.guest.run("systemctl", "start", "roomtone")
    roomtone.wait(lambda: roomtone.guest.journal("EVENT=session.failed"), "session.failed")
    recorded = roomtone.recorded()
    roomtone.wait(lambda: roomtone.recorded() > recorded, "more samples")

    roomtone.wait(lambda: "no session for desk: " in roomtone.show("StatusText")["StatusText"], "a status that says so")
    assert roomtone.show("StatusText")["StatusText"].startswith("Recording desk; ")
    assert roomtone.show("NRestarts") == {"NRestarts": "0"}
    assert roomtone.events("gap") == []


STRICT = """
import trio
from roomtone.testing.fake_service import open_service

async def serve():
    async with open_service(key="the-right-key", port=8097):
        await trio.sleep_forever()

trio.run(serve)
"""


def test_a_wrong_key_stops_no_recording(roomtone: Installed) -> None:
    """A key that the service refuses: every sample is recorded, and a notice, the status and the health say what is
    wrong. `install` takes another key, and then what was recorded meanwhile is heard.
    """
    guest = roomtone.guest
    guest.run("systemd-run", "--quiet", "--unit=strict", f"{PREFIX}/bin/python", "-c", STRICT)
    roomtone.configure(ROOM.replace(LOCAL, 'endpoint = "ws://127.0.0.1:8097/v3/ws"') + LOG)
    roomtone.install("--key-from", "-", text="a-secret-key-of-nobody\n")
    [notice] = roomtone.wait(lambda: roomtone.events("notice"), "a notice")
    roomtone.wait(lambda: "no session for desk" in roomtone.show("StatusText")["StatusText"], "a status that says so")
    recorded = roomtone.recorded()
    roomtone.wait(lambda: roomtone.recorded() > recorded, "more samples")
    health = guest.run(PROGRAM, "health", check=False)
    status = roomtone.show("StatusText")["StatusText"]

    assert notice["code"] == "session.refused"
    assert "Invalid API key (the operator must correct this)" in notice["text"]
    assert status.startswith("Recording desk; no session for desk: ")
    assert health.returncode == 1
    assert "room desk: no session: " in health.stdout
    assert roomtone.events("gap") == []
    assert "a-secret-key-of-nobody" not in roomtone.log() + status + health.stdout + json.dumps(roomtone.events())

    roomtone.install("--key-from", "-", text="the-right-key\n")
    [started] = roomtone.wait(lambda: roomtone.events("session_started"), "a session with the right key")
    guest.run("systemctl", "stop", "strict")
    assert started["position"] <= notice["position"]


def test_a_missing_key_leaves_the_recognizer(roomtone: Installed) -> None:
    """No key is no failure: the unit starts, and speech goes to the recognizer of this machine."""
    roomtone.configure(ROOM.replace(LOCAL, "") + LOG)
    roomtone.install()
    started = roomtone.wait(lambda: roomtone.guest.journal("EVENT=session.started"), "a session")

    assert started[0]["ROOMTONE_ENDPOINT"] == "local"
    assert not roomtone.guest.path(KEY).exists()


def test_an_encrypted_key_takes_one_drop_in(roomtone: Installed) -> None:
    """LoadCredentialEncrypted= of the same name replaces the plain one: the key is on disk only encrypted."""
    roomtone.configure(ROOM.replace(LOCAL, "") + LOG)
    roomtone.install("--no-start")
    roomtone.guest.run("systemd-creds", "setup")
    roomtone.guest.path("/etc/credstore.encrypted").mkdir(exist_ok=True)
    encrypt = ["systemd-creds", "encrypt", "--with-key=host", "--name=assemblyai-api-key", "-"]
    roomtone.guest.run(*encrypt, "/etc/credstore.encrypted/roomtone.assemblyai-api-key", text="a-secret-key-of-nobody")
    roomtone.drop_in("LoadCredentialEncrypted=assemblyai-api-key:roomtone.assemblyai-api-key")
    roomtone.guest.run("systemctl", "start", "roomtone")
    roomtone.wait(lambda: roomtone.guest.journal("EVENT=session.failed"), "an attempt with the key")
    roomtone.guest.run("rm", "-rf", "/etc/credstore.encrypted")


def test_installing_twice_changes_nothing(roomtone: Installed) -> None:
    """The first call says what it does; the second finds all as it should be, and leaves the running daemon alone."""
    first = roomtone.install().stdout
    pid = roomtone.show("MainPID")
    second = roomtone.install().stdout

    assert "wrote /etc/systemd/system/roomtone.service" in first
    assert "readable by root and the group roomtone-config" in first
    assert "started: Recording desk" in first
    assert "wrote" not in second
    assert roomtone.show("MainPID") == pid
    assert roomtone.guest.run("systemctl", "is-enabled", "roomtone").stdout == "enabled\n"


def test_status_says_how_it_does(roomtone: Installed) -> None:
    """0 when it runs, 3 when it does not, 4 when it is not there: as systemctl's own."""
    absent = roomtone.guest.run(PROGRAM, "service", "status", check=False)
    assert absent.returncode == 4
    assert "roomtone service install" in absent.stderr

    roomtone.install()
    running = roomtone.guest.run(PROGRAM, "service", "status")
    assert running.stdout.startswith("active (running) since ")
    assert "Recording desk" in running.stdout

    roomtone.guest.run("systemctl", "stop", "roomtone")
    assert roomtone.guest.run(PROGRAM, "service", "status", check=False).returncode == 3


def test_uninstalling_undoes_installing(roomtone: Installed) -> None:
    """Nothing that `install` made is left; configuration and recordings are."""
    changed = "find /etc /usr/lib /usr/local/lib -xdev -newer /etc/mark -type f"
    ours = r"roomtone\.(service|catalog|assemblyai)"
    roomtone.guest.write("/etc/mark", "")
    time.sleep(0.05)
    roomtone.install("--key-from", "-", text="a-secret-key-of-nobody\n")
    assert len(re.findall(ours, roomtone.guest.run("sh", "-c", changed).stdout)) == 3
    removed = roomtone.guest.run(PROGRAM, "service", "uninstall").stdout

    assert "removed /etc/systemd/system/roomtone.service" in removed
    assert re.findall(ours, roomtone.guest.run("sh", "-c", changed).stdout) == []
    assert roomtone.guest.run("getent", "group", "roomtone-config", check=False).stdout == ""
    assert roomtone.guest.path("/etc/roomtone/roomtone.toml").exists()
    assert roomtone.recorded() > 0
    assert roomtone.guest.run(PROGRAM, "service", "uninstall").returncode == 0


def test_a_program_that_the_service_cannot_see_is_refused(roomtone: Installed) -> None:
    """A program in a home folder would fail with 203/EXEC at the next boot: it is refused now, with the remedy."""
    refused = roomtone.guest.run(f"{HIDDEN}/bin/python", "-m", "roomtone", "service", "install", check=False)

    assert refused.returncode == 1
    assert "ProtectHome= hides it" in refused.stderr
    assert "/opt/roomtone/bin/roomtone service install" in refused.stderr
    assert not roomtone.guest.path("/etc/systemd/system/roomtone.service").exists()


def test_somebody_elses_unit_is_left_alone(roomtone: Installed) -> None:
    """A unit that was written by hand is neither written over nor removed."""
    unit = "/etc/systemd/system/roomtone.service"
    roomtone.guest.write(unit, "[Service]\nExecStart=/bin/true\n")
    installing = roomtone.install(check=False)
    removing = roomtone.guest.run(PROGRAM, "service", "uninstall", check=False)
    content = roomtone.guest.path(unit).read_text()
    roomtone.guest.path(unit).unlink()

    assert installing.returncode == 73
    assert removing.returncode == 73
    assert "was not written by" in installing.stderr
    assert content == "[Service]\nExecStart=/bin/true\n"


def test_a_broken_configuration_is_told_before_anything_is_done(roomtone: Installed) -> None:
    """`install` reads the configuration first; a running service is not stopped for one that would not start."""
    roomtone.configure("[rooms.desk]\nsource = 1\n")
    refused = roomtone.install(check=False)

    assert refused.returncode == 78
    assert not roomtone.guest.path("/etc/systemd/system/roomtone.service").exists()


def test_the_units_pass_systemds_own_judgement(roomtone: Installed) -> None:
    """`systemd-analyze` finds nothing wrong with the installed units, and an exposure of at most 1.5."""
    roomtone.install("--no-start")
    unit = "/etc/systemd/system/roomtone.service"
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    checked = roomtone.guest.run(*verify, unit)
    assert checked.stderr == ""

    exposure = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", unit]
    assert re.search(
        r"Overall exposure level for roomtone.service: (0\.\d|1\.[0-5]) OK", roomtone.guest.run(*exposure).stdout
    )


def test_a_user_has_a_service_of_their_own(roomtone: Installed, ana: Session) -> None:
    """With --user the service runs in the session of an ordinary user: hardened, with its key, its state in the user's
    own folder; installed twice and removed without a trace.
    """
    guest = roomtone.guest
    ana.configure(ROOM.replace(LOCAL, "") + LOG)
    install = [PROGRAM, "service", "install", "--user", "--key-from", "-"]
    first = ana.run(*install, text="a-secret-key-of-nobody\n")
    second = ana.run(*install, text="a-secret-key-of-nobody\n")
    attempts = roomtone.wait(lambda: guest.journal("EVENT=session.failed"), "an attempt with the key")
    status = ana.run(PROGRAM, "service", "status", "--user")
    unit = "/home/ana/.config/systemd/user/roomtone.service"
    checked = ana.run("systemd-analyze", "--user", "verify", "--man=no", "--recursive-errors=no", unit)
    state = guest.run("find", "/home/ana/.local/state/roomtone", "-name", "*.pcm").stdout
    key = guest.run("stat", "--format=%a %U", "/home/ana/.config/roomtone/assemblyai-api-key").stdout
    removed = ana.run(PROGRAM, "service", "uninstall", "--user")
    left = guest.run("find", "/home/ana/.config", "-name", "*roomtone*").stdout.split()

    assert "started: Recording desk" in first.stdout
    assert attempts[0]["_UID"] == ana.number
    assert "wrote" not in second.stdout
    assert status.stdout.startswith("active (running)")
    assert checked.stderr == ""
    assert state
    assert key == "600 ana\n"
    assert f"removed {unit}" in removed.stdout
    assert left == ["/home/ana/.config/roomtone", "/home/ana/.config/roomtone/roomtone.toml"]


def test_a_microphone_of_the_session_is_recorded(roomtone: Installed, ana: Session) -> None:
    """PortAudio, its ALSA plugins and the sound server work where memory is never writable and executable, and where
    only the system calls of the unit are allowed.
    """
    ana.configure(ROOM.replace(COMMAND, MICROPHONE))
    ana.run("systemctl", "--user", "start", "pulseaudio.service")
    ana.run("pactl", "load-module", "module-null-sink", "sink_name=air")
    ana.run("pactl", "set-default-source", "air.monitor")
    ana.run(PROGRAM, "service", "install", "--user")
    pid = ana.run("systemctl", "--user", "show", "roomtone", "--property=MainPID", "--value").stdout.strip()
    status = ana.run(PROGRAM, "service", "status", "--user").stdout
    protected = roomtone.guest.path(f"/proc/{pid}/status").read_text()
    ana.run(PROGRAM, "service", "uninstall", "--user")

    assert "Recording desk" in status
    assert "Seccomp:\t2" in protected
    assert "NoNewPrivs:\t1" in protected


def test_a_reload_costs_nothing(roomtone: Installed) -> None:
    """`systemctl reload` reaches the daemon, which goes on recording without a gap."""
    roomtone.install()
    before = roomtone.show("MainPID", "NRestarts")
    roomtone.guest.run("systemctl", "reload", "roomtone")
    recorded = roomtone.recorded()
    roomtone.wait(lambda: roomtone.recorded() > recorded + 2 * 32_000, "two seconds more")

    assert roomtone.show("MainPID", "NRestarts") == before
    assert roomtone.events("gap") == []


def test_what_is_forgotten_is_searched_for_by_a_process_that_the_unit_allows(roomtone: Installed) -> None:
    """As root, with the service running: what is forgotten is proven gone. Stopped, or asked by somebody else, nothing
    is said to be done that is not, and nothing is left behind.
    """
    roomtone.install()
    assert roomtone.recorded() > 0
    forget = (PROGRAM, "forget", "--last", "1m", "--yes")
    done = roomtone.guest.run(*forget)
    assert "is forgotten" in done.stdout
    assert "nothing of it is left" in done.stdout
    roomtone.guest.run("useradd", "--no-create-home", "--groups", "roomtone-config", "bob", check=False)
    somebody = ("setpriv", "--reuid=bob", "--regid=bob", "--init-groups", "env", "HOME=/tmp/bob")
    refused = roomtone.guest.run(*somebody, *forget, check=False)
    assert refused.returncode
    assert f"only root may read its state: sudo {PROGRAM} forget --last 1m --yes" in refused.stderr
    roomtone.guest.run("systemctl", "stop", "roomtone")
    for become in (("env", "HOME=/tmp/root"), somebody):
        stopped = roomtone.guest.run(*become, *forget, check=False)
        assert "is forgotten" in stopped.stdout if stopped.returncode == 0 else stopped.stderr
    assert roomtone.guest.run("find", "/tmp/root", "/tmp/bob", check=False).stdout == ""
