"""Interprets a receiver's answer. Pure.

A status is about the event, or about the endpoint. Only the first can set an event aside: a wrong token or a moved
address would refuse every event, and all of them are wanted once that is corrected.

410 Gone is about the endpoint too: in Standard Webhooks it means "disable this endpoint", not "drop this message". So
the events wait, the address is tried once an hour, and the operator is notified.
"""

from datetime import datetime

from roomtone.backoff import wait_of
from roomtone.sinks import LONGEST_WAIT

ABOUT_THE_EVENT = frozenset({400, 413, 422})
"""Bad request, content too large, unprocessable content: the same event will be refused again."""

SHOWN_CHARS = 200
"""Characters of an answer's body that are shown to a user."""

_REMEDIES = {
    401: "check secret_file and header_files",
    403: "check secret_file and header_files",
    404: "check url",
    405: "check url",
    407: "check the proxy in the environment",
    410: "the receiver wants no more events; check url, or remove the sink from the configuration",
}


def is_accepted(status: int) -> bool:
    return 200 <= status < 300


def describe(status: int) -> str:
    """The answer for the operator: its status and the remedy, without the body, which may quote events."""
    remedy = "set url to the address that it redirects to" if 300 <= status < 400 else _REMEDIES.get(status)
    return f"answered {status}" + (f" ({remedy})" if remedy else "")


def excerpt(body: bytes) -> str:
    """The beginning of the body in one line, for places that may quote: the refused event, and a terminal."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return "".join(character for character in text if character.isprintable())[:SHOWN_CHARS]


def retry_after(status: int, value: str | None, now: datetime) -> float:
    """Seconds to wait after this answer: its Retry-After, or for a 410 without one an hour."""
    return LONGEST_WAIT if value is None and status == 410 else wait_of(value, now)
