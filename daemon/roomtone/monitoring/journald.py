"""Log lines as entries of systemd-journald, by its native protocol: each key is a field that `journalctl` filters by.

Facts of the protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. An entry is one datagram of fields. A field is
`NAME=value` and a newline; a value with newlines is `NAME`, a newline, its length in 8 bytes (little-endian), the value
and a newline. An entry that is too large for a datagram goes as a sealed file in memory whose descriptor is sent alone.
"""

import array
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from structlog.processors import CallsiteParameter, CallsiteParameterAdder
from structlog.typing import EventDict, Processor, WrappedLogger

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "roomtone"
SEND_TIMEOUT_S = 0.2
"""Seconds that a line waits for a journal that does not accept it. Later lines do not wait; they are counted."""

MESSAGE_IDS: Mapping[str, str] = {
    "service.started": "cfe83b6c7a11470c8789b7634294e103",
    "service.stopping": "e00bd99e6e3b4cdab33d938f9e61741e",
    "service.leaving": "a7d349712c8d421f932d85ee807f1c1d",
    "rooms.unaccounted": "522e7943e7d3427ea7885cdd479c471a",
    "loop.stalled": "fc40485f6aaf4a6ea6a924f908512282",
    "source.left": "ac88939a7de841eca06137ccca7ac842",
    "source.unkillable": "e4d5828013354121b11f8f0fb2cf8ff6",
    "audio.lost": "fef3cc0bc79e423ab299232df67c2892",
    "journal.full": "4d338a9a04a047bcaa8995f0d7095da9",
    "journal.corrupt": "b41b3222f6974de3833e089324e146ef",
    "disk.low": "939938ad14964850a51e76847e5c8c65",
    "configuration.refused": "92827ce1e61447e99d027f3ea94c77cb",
    "session.failed": "6e313365b60e4dba98d589efa2103113",
    "recognizer.ended": "c9559ff836f64605a535ed89eead952d",
    "recognizer.fallback": "b0d1f4b6f7a64e0fb8f5f38fb1b6b1a3",
    "sink.unloaded": "ae7b7a8f2c0d48c8aa84a8ba68b2f59b",
    "part.failed": "abee035b34d7464fb176520ec019e00b",
    "sink.failed": "a2389ce4646746cfa53036c7a02c58d8",
    "sink.stuck": "9c6f174512ff44f9a4b41298c8767f18",
    "sink.warning": "f40a1f2ea4a14b0b9c5c0a2d6a0f4c37",
    "event.refused": "159f80ca2b2b4fef90bc9b9925f3424b",
    "gate.unavailable": "c5f5f57c70644583b129d229ae804453",
    "metrics.unavailable": "dec9910dda37498990187540679011d8",
    "request.failed": "3e02d838bad1447287cdd0e8458916f3",
    "forgetting.unsearched": "d2591ebc4b0c41ee8f260e90fa4c01e0",
}
"""Events that an operator may have to act on, by stable ids: systemd/roomtone.catalog explains each one and says what
helps. An id is never used for another event.
"""

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
_PLAIN = {"room": "ROOM", "session_id": "SESSION_ID", "sink": "SINK"}
"""The keys that operators filter by. All others get a prefix, so that none can be taken for a field of journald."""
_CALLSITE = {"pathname": "CODE_FILE", "lineno": "CODE_LINE", "func_name": "CODE_FUNC"}
_NOT_IN_MESSAGE = {"event", "level", "exception", "stack", *_CALLSITE}
_BARE = re.compile(r"[^\s\"=]+")
_TOO_LARGE = {errno.EMSGSIZE, errno.ENOBUFS}


def is_journal(stream: TextIO, environ: Mapping[str, str], journal: Path = SOCKET) -> bool:
    """True if the stream is connected to the journal: $JOURNAL_STREAM names it by device and inode (systemd.exec(5)).

    A service whose stderr was sent elsewhere has the variable too, or inherited it.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" and journal.exists()


def processors() -> tuple[Processor, ...]:
    """The last steps of the chain, for `Entries` as the logger."""
    parameters = {CallsiteParameter.PATHNAME, CallsiteParameter.LINENO, CallsiteParameter.FUNC_NAME}
    return CallsiteParameterAdder(parameters), render


def render(_logger: WrappedLogger, _method: str, line: EventDict) -> bytes:
    """One log line as one entry. Pure.

    The message shows the event and its key-values; each of these is a field of its own too.
    """
    event = str(line.get("event", ""))
    fields: dict[str, Any] = {
        "MESSAGE": _message(event, line),
        "PRIORITY": _PRIORITIES.get(str(line.get("level")), 6),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "EVENT": event,
    }
    if event in MESSAGE_IDS:
        fields["MESSAGE_ID"] = MESSAGE_IDS[event]
    for key, value in line.items():
        if key not in _NOT_IN_MESSAGE:
            fields[_PLAIN.get(key) or _field(key)] = value
        elif key in _CALLSITE:
            fields[_CALLSITE[key]] = value
    return b"".join(_encode(name, str(value)) for name, value in fields.items())


def _message(event: str, line: EventDict) -> str:
    pairs = [f"{key}={_show(value)}" for key, value in line.items() if key not in _NOT_IN_MESSAGE]
    below = [str(line[key]) for key in ("exception", "stack") if line.get(key)]
    return "\n".join([" ".join([event, *pairs]), *below])


def _show(value: Any) -> str:
    text = str(value)
    if not isinstance(value, str) or _BARE.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _field(key: str) -> str:
    """Field names are capitals, digits and underscores, begin with a letter, and have at most 64 characters."""
    return ("ROOMTONE_" + re.sub(r"[^A-Z0-9_]", "_", key.upper()))[:64]


def _encode(name: str, value: str) -> bytes:
    content = value.encode("utf-8", "backslashreplace")
    if b"\n" in content:
        return name.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"
    return name.encode() + b"=" + content + b"\n"


class Entries:
    """A logger for structlog, and its own factory, that sends rendered entries to the journal.

    Each entry has a socket of its own: lines are rare, and nothing needs repair when journald restarts. Entries that
    the journal does not accept are counted in `lost`; the next one that it accepts carries their number.
    """

    def __init__(self, journal: Path = SOCKET) -> None:
        self._journal = str(journal)
        self.lost = 0

    def __call__(self, *_: object) -> "Entries":
        return self

    def msg(self, entry: bytes) -> None:
        if self.lost:
            entry += _encode("ROOMTONE_LOST_BEFORE", str(self.lost))
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(0 if self.lost else SEND_TIMEOUT_S)
                self._send(channel, entry)
        except OSError:
            self.lost += 1
        else:
            self.lost = 0

    debug = info = warning = error = critical = exception = log = msg

    def _send(self, channel: socket.socket, entry: bytes) -> None:
        try:
            channel.sendto(entry, self._journal)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._send_file(channel, entry)

    def _send_file(self, channel: socket.socket, entry: bytes) -> None:
        """The journal accepts only a sealed file in memory, which cannot change while it is read."""
        descriptor = os.memfd_create("entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(entry)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
            channel.sendmsg([], ancillary, 0, self._journal)
