"""What all tests share: the figures that some of them print stand at the end of a run, whatever runs them."""

from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("shared")

Report: TypeAlias = Callable[[str], None]


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Print a line, or several, at the end of the run: a figure that this test has measured."""

    def note(text: str) -> None:
        record_property("figures", text)

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of all tests, test by test. With several workers their own output would be lost."""
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {text}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, text in report.user_properties
        if name == "figures"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


LONGEST = (
    "test_transcriber",
    "test_systemd",
    "test_soak",
    "test_daemon",
    "test_crashes",
    "test_engine",
    "test_faults",
    "test_cli",
    "test_service",
    "test_recognizer",
    "test_delivery",
    "test_clock",
    "test_new",
    "test_outages",
    "test_governor",
    "test_proof",
    "test_limits",
    "test_voice",
    "test_conversations",
    "test_forgetting",
    "test_recorder",
    "test_plugins_readme",
    "test_disk_full",
    "test_gate",
    "test_descriptors",
    "test_analyst",
)
"""Modules that take long. They begin first, else one worker has one of them to itself while the others have ended; and
they are marked `slow`, for `make check` leaves them out: a test there that takes a minute fails, and belongs here.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by module, the longest first. `--no-loadscope-reorder` keeps xdist from doing it by the number of tests."""
    order = {name: place for place, name in enumerate(LONGEST)}
    for item in items:
        if item.path.stem in order:
            item.add_marker("slow")
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
