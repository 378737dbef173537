"""The advice for each end of a session."""

import pytest

from roomtone.protocol.close_codes import RetryAdvice, classify


@pytest.mark.parametrize(
    ("code", "text", "advice"),
    [
        (1000, "Session Ended", RetryAdvice.RETRY),
        (1008, "Unauthorized Connection: Missing Authorization header", RetryAdvice.FATAL),
        (1008, "Invalid API key", RetryAdvice.FATAL),
        (1008, "Insufficient account balance", RetryAdvice.FATAL),
        (1008, "Unauthorized Connection: Too many concurrent sessions", RetryAdvice.BACK_OFF_A_MINUTE),
        (3009, "See Error message for details", RetryAdvice.BACK_OFF_A_MINUTE),
        (None, "Too many concurrent sessions", RetryAdvice.BACK_OFF_A_MINUTE),
        (3005, "Session Cancelled: An error occurred", RetryAdvice.BACK_OFF),
        (3006, "User Input Validation Error: Invalid 'sample_rate'", RetryAdvice.FATAL),
        (3006, "Session terminated due to inactivity: No messages received for 5 seconds", RetryAdvice.RETRY),
        (3007, "Input Duration Violation: 20.0 ms. Expected between 50 and 1000 ms", RetryAdvice.FATAL),
        (3007, "Audio Transmission Rate Exceeded: Received 9 sec. audio in 1 sec", RetryAdvice.BACK_OFF),
        (3008, "Session Expired: Maximum session duration exceeded", RetryAdvice.RETRY),
        (410, "Deprecated endpoint", RetryAdvice.FATAL),
        (1011, "", RetryAdvice.BACK_OFF),
        (1013, "", RetryAdvice.BACK_OFF),
        (4001, "", RetryAdvice.FATAL),
        (4029, "", RetryAdvice.BACK_OFF),
        (None, "Connection reset by peer", RetryAdvice.BACK_OFF),
        (302, "", RetryAdvice.BACK_OFF),
        (401, "", RetryAdvice.FATAL),
        (403, "", RetryAdvice.FATAL),
        (404, "", RetryAdvice.FATAL),
        (429, "", RetryAdvice.BACK_OFF_A_MINUTE),
        (503, "unauthorized", RetryAdvice.BACK_OFF),
    ],
)
def test_each_end_has_its_advice(code: int | None, text: str, advice: RetryAdvice) -> None:
    """The operator is asked only where the operator can help; a transient failure is retried."""
    assert classify(code, text) is advice
