"""`roomtone status`: the report of the daemon as lines for people."""

from datetime import UTC, datetime, timedelta

from roomtone.cli.status import lines
from roomtone.control import Cost, Disk, Report

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def report(cost: Cost | None) -> Report:
    return Report(
        version="1",
        pid=7,
        since=NOW - timedelta(hours=1),
        configuration="/etc/roomtone/roomtone.toml",
        state="/var/lib/roomtone",
        rooms=(),
        sinks=(),
        disk=Disk(spool=1, journal=2, free=3),
        cost=cost,
    )


def test_the_cost_so_far_is_shown() -> None:
    """What the sessions of today and of this month have cost stands in a line of its own."""
    shown = "\n".join(lines(report(Cost("USD", 3600, 0.45, 7200, 0.9)), NOW))

    assert "today 0.45 USD (60 min of sessions), this month 0.90 USD (120 min)" in shown


def test_no_session_costs_nothing() -> None:
    """Without sessions there is no such line."""
    assert "cost" not in "\n".join(lines(report(Cost("USD", 0, 0, 0, 0)), NOW))
    assert "cost" not in "\n".join(lines(report(None), NOW))
