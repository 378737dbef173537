"""The control socket: who may speak, what is understood, and that no client harms the daemon."""

import os
import signal
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from roomtone import daemon
from roomtone.control import protocol, server
from roomtone.control.client import find_socket, open_client
from roomtone.control.protocol import Answer, Done, Mute, Refused, Request, Rotate, Tail
from roomtone.control.server import MAX_CLIENTS, MAX_GUESTS, MAX_REQUEST_BYTES, Answerer, open_socket, serve
from roomtone.control.unix_socket import ControlError
from roomtone.events import Interim, Notice
from roomtone.journal.journal import Journal, open_journal
from roomtone.live import Live

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Parrot:
    """Answers with what it was asked."""

    async def answer(self, request: Request) -> Answer:
        return Refused(("no",)) if isinstance(request, Rotate) else Done((repr(request),))

    def has_room(self, name: str) -> bool:
        return name == "desk"


class Serving:
    def __init__(self, path: Path, journal: Journal, live: Live) -> None:
        self.path = path
        self.journal = journal
        self.live = live


@asynccontextmanager
async def open_serving(folder: Path, answerer: Answerer | None = None) -> AsyncIterator[Serving]:
    path, live = folder / "run" / "control", Live()
    async with open_journal(folder / "journal.sqlite") as journal, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, path, answerer or Parrot(), journal, live))
        with trio.fail_after(10):
            while not path.exists():  # noqa: ASYNC110 - a file wakes no task
                await trio.sleep(0.01)
        yield Serving(path, journal, live)
        nursery.cancel_scope.cancel()


def notice(number: int, room: str = "desk") -> Notice:
    return Notice(room=room, position=number, at=AT, severity="info", code="test.notice", text=str(number))


def interim(number: int, room: str = "desk") -> Interim:
    return Interim(room=room, position=number, at=AT, session_id="s", turn_order=number, text="x" * 2000)


async def test_a_request_is_answered(tmp_path: Path) -> None:
    """One connection takes one request after the other; what is refused is an error with the reason."""
    async with open_serving(tmp_path) as serving, open_client(serving.path) as client:
        answer = await client.ask(Mute(room="desk", seconds=5.0))
        assert answer == Done((repr(Mute(room="desk", seconds=5.0)),))
        with pytest.raises(ControlError, match="no"):
            await client.ask(Rotate())
        assert await client.ask(Mute()) == Done((repr(Mute()),))


class Fails(Parrot):
    """Fails at every request, alone or in a group."""

    async def answer(self, request: Request) -> Answer:
        if isinstance(request, Rotate):
            raise OverflowError("date value out of range")
        raise ExceptionGroup("two", [ValueError("one"), ExceptionGroup("inner", [OSError(28, "No space left")])])

    def has_room(self, name: str) -> bool:
        raise RuntimeError("has_room")


async def test_a_request_that_fails_is_refused_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a request raises is in the log with its traceback; the client is refused, and asks again."""
    async with open_serving(tmp_path, Fails()) as serving:
        for request in (Rotate(), Mute(), Tail(room="desk"), Rotate()):
            async with open_client(serving.path) as client:
                with pytest.raises(ControlError, match="failed to answer this request"):
                    await client.ask(request)
    logged = capsys.readouterr()
    assert (logged.out + logged.err).count("request.failed") == 4


async def test_a_reload_by_signal_that_fails_ends_nothing() -> None:
    """SIGHUP is a request as well."""

    class Commands:
        count = 0

        async def reload(self) -> None:
            self.count += 1
            raise OverflowError("date value out of range")

    commands = Commands()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._reload_on_sighup, cast("Any", commands))
        for count in (1, 2):
            with trio.fail_after(30):
                while signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # noqa: ASYNC110 - a signal handler wakes no task
                    await trio.sleep(0.01)
                os.kill(os.getpid(), signal.SIGHUP)
                while commands.count < count:  # noqa: ASYNC110 - as above
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_only_this_user_can_open_it(tmp_path: Path) -> None:
    """The socket and its folder are closed to others from their first moment, whatever the umask."""
    before = os.umask(0)
    try:
        async with open_serving(tmp_path) as serving:
            assert stat.S_IMODE(serving.path.stat().st_mode) == 0o600
            assert stat.S_IMODE(serving.path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert not serving.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
async def test_the_kernel_is_asked_who_speaks() -> None:
    """Another user is let go without an answer even where the mode of the file would let him in."""
    with walkable_folder() as folder:
        assert await ask_as_another(folder) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
async def test_the_group_of_the_folder_may_ask_how_it_does() -> None:
    """In a folder that systemd has made for a group, its members are answered of the status and of nothing else, and
    however many of them are there, the owner is answered.
    """
    with walkable_folder() as folder:
        shared = folder / "run"
        shared.mkdir(mode=0o750)
        os.chown(shared, -1, 65534)
        shared.chmod(0o2750)  # what is made in it has its group, as the daemon's own files have theirs
        async with open_serving(folder) as serving:
            assert stat.S_IMODE(serving.path.stat().st_mode) == 0o660
            refused = await trio.to_thread.run_sync(ask_as_nobody, serving.path)
            answered = await trio.to_thread.run_sync(ask_as_nobody, serving.path, "status", 20)
            async with open_client(serving.path) as client:
                assert await client.ask(Mute()) == Done((repr(Mute()),))

    assert b"use sudo" in refused
    assert b"Status" in answered
    assert answered.count(b"clients are connected already") == 20 - MAX_GUESTS


@contextmanager
def walkable_folder() -> Iterator[Path]:
    """Where others may walk, unlike in pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


