"""For tests of Roomtone and of its plugins: a fake speech service, a fake room, the conformance kit.

Loaded lazily: the room does not need the service's protocol, and nothing here needs pytest until a test is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roomtone.testing.conformance import LAWS, LawBroken, check, conformance_tests
    from roomtone.testing.room import FakeRoom, open_room

_HOME = {
    **dict.fromkeys(("LAWS", "LawBroken", "check", "conformance_tests"), "roomtone.testing.conformance"),
    **dict.fromkeys(("FakeRoom", "open_room"), "roomtone.testing.room"),
}

__all__ = ["LAWS", "FakeRoom", "LawBroken", "check", "conformance_tests", "open_room"]


def __getattr__(name: str) -> object:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(home), name)
