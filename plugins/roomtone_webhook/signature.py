"""Signatures of the Standard Webhooks specification: HMAC-SHA256 over id, timestamp and body."""

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from standardwebhooks import Webhook

from roomtone.secret import refuse_public

_PREFIX = "whsec_"


class Signer:
    """Signs with every secret, the newest first. To rotate keys, use two: receivers verify with either."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._webhooks = tuple(map(Webhook, secrets))

    def headers(self, identity: str, at: datetime, body: bytes) -> dict[str, str]:
        """The headers of one message, sent `at` (UTC). A receiver recognizes repeated messages by the id."""
        headers = {"webhook-id": identity, "webhook-timestamp": str(int(at.timestamp()))}
        if self._webhooks:
            signatures = (webhook.sign(identity, at, body.decode()) for webhook in self._webhooks)
            headers["webhook-signature"] = " ".join(signatures)
        return headers


def read_signing_secret(key: str, path: Path) -> str:
    """The secret in the file. Raises OSError or ValueError that name key and file, and never show the secret."""
    encoded = read_line(key, path).removeprefix(_PREFIX)
    try:
        # Strict base64: the library drops other characters, and the receiver's library may not.
        base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        raise ValueError(
            f"{key}: {path} contains no signing secret (whsec_ and base64); make one with "
            "`echo whsec_$(openssl rand -base64 32)`"
        ) from None
    return encoded


def read_line(key: str, path: Path) -> str:
    """The one line in the file. Raises OSError or ValueError that name key and file."""
    try:
        text = path.read_text("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise OSError(
            error.errno, f"{key}: {error.strerror}; it must be a file that the daemon's user can read", str(path)
        ) from None
    refuse_public(key, path)
    if not text or not text.isprintable():  # the HTTP library would show it in its error
        raise ValueError(f"{key}: {path} must contain one line of printable ASCII")
    return text
