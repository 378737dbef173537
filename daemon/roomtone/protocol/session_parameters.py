"""What a room's sessions are asked for, and how that changes while one of them is up.

The service takes some parameters in the middle of a session, so that a new list of key terms, or another prompt, costs
no seam in the transcript.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from roomtone.protocol.messages import UPDATABLE
from roomtone.protocol.parameters import Streaming

ApplyChanges: TypeAlias = Callable[[Mapping[str, Any]], None]

_CLEARED = frozenset({"keyterms_prompt", "language_codes"})
"""Lists, which an empty one clears. Of everything else it is not known how its default comes back."""
_BEGUN = frozenset({"format_turns"})
"""What a session is begun for: whether a turn has two finals is known from its first message on."""


def live_changes(before: Streaming, after: Streaming) -> dict[str, Any] | None:
    """What a session that began under `before` is to be told so that it goes on under `after`.

    None where only a new session can have it. Pure.
    """
    changes: dict[str, Any] = {}
    for name in before.__struct_fields__:
        value = getattr(after, name)
        if value == getattr(before, name):
            continue
        if name not in UPDATABLE - _BEGUN or (value is None and name not in _CLEARED):
            return None
        changes[name] = [] if value is None else value
    return changes


class SessionParameters:
    """The terms of one room's sessions: `streaming` holds for those that begin now."""

    def __init__(self, streaming: Streaming) -> None:
        self.streaming = streaming
        self._sessions: dict[object, ApplyChanges] = {}

    def change(self, streaming: Streaming) -> bool:
        """Have the sessions that are up, and those to come, go on by these. False, and nothing has changed, where only
        a new session can.
        """
        changes = live_changes(self.streaming, streaming)
        if changes is None:
            return False
        self.streaming = streaming
        if changes:
            for tell in self._sessions.values():
                tell(changes)
        return True

    @contextmanager
    def follow(self, apply: ApplyChanges, *, begun_with: Streaming) -> Iterator[None]:
        """A session is up that was `asked` for these terms: it is told of every change until this is left."""
        if missed := live_changes(begun_with, self.streaming):
            apply(missed)
        key = object()
        self._sessions[key] = apply
        try:
            yield
        finally:
            del self._sessions[key]
