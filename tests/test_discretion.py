"""What was said stands in no log, no `status` and no notice, whoever quotes it: those outlive `roomtone forget`."""

import json
import os
import re
import signal
import subprocess
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio

from roomtone.events import Notice, Turn
from roomtone.journal.journal import open_journal
from roomtone.testing.fake_service import open_service
from roomtone.testing.faults import Close, Fault
from support.daemon import COMMAND, events, run
from support.receiver import Answer, open_receiver

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WORDS = [f"zq{number}x" for number in range(390)]
SAID = [" ".join(WORDS[start : start + 13]) for start in range(0, len(WORDS), 13)]
QUOTED = re.compile(r"zq\d+x")

DROP_INS = {
    "number": "@hookimpl\ndef turn(event):\n    int(event.text)\n",
    "opener": "@hookimpl\ndef turn(event):\n    open(event.text)\n",
    "mapping": "@hookimpl\ndef turn(event):\n    {}[event.text]\n",
    "exiting": "@hookimpl\ndef turn(event):\n    raise SystemExit(event.text)\n",
    "chained": (
        "@hookimpl\ndef turn(event):\n    error = RuntimeError(event.text)\n    error.add_note(event.text)\n"
        "    raise error from ValueError(event.text)\n"
    ),
    "grouped": "@hookimpl\nasync def turn(event):\n    raise ExceptionGroup(event.text, [KeyError(event.text)])\n",
    "refusing": "@hookimpl\ndef turn(event):\n    raise Unprocessable(event.text)\n",
    "flushing": (
        "kept = []\n\n\n@hookimpl\ndef turn(event):\n    kept.append(event.text)\n\n\n"
        "@hookimpl\ndef flush():\n    raise Unprocessable(' '.join(kept))\n"
    ),
    "own": (
        "class Mine(Exception):\n    def __str__(self):\n        raise ValueError(self.args[0])\n\n\n"
        "@hookimpl\ndef turn(event):\n    raise Mine(event.text)\n"
    ),
    "surrogate": "@hookimpl\ndef turn(event):\n    raise ValueError(event.text + chr(0xD800))\n",
    "opening": (
        "from contextlib import asynccontextmanager\nfrom roomtone import Sink\nlast = []\n\n\n"
        "class Opening(Sink, frozen=True, kw_only=True, tag='opening'):\n    @asynccontextmanager\n"
        "    async def open(self, context):\n        if last:\n            raise ConnectionError(last[0])\n"
        "        yield self\n        raise OSError(5, last[0], last[0])\n\n    @hookimpl\n    def turn(self, event):\n"
        "        last.append(event.text)\n        raise LookupError(event.text)\n\n    def holdings(self, context):\n"
        "        raise ValueError(last)\n\n\n@hookimpl\ndef register_sinks():\n    return [Opening]\n"
    ),
}
CONFIG = """
[service]
state = "state"
log_level = "debug"
grace = 6.0
plugins = ["plugins"]
[rooms.desk]
source = {{ kind = "command", argv = ["cat", "/dev/zero"] }}
[rooms.desk.streaming]
endpoint = "{service}"
[sinks.unprocessable]
kind = "webhook"
url = "{hook}?status=422"
start = "oldest"
[sinks.broken]
kind = "webhook"
url = "{hook}?status=500"
start = "oldest"
[sinks.many]
kind = "webhook"
url = "{hook}?status=422"
batch = 100
start = "oldest"
[sinks.program]
kind = "command"
argv = ["sh", "-c", "cat >&2; exit 1"]
start = "oldest"
[sinks.refuser]
kind = "command"
batch = 1
argv = ["sh", "-c", "cat >&2; exit 65"]
start = "oldest"
[sinks.log]
kind = "jsonl"
path = "events.jsonl"
start = "oldest"
"""


def test_nobody_is_quoted(tmp_path: Path) -> None:
    """390 of 390 words: a receiver that sends back what it got, a program's traceback, drop-ins that fail in every way,
    a speech service whose errors have what it heard; in the log at its most talkative, in what commands say, and in
    what is kept.
    """
    trio.run(serve, tmp_path)


async def serve(folder: Path) -> None:
    async with open_service(faults=quote) as service, open_receiver() as receiver:
        receiver.otherwise(lambda post: Answer(int(post.target[-3:]), body=post.body))
        await fill(folder)
        await trio.to_thread.run_sync(partial(live, folder, service.url, receiver.url))
        assert any(QUOTED.search(post.body.decode()) for post in receiver.posts)


def quote(connection: int) -> list[Fault]:
    code = (3005, 1008, 3006, 4003)[connection % 4]
    return [Close(code, text=" ".join(WORDS[connection::7]), seconds=0.3)]


async def fill(folder: Path) -> None:
    """A journal as an earlier run has left it, with everything that was said."""
    (folder / "state").mkdir(mode=0o700)
    async with open_journal(folder / "state" / "journal.sqlite") as journal:
        for order, text in enumerate(SAID):
            await journal.commit(
                Turn(room="desk", position=order * 16_000, at=AT, session_id="one", turn_order=order, text=text)
            )


def live(folder: Path, service: str, hook: str) -> None:
    (folder / "plugins").mkdir(mode=0o755)
    text = CONFIG.format(service=service, hook=hook)
    for name, code in DROP_INS.items():
        (folder / "plugins" / f"{name}.py").write_text(f"from roomtone import Unprocessable, hookimpl\n\n\n{code}")
        text += f'[sinks.{name}]\nkind = "{name}"\nstart = "oldest"\n'
    failing = set(DROP_INS) - {"refusing"} | {"broken", "many", "program"}
    with run(folder, text, env={"XDG_RUNTIME_DIR": ""}) as daemon:
        daemon.wait_for(lambda: failing <= {line["sink"] for line in of(daemon.log, "sink.failed")})
        daemon.wait_for(lambda: {"refusing", "unprocessable", "refuser"} <= refusers(daemon.log))
        daemon.wait_for(lambda: of(daemon.log, "session.failed") and events(folder, "notice"))
        shown = [
            ask(folder, command, *json_) for command in ("status", "sinks", "health") for json_ in ((), ("--json",))
        ]
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 0, daemon.log
    assert not quoted(daemon.log)
    assert not quoted("".join(shown))
    assert '"state":"failing"' in shown[1].replace(" ", "")
    notices = trio.run(kept_notices, folder)
    assert "session.refused" in {notice.code for notice in notices}
    assert not quoted("".join(notice.text for notice in notices))
    placed = {line["sink"] for line in of(daemon.log, "sink.failed") if "/plugins/" in str(line["error"])}
    assert placed & DROP_INS.keys() == failing & DROP_INS.keys() - {"exiting", "grouped"}
    assert all(line["exception"] for line in of(daemon.log, "sink.traceback"))


def quoted(text: str) -> set[str]:
    return set(QUOTED.findall(text))


def of(log: str, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def refusers(log: str) -> set[object]:
    return {line["sink"] for line in of(log, "event.refused")}


def ask(folder: Path, *arguments: str) -> str:
    command = [*COMMAND, *arguments, "--config", str(folder / "roomtone.toml")]
    environ = os.environ | {"XDG_RUNTIME_DIR": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environ)
    return done.stdout + done.stderr


async def kept_notices(folder: Path) -> list[Notice]:
    async with open_journal(folder / "state" / "journal.sqlite") as journal:
        return [event for event in await journal.read(0) if isinstance(event, Notice)]
