"""Decides when the operator is notified of failures: not of every hiccup, and never in an endless stream.

Pure. Times are seconds of any clock that does not go back.
"""

ALERT_AFTER_S = 120.0
"""Seconds of failing before a notice: a receiver that is restarted deserves none."""
RECOVERED_AFTER_S = 60.0
"""Seconds without a failure that end a streak of failures. The caller measures them."""
DAY_S = 86_400.0


class FailureAlert:
    """A streak of failures, with less than `RECOVERED_AFTER_S` between them. A streak that lasts is announced once, and
    its end once.

    A notice about a sink is an event for this sink too. So each announced streak doubles the delay before the next
    announcement, up to a day; a day without one resets it. A sink that flaps all day causes a handful of notices.
    """

    def __init__(self) -> None:
        self.failures = 0
        """Failures of the present streak; 0 when there is none."""
        self._began = 0.0
        self._is_announced = False
        self._delay_s = ALERT_AFTER_S
        self._recovered_at = 0.0

    def record_failure(self, now: float, *, is_urgent: bool = False) -> bool:
        """Count a failure. Returns True if it is to be announced: after the delay, or immediately if it is urgent and
        no streak was announced lately.
        """
        if not self.failures:
            self._began = now
            if now - self._recovered_at >= DAY_S:
                self._delay_s = ALERT_AFTER_S
        self.failures += 1
        wait = 0.0 if is_urgent and self._delay_s == ALERT_AFTER_S else self._delay_s
        if self._is_announced or now - self._began < wait:
            return False
        self._is_announced = True
        return True

    def record_recovery(self, now: float) -> bool:
        """End the streak. Returns True if its end is to be announced, because the streak was."""
        was_announced = self._is_announced
        if was_announced:
            self._delay_s = min(DAY_S, self._delay_s * 2)
            self._recovered_at = now
        self.failures = 0
        self._is_announced = False
        return was_announced
