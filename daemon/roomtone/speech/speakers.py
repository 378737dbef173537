"""Speakers: labels that belong to one session each, and the names that a configuration gives them. Pure.

The service begins with "A" in every session. So a label carries its session, as in "A.de5d9927": two people never share
one by accident. A configuration gives a name on purpose.
"""

from collections.abc import Mapping

ANY_SPEAKER = "*"
"""The label that stands for every speaker, labelled or not."""
_UNKNOWN_LABELS = frozenset({"", "UNKNOWN", "PENDING"})
"""The service's labels for unknown speakers: two of them need not be the same one."""


def label_of(session_id: str) -> str:
    """The part of a session's id that its speakers' labels contain."""
    return session_id[:8]


class Speakers:
    """The speakers of one session. `names` are the room's: by the service's label, or one for ANY_SPEAKER."""

    def __init__(self, session_id: str, names: Mapping[str, str]) -> None:
        self._session = label_of(session_id)
        self._names = names

    def name(self, label: str | None) -> str | None:
        """The name for this label, else the label with its session; None for an unknown speaker."""
        if ANY_SPEAKER in self._names:
            return self._names[ANY_SPEAKER]
        if label is None or label in _UNKNOWN_LABELS:
            return None
        return self._names.get(label) or f"{label}.{self._session}"
