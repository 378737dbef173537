"""The advice for the next session, by the close code and the text of the last one. Pure."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final


class RetryAdvice(Enum):
    """The consequence of a session's end for the next session. The texts follow the reason in logs and notices."""

    RETRY = "retried immediately"
    BACK_OFF = "retried soon"
    BACK_OFF_A_MINUTE = "retried in a minute"
    EXCESS = "not retried for a minute"
    FATAL = "the operator must correct this"


# The first matching row counts. Text is matched before codes: the same code is used for permanent and for transient
# failures, and the rate limit has come with three different codes.
_BY_TEXT: Final = (
    (
        re.compile(r"too many (concurrent|sessions|streams|requests)|rate limit", re.IGNORECASE),
        RetryAdvice.BACK_OFF_A_MINUTE,
    ),
    (re.compile(r"inactivity|session expired|maximum session duration", re.IGNORECASE), RetryAdvice.RETRY),
    (re.compile(r"transmission rate", re.IGNORECASE), RetryAdvice.BACK_OFF),
    (
        re.compile(r"duration violation|invalid api key|unauthorized|signature has expired", re.IGNORECASE),
        RetryAdvice.FATAL,
    ),
)
_BY_CODE: Final[Mapping[int, RetryAdvice]] = {
    1000: RetryAdvice.RETRY,
    1008: RetryAdvice.FATAL,
    3006: RetryAdvice.FATAL,
    3007: RetryAdvice.BACK_OFF,
    3008: RetryAdvice.RETRY,
    3009: RetryAdvice.BACK_OFF_A_MINUTE,
    4008: RetryAdvice.RETRY,
    **dict.fromkeys((4000, 4001, 4002, 4003, 4100, 4101), RetryAdvice.FATAL),
    # HTTP status codes of a refused upgrade.
    **dict.fromkeys((408, 425), RetryAdvice.BACK_OFF),
    429: RetryAdvice.BACK_OFF_A_MINUTE,
}


def classify(code: int | None, text: str) -> RetryAdvice:
    """Returns the advice for a close code, or for the HTTP status of a refused upgrade, and the text that came with it.

    The code is None where the network broke. An unknown code means BACK_OFF, except an HTTP status of 400 to 499: the
    same request will not succeed later.
    """
    if code is None or code >= 1000:  # the body of an HTTP answer may be any proxy's page
        for pattern, advice in _BY_TEXT:
            if pattern.search(text):
                return advice
    if code is None:
        return RetryAdvice.BACK_OFF
    return _BY_CODE.get(code, RetryAdvice.FATAL if 400 <= code <= 499 else RetryAdvice.BACK_OFF)
