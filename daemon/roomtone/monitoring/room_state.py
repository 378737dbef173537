"""How each room stands, folded from what the daemon itself says of it: its events, and the live levels."""

from datetime import datetime
from typing import Protocol

import msgspec

from roomtone.events import Durable, Level, RecordingStarted, RecordingStopped, SessionEnded, SessionStarted
from roomtone.journal.journal import Journal
from roomtone.live import Live, LiveEvent


class RoomState(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one room. `recording`: since when; `sessions`: those that are up, the newest last."""

    recording: datetime | None = None
    sessions: tuple[SessionStarted, ...] = ()
    level: Level | None = None
    session_error: str | None = None


class RoomStates:
    """The rooms by name, as far as something was seen of them."""

    def __init__(self) -> None:
        self._rooms: dict[str, RoomState] = {}

    def at(self, room: str) -> RoomState:
        """What was seen of this room so far."""
        return self._rooms.get(room) or RoomState()

    def unheard(self) -> dict[str, str]:
        """The rooms that record and have no session, for this reason."""
        return {
            name: sight.session_error
            for name, sight in self._rooms.items()
            if sight.recording and not sight.sessions and sight.session_error
        }

    def see(self, event: Durable | Level) -> None:
        """One more event."""
        match event:
            case RecordingStarted(room=room, at=at):
                self._change(room, recording=at)
            case RecordingStopped(room=room):
                self._change(room, recording=None, level=None)
            case SessionStarted(room=room):
                self._change(room, sessions=(*self.at(room).sessions, event), session_error=None)
            case SessionEnded(room=room, session_id=ended, reason=reason):
                left = tuple(one for one in self.at(room).sessions if one.session_id != ended)
                error = None if reason in {"terminated", "left"} else reason
                self._change(room, sessions=left, session_error=error)
            case Level(room=room):
                self._change(room, level=event)
            case _:
                pass

    def failed(self, room: str, reason: str) -> None:
        """No session could be opened for the room, and why."""
        self._change(room, session_error=reason)

    def _change(self, room: str, **changes: object) -> None:
        self._rooms[room] = msgspec.structs.replace(self.at(room), **changes)


class EventObserver(Protocol):
    """Who looks at events."""

    def see(self, event: Durable) -> None:
        """One more event."""


async def watch_events(watcher: EventObserver, journal: Journal) -> None:
    """Look at every event from now on; until cancelled."""
    seq = journal.tip
    while True:
        await journal.wait_after(seq)
        tip = journal.tip
        seen = await journal.read(seq)
        for event in seen:
            watcher.see(event)
        seq = seen[-1].seq if seen else tip  # rows that cannot be read are left out


async def watch_levels(glance: RoomStates, live: Live) -> None:
    """Look at every level from now on; until cancelled."""
    with live.subscribe(wanted=_is_level) as feed:
        async for event in feed:
            if isinstance(event, Level):  # which mypy cannot know
                glance.see(event)


def _is_level(event: LiveEvent) -> bool:
    return isinstance(event, Level)
