"""roomtone.speech.recognizer_process: the recognizer's process is there, is replaced when it dies, and ends with us."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from roomtone.events import Notice
from roomtone.speech.recognizer_process import (
    Recognizer,
    RecognizerConfig,
    RecognizerUnavailable,
    open_recognizer,
)
from support.word_error import client

PYTHON = (sys.executable, "-c")


def is_alive(pid: int) -> bool:
    """True if the process runs, and is not a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def wait_gone(pid: int) -> None:
    with trio.fail_after(60):
        while is_alive(pid):  # noqa: ASYNC110 - no event reports the end of a process that is not a child
            await trio.sleep(0.05)


def children(pid: int) -> list[int]:
    """The processes that this one has started, from any of its threads."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def exposed(pid: int) -> str:
    """The part of a process that other users can read."""
    return "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ"))


async def begins(recognizer: Recognizer) -> bool:
    """True if a session at the recognizer's address begins."""
    url, headers = await recognizer.address()
    async with client(f"{url}?sample_rate=16000", dict(headers)) as socket:
        return '"Begin"' in str(await socket.get_message())


async def test_the_address_admits_and_the_token_is_no_argument() -> None:
    """The headers open a session; the token is not in a command line, and sessions need it."""
    async with open_recognizer() as recognizer:
        url, [(name, token)] = await recognizer.address()
        assert name == "Authorization"
        assert await begins(recognizer)
        [pid] = children(os.getpid())
        assert token not in exposed(pid)
        async with client(url) as socket:
            assert "1008" in str(await socket.get_message())
    await wait_gone(pid)


async def test_a_child_that_dies_is_replaced() -> None:
    """The next address is a new child's, with another token; callers wait meanwhile."""
    async with open_recognizer() as recognizer:
        before = await recognizer.address()
        [pid] = children(os.getpid())
        os.kill(pid, signal.SIGKILL)
        await wait_gone(pid)
        with trio.fail_after(60):
            while (after := await recognizer.address()) == before:  # noqa: ASYNC110 - the old one until its end is seen
                await trio.sleep(0.05)
        assert after[1] != before[1]
        assert await begins(recognizer)


async def test_the_child_ends_when_its_owner_is_killed() -> None:
    """However the owner ends, its recognizer does not stay behind."""
    program = (
        "import trio\n"
        "from roomtone.speech.recognizer_process import open_recognizer\n"
        "async def main():\n"
        "    async with open_recognizer() as recognizer:\n"
        "        await recognizer.address()\n"
        "        print('ready', flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    owner = await trio.lowlevel.open_process([*PYTHON, program], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    said = b""
    with trio.fail_after(60):
        while b"ready" not in said:
            said += await owner.stdout.receive_some()
    [child] = children(owner.pid)
    owner.kill()
    await owner.wait()
    await wait_gone(child)
    await owner.stdout.aclose()


async def test_a_missing_engine_is_said_and_not_waited_for() -> None:
    """Where the extra is not installed, asking for the address says immediately what to install."""
    program = (
        "import sys; sys.modules['pocketsphinx'] = None\n"
        "from roomtone.recognizer.__main__ import main\n"
        "sys.exit(main([]))"
    )
    async with open_recognizer(command=[*PYTHON, program]) as recognizer:
        with trio.fail_after(60), pytest.raises(RecognizerUnavailable, match=r"pip install 'roomtone\[local\]'"):
            await recognizer.address()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["/does/not/exist"], "cannot be started"),
        ([*PYTHON, "raise SystemExit(3)"], "ended before it was ready, with exit status 3"),
        ([*PYTHON, "print('hello')"], "ended before it was ready, with exit status 0"),
    ],
)
async def test_a_program_that_cannot_start_is_said(command: list[str], text: str) -> None:
    """Every failure at the start has a text for the operator."""
    async with open_recognizer(command=command) as recognizer:
        with trio.fail_after(60), pytest.raises(RecognizerUnavailable, match=text):
            await recognizer.address()


async def test_it_is_tried_again_after_a_failure(tmp_path: Path) -> None:
    """After the missing package is installed, no restart of the daemon is needed."""
    flag = tmp_path / "installed"
    program = (
        "import pathlib, sys\n"
        f"if not pathlib.Path({str(flag)!r}).exists(): sys.exit(1)\n"
        "from roomtone.recognizer.__main__ import main\n"
        "sys.exit(main([]))"
    )
    async with open_recognizer(command=[*PYTHON, program]) as recognizer:
        with pytest.raises(RecognizerUnavailable):
            await recognizer.address()
        flag.touch()
        with trio.fail_after(60):
            while True:
                try:
                    assert await begins(recognizer)
                    break
                except RecognizerUnavailable:
                    await trio.sleep(0.05)


# --- engines that cannot be had --------------------------------------------------------------------------------------

DYING = """
import json, sys
options = json.loads(sys.stdin.readline())
engine = options["engine"]
print(json.dumps({"url": "ws://127.0.0.1:1/v3/ws", "engine": engine, "model": engine + "-x"}), flush=True)
if engine == "pocketsphinx":
    sys.stdin.read()
"""


async def test_an_engine_that_dies_three_times_gives_way_to_the_floor() -> None:
    """The room gets words from the fallback, and the operator one notice with the reason."""
    notices: list[Notice] = []

    async def report(event: Notice) -> None:
        notices.append(event)

    config = RecognizerConfig(engine="frail", options={"temper": 1})
    async with open_recognizer(config, report=report, command=(*PYTHON, DYING)) as recognizer:
        while recognizer.model != "pocketsphinx-x":  # noqa: ASYNC110 - nothing tells of a child that was replaced
            await trio.sleep(0.05)
        await recognizer.address()
    [event] = notices
    assert event.code == "recognizer.fallback"
    assert "frail has died 3 times" in event.text


async def test_an_engine_that_does_not_open_gives_way_with_its_reason() -> None:
    """The real program says which engine serves, and why; sessions name that one."""
    notices: list[Notice] = []

    async def report(event: Notice) -> None:
        notices.append(event)

    config = RecognizerConfig(engine="moonshine", model="/nowhere")
    async with open_recognizer(config, report=report) as recognizer:
        await recognizer.address()
        assert recognizer.model == "pocketsphinx-en-us"
    [event] = notices
    assert "/nowhere" in event.text
    assert "tokenizer.bin" in event.text