async def ask_as_another(folder: Path) -> bytes:
    async with open_serving(folder) as serving:
        serving.path.chmod(0o666)
        serving.path.parent.chmod(0o711)
        return await trio.to_thread.run_sync(ask_as_nobody, serving.path)


def ask_as_nobody(path: Path, request: str = "mute", times: int = 1) -> bytes:
    import subprocess
    import sys

    program = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "held = []\n"
        "for _ in range(int(sys.argv[3])):\n"
        "    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]); held.append(s)\n"
        '    try:\n        s.sendall(b\'{"ask": "%s"}\\n\' % sys.argv[2].encode()); data = s.recv(200)\n'
        "    except ConnectionError: data = b''\n"
        "    sys.stdout.buffer.write(data)\n"
    )
    command = ["/usr/bin/python3", "-c", program, str(path), request, str(times)]
    if not Path(command[0]).exists():
        command[0] = sys.executable
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """The socket of a killed daemon is replaced; a daemon that answers keeps its socket, and a file is left alone."""
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with open_socket(path):
        with pytest.raises(OSError, match="another daemon answers"), open_socket(path):
            pass
        assert path.exists()
        assert find_socket([tmp_path / "absent", path]) == path
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"), open_socket(path):
        pass
    assert path.read_text() == "precious"


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """The kernel's 108 bytes are not the user's concern."""
    async with open_serving(tmp_path / ("a" * 80) / ("b" * 80)) as serving, open_client(serving.path) as client:
        assert await client.ask(Mute()) == Done((repr(Mute()),))
        assert find_socket([serving.path]) == serving.path


async def test_no_daemon_is_one_clear_line(tmp_path: Path) -> None:
    """It says where it looked and what to do."""
    with pytest.raises(ControlError, match=r"no daemon answers here; start one with `roomtone run`.*absent"):
        find_socket([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{}", "not a request"),
        (b"nonsense", "not a request"),
        (b'{"ask": "dance"}', "not a request"),
        (b'{"ask": "mute", "seconds": "long"}', "not a request"),
        (b'{"ask": "mute", "version": 2}', "speaks version 1, not 2"),
        (b'{"ask": "tail", "room": "attic"}', "there is no room 'attic'"),
        (b"\xff\xfe\x00", "not a request"),
        (b"[" * 10_000, "not a request"),
    ],
)
async def test_what_is_no_request_is_told(tmp_path: Path, line: bytes, said: str) -> None:
    """In one line; and the connection goes on."""
    async with open_serving(tmp_path) as serving:
        stream = await trio.open_unix_socket(serving.path)
        async with stream:
            for sent, expected in ((line, said), (b'{"ask": "mute"}', "Mute")):
                await stream.send_all(sent + b"\n")
                with trio.fail_after(10):
                    answer = msgspec.json.decode(await stream.receive_some(65_536))
                assert expected in answer["lines"][0]


async def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    """A client cannot have the daemon hold what it sends."""
    async with open_serving(tmp_path) as serving:
        stream = await trio.open_unix_socket(serving.path)
        async with stream:
            with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x" * MAX_REQUEST_BYTES * 100)
        async with open_client(serving.path) as client:
            assert await client.ask(Mute()) == Done((repr(Mute()),))


