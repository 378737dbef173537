"""The daemon's side of a source."""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import pytest
import trio

from roomtone.capture.source_process import SourceEnded, SourceFailed, SourceProcess, open_child, open_source
from roomtone.capture.sources import Command, File, Microphone, Source, name_of
from support.sources import FRAME, RATE, drain, listen, noise, write_wav

ENDLESS = Command(("cat", "/dev/zero"))


@pytest.mark.parametrize(
    ("table", "source"),
    [
        ({"kind": "microphone"}, Microphone("default")),
        ({"kind": "file", "path": "a.wav", "pace": "fast"}, File("a.wav", "fast")),
        ({"kind": "command", "argv": ["cat"], "restart": "always"}, Command(("cat",), "always")),
    ],
)
def test_a_source_is_its_table(table: dict[str, object], source: Source) -> None:
    """`kind` says which of the three."""
    assert msgspec.convert(table, Source) == source


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "microphone", "devise": "default"},
        {"kind": "microphone", "device": ""},
        {"kind": "file"},
        {"kind": "file", "path": "a.wav", "pace": "slow"},
        {"kind": "command", "argv": []},
        {"kind": "command", "argv": "cat"},
        {"kind": "radio"},
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, object]) -> None:
    """A misspelt key is refused, not ignored."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, Source)


def test_a_name_for_people_has_no_arguments() -> None:
    """They may hold a camera's password."""
    assert name_of(Command(("/usr/bin/ffmpeg", "-i", "rtsp://me:secret@cam"))) == "command ffmpeg"
    assert name_of(File("~/talks/talk.wav")) == "file talk.wav"
    assert name_of(Microphone()) == "microphone default"


