"""The sink in Roomtone's conformance kit: order, redelivery, crashes, hostile text, a full disk, and more."""

import sqlite3
from contextlib import closing

from my_sink import MySink

from roomtone.testing import conformance_tests


def make_sink(folder):
    """The sink as its table would make it; its files belong below the folder."""
    return MySink(path=str(folder / "out.sqlite"))


def read_back(folder):
    """The arrived events, oldest first: here their ids, as a reader of the database would find them."""
    if not (folder / "out.sqlite").exists():
        return []
    with closing(sqlite3.connect(folder / "out.sqlite")) as database:
        return [row[0] for row in database.execute("SELECT id FROM turns ORDER BY rowid")]


test_conformance = conformance_tests(make_sink, read_back)
