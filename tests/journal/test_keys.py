"""The keys of durable state are spelled in one place, and stay byte for byte as they are in files that exist."""

import re
from pathlib import Path
from typing import get_args

import pytest

from roomtone.journal import keys
from roomtone.journal.keys import (
    RoomMark,
    SinkMark,
    backfill_mark,
    holes_mark,
    holes_of,
    progress_of,
    rates_of,
    room_key,
    sink_key,
)
from roomtone.journal.records import Mark
from roomtone.spans import Span, Spans

SOURCE = Path(keys.__file__).parent.parent


def test_the_keys_are_those_of_files_that_exist() -> None:
    assert {room_key("desk", name) for name in get_args(RoomMark)} == {
        "room/desk/rate",
        "room/desk/audio",
        "room/desk/stopped",
        "room/desk/file",
        "room/desk/muted",
        "room/desk/forgetting",
        "room/desk/acknowledged",
        "room/desk/holes",
        "room/desk/gate",
        "room/desk/refused",
        "room/desk/script",
        "room/desk/session_labels",
    }
    assert {sink_key("archive", name) for name in get_args(SinkMark)} == {
        "sink/archive/audio",
        "sink/archive/failing",
        "sink/archive/paused",
        "sink/archive/rewind",
        "sink/archive/retry",
        "sink/archive/proof",
        "sink/archive/trial",
    }
    assert {name: getattr(keys, name) for name in dir(keys) if name.endswith(("_PREFIX", "_KEY"))} == {
        "ROOM_PREFIX": "room/",
        "SPENT_PREFIX": "spent/",
        "PAID_PREFIX": "paid/",
        "OPEN_SESSION_PREFIX": "session/",
        "BUDGET_KEY": "budget/told",
        "ANALYSIS_PREFIX": "analysis/",
        "REFUSED_ANALYSIS_PREFIX": "refused/",
        "ANSWER_PREFIX": "answer/",
        "CLOCK_KEY": "calendar",
        "CLEAN_KEY": "journal/clean",
    }
    assert backfill_mark("desk", Span(10, 20)) == Mark("room/desk/wish/10-20", [10, 20])


def test_what_stands_under_the_keys_is_read_as_it_was_written() -> None:
    holes = Spans([(10, 20), (30, 40)])
    assert holes_mark("desk", holes) == Mark("room/desk/holes", [[10, 20], [30, 40]])
    assert holes_mark("desk", Spans()).value is None
    assert holes_of([[10, 20], [30, 40]]) == holes
    marks = {
        "room/desk/rate": 8000,
        "room/desk/audio": 80,
        "room/desk/holes": [[10, 20], [30, 40]],
        "room/rate/rate": 16000,
        "room/rate/acknowledged": 7,
    }
    assert progress_of("desk", marks) == (8000, 80, 0, holes)
    assert progress_of("rate", marks) == (16000, 0, 7, Spans())
    assert progress_of("attic", marks) == (1, 0, 0, Spans())
    assert rates_of(marks) == {"desk": 8000, "rate": 16000}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_module_spells_a_key(path: Path) -> None:
    prefixes = "room|sink|spent|paid|session|analysis|refused|answer|budget|journal"
    spelled = re.findall(rf"""["'](?:{prefixes})/(?:\{{|["']|clean|told)|["']calendar["']""", path.read_text())
    assert not spelled or path.name == "keys.py"
