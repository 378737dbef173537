"""Every command of README.md beside an installed service, for each kind of caller and each state of the service. A
command finds the service's state, runs as its user, leaves no files behind, and reports missing rights in one line.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from support.systemd_guest import LOG, PREFIX, PROGRAM, REPOSITORY, ROOM, Account, Installed, Session, booted, installed
from support.systemd_lab import Guest

pytestmark = pytest.mark.timeout(300)

SERVICE = "roomtone"
"""The unit whose state, keys and rights the commands use."""
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
    """A command line and its requirement: nothing, the configuration, the state, the daemon, or the status."""

    needs: str
    line: str
    code: int = 0
    """The exit code if the requirement is met."""


CALLS = [
    Call("nothing", "events"),
    Call("nothing", "config --reference"),
    Call("nothing", "devices", 1),  # the guest has none
    Call("nothing", "demo --help"),
    Call("nothing", "engines"),
    Call("nothing", "engines test /etc/hostname", 1),  # not a recording
    Call("nothing", "init --yes --output /tmp/mine/{who}.toml --force"),
    Call("nothing", "sinks new --file --directory /tmp/mine/{who} my-sink{count}"),
    Call("configuration", "config"),
    Call("state", "check"),
    Call("state", "coverage"),
    Call("state", "sinks"),
    Call("state", "sinks pause log"),
    Call("state", "sinks resume log"),
    Call("state", "sinks replay log --from 1"),
    Call("state", "sinks test log"),
    Call("state", "sinks forget gone", 2),  # not in the journal
    Call("state", "transcribe --from 1h"),
    Call("state", "analyze --prompt summary --from 1s", 1),  # without turns in the journal
    Call("state", "forget --last 1h --yes"),
    Call("how", "status"),
    Call("how", "health"),
    Call("daemon", "mute"),
    Call("daemon", "unmute"),
    Call("daemon", "rotate"),
    Call("daemon", "reload"),
    Call("daemon", "tail", 130),  # until Ctrl-C
]
OTHERS = {"run", "service install", "service status", "service uninstall"}
"""Commands with tests of their own here, or in test_service.py."""
ONE_OF_EACH = {"config", "coverage", "health", "mute"}
"""One command for each requirement: enough where all commands of a requirement take the same way."""
STOPPED = {
    "check",
    "coverage",
    "sinks",
    "sinks pause log",
    "sinks resume log",
    "sinks test log",
    "forget --last 1h --yes",
}
"""Commands that need the state of a stopped service in different ways: read it, write it, open its sinks, lock it."""
OF_A_SESSION = ONE_OF_EACH | {"sinks", "sinks pause log", "sinks test log", "transcribe --from 1h"}
"""Commands for the service of a session."""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with booted(tmp_path_factory.mktemp("guest"), {PREFIX: installed()}) as guest:
        # The program as a layer of the guest's own, which a test may change.
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
    """Bring the installed service into a state, with a recording."""
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
    """The exit code of a call, and its message if it is refused. Pure."""
    match call.needs, who:
        case "how" | "daemon" | "configuration" | "state", "anybody":
            return 69 if call.needs in {"how", "daemon"} else 78, FORBIDDEN
        case "how" | "daemon", _ if state != "running":
            return 69, REASONS[state]
        case "daemon", "member":
            return 69, "only root and the daemon's own user may do that; use sudo"
        case "state", "member":
            return 1, f"only root may read its state: sudo {PROGRAM} {re.escape(call.line)}"
        case _:
            return call.code, ""


def faults(calls: list[Call], who: str, state: str, account: Account | Guest) -> Iterator[str]:
    """The wrong answers to these calls, one after the other."""
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
    """Files in these folders with their owners, without those of the sound server's library."""
    found = guest.run("find", *folders, "!", "-path", "*/pulse*", "-printf", "%p %u\n", check=False).stdout
    return dict(line.rsplit(" ", 1) for line in found.splitlines())


