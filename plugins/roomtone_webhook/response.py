"""What a receiver's answer means for the event. Pure.

A status is about the event, or about the endpoint. Only the first can set an event aside: a wrong token or a moved
address would refuse every event, and they are all wanted once it is mended.

410 Gone is about the endpoint too: Standard Webhooks has it mean "disable this endpoint", not "drop this message". So
nothing is set aside: the events wait, the address is asked again once an hour, and a person is told.
"""

from datetime import datetime

from roomtone.backoff import wait_of
from roomtone.sinks import LONGEST_WAIT

ABOUT_THE_EVENT = frozenset({400, 413, 422})
"""Bad request, content too large, unprocessable content: the same event will be refused again."""

SHOWN = 200
"""Characters of an answer's body that are shown to a person."""

_REMEDIES = {
    401: "check secret_file and header_files",
    403: "check secret_file and header_files",
    404: "check url",
    405: "check url",
    407: "check the proxy in the environment",
    410: "the receiver wants no more; check url, or take the sink out of the configuration",
}


def is_accepted(status: int) -> bool:
    return 200 <= status < 300


def describe(status: int) -> str:
    """The answer for a person: its status, and what to do. Nothing of its body, which may quote what was sent."""
    remedy = "put the address that it points to into url" if 300 <= status < 400 else _REMEDIES.get(status)
    return f"answered {status}" + (f" ({remedy})" if remedy else "")


def excerpt(body: bytes) -> str:
    """The beginning of its body in one line, where that may be quoted: beside the refused event, and on a terminal."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return "".join(character for character in text if character.isprintable())[:SHOWN]


def retry_after(status: int, value: str | None, now: datetime) -> float:
    """Seconds to wait by this answer: those of its Retry-After, or, where it has none and is 410, an hour."""
    return LONGEST_WAIT if value is None and status == 410 else wait_of(value, now)
