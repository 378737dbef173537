"""The health of one sink, in its status, in the log and in notices.

The log has the first failure and then ever fewer; a notice follows where they last: see `delivery/alerting.py`.
"""

import math
from datetime import UTC, datetime
from typing import Literal, TypeAlias

import msgspec
import structlog
import trio

from roomtone.backoff import Backoff, is_worth_saying
from roomtone.delivery.alerting import RECOVERED_AFTER_S, FailureAlert
from roomtone.delivery.errors import describe, requested_delay
from roomtone.delivery.hooks import InvalidHook
from roomtone.events import Severity, notice
from roomtone.journal.journal import Journal
from roomtone.journal.keys import sink_key
from roomtone.journal.records import Mark
from roomtone.sinks import Sink

State: TypeAlias = Literal["opening", "active", "failing", "stuck", "configuration error", "paused"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class SinkStatus(msgspec.Struct, frozen=True):
    """The status of one sink: `behind` events wait for it, `refused` were set aside, `error` is the last failure or the
    reason of the pause.
    """

    name: str
    kind: str
    state: State
    behind: int
    refused: int
    error: str | None


class SinkHealth:
    """Turns what happens to one sink into its status, log entries and notices. There are no more notices once `closing`
    is set, for no more events may be committed then.

    `state` and `error` are those of SinkStatus.
    """

    def __init__(self, name: str, kind: type[Sink], journal: Journal, closing: trio.Event) -> None:
        self.state: State = "opening"
        self.error: str | None = None
        self._name = name
        self._kind = kind
        self._journal = journal
        self._closing = closing
        self._log = log.bind(sink=name)
        self._backoff = Backoff(first=0.5, longest=60.0, healthy=RECOVERED_AFTER_S)
        self._slow_backoff = Backoff(first=60.0, longest=3600.0)
        self._alert = FailureAlert()
        self._healthy_at = math.inf
        self._is_announced = False

    async def begin(self) -> None:
        """Read if an earlier run announced a failure and not its end: then the recovery is still to be announced."""
        self._is_announced = await self._journal.mark(self._key) is not None

    @property
    def recovery_at(self) -> float:
        """The trio time at which to call `on_idle` again: the failures may be over then."""
        return self._healthy_at if self._is_recovering else math.inf

    @property
    def _is_recovering(self) -> bool:
        return self._is_announced or self._alert.failures > 0

    def on_opened(self) -> None:
        """The sink was opened: its healthy time begins at the next `on_idle`."""
        self._healthy_at = math.inf

    def on_paused(self, reason: str | None) -> None:
        """The sink is paused; when it goes on, its back-off begins anew."""
        self.state, self.error = "paused", reason
        self._backoff.reset()

    def on_batch(self) -> None:
        """The sink has taken a batch: the next failure is a first one."""
        self._backoff.reset()

    async def on_idle(self) -> None:
        """The sink does what it should at this moment. After the healthy time the failures are over."""
        self.state, self.error = "active", None
        now = trio.current_time()
        self._healthy_at = min(self._healthy_at, now + RECOVERED_AFTER_S)
        if self._is_recovering and now >= self._healthy_at:
            self._log.info("sink.recovered", failures=self._alert.failures)
            if self._alert.record_recovery(now) or self._is_announced:
                await self._notify("info", "sink.recovered", f"Sink {self._name} gets its events again.")

    async def on_failure(self, failure: BaseException, behind: int) -> float:
        """An attempt has failed while `behind` events wait. Returns the seconds until the next one."""
        is_invalid = isinstance(failure, InvalidHook)
        self.state = "configuration error" if is_invalid else "failing"
        self.error = describe(failure, of=self._kind)
        is_due = self._alert.record_failure(trio.current_time(), is_urgent=is_invalid)
        delay = max((self._slow_backoff if is_invalid else self._backoff).next(), requested_delay(failure))
        if is_worth_saying(self._alert.failures):
            self._log.warning(
                "sink.failed",
                error=self.error,
                failures=self._alert.failures,
                behind=behind,
                again_in=round(delay, 1),
            )
            self._log.debug("sink.traceback", exc_info=failure)
        if is_due:
            code, text = ("sink.misfit", "cannot be used") if is_invalid else ("sink.failing", "keeps failing")
            await self._notify(
                "error", code, f"Sink {self._name} {text}: {self.error}. Events wait for it in the journal."
            )
        return delay

    async def on_stuck(self, text: str, timeout: float) -> None:
        """A call has taken longer than `timeout` seconds, and still runs."""
        self.state, self.error = "stuck", text
        self._healthy_at = math.inf
        self._log.error("sink.stuck", timeout=timeout)
        if self._alert.record_failure(trio.current_time(), is_urgent=True):
            await self._notify(
                "error",
                "sink.stuck",
                f"Sink {self._name} hangs: {text}. Events wait for it in the journal until the call returns.",
            )

    async def warn(self, text: str) -> None:
        """The sink has warned of something that it cannot do and goes on without."""
        self._log.warning("sink.warning", reason=text)
        await self._notify("warning", "sink.warning", f"Sink {self._name}: {text}")

    def on_live_error(self, error: BaseException, failures: int) -> None:
        """A live event was lost to an error of the sink, the `failures`th since it was opened."""
        self.state = "active"  # stuck until now, perhaps
        if is_worth_saying(failures):
            self._log.warning("sink.live_failed", error=describe(error, of=self._kind), failures=failures)

    @property
    def _key(self) -> str:
        return sink_key(self._name, "failing")

    async def _notify(self, severity: Severity, code: str, text: str) -> None:
        """Commit a notice. This sink gets it too, so the alert limits their number."""
        if self._closing.is_set():
            return
        marks = []
        if severity != "warning":  # an announced failure, or its end
            self._is_announced = severity == "error"
            marks.append(Mark(self._key, self._is_announced or None))
        await self._journal.commit(notice(code, text, at=datetime.now(UTC), severity=severity), *marks)
