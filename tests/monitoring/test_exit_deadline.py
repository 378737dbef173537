"""Laws of `roomtone.monitoring.exit_deadline`."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from roomtone.monitoring.exit_deadline import open_deadline
from support.daemon import run

HANGING = """
import time
from contextlib import asynccontextmanager

from roomtone import Sink, hookimpl


class Hanging(Sink, frozen=True, tag="hanging"):
    @asynccontextmanager
    async def open(self, context):
        context.path("opened").touch()
        yield Taker()
        time.sleep(3600)


class Taker:
    @hookimpl
    def event(self, event):
        pass


@hookimpl
def register_sinks():
    return [Hanging]
"""

CONFIG = """
[service]
state = "state"
grace = 1
[rooms.desk]
source = { kind = "command", argv = ["sleep", "1000"] }
streaming = { endpoint = "local" }
[sinks.bad]
kind = "hanging"
"""


def test_a_process_that_hangs_ends() -> None:
    """It writes the stack of each thread, and exits with the status of a failure."""
    program = "import time; from roomtone.monitoring.exit_deadline import open_deadline\n"
    program += "with open_deadline() as end: end(0.2); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False, timeout=50)

    assert done.returncode == 1
    assert 'File "<string>", line 2 in <module>' in done.stderr


def test_a_later_deadline_takes_the_place_of_the_one_before() -> None:
    """A later deadline replaces the earlier one, and none is left after the context."""
    before = threading.active_count()
    with open_deadline() as end:
        end(0.05)
        end(60.0)
        time.sleep(0.2)

    assert threading.active_count() == before


def test_a_sink_that_hangs_when_it_is_left_does_not_hold_the_daemon(tmp_path: Path) -> None:
    """It blocks the loop itself, so that no grace period can end it: the process ends, and logs the stack."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "hanging.py").write_text(HANGING)
    with run(tmp_path, CONFIG) as daemon:
        daemon.wait_for(lambda: "service.started" in daemon.log and (tmp_path / "opened").exists())
        daemon.signal(signal.SIGTERM)
        assert daemon.finish() == 1, daemon.log

    assert "hanging.py" in daemon.log
