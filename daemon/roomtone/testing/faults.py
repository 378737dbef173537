"""Faults of a speech service, as frozen Structs that the fake service carries out.

A fault belongs to one connection: `script` says which has which, `weather` leaves it to chance, repeatably. `seconds`
count from the moment when the session is up, `words` are those heard in it; a fault strikes when both are reached.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from roomtone.protocol.messages import LLMGatewayResponse, Message, TurnMessage


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """Answer the upgrade with this HTTP status. `told`: with the length of the body; otherwise the stream ends it.

    `retry_after` is the header of that name, if there is one.
    """

    status: int = 503
    told: bool = True
    retry_after: str | None = None


class Deaf(msgspec.Struct, frozen=True, tag=True):
    """Accept the connection and never answer the upgrade."""


class HangUp(msgspec.Struct, frozen=True, tag=True):
    """Accept the connection and close it before the upgrade, after sending any `garbage`."""

    garbage: bytes = b""


class NoBegin(msgspec.Struct, frozen=True, tag=True):
    """Upgrade, read, and never send Begin."""


class Close(msgspec.Struct, frozen=True, tag=True):
    """Send the Error message if it has a text, then close with the code. `text` None: the service's text for it."""

    code: int
    text: str | None = None
    seconds: float = 0.0
    words: int = 0


class Drop(msgspec.Struct, frozen=True, tag=True):
    """The connection breaks without a close frame: `end` as by a FIN, `reset` as by an RST."""

    how: Literal["end", "reset"] = "end"
    seconds: float = 0.0
    words: int = 0


class Stall(msgspec.Struct, frozen=True, tag=True):
    """Read and write nothing for `duration` seconds, or to the end if None: like a pulled cable."""

    duration: float | None = None
    seconds: float = 0.0
    words: int = 0


class Numb(msgspec.Struct, frozen=True, tag=True):
    """Send no more messages, but answer pings and Terminate: the recognizer behind the connection is gone."""

    seconds: float = 0.0
    words: int = 0


class Lag(msgspec.Struct, frozen=True, tag=True):
    """Send everything `delay` seconds later, but answer pings immediately: a service that cannot keep up."""

    delay: float
    seconds: float = 0.0
    words: int = 0


class NoTermination(msgspec.Struct, frozen=True, tag=True):
    """Do not answer Terminate; `close`: answer with the last turns and a close, but without Termination."""

    close: bool = False


class Garble(msgspec.Struct, frozen=True, tag=True):
    """Send one malformed message, by its name in GARBLED."""

    message: str
    seconds: float = 0.0
    words: int = 0


class Say(msgspec.Struct, frozen=True, tag=True):
    """Send this text `times` times; `{n}` in it is the count from 0."""

    text: str
    times: int = 1
    seconds: float = 0.0
    words: int = 0


class Miscount(msgspec.Struct, frozen=True, tag=True):
    """Count turns from 0 again after this many; with 1 every turn is the first."""

    after: int = 1


class Repeat(msgspec.Struct, frozen=True, tag=True):
    """Send every final and every answer `times` times; `by_order`: each time as another turn, far ahead."""

    times: int = 2
    by_order: bool = False


class Name(msgspec.Struct, frozen=True, tag=True):
    """Begin with this id."""

    id: str


class Expire(msgspec.Struct, frozen=True, tag=True):
    """The session lasts `lifetime` seconds: `expires_at` says so, and at that moment it ends with 3008."""

    lifetime: float


class TooEarly(msgspec.Struct, frozen=True, tag=True):
    """Send a partial turn before Begin."""


Fault: TypeAlias = (
    Refuse
    | Deaf
    | HangUp
    | NoBegin
    | Close
    | Drop
    | Stall
    | Numb
    | Lag
    | NoTermination
    | Garble
    | Say
    | Miscount
    | Repeat
    | Name
    | Expire
    | TooEarly
)
Faults: TypeAlias = Callable[[int], Sequence[Fault]]
"""The faults of a connection by its number; the first is 0."""

CLOSE_TEXTS: Final[Mapping[int, str]] = {
    1008: "Unauthorized Connection: Invalid API key",
    1011: "",
    1013: "",
    3005: "Session Cancelled: An error occurred",
    3006: "User Input Validation Error: Invalid 'speech_model'",
    3007: "Input Duration Error: Input Duration Violation: 20.0 ms. Expected between 50 and 1000 ms",
    3008: "Session Expired: Maximum session duration exceeded",
    3009: "Unauthorized Connection: Too many concurrent sessions",
}
"""The text of the service's Error message before it closes with a code; an empty one is not sent."""

GARBLED: Final[Mapping[str, str | bytes]] = {
    "no json": '{"type":"Turn","turn_order":0,',
    "no object": '["Turn"]',
    "no type": '{"turn_order":0}',
    "half a turn": '{"type":"Turn","turn_order":0,"end_of_turn":true}',
    "half a heartbeat": '{"type":"Silence","start_ms":"soon"}',
    "not a number": '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"x","end_of_turn_confidence":NaN}',
    "huge integer": '{"type":"Turn","turn_order":' + "9" * 5000 + ',"end_of_turn":true,"transcript":"x"}',
    "deep": '{"type":"Turn","turn_order":' + "[" * 50_000 + "]" * 50_000 + "}",
    "long": '{"type":"Turn","transcript":"' + "x" * (8 << 20) + '"}',
    "binary": b"\xff\x00\xfe",
    "unknown type": '{"type":"Weather","text":"rain"}',
    "unknown fields": '{"type":"Heartbeat","realtime_factor":1,"mood":{"good":[true,null]}}',
    "old casing": '{"type":"LlmGatewayResponse","turn_order":0,"transcript":"x","data":{"choices":null}}',
    "warning": '{"type":"Warning","warning_code":1234,"warning":"session ending soon"}',
}
"""Malformed messages by the name of their fault; the last four are odd and harmless."""


def distort(faults: Sequence[Fault], messages: Iterable[Message]) -> Iterator[Message]:
    """The messages as a service with these faults sends them."""
    for message in messages:
        said: list[Message] = [message]
        for one in faults:
            match one, message:
                case Miscount(after=after), TurnMessage() | LLMGatewayResponse():
                    said = [msgspec.structs.replace(message, turn_order=message.turn_order % after)]
                case Repeat(times=times, by_order=by_order), TurnMessage(end_of_turn=True) | LLMGatewayResponse():
                    far = 1000 if by_order and isinstance(message, TurnMessage) else 0
                    said = [
                        msgspec.structs.replace(message, turn_order=message.turn_order + far * number)
                        for number in range(times)
                    ]
        yield from said


def script(faults: Mapping[int, Sequence[Fault]]) -> Faults:
    """These faults for these connections, none for the others."""
    return lambda connection: faults.get(connection, ())


def weather(seed: int, faults: Sequence[Fault], share: float) -> Faults:
    """One of the faults for this share of the connections, 0 to 1; the same seed gives the same faults."""

    def choose(connection: int) -> Sequence[Fault]:
        chance = random.Random(f"{seed}/{connection}")
        return (chance.choice(faults),) if chance.random() < share else ()

    return choose


def fair(connection: int) -> Sequence[Fault]:
    """No faults at all."""
    return ()
