"""The end of a session, or the reason why there was none: one result from four sources.

The Error message, the close, the answer to the upgrade and the failure of the stream come in any order, and each may be
missing. The texts are for operators, and contain no secrets.
"""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec
import structlog
import trio
from trio_websocket import CloseReason, ConnectionClosed, ConnectionRejected, HandshakeError
from wsproto.utilities import ProtocolError

from roomtone.backoff import is_worth_saying, wait_of
from roomtone.concurrency import leaves_of
from roomtone.network import ProxyFailed, causes
from roomtone.protocol.close_codes import RetryAdvice, classify
from roomtone.protocol.messages import MAX_MESSAGE_BYTES, Error
from roomtone.protocol.parameters import Streaming
from roomtone.proxy import NetworkError

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

FAILURES: Final = (
    ConnectionClosed,
    HandshakeError,
    h11.ProtocolError,
    ProtocolError,
    OSError,
    UnicodeError,
    trio.BrokenResourceError,
)
"""The exceptions that a network and a peer can cause. wsproto raises UnicodeError for a header that is not ASCII.
ssl.SSLError is an OSError; ConnectionRejected, ConnectionTimeout and DisconnectionTimeout are HandshakeErrors."""

_TOO_LONG: Final = f"Exceeded maximum message size: {MAX_MESSAGE_BYTES} bytes"
MAX_ERROR_BODY_BYTES: Final = 8192
"""Bytes of a server's answer that are examined."""
_SECRET_PARAMETERS: Final = frozenset({"token", "webhook_auth_header_value"})


_PARAMETERS: Final = (*(field.encode_name for field in msgspec.structs.fields(Streaming)), "sample_rate", "encoding")
_PHRASES: Final = re.compile(
    r"(?:user )?input validation error|input duration (?:error|violation)|audio transmission rate exceeded"
    r"|unauthorized connection|missing authorization header|invalid api key|signature has expired"
    r"|too many (?:concurrent )?(?:sessions|streams|requests)|rate limit(?: exceeded)?"
    r"|session (?:cancelled|expired|ended|terminated due to inactivity)|an error occurred|no messages received"
    r"|maximum session duration exceeded|expected between 50 and 1000 ms|deprecated endpoint"
    r"|insufficient (?:funds|balance|credits?)|account (?:is )?(?:disabled|suspended|not found)"
    r"|invalid (?:json(?: array)?|message type|message)|see error message for details"
    rf"|invalid '(?:{'|'.join(_PARAMETERS)})'",
    re.IGNORECASE,
)
"""The known phrases of the service about failures. A longer one stands before its own beginning."""


def known_phrases(text: str) -> str:
    """The known phrases in this text; the rest of it may quote speech from a room."""
    return ": ".join(dict.fromkeys(_PHRASES.findall(text)))


class SessionClosed(Exception):  # noqa: N818 - most sessions end well
    """The end of a session, or the reason why there was none.

    `text` quotes only known phrases of the service: the rest may be speech that it heard. `code` is from its Error
    message, else the close code, or the HTTP status of a refused upgrade, or None where the network broke. `refused`:
    there was no `Begin`. `wait`: the seconds for which the service asks to be left alone.
    """

    def __init__(self, code: int | None, text: str, advice: RetryAdvice, *, refused: bool, wait: float = 0.0) -> None:
        super().__init__(code, text, advice)
        self.code = code
        self.text = text
        self.advice = advice
        self.refused = refused
        self.wait = wait

    def __str__(self) -> str:
        code = "" if self.code is None else f"{self.code}: "
        return f"{code}{self.text} ({self.advice.value})"


class ExcessiveTraffic(OSError):  # noqa: N818 - it says what is true of the service
    """The service sends more than speech can contain: it is read no further."""

    def __init__(self) -> None:
        super().__init__("the service sends more than speech can contain")


class Redaction:
    """Takes the secrets of one session out of any text."""

    def __init__(self, url: str, headers: Sequence[tuple[str, str]]) -> None:
        parameters = parse_qsl(urlsplit(url).query)
        secrets = [value for name, value in parameters if name in _SECRET_PARAMETERS]
        secrets += [part for _, value in headers for part in (value, *value.split())]
        self._secrets = sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return " ".join(text.split())[:500]


