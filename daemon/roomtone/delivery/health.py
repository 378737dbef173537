"""How one sink stands, and what the log and a person are told of it.

A failure is told to the log at once and then ever rarer, and to a person where it lasts: see `delivery/alerting.py`.
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
from roomtone.events import Notice, Severity
from roomtone.journal.journal import Journal
from roomtone.sinks import Sink

State: TypeAlias = Literal["opening", "active", "failing", "stuck", "configuration error", "paused"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class SinkStatus(msgspec.Struct, frozen=True):
    """How one sink is doing: `behind` events wait for it, `refused` were set aside, `error` is what failed last, or why
    it is paused.
    """

    name: str
    kind: str
    state: State
    behind: int
    refused: int
    error: str | None


class SinkHealth:
    """What is known of the health of one sink, of this kind. `closing` is set when no more events will be committed:
    then nobody is told.

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

    @property
    def recovery_at(self) -> float:
        """When `work` is to be called again, in trio's time: a streak of failures may be over then."""
        return self._healthy_at if self._alert.failures else math.inf

    def on_opened(self) -> None:
        """It was opened: the time for which it is healthy begins at the next `work`."""
        self._healthy_at = math.inf

    def on_paused(self, reason: str | None) -> None:
        """It is paused; when it goes on it is given all of its patience again."""
        self.state, self.error = "paused", reason
        self._backoff.reset()

    def on_batch(self) -> None:
        """It has taken a batch: the next failure is the first one."""
        self._backoff.reset()

    async def on_idle(self) -> None:
        """It does what it should at this moment. After the healthy time the streak of failures is over."""
        self.state, self.error = "active", None
        now = trio.current_time()
        self._healthy_at = min(self._healthy_at, now + RECOVERED_AFTER_S)
        if self._alert.failures and now >= self._healthy_at:
            self._log.info("sink.recovered", failures=self._alert.failures)
            if self._alert.record_recovery(now):
                await self._tell("info", "sink.recovered", f"Sink {self._name} gets its events again.")

    async def on_failure(self, failure: BaseException, behind: int) -> float:
        """An attempt has failed, with so many events behind. Returns the seconds until the next one."""
        is_misfit = isinstance(failure, InvalidHook)
        self.state = "configuration error" if is_misfit else "failing"
        self.error = describe(failure, of=self._kind)
        is_due = self._alert.record_failure(trio.current_time(), is_urgent=is_misfit)
        delay = max((self._slow_backoff if is_misfit else self._backoff).next(), requested_delay(failure))
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
            code, text = ("sink.misfit", "cannot be used") if is_misfit else ("sink.failing", "keeps failing")
            await self._tell(
                "error", code, f"Sink {self._name} {text}: {self.error}. Events wait for it in the journal."
            )
        return delay

    async def on_stuck(self, text: str, timeout: float) -> None:
        """A call has taken longer than `timeout` seconds, and still does."""
        self.state, self.error = "stuck", text
        self._healthy_at = math.inf
        self._log.error("sink.stuck", timeout=timeout)
        if self._alert.record_failure(trio.current_time(), is_urgent=True):
            await self._tell(
                "error",
                "sink.stuck",
                f"Sink {self._name} hangs: {text}. Events wait for it in the journal and go on when the call returns.",
            )

    async def warn(self, text: str) -> None:
        """It cannot do something, goes on without it, and says so."""
        self._log.warning("sink.warning", reason=text)
        await self._tell("warning", "sink.warning", f"Sink {self._name}: {text}")

    def on_live_error(self, error: BaseException, failures: int) -> None:
        """A live event was lost to an error of the sink: the `failures`th since it was opened."""
        self.state = "active"  # stuck until now, perhaps
        if is_worth_saying(failures):
            self._log.warning("sink.live_failed", error=describe(error, of=self._kind), failures=failures)

    async def _tell(self, severity: Severity, code: str, text: str) -> None:
        """Commit a notice. It reaches this sink too, in its turn; the streak sees to it that few are made."""
        if not self._closing.is_set():
            at = datetime.now(UTC)
            await self._journal.commit(Notice(room="", position=0, at=at, severity=severity, code=code, text=text))