async def test_arguments_are_not_shown_to_every_user(tmp_path: Path) -> None:
    """The process list shows the arguments of our process to every user: the configuration is not among them."""
    source = Command((sys.executable, "-c", "import os, time; os.write(1, bytes(9999)); time.sleep(60)", "secret"))
    async with open_source(source, rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        pid = feed._child._process.pid
        assert b"secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()  # noqa: ASYNC240 - memory, no disk
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()  # noqa: ASYNC240 - as above


async def test_a_cancelled_receive_has_taken_nothing(tmp_path: Path) -> None:
    """However often the caller gives up, not one sample is missing in the end."""
    audio = noise(RATE)
    path = write_wav(tmp_path / "a.wav", audio)
    heard, patience, given_up = b"", 0.0, 0
    async with open_source(File(str(path)), rate=RATE, frame=FRAME // 4, folder=tmp_path) as feed:
        try:
            while True:
                patience = (patience + 0.003) % 0.03
                with trio.move_on_after(patience) as scope:
                    heard += (await feed.receive()).audio
                given_up += scope.cancelled_caught
        except SourceEnded:
            pass
    assert heard == audio
    assert given_up > 10


async def test_a_receive_that_is_cancelled_before_it_begins_has_taken_nothing(tmp_path: Path) -> None:
    """Blocks that have come already are not taken by a caller who was told to stop."""
    audio = noise(10 * RATE)
    heard, turn = b"", 0
    path = write_wav(tmp_path / "a.wav", audio)
    async with open_source(File(str(path), pace="fast"), rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        while len(heard) < len(audio):
            turn += 1
            with trio.CancelScope() as scope:
                if turn % 3:
                    scope.cancel()
                heard += (await feed.receive()).audio
    assert heard == audio


async def test_what_is_over_stays_over(tmp_path: Path) -> None:
    """Each further call raises the same."""
    async with open_source(File("gone.wav"), rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        for _ in range(3):
            with pytest.raises(SourceFailed, match=r"gone\.wav is not there") as failure:
                await feed.receive()
            assert failure.value.code == "file.absent"


async def test_a_boottime_is_when_the_block_was_read(tmp_path: Path) -> None:
    """The stamps only grow, and are of the clock that goes on in suspension."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    heard = await listen(File(str(write_wav(tmp_path / "a.wav", noise(RATE // 2)))), tmp_path)
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    times = [block.boottime for block in heard.blocks]
    assert before < times[0] <= times[-1] < after
    assert times == sorted(times)


async def test_a_body_that_raises_is_not_wrapped(tmp_path: Path) -> None:
    """A source lives in no nursery: what passes through its context is what was raised."""
    with pytest.raises(LookupError):
        async with open_source(ENDLESS, rate=RATE, frame=FRAME, folder=tmp_path):
            raise LookupError


async def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    """The kernel's out-of-memory killer says nothing to us: how the process ended is all that there is."""
    async with open_source(
        File(str(write_wav(tmp_path / "a.wav", noise(RATE)))), rate=RATE, frame=FRAME, folder=tmp_path
    ) as feed:
        await feed.receive()
        os.kill(feed._child._process.pid, signal.SIGKILL)
        heard = await drain(feed)
    assert isinstance(heard.over, SourceFailed)
    assert heard.over.code == "source.died"
    assert str(heard.over) == "the capture process of file a.wav was ended by SIGKILL"


async def test_a_defect_is_told_with_its_last_line() -> None:
    """A process that ends with a traceback has its last line in the reason, and the user sees no traceback."""
    async with open_child("roomtone.capture.source", {"ring": 1}) as child:
        heard = await drain(SourceProcess("microphone default", child))
    assert isinstance(heard.over, SourceFailed)
    assert str(heard.over).startswith("the capture process of microphone default ended with status 1: ")
    assert str(heard.over).endswith("KeyError: 'rate'")


async def test_a_process_that_ends_before_it_was_told_anything_says_why() -> None:
    """Its output is read although it never read its configuration."""
    async with open_child("this", {"more": "than a pipe holds" * 100_000}) as child:
        assert b"Beautiful is better than ugly." in await child.receive()


async def test_a_number_that_is_another_process_by_now_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was reaped has given its number back: its group gets one signal, before that."""
    killed: list[int] = []
    kill = os.killpg

    def count(group: int, number: int) -> None:
        killed.append(group)
        kill(group, number)

    monkeypatch.setattr(os, "killpg", count)
    async with open_child("roomtone.capture.source", {"ring": 1}) as child:
        await drain(SourceProcess("microphone default", child))
        assert child._process.returncode is not None
    assert killed == [child._process.pid]


async def test_the_command_of_a_killed_process_is_killed_too(tmp_path: Path) -> None:
    """The capture process may die without its group: what is left of the group ends with the context."""
    async with open_source(ENDLESS, rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        group = feed._child._process.pid
        os.kill(group, signal.SIGSTOP)  # so that it is not the capture process that ends its command
        os.kill(group, signal.SIGKILL)
    with trio.fail_after(20):
        while alive(group):  # noqa: ASYNC110 - the kernel has no event for this
            await trio.sleep(0.01)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_that_cannot_be_killed_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver can hold a process in the kernel, where no signal reaches it: it is left there, and the daemon goes on.

    The fake: a stopped process, and a kernel that delivers no SIGKILL.
    """
    kill = os.killpg
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    async with open_source(ENDLESS, rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        await feed.receive()
        process = feed._child._process
        os.kill(process.pid, signal.SIGSTOP)
        begun = trio.current_time()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await trio.sleep(0.01)
                ticks += 1

        try:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tick)
                    await feed._child.kill()
                    nursery.cancel_scope.cancel()
            assert process.returncode is None
        finally:
            kill(process.pid, signal.SIGKILL)
        assert trio.current_time() - begun >= 1.9
        assert ticks > 10


async def test_a_small_pipe_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses large pipes to a user who has too many: then the ring works alone. (A fake refusal.)"""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    heard = await listen(File(str(write_wav(tmp_path / "a.wav", noise(70_000))), pace="fast"), tmp_path)
    assert heard.audio == noise(70_000)


async def test_the_pipe_is_large(tmp_path: Path) -> None:
    """A pipe of the usual 64 KiB holds two seconds: what the daemon has not read when it is killed would be lost."""
    async with open_source(ENDLESS, rate=RATE, frame=FRAME, folder=tmp_path) as feed:
        output = feed._child._output
        assert isinstance(output, trio.lowlevel.FdStream)
        assert fcntl.fcntl(output.fileno(), fcntl.F_GETPIPE_SZ) == 1 << 20


async def test_a_source_that_is_left_is_gone(tmp_path: Path) -> None:
    """Leaving waits for the end of the process, cancelled or not: a device often has one user, and more are to come."""
    with trio.CancelScope() as scope:
        async with open_source(ENDLESS, rate=RATE, frame=FRAME, folder=tmp_path) as feed:
            await feed.receive()
            scope.cancel()
            await trio.sleep_forever()
    assert feed._child._process.returncode == 0


async def test_what_lies_in_the_current_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` would look for modules there first, and anybody may have put something into a folder."""
    (tmp_path / "json.py").write_text("raise SystemExit('another module')")
    monkeypatch.chdir(tmp_path)
    heard = await listen(File(str(write_wav(tmp_path / "a.wav", noise(100))), pace="fast"), tmp_path)
    assert isinstance(heard.over, SourceEnded)


async def test_two_sources_do_not_hold_each_others_ends(tmp_path: Path) -> None:
    """A child process has only its own pipes: the end of one source is seen while another one runs."""
    path = write_wav(tmp_path / "a.wav", noise(100))
    async with (
        open_source(File(str(path)), rate=RATE, frame=FRAME, folder=tmp_path) as first,
        open_source(ENDLESS, rate=RATE, frame=FRAME, folder=tmp_path) as second,
    ):
        await second.receive()
        assert isinstance((await drain(first)).over, SourceEnded)
        await second.receive()
