"""Who speaks: labels that are of one session each, and the names that a configuration gives them. Pure.

The service begins with "A" in every session, whoever that is. So a label carries its session: "A.de5d9927", and two
people are never one by accident. A name is given on purpose, by who knows the room.
"""

from collections.abc import Mapping

ANY_SPEAKER = "*"
"""The label that stands for every speaker, labelled or not."""
_UNKNOWN_LABELS = frozenset({"", "UNKNOWN", "PENDING"})
"""What the service says where it does not know: two of them are not one person."""


def label_of(session_id: str) -> str:
    """The part of a session's id that its speakers' labels bear."""
    return session_id[:8]


class Speakers:
    """The speakers of one session. `names` are the room's: by the service's label, or one for EVERYBODY."""

    def __init__(self, session_id: str, names: Mapping[str, str]) -> None:
        self._session = label_of(session_id)
        self._names = names

    def name(self, label: str | None) -> str | None:
        """The name for this label, else the label with its session; None for nobody known."""
        if ANY_SPEAKER in self._names:
            return self._names[ANY_SPEAKER]
        if label is None or label in _UNKNOWN_LABELS:
            return None
        return self._names.get(label) or f"{label}.{self._session}"
