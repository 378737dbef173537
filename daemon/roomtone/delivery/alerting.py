"""When a person is told that something fails: not of every hiccup, and never in an endless stream.

Pure: it is told what happened when, in seconds of any clock that does not go back.
"""

ALERT_AFTER_S = 120.0
"""Seconds of failing before anybody is told: a receiver that is restarted is no news."""
RECOVERED_AFTER_S = 60.0
"""Seconds without a failure that end a streak. The caller measures them."""
DAY_S = 86_400.0


class FailureAlert:
    """Failures without `HEALTHY` seconds between them. One that lasts is told once, and its end once.

    A notice about a sink is an event for this sink too. So each streak that was told doubles the patience for the next
    one, up to a day; a day without telling begins anew. A sink that flaps all day makes a handful of notices.
    """

    def __init__(self) -> None:
        self.failures = 0
        """Failures of the present streak; 0 when there is none."""
        self._began = 0.0
        self._is_announced = False
        self._patience_s = ALERT_AFTER_S
        self._recovered_at = 0.0

    def record_failure(self, now: float, *, is_urgent: bool = False) -> bool:
        """Count a failure. True when it is time to tell: after the patience, or `at_once` unless it was told lately."""
        if not self.failures:
            self._began = now
            if now - self._recovered_at >= DAY_S:
                self._patience_s = ALERT_AFTER_S
        self.failures += 1
        wait = 0.0 if is_urgent and self._patience_s == ALERT_AFTER_S else self._patience_s
        if self._is_announced or now - self._began < wait:
            return False
        self._is_announced = True
        return True

    def record_recovery(self, now: float) -> bool:
        """End the streak. True when its end is due to be told, because its beginning was."""
        was_told = self._is_announced
        if was_told:
            self._patience_s = min(DAY_S, self._patience_s * 2)
            self._recovered_at = now
        self.failures = 0
        self._is_announced = False
        return was_told
