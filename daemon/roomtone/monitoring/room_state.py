"""The state of each room, folded from its events and its live levels."""

from datetime import datetime

import msgspec

from roomtone.events import Durable, Level, RecordingStarted, RecordingStopped, SessionEnded, SessionStarted
from roomtone.journal.journal import Journal
from roomtone.live import Live, LiveEvent
from roomtone.monitoring.counters import Counters


class RoomState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one room. `recording`: since when; `sessions`: those that are up, the newest last."""

    recording: datetime | None = None
    sessions: tuple[SessionStarted, ...] = ()
    level: Level | None = None
    session_error: str | None = None


class RoomStates:
    """The states of the rooms, by name, and their counters."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._rooms: dict[str, RoomState] = {}

    def at(self, room: str) -> RoomState:
        """The state of this room, as far as its events were seen."""
        return self._rooms.get(room) or RoomState()

    def unheard(self) -> dict[str, str]:
        """The rooms that record without a session, each with the reason."""
        return {
            name: room.session_error
            for name, room in self._rooms.items()
            if room.recording and not room.sessions and room.session_error
        }

    def see(self, event: Durable | Level) -> None:
        """Fold one more event in."""
        if not isinstance(event, Level):
            self.counters.see(event)
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
        """A session could not be opened for the room, for this reason."""
        self._change(room, session_error=reason)

    def _change(self, room: str, **changes: object) -> None:
        self._rooms[room] = msgspec.structs.replace(self.at(room), **changes)


async def watch_events(room_states: RoomStates, journal: Journal) -> None:
    """Fold in every event from now on, until cancelled."""
    seq = journal.tip
    while True:
        await journal.wait_after(seq)
        tip = journal.tip
        seen = await journal.read(seq)
        for event in seen:
            room_states.see(event)
        seq = seen[-1].seq if seen else tip  # rows that cannot be read are left out


async def watch_levels(room_states: RoomStates, live: Live) -> None:
    """Fold in every level from now on, until cancelled."""
    with live.subscribe(wanted=_is_level) as feed:
        async for event in feed:
            if isinstance(event, Level):  # which mypy cannot know
                room_states.see(event)


def _is_level(event: LiveEvent) -> bool:
    return isinstance(event, Level)
