"""The standard output of any program as a source: 16-bit little-endian mono at the room's rate, without a header."""

import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from roomtone.capture.source.descendants import MARK
from roomtone.capture.source.ring import CaptureFailure
from roomtone.capture.source.stderr_tail import StderrTail, describe

_READ_BYTES = 65536
_CLOSE_TIMEOUT_S = 5.0
"""Seconds that a program which has closed its output may take to end."""

INHERITED = (
    *("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"),
    *("DBUS_SESSION_BUS_ADDRESS", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", MARK),
)
"""Variables of the daemon's environment that a program gets: those of a command sink, and the way to sound servers."""
INHERITED_PREFIXES = ("ALSA_", "JACK_", "LC_", "PIPEWIRE_", "PULSE_")
"""Beginnings of more of them."""


def choose_environment(environ: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The variables that a program gets: those above and `names`. No others, for some hold keys. Pure."""
    chosen = {*INHERITED, *names}
    return {name: value for name, value in environ.items() if name in chosen or name.startswith(INHERITED_PREFIXES)}


def read_command(
    argv: Sequence[str], folder: str, environment: Mapping[str, str], *, rate: int, silence: float
) -> Iterator[bytes]:
    """The program's output, in pieces of any length. It ends with exit status 0, and with that only.

    The program runs in the process group of this process. Its orphans are reaped. For the main thread. Errors:
    CaptureFailure, also when it writes nothing for `silence` seconds; the text names the program and never its
    arguments, which may hold passwords.
    """
    name = Path(argv[0]).name
    try:
        process = subprocess.Popen(  # noqa: S603 - this source is for the operator's command
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
    except OSError as error:
        raise _absent(argv[0], folder, error) from error
    signal.signal(signal.SIGCHLD, lambda *_: _reap_orphans(process))
    assert process.stdout is not None and process.stderr is not None  # noqa: PT018, S101 - both are pipes
    tail = StderrTail()
    # Not joined without a timeout: a grandchild may keep the pipe open. The thread ends with this process.
    listener = threading.Thread(target=_read_stderr, args=(process.stderr, tail), daemon=True)
    listener.start()
    heard = False
    for piece in _pieces(process.stdout, silence):
        if not piece:
            raise CaptureFailure("command.silent", tail.after(f"command {name} has written nothing for {silence:g} s"))
        if not heard:
            _refuse_header(name, piece, rate)
            heard = True
        yield piece
    try:
        status = process.wait(_CLOSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CaptureFailure(
            "command.failed", f"command {name} has closed its standard output and goes on running"
        ) from None
    listener.join(1.0)
    if status != 0:
        raise CaptureFailure("command.failed", tail.after(f"command {name} {describe(status)}"))
    if not heard:
        raise CaptureFailure(
            "command.silent", tail.after(f"command {name} ended without writing audio to its standard output")
        )


def _reap_orphans(process: "subprocess.Popen[bytes]") -> None:
    """Without this, a program that starts others for years would fill the table of processes."""
    with suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid != process.pid:
                os.waitpid(ended.si_pid, os.WNOHANG)
            elif process.poll() is None:  # it is being waited for
                return


def _read_stderr(stream: IO[bytes], tail: StderrTail) -> None:
    with stream:
        while portion := os.read(stream.fileno(), _READ_BYTES):
            tail.feed(portion)


def _pieces(stream: IO[bytes], silence: float) -> Iterator[bytes]:
    """The stream's pieces, until its end; an empty piece for each `silence` seconds without any."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    with stream:
        while True:
            if not poll.poll(silence * 1000):
                yield b""
            elif piece := os.read(stream.fileno(), _READ_BYTES):
                yield piece
            else:
                return


def _refuse_header(name: str, piece: bytes, rate: int) -> None:
    if piece[:4] == b"RIFF" and piece[8:12] == b"WAVE":
        raise CaptureFailure(
            "command.format",
            f"command {name} writes a WAV file; it must write raw samples, 16-bit little-endian mono at {rate} Hz"
            " (arecord: -t raw; ffmpeg: -f s16le; sox: -t raw)",
        )


def _absent(program: str, folder: str, error: OSError) -> CaptureFailure:
    if not Path(folder).is_dir():
        return CaptureFailure("command.absent", f"folder {folder}, where command {program} would run, is not there")
    if isinstance(error, FileNotFoundError):
        return CaptureFailure("command.absent", f"command {program} is not there; install it, or give its full path")
    return CaptureFailure("command.absent", f"command {program} cannot be run: {error.strerror}")
