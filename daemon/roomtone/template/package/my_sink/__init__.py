"""The purpose of this sink, in a line: `roomtone sinks` shows it."""

import sqlite3
from contextlib import asynccontextmanager, closing

from roomtone import Sink, decode, encode, hookimpl


class MySink(Sink, frozen=True, tag="my-sink"):
    """The fields are the keys of its table in roomtone.toml."""

    path: str = "my-sink.sqlite"

    @asynccontextmanager
    async def open(self, context):
        """Open what the hooks need; what is opened here is closed here."""
        with closing(sqlite3.connect(context.path(self.path), check_same_thread=False)) as database:
            database.execute("PRAGMA secure_delete = ON")  # forgotten data is overwritten in the file
            database.execute("CREATE TABLE IF NOT EXISTS turns (id TEXT PRIMARY KEY, at TEXT, text TEXT, event TEXT)")
            yield Writer(database)

    def holdings(self, context):
        """The files that `roomtone forget` searches at the end. Never `open` a database's file, not even to look."""
        return [context.path(self.path)]


class Writer:
    """The hooks. Returning from one acknowledges the event. After an exception it comes again later."""

    def __init__(self, database):
        self.database = database

    @hookimpl
    def turn(self, event):
        """Speech, one turn at a time. A hook `event` instead would get every kind of event."""
        row = (event.id, event.at.isoformat(), event.text, encode(event).decode())
        # An event may come twice, after a crash; its id is the same each time.
        self.database.execute("INSERT OR IGNORE INTO turns VALUES (?, ?, ?, ?)", row)

    @hookimpl
    def forgotten(self, event):
        """The user wants this stretch of time forgotten: remove its data."""
        rows = self.database.execute("SELECT id, event FROM turns").fetchall()
        gone = [(id_,) for id_, turn in rows if event.covers(decode(turn))]
        self.database.executemany("DELETE FROM turns WHERE id = ?", gone)

    @hookimpl
    def flush(self):
        """After each batch: make its events durable. They are acknowledged when this returns."""
        self.database.commit()


@hookimpl
def register_sinks():
    """Announce the sink. Each is a class; a module may have several."""
    return [MySink]
