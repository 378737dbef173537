"""Every command of README.md beside an installed service, as each who could call it, whatever the service does: it
finds what the service has, works as the service's user, leaves nothing behind, and says in a line what may not be.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from support.systemd_guest import LOG, PREFIX, PROGRAM, REPOSITORY, ROOM, Account, Installed, Session, booted, installed
from support.systemd_lab import Guest

pytestmark = pytest.mark.timeout(300)

SERVICE = "roomtone"
"""The unit whose state, keys and rights commands go by."""
STATE = "/var/lib/private/roomtone"
CONFIGURATION = "/etc/roomtone/roomtone.toml"
TABLES = (
    ROOM
    + LOG
    + """
[gateway]
endpoint = "http://127.0.0.1:9/v1/chat/completions"
[analysis.summary]
prompt = "{{transcript}}"
model = "none"
"""
)
FORBIDDEN = "this user may not read it: use sudo"


class Call(NamedTuple):
    """A command line, and what it needs: nothing, the configuration, the service's state, its daemon, how it does."""

    needs: str
    line: str
    code: int = 0
    """The exit code where it has what it needs."""


CALLS = [
    Call("nothing", "events"),
    Call("nothing", "config --reference"),
    Call("nothing", "devices", 1),  # the guest has none
    Call("nothing", "demo --help"),
    Call("nothing", "init --yes --output /tmp/mine/{who}.toml --force"),
    Call("nothing", "sinks new --file --directory /tmp/mine/{who} my-sink{count}"),
    Call("configuration", "config"),
    Call("state", "check"),
    Call("state", "coverage"),
    Call("state", "coverage --since 7d --json"),
    Call("state", "sinks"),
    Call("state", "sinks pause log"),
    Call("state", "sinks resume log"),
    Call("state", "sinks replay log --from 1"),
    Call("state", "sinks replay log --refused"),
    Call("state", "sinks test log"),
    Call("state", "sinks forget gone", 1),  # which the journal does not know
    Call("state", "transcribe --from 1h"),
    Call("state", "analyze --prompt summary --from 1s", 1),  # of which the journal has no word
    Call("state", "forget --last 1s --yes"),
    Call("how", "status"),
    Call("how", "health"),
    Call("daemon", "mute"),
    Call("daemon", "unmute"),
    Call("daemon", "rotate"),
    Call("daemon", "reload"),
    Call("daemon", "tail", 130),  # until Ctrl-C
]
OTHERS = {"run", "service install", "service status", "service uninstall"}
"""What has tests of its own here, or in test_systemd.py."""
IN_SHORT = {"coverage", "health", "mute"}
"""What shows a state of the service that differs little from another one."""
OF_A_SESSION = IN_SHORT | {
    "config",
    "status",
    "unmute",
    "sinks",
    "sinks pause log",
    "sinks test log",
    "transcribe --from 1h",
}
"""What shows that the service of a session is found as that of the machine is."""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with booted(tmp_path_factory.mktemp("guest"), {PREFIX: installed()}) as guest:
        # The program as a layer of the guest's own, which a test may upgrade.
        guest.run("mkdir", "-p", "/run/upper", "/run/work", "/tmp/mine")
        guest.run("chmod", "1777", "/tmp/mine")
        layers = f"lowerdir={PREFIX},upperdir=/run/upper,workdir=/run/work"
        guest.run("mount", "-t", "overlay", "overlay", "-o", layers, PREFIX)
        yield guest


@pytest.fixture(scope="module")
def accounts(guest: Guest) -> dict[str, Account]:
    guest.run("groupadd", "--system", "--force", "roomtone-config")
    guest.run("useradd", "--create-home", "--groups", "roomtone-config", "mona")
    guest.run("useradd", "--create-home", "nils")
    return {"member": Account(guest, "mona"), "anybody": Account(guest, "nils")}


@pytest.fixture
def roomtone(guest: Guest, accounts: Mapping[str, Account]) -> Iterator[Installed]:
    del accounts
    roomtone = Installed(guest)
    roomtone.configure(TABLES)
    yield roomtone
    roomtone.remove()
    guest.run("groupadd", "--system", "--force", "roomtone-config")  # which is gone with the service
    guest.run("usermod", "--append", "--groups", "roomtone-config", "mona")


