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
        self._is_told = False
        self._patience = ALERT_AFTER_S
        self._healed_at = 0.0

    def record_failure(self, now: float, *, at_once: bool = False) -> bool:
        """Count a failure. True when it is time to tell: after the patience, or `at_once` unless it was told lately."""
        if not self.failures:
            self._began = now
            if now - self._healed_at >= DAY_S:
                self._patience = ALERT_AFTER_S
        self.failures += 1
        wait = 0.0 if at_once and self._patience == ALERT_AFTER_S else self._patience
        if self._is_told or now - self._began < wait:
            return False
        self._is_told = True
        return True

    def record_recovery(self, now: float) -> bool:
        """End the streak. True when its end is due to be told, because its beginning was."""
        was_told = self._is_told
        if was_told:
            self._patience = min(DAY_S, self._patience * 2)
            self._healed_at = now
        self.failures = 0
        self._is_told = False
        return was_told
