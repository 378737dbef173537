"""The parameters of a room's sessions, which may change while one of them is open.

The service accepts some of them in the middle of a session, so that new key terms, or another prompt, cost no seam in
the transcript.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from roomtone.protocol.messages import UPDATABLE
from roomtone.protocol.parameters import Streaming

ApplyChanges: TypeAlias = Callable[[Mapping[str, Any]], None]

_CLEARED = frozenset({"keyterms_prompt", "language_codes"})
"""Lists, which an empty one clears. The service documents no way to restore the default of any other."""
_BEGUN = frozenset({"format_turns"})
"""Fixed when a session begins: it decides if a turn has two finals."""


def live_changes(before: Streaming, after: Streaming) -> dict[str, Any] | None:
    """The changes that move a running session from `before` to `after`; None if only a new session can. Pure."""
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
    """The parameters of one room's sessions: `streaming` is for those that begin now."""

    def __init__(self, streaming: Streaming) -> None:
        self.streaming = streaming
        self._sessions: dict[object, ApplyChanges] = {}

    def change(self, streaming: Streaming) -> bool:
        """Apply these to open sessions and to later ones. Returns False, and changes nothing, if only a new session can
        have them.
        """
        changes = live_changes(self.streaming, streaming)
        if changes is None:
            return False
        self.streaming = streaming
        if changes:
            for apply in self._sessions.values():
                apply(changes)
        return True

    @contextmanager
    def follow(self, apply: ApplyChanges, *, begun_with: Streaming) -> Iterator[None]:
        """Until left, apply every change to an open session, which has begun with these parameters."""
        if missed := live_changes(begun_with, self.streaming):
            apply(missed)
        key = object()
        self._sessions[key] = apply
        try:
            yield
        finally:
            del self._sessions[key]