def test_the_table_is_complete() -> None:
    """Each command that README.md lists is called here."""
    table = (REPOSITORY / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    listed = set[str]()
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        first, *more = re.findall(r"`(?:roomtone )?(.*?)`", cell)
        listed |= {first, *more}
    called = {call.line for call in CALLS} | OTHERS
    assert len(listed) > 25
    assert [name for name in listed if not any(line == name or line.startswith(f"{name} ") for line in called)] == []


def stand(roomtone: Installed, state: str) -> None:
    """Bring the installed service into a state; what it has recorded is there in each."""
    roomtone.install()
    roomtone.wait(lambda: roomtone.events("recording_started"), "recording_started")
    if state == "stopped":
        roomtone.guest.run("systemctl", "stop", SERVICE)
    if state == "failed":
        roomtone.guest.run("systemctl", "stop", SERVICE)
        content = roomtone.guest.path(CONFIGURATION).read_text()
        roomtone.guest.path(CONFIGURATION).write_text("[rooms.desk]\nsource = 1\n")
        roomtone.guest.run("systemctl", "start", SERVICE, check=False)
        roomtone.guest.path(CONFIGURATION).write_text(content)


REASONS = {
    "stopped": rf"no daemon answers: {SERVICE}.service is stopped; start it with: systemctl (--user )?start {SERVICE}",
    "failed": rf"no daemon answers: {SERVICE}.service has failed \(exit code 78: .*wrong\); see: journalctl",
}


def expected(call: Call, who: str, state: str) -> tuple[int, str]:
    """The exit code of a call, and what it says where it is refused. Pure."""
    match call.needs, who:
        case "how" | "daemon" | "configuration" | "state", "anybody":
            return 69 if call.needs in {"how", "daemon"} else 78, FORBIDDEN
        case "how" | "daemon", _ if state != "running":
            return 69, REASONS[state]
        case "daemon", "member":
            return 69, "only root and the daemon's own user may ask for that; use sudo"
        case "state", "member":
            return 1, f"only root may read its state: sudo {PROGRAM} {re.escape(call.line)}"
        case _:
            return call.code, ""


def faults(calls: list[Call], who: str, state: str, account: Account | Guest) -> Iterator[str]:
    """What is wrong with the answers to these calls, one after the other."""
    for count, call in enumerate(calls):
        argv = [PROGRAM, *call.line.format(who=who, count=count).split()]
        if call.line == "tail":
            argv = ["timeout", "--signal=INT", "--preserve-status", "3", *argv]
        done = account.run(*argv, check=False)
        said = done.stdout + done.stderr
        code, text = expected(call, who, state)
        is_refused = bool(text) and (done.returncode != code or len(said.splitlines()) != 1)
        if done.returncode != code or is_refused or not re.search(text, said) or re.search(r"Traceback|\[Errno", said):
            yield f"{who}, {state}: roomtone {call.line}: exit code {done.returncode}, not {code}:\n{said}"


def strangers(guest: Guest, *folders: str) -> dict[str, str]:
    """Files of these folders with their owners, without those of the sound server's library."""
    found = guest.run("find", *folders, "!", "-path", "*/pulse*", "-printf", "%p %u\n", check=False).stdout
    return dict(line.rsplit(" ", 1) for line in found.splitlines())


def is_of(call: Call, state: str) -> bool:
    """True for a call whose way is another one while the service is stopped."""
    return state == "stopped" and call.needs == "state"


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_as_root(roomtone: Installed, state: str) -> None:
    """Root is answered of what the service has, by the service's own user: no file of root's comes into its state, and
    none at all beside the configuration and in root's home.
    """
    guest = roomtone.guest
    stand(roomtone, state)
    before = strangers(guest, "/etc/roomtone", "/root/.local", "/root/.config")
    calls = [call for call in CALLS if state == "running" or call.line in IN_SHORT or is_of(call, state)]
    assert list(faults(calls, "root", state, guest)) == []
    assert strangers(guest, "/etc/roomtone", "/root/.local", "/root/.config") == before
    owner = guest.run("stat", "--format=%u", STATE).stdout.strip()
    assert guest.run("find", STATE, "!", "-uid", owner).stdout == ""
    tests = [event for event in roomtone.events("notice") if event["code"] == "sink.test"]
    assert len(tests) == (state != "failed")
    config = guest.run(PROGRAM, "config").stdout
    assert 'state = "/var/lib/roomtone"' in config
    if state != "running":
        left = guest.run("ls", STATE).stdout.split()
        assert [name for name in left if name.startswith("journal")] == ["journal.sqlite"]


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
@pytest.mark.parametrize("who", ["member", "anybody"])
def test_as_others(roomtone: Installed, accounts: Mapping[str, Account], who: str, state: str) -> None:
    """A member of the group sees how the service does and how it is configured; anybody else is told in a line what to
    do. Neither leaves a file.
    """
    stand(roomtone, state)
    calls = [call for call in CALLS if state == "running" or call.needs == "how"]
    assert list(faults(calls, who, state, accounts[who])) == []
    home = strangers(roomtone.guest, f"/home/{accounts[who].name}")
    assert [path for path in home if "roomtone" in path.partition(accounts[who].name)[2]] == []
    refused = accounts[who].run(PROGRAM, "run", check=False)
    assert refused.returncode == 78
    assert len(refused.stderr.splitlines()) == 1
    assert accounts[who].run(PROGRAM, "service", "status", check=False).returncode == (0 if state == "running" else 3)


@pytest.fixture(scope="module")
def ana(guest: Guest) -> Session:
    return Session(guest)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_the_service_of_a_session(roomtone: Installed, ana: Session, state: str) -> None:
    """Its user is answered, also from a shell that knows nothing of the session."""
    guest = roomtone.guest
    ana.configure(TABLES)
    ana.run(PROGRAM, "service", "install", "--user", "--key-from", "-", text="a-secret-key-of-nobody\n")
    events = guest.path("/home/ana/.config/roomtone/events.jsonl")
    roomtone.wait(lambda: events.exists() and "recording_started" in events.read_text(), "recording_started")
    if state == "stopped":
        ana.run("systemctl", "--user", "stop", SERVICE)
    before = strangers(guest, "/home/ana/.config/roomtone")
    shell = Account(guest, "ana")
    calls = [call for call in CALLS if call.line in (OF_A_SESSION if state == "running" else IN_SHORT | {"sinks"})]
    found = list(faults(calls, "ana", state, shell))
    check = shell.run(PROGRAM, "check", check=False).stdout
    after = strangers(guest, "/home/ana/.config/roomtone")
    owners = set(strangers(guest, "/home/ana/.local/state/roomtone").values())
    ana.run(PROGRAM, "service", "uninstall", "--user")
    guest.run("rm", "-rf", "/home/ana/.config/roomtone", "/home/ana/.local/state/roomtone")

    assert found == []
    assert "key               there is one" in check
    assert after == before
    assert owners == {"ana"}