class CloseEvidence:
    """All that is known about the end of a session. It comes from four sources, in any order.

    `head` is the beginning of the server's answer, `ended` is set when reading is over, `failure` is the exception that
    ended it if that was not a close, `error` the Error message.
    """

    def __init__(self, redact: Redaction) -> None:
        self.redact = redact
        self.head = b""
        self.ended = trio.Event()
        self.failure: BaseException | None = None
        self.error: Error | None = None
        self.begun = False
        self.deadline = math.inf
        self.audio_bytes = 0
        self._unusable: set[str] = set()
        self._odd = 0

    @property
    def status(self) -> int | None:
        """The HTTP status of a refused upgrade, or None."""
        found = re.match(rb"HTTP/1\.[01] ([2-5]\d\d)", self.head)
        return int(found[1]) if found else None

    def leave_out(self, field: str) -> None:
        """Log, once per session, that the service sends unusable values in this field."""
        if field not in self._unusable:
            self._unusable.add(field)
            log.warning("message.unusable_field", field=field)

    def note_odd(self, event: str, **facts: str | None) -> None:
        """Log an unexpected message: ever more rarely, or a service could fill the log."""
        self._odd += 1
        if is_worth_saying(self._odd):
            log.warning(event, messages=self._odd, **facts)

    def closed(self, code: int | None, text: str, said: str = "") -> SessionClosed:
        """The Error message takes precedence over the close that follows it, which proxies may replace.

        `text` is ours, `said` is the service's.
        """
        if self.error is not None:
            code = code if self.error.error_code is None else self.error.error_code
            said = self.error.error or said
            text = f"the service reports error {code}"
        advice = classify(code, self.redact(said or text))
        text = known_phrases(said) or self.redact(text)
        return SessionClosed(code, text, advice, refused=not self.begun, wait=self._wait())

    def _wait(self) -> float:
        """The seconds of Retry-After in the answer to a refused upgrade."""
        if self.status is None:
            return 0.0
        found = re.search(rb"\r\nretry-after:([^\r]*)\r", self.head.partition(b"\r\n\r\n")[0] + b"\r", re.IGNORECASE)
        return wait_of(found[1].decode("ascii", "replace").strip() if found else None, datetime.now(UTC))

    def judge(self, failure: BaseException) -> SessionClosed:
        status = failure.status_code if isinstance(failure, ConnectionRejected) else self.status
        match failure:
            case _ if isinstance(failure, ExcessiveTraffic) or _is_too_long(failure):
                return SessionClosed(None, str(ExcessiveTraffic()), RetryAdvice.EXCESS, refused=not self.begun)
            case _ if status is not None:
                return self.closed(status, f"the service refuses the connection with HTTP {status}")
            case ConnectionClosed(reason=CloseReason() as reason):
                # 1006 is never sent: libraries report a broken network with it.
                code = None if reason.code == 1006 else reason.code
                return self.closed(code, f"the connection is closed ({reason.name.lower()})", reason.reason or "")
            case NetworkError():
                return SessionClosed(None, str(failure), RetryAdvice.FATAL, refused=True)
            case ProxyFailed(status=code):
                return self.closed(code, str(failure))
            case _:
                return self.closed(None, _describe(failure))


def _is_too_long(failure: BaseException) -> bool:
    """True if trio-websocket has closed the connection, since a message had more than MAX_MESSAGE_BYTES.

    A service that closes with 1009, for a message of ours, gives another reason.
    """
    reason = failure.reason if isinstance(failure, ConnectionClosed) else None
    return reason is not None and (reason.code, reason.reason) == (1009, _TOO_LONG)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One exception of a group of failures: the one with an HTTP status, if there is one."""
    failures = leaves_of(group)
    return next((one for one in failures if isinstance(one, ConnectionRejected)), failures[0])


def _describe(failure: BaseException) -> str:
    match failure:
        case ConnectionClosed():
            return "the connection is closed"
        case OSError():
            return f"no connection: {'; '.join(causes(failure))}"
        case HandshakeError():
            return str(failure)
    # Only the kind of the failure: its text may quote what came.
    return f"the server breaks the protocol ({type(failure).__name__})"
