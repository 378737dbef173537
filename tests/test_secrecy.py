"""Nothing that was recorded is for others to read, and nothing that is secret is anywhere but where it must be."""

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from roomtone.secret import SecretError, find_key
from roomtone.testing.encoded_speech import speak
from roomtone.testing.fake_service import open_service
from roomtone_command import CommandSink
from roomtone_webhook import Webhook
from support.daemon import COMMAND, Run, events, run, write_wav
from support.journal import context
from support.receiver import open_receiver

KEY = "key-that-nobody-may-see-4711"
SECRETS = {
    "key": KEY,
    "token": "Bearer token-that-nobody-may-see-4712",
    "signing": "whsec_bmV2ZXItdG8tYmUtc2Vlbi00NzEzLTQ3MTM=",
    "password": "password-that-nobody-may-see-4714",
    "query": "query-that-nobody-may-see-4715",
    "variable": "variable-that-nobody-may-see-4716",
}

CONFIG = """
[service]
state = "state"
log_level = "debug"
grace = 6.0
[rooms.desk]
source = {{ kind = "file", path = "talk.wav" }}
[rooms.desk.streaming]
endpoint = "{service}"
[rooms.camera]
source = {{ kind = "command", argv = ["sh", "-c", "cat /dev/zero | head -c 64000; sleep 60"] }}
[rooms.hall]
source = {{ kind = "command", argv = ["sleep", "60"] }}
[rooms.hall.streaming]
endpoint = "local"
[sinks.archive]
kind = "wav"
directory = "recordings"
transcript = true
captions = ["srt"]
[sinks.log]
kind = "jsonl"
path = "lines/events.jsonl"
[sinks.all]
kind = "jsonl"
path = "events.jsonl"
[sinks.pages]
kind = "transcript"
directory = "pages"
[sinks.hook]
kind = "webhook"
url = "{hook}"
secret_file = "signing"
header_files = {{ Authorization = "token" }}
[sinks.dead]
kind = "webhook"
url = "http://someone:{password}@127.0.0.1:9/hook?token={query}"
[sinks.program]
kind = "command"
argv = ["sh", "-c", "cat >/dev/null; sleep 0.2"]
environment_files = {{ MY_PASSWORD = "variable" }}
"""


def test_everything_is_private_and_secrets_stay_where_they_are(tmp_path: Path) -> None:
    """With the laxest umask, every file is 0600 and every folder 0700, the control socket too; and no secret is in a
    log, an error, the shown configuration, an event, a file, a command line, or the environment of a child.
    """
    trio.run(serve, tmp_path)


async def serve(folder: Path) -> None:
    async with open_service(key=KEY) as service, open_receiver() as receiver:
        await trio.to_thread.run_sync(partial(live, folder, service.url, receiver.url))
        assert service.sessions[0].headers["authorization"] == KEY
        assert any("token-that" in post.headers.get("authorization", "") for post in receiver.accepted)


def live(folder: Path, service: str, hook: str) -> None:
    write_wav(folder / "talk.wav", speak(range(1, 30), 16_000))
    for name in ("signing", "token", "variable"):
        (folder / name).write_text(SECRETS[name])
        (folder / name).chmod(0o600)
    text = CONFIG.format(service=service, hook=hook, password=SECRETS["password"], query=SECRETS["query"])
    ours = {*folder.iterdir(), folder / "roomtone.toml", folder / "log"}
    before = os.umask(0)
    try:
        with run(folder, text, env={"ASSEMBLYAI_API_KEY": KEY, "XDG_RUNTIME_DIR": ""}) as daemon:
            daemon.wait_for(lambda: len(events(folder, "turn")) >= 2)
            daemon.wait_for(lambda: "sink.failed" in daemon.log)
            shown = ask(folder, "status", "--json") + ask(folder, "sinks") + ask(folder, "config")
            looked = list(children(daemon))
            control = folder / "state" / "control"
            assert stat.S_IMODE(control.stat().st_mode) == 0o600
            daemon.signal(signal.SIGTERM)
            assert daemon.finish() == 0, daemon.log
    finally:
        os.umask(before)
    assert len(looked) > 3, "children were seen: sources, the recognizer, a program"
    for name, secret in SECRETS.items():
        for where, data in (("log", daemon.log), ("answers", shown)):
            assert secret not in data, f"{name} is in the {where}"
        for argv, environ in looked:
            assert secret not in argv, f"{name} is in the command line {argv}"
            assert name == "variable" or secret not in environ, f"{name} is in the environment of {argv}"
        assert not [path for path in made(folder, ours) if path.is_file() and secret.encode() in path.read_bytes()]
    open_to_others = {str(path): oct(path.stat().st_mode) for path in made(folder, ours) if path.stat().st_mode & 0o077}
    assert open_to_others == {}


def made(folder: Path, ours: set[Path]) -> list[Path]:
    """The files that the daemon has made."""
    return [path for path in folder.rglob("*") if path not in ours]


def ask(folder: Path, *arguments: str) -> str:
    command = [*COMMAND, *arguments, "--config", str(folder / "roomtone.toml")]
    environ = os.environ | {"XDG_RUNTIME_DIR": ""}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environ)
    return done.stdout + done.stderr


def children(daemon: Run) -> Iterator[tuple[str, str]]:
    """The command line and the environment of every process below the daemon, and the daemon's command line."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {daemon.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    for pid in family:
        try:
            argv, environ = (Path(f"/proc/{pid}/{name}").read_text(errors="replace") for name in ("cmdline", "environ"))
        except OSError:
            continue
        # Of the daemon itself the kernel shows what it was started with, to its own user alone.
        yield argv, "" if pid == daemon.process.pid else environ


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The error names the file and the remedy, and shows nothing of the key."""
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(mode)
    with pytest.raises(SecretError) as raised:
        find_key(path, {})
    assert str(path) in str(raised.value)
    assert "chmod 600" in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "sink",
    [
        Webhook(url="http://127.0.0.1:9/", secret_file="secret"),
        Webhook(url="http://127.0.0.1:9/", header_files={"Authorization": "secret"}),
        Webhook(url_file="secret"),
        CommandSink(argv=("true",), environment_files={"TOKEN": "secret"}),
    ],
    ids=["secret_file", "header_files", "url_file", "environment_files"],
)
async def test_a_sinks_secret_that_everybody_can_read_is_refused(tmp_path: Path, sink: Any) -> None:
    """It names the key of the table and the file; the file's group may read it, for so services get at secrets."""
    path = tmp_path / "secret"
    path.write_text("http://127.0.0.1:9/bmV2ZXI=" if sink == Webhook(url_file="secret") else "whsec_bmV2ZXI=")
    path.chmod(0o640)
    async with sink.open(context(tmp_path)):
        pass
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="is open to every user") as raised:
        async with sink.open(context(tmp_path)):
            pass
    assert raised.value.filename == str(path)
    assert "bmV2ZXI" not in str(raised.value)
