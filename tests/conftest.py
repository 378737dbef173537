"""Shared by all tests: the order of modules, and figures that are printed at the end of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None)  # the duration of an example depends on the load of the machine
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
    "speech/test_transcriber",
    "systemd/test_service",
    "systemd/test_service_commands",
    "speech/test_hostile",
    "systemd/test_service_install",
    "test_soak",
    "test_daemon",
    "test_crashes",
    "recognizer/test_sphinx",
    "speech/test_service_faults",
    "cli/test_cli",
    "control/test_commands",
    "recognizer/test_server",
    "delivery/test_runner",
    "capture/test_clock",
    "cli/test_sinks_new",
    "delivery/test_outages",
    "budget/test_governor",
    "delivery/test_quarantine",
    "systemd/test_limits",
    "speech/test_vad",
    "test_meeting",
    "forget/test_forget",
    "capture/test_recorder",
    "plugins/test_readme",
    "test_disk_full",
    "speech/test_gate",
    "test_descriptors",
    "llm/test_analyst",
    "cli/test_output",
    "retention/test_cleanup",
    "forget/test_forget_command",
    "test_network",
    "speech/test_dying_sessions",
    "test_discretion",
    "plugins/test_webhook",
    "forget/test_open_databases",
    "plugins/test_markup",
    "delivery/test_controls",
    "test_trust",
    "test_secrecy",
    "monitoring/test_healthcheck",
    "cli/test_tutorial",
)
"""Modules that take more than about 6 s of CPU. They begin first, else one worker runs one of them alone at the end.
They are marked `slow`, and `make check` leaves them out: the rest takes about 110 s of CPU, children included.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by module, the longest first. `--no-loadscope-reorder` keeps xdist from doing it by the number of tests."""
    order = {name: place for place, name in enumerate(LONGEST)}
    for item in items:
        if module_of(item) in order:
            item.add_marker("slow")
    items.sort(key=lambda item: order.get(module_of(item), len(order)))


def module_of(item: pytest.Item) -> str:
    """The item's module as its path below this folder, without the ending."""
    return item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
