"""The capture process, `python -m roomtone.capture.source`: it reads one source and hands its audio to the daemon.

A process of its own, because PortAudio freezes its list of devices at its start, drivers hang when a device goes, and a
busy interpreter delays the reader. It is replaced, never repaired: at its end it kills what it has started
(`descendants`), and nothing else here tidies up.

Standard input brings the configuration as one line of JSON: every user could see a camera's password in arguments. Its
end means that this process is to end: the daemon wants that, or is gone. Standard output carries frames (`ring`).
Standard error is for the reason of a failure.

Three threads: the first reads the source into the ring, one writes from the ring into the pipe, one waits for the end
of standard input. So the daemon may stand still for as long as the ring is long.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from roomtone.capture.source.descendants import SURVIVED_STATUS, adopt_orphans, end_descendants
from roomtone.capture.source.ring import ENDED, FAILED, SAMPLE_BYTES, CaptureFailure, Lead, Ring

_WRITE_BYTES = 65536
"""Bytes that one write to the pipe takes at most: what is in a write can no longer give way to newer audio."""


def main() -> None:
    config = json.loads(sys.stdin.buffer.readline())
    # A stray print of a library would tear a frame: standard output becomes standard error.
    pipe = os.dup(1)
    os.dup2(2, 1)
    # A service manager may send SIGTERM to the whole group when the daemon stops; the daemon decides when audio ends.
    # Not SIG_IGN: a command would inherit that.
    signal.signal(signal.SIGTERM, lambda *_: None)
    ring = Ring(config["ring"])
    writer = threading.Thread(target=_write, args=(ring, pipe), daemon=True)
    threading.Thread(target=_wait_for_daemon, daemon=True).start()
    writer.start()
    try:
        fill(ring, config)
    except CaptureFailure as failure:
        ring.close(FAILED, failure.code, str(failure), boottime())
    else:
        ring.close(ENDED, "source.ended", "the source has ended", boottime())
    writer.join()
    _leave()


def boottime() -> float:
    """Seconds on the clock that goes on in suspension."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def fill(ring: Ring, config: dict[str, Any]) -> None:
    """Read the source to its end. A full ring holds up a file without limit, a command as long as it is ahead of real
    time, and a microphone never.

    Each kind is imported where it is needed: such a process lives for years, and unused modules cost memory.
    """
    rate, frame = config["rate"], config["frame"]
    match config["source"]:
        case {"kind": "microphone", "device": device}:
            from roomtone.capture.source.microphone import read_microphone, watch_source  # noqa: PLC0415 - see above

            def fail(failure: CaptureFailure) -> None:
                ring.close(FAILED, failure.code, str(failure), boottime())

            def watch(source: str, mark: str) -> None:
                threading.Thread(target=watch_source, args=(source, mark, fail), daemon=True).start()

            for block in cut(read_microphone(device, rate=rate, frame=frame, watch=watch), frame):
                ring.put(block, boottime())
        case {"kind": "file", "path": path, "pace": pace}:
            from roomtone.capture.source.audiofile import read_file  # noqa: PLC0415 - see above

            blocks = cut(read_file(path, rate=rate, skip=config["skip"]), frame)
            for block in paced(blocks, rate) if pace == "realtime" else blocks:
                ring.put(block, boottime(), timeout_s=None)
        case {"kind": "command", "argv": argv, "environment": names}:
            from roomtone.capture.source.command import choose_environment, read_command  # noqa: PLC0415 - see above

            adopt_orphans()
            lead, environment = Lead(rate), choose_environment(os.environ, names)
            pieces = read_command(argv, config["folder"], environment, rate=rate, silence=config["silence"])
            for block in cut(pieces, frame):
                timeout = lead.seconds(len(block) // SAMPLE_BYTES, time.monotonic())
                ring.put(block, boottime(), timeout)


def cut(pieces: Iterator[bytes], frame: int) -> Iterator[bytes]:
    """Cut pieces of any length into blocks of `frame` samples. The last may be shorter, without a torn sample."""
    size = frame * SAMPLE_BYTES
    kept = bytearray()
    for piece in pieces:
        kept += piece
        while len(kept) >= size:
            yield bytes(kept[:size])
            del kept[:size]
    if len(kept) >= SAMPLE_BYTES:
        yield bytes(kept[: len(kept) // SAMPLE_BYTES * SAMPLE_BYTES])


def paced(blocks: Iterator[bytes], rate: int) -> Iterator[bytes]:
    """Yield each block when a microphone would: after its last sample. Late blocks follow immediately."""
    due = time.monotonic()
    for block in blocks:
        due += len(block) / SAMPLE_BYTES / rate
        time.sleep(max(0.0, due - time.monotonic()))
        yield block


def _write(ring: Ring, pipe: int) -> None:
    try:
        while portion := ring.take(_WRITE_BYTES):
            rest = memoryview(portion)
            while rest:
                rest = rest[os.write(pipe, rest) :]
    except BrokenPipeError:
        _leave()


def _wait_for_daemon() -> None:
    # Not through sys.stdin: a thread in its buffer makes the interpreter abort at its end, and hides why it ends.
    while os.read(0, 1):
        pass
    _leave()


def _leave() -> NoReturn:
    """End this process and all that it has started. Status 0 says that nothing is left of that."""
    os._exit(0 if end_descendants() else SURVIVED_STATUS)