CALLED = {
    ("root", "running"): {call.line for call in CALLS},
    ("root", "stopped"): ONE_OF_EACH | STOPPED,
    ("root", "failed"): ONE_OF_EACH,
    ("member", "running"): {call.line for call in CALLS},
    ("member", "stopped"): {"health", "mute"},
    ("member", "failed"): {"health"},
    ("anybody", "running"): ONE_OF_EACH,
    ("anybody", "stopped"): {"health"},
    ("anybody", "failed"): {"health"},
}
"""The lines that a kind of caller tries in a state of the service."""


def calls_of(who: str, state: str) -> list[Call]:
    return [call for call in CALLS if call.line in CALLED[who, state]]


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_the_service_of_the_machine(roomtone: Installed, accounts: Mapping[str, Account], state: str) -> None:
    """Root's commands run as the service's user. A member of the group sees the status and the configuration; other
    users get a line with the remedy. Files of root or of the callers appear neither in the state nor elsewhere.
    """
    guest = roomtone.guest
    stand(roomtone, state)
    for who, account in accounts.items():
        check_others(account, who, state)
    before = strangers(guest, "/etc/roomtone", "/root/.local", "/root/.config")
    forgets = [call for call in calls_of("root", state) if call.line.startswith("forget")]
    others = [call for call in calls_of("root", state) if call not in forgets]
    assert list(faults(others, "root", state, guest)) == []
    tests = [event for event in roomtone.events("notice") if event["code"] == "sink.test"]
    assert len(tests) == (state != "failed")  # before it is forgotten with the rest of the hour
    assert list(faults(forgets, "root", state, guest)) == []
    assert strangers(guest, "/etc/roomtone", "/root/.local", "/root/.config") == before
    owner = guest.run("stat", "--format=%u", STATE).stdout.strip()
    assert guest.run("find", STATE, "!", "-uid", owner).stdout == ""
    config = guest.run(PROGRAM, "config").stdout
    assert 'state = "/var/lib/roomtone"' in config
    if state != "running":
        left = guest.run("ls", STATE).stdout.split()
        assert [name for name in left if name.startswith("journal")] == ["journal.sqlite"]


def check_others(account: Account, who: str, state: str) -> None:
    assert list(faults(calls_of(who, state), who, state, account)) == []
    home = strangers(account.guest, f"/home/{account.name}")
    assert [path for path in home if "roomtone" in path.partition(account.name)[2]] == []
    refused = account.run(PROGRAM, "run", check=False)
    assert refused.returncode == 78
    assert len(refused.stderr.splitlines()) == 1
    assert account.run(PROGRAM, "service", "status", check=False).returncode == (0 if state == "running" else 3)


@pytest.fixture(scope="module")
def ana(guest: Guest) -> Session:
    return Session(guest)


def test_the_service_of_a_session(roomtone: Installed, ana: Session) -> None:
    """Its user gets answers, also from a shell outside of the session, while it runs and while it is stopped."""
    guest = roomtone.guest
    ana.configure(TABLES)
    ana.run(PROGRAM, "service", "install", "--user", "--key-from", "-", text="a-secret-key-of-a-test\n")
    events = guest.path("/home/ana/.config/roomtone/events.jsonl")
    roomtone.wait(lambda: events.exists() and "recording_started" in events.read_text(), "recording_started")
    before = strangers(guest, "/home/ana/.config/roomtone")
    shell = Account(guest, "ana")
    found = [*faults([call for call in CALLS if call.line in OF_A_SESSION], "ana", "running", shell)]
    ana.run("systemctl", "--user", "stop", SERVICE)
    found += faults([call for call in CALLS if call.line in ONE_OF_EACH | {"sinks"}], "ana", "stopped", shell)
    check = shell.run(PROGRAM, "check", check=False).stdout
    after = strangers(guest, "/home/ana/.config/roomtone")
    owners = set(strangers(guest, "/home/ana/.local/state/roomtone").values())
    ana.run(PROGRAM, "service", "uninstall", "--user")
    guest.run("rm", "-rf", "/home/ana/.config/roomtone", "/home/ana/.local/state/roomtone")

    assert found == []
    assert "key               there is one" in check
    assert after == before
    assert owners == {"ana"}
