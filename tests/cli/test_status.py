"""`roomtone status`: the report of the daemon as lines for people."""

from datetime import UTC, datetime, timedelta

from roomtone.budget.ledger import Cost, Spent
from roomtone.cli.commands.status import lines
from roomtone.monitoring.report import CostReport, DiskUsage, Report

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def report(cost: CostReport | None) -> Report:
    return Report(
        version="1",
        pid=7,
        since=NOW - timedelta(hours=1),
        configuration="/etc/roomtone/roomtone.toml",
        state="/var/lib/roomtone",
        rooms=(),
        sinks=(),
        disk=DiskUsage(spool=1, journal=2, free=3),
        cost=cost,
    )


def test_the_cost_so_far_is_shown() -> None:
    """What today and this month have cost, for what, and what they may cost, stands in lines of their own."""
    bill = Cost(
        Spent(seconds=3600, sessions=0.45), Spent(seconds=7200, sessions=0.9, requests=4, unpriced=1, models=0.2)
    )
    shown = "\n".join(lines(report(CostReport(currency="USD", bill=bill, monthly=1.0, spent="local")), NOW))

    assert "cost     today 0.45 USD: sessions 0.45 for 60 min\n" in shown
    models = "language models 0.20 for 4 answers, 1 of them of unknown cost"
    assert f"         this month 1.10 of 1.00 USD: sessions 0.90 for 120 min, {models}\n" in shown
    assert "         the budget is spent: the recognizer on this machine takes over, and" in shown


def test_what_costs_nothing_is_not_shown() -> None:
    """Without sessions and answers there is no such line."""
    assert "cost" not in "\n".join(lines(report(CostReport(currency="USD", bill=Cost())), NOW))
    assert "cost" not in "\n".join(lines(report(None), NOW))