async def test_a_silent_client_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that connects and asks nothing does not keep a place."""
    monkeypatch.setattr(server, "IDLE_TIMEOUT_S", 0.2)
    async with open_serving(tmp_path) as serving, await trio.open_unix_socket(str(serving.path)) as stream:
        with trio.fail_after(10):
            assert await stream.receive_some(100) == b""


async def test_a_client_that_does_not_read_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events wait for it in the journal, but not without end."""
    monkeypatch.setattr(server, "IDLE_TIMEOUT_S", 0.2)
    async with open_serving(tmp_path) as serving, await trio.open_unix_socket(str(serving.path)) as stream:
        await stream.send_all(msgspec.json.encode(Tail()) + b"\n")
        with trio.fail_after(10):
            assert await stream.receive_some(100)
            for number in range(200):
                await serving.journal.commit(*(notice(number, "x" * 5000) for _ in range(10)))
        await trio.sleep(1)
        received = 0
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            while part := await stream.receive_some(1 << 20):
                received += len(part)
        assert received < 200 * 10 * 5000


async def test_a_successor_keeps_its_socket(tmp_path: Path) -> None:
    """A daemon that ends removes its own socket, and not the one that another has put in its place."""
    path = tmp_path / "control"
    with ExitStack() as successor:
        with open_socket(path):
            path.unlink()
            successor.enter_context(open_socket(path))
        assert path.exists()


async def test_clients_are_bounded(tmp_path: Path) -> None:
    """One too many is refused; when one has disconnected, another may connect."""
    async with open_serving(tmp_path) as serving:
        streams = [await trio.open_unix_socket(serving.path) for _ in range(MAX_CLIENTS)]
        for stream in streams:
            await stream.send_all(b'{"ask": "mute"}\n')
            await stream.receive_some(1000)
        with pytest.raises(ControlError, match="clients are connected"):
            async with open_client(serving.path) as client:
                await client.ask(Mute())
        for stream in streams:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with open_client(serving.path) as client:
            assert await client.ask(Mute()) == Done((repr(Mute()),))


async def test_tail_follows_one_room_or_all(tmp_path: Path) -> None:
    """Durable events and live ones, of the room that is asked for, and notices of the whole daemon."""
    async with open_serving(tmp_path) as serving, open_client(serving.path) as client:
        await client.ask(Tail(room="desk"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        await serving.journal.commit(notice(1), notice(2, room="attic"), notice(3, room=""))
        seen = [msgspec.json.decode(await anext(client.lines)) for _ in range(2)]
        serving.live.publish(interim(4, room="attic"))
        serving.live.publish(interim(5))
        seen.append(msgspec.json.decode(await anext(client.lines)))
    assert [event["position"] for event in seen] == [1, 3, 5]


async def test_a_client_that_does_not_read_loses_live_events_only(tmp_path: Path) -> None:
    """Publishing goes on at its pace, lost live events are counted and reported, and no durable event is lost."""
    count = 3000
    async with open_serving(tmp_path) as serving, open_client(serving.path) as client:
        await client.ask(Tail())
        await trio.testing.wait_all_tasks_blocked(0.05)
        for number in range(count):
            serving.live.publish(interim(number))
            if number % 100 == 0:
                await serving.journal.commit(notice(number))
                await trio.testing.wait_all_tasks_blocked()
        durable, live, dropped = [], 0, 0
        with trio.fail_after(30):
            async for line in client.lines:
                event = msgspec.json.decode(line)
                match event["kind"]:
                    case "notice":
                        durable.append(event["position"])
                    case "interim":
                        live += 1
                        if event["position"] == count - 1:
                            break
                    case "dropped":
                        dropped = event["count"]
            while len(durable) < count // 100:
                durable.append(msgspec.json.decode(await anext(client.lines))["position"])
    assert durable == list(range(0, count, 100))
    assert dropped > 0
    assert live + dropped == count


async def test_a_client_that_goes_away_is_forgotten(tmp_path: Path) -> None:
    """In the middle of an answer, of a request, or of a tail."""
    async with open_serving(tmp_path) as serving:
        for sent in (b"", b'{"ask"', b'{"ask": "mute"}\n', b'{"ask": "tail"}\n'):
            for _ in range(MAX_CLIENTS):
                stream = await trio.open_unix_socket(serving.path)
                await stream.send_all(sent)
                await stream.aclose()
            serving.live.publish(interim(1))
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with open_client(serving.path) as client:
            assert await client.ask(Mute()) == Done((repr(Mute()),))


async def test_a_place_that_cannot_have_a_socket_stops_nothing(tmp_path: Path) -> None:
    """Recording is worth more than asking about it: the log says so, and the daemon goes on."""
    (tmp_path / "file").write_text("")
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        with trio.fail_after(10):
            await serve(tmp_path / "file" / "control", Parrot(), journal, Live())


def test_requests_carry_their_version() -> None:
    """So that an older daemon can say what it does not speak."""
    assert msgspec.json.decode(msgspec.json.encode(protocol.Status())) == {"ask": "status", "version": 1}
