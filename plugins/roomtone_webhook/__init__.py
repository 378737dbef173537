"""The webhook sink: events as signed POSTs of JSON, to a receiver that may be away for days."""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, NamedTuple

import httpx2
import msgspec
import trio

from roomtone import Context, Sink, hookimpl
from roomtone.network import open_client, read_certificates
from roomtone.sinks import Seconds
from roomtone_webhook.accepted import AcceptedIds
from roomtone_webhook.address import Address
from roomtone_webhook.poster import Poster
from roomtone_webhook.signature import Signer, read_line, read_signing_secret

__all__ = ["Webhook", "register_sinks"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = frozenset({"content-type", "content-length", "host", "webhook-id", "webhook-timestamp", "webhook-signature"})


class Webhook(Sink, frozen=True, kw_only=True, tag="webhook"):
    """`[sinks.<name>]` with `kind = "webhook"`. Segments of audio are left out unless `kinds` names `audio`."""

    url: str | None = None
    """The address to post to: https://host/path. Its user, password and query are never shown."""
    url_file: str | None = None
    """Instead of `url`: a file with the address, if all of it is a secret, as with chat services."""
    secret_file: str | tuple[str, ...] = ()
    """The file with the signing secret (Standard Webhooks: whsec_...), or several, the newest first, to rotate it."""
    header_files: dict[str, str] = msgspec.field(default_factory=dict)
    """Headers whose values are in files, such as Authorization."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """Events in one POST: 1 sends each as an object, more sends arrays of up to this many."""
    connect_timeout: Seconds = 5.0
    """Seconds for connecting."""
    read_timeout: Seconds = 20.0
    """Seconds for the receiver's answer."""
    ca_file: str | None = None
    """Certificates (PEM) to trust instead of the system's."""

    def __post_init__(self) -> None:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("url: give either url or url_file")
        if self.url is not None:
            _address("url", self.url)
        if self.connect_timeout + self.read_timeout >= self.timeout:
            raise ValueError("timeout: must be more than connect_timeout and read_timeout together")
        for name in self.header_files:
            if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
                raise ValueError(f"header_files: {name!r} is not a header that can be set here")

    def __repr__(self) -> str:
        shown = _address("url", self.url).shown if self.url else self.url_file
        return f"Webhook({shown!r})"

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[object]:
        """Yield the hooks. Errors: OSError or ValueError that names the key and the unusable file, or the variable of
        the environment.
        """
        files = await trio.to_thread.run_sync(self._read, context)
        async with open_client(
            str(files.address.url),
            auth=files.address.auth,
            headers=files.headers | {"user-agent": f"roomtone/{version('roomtone')}"},
            timeout=httpx2.Timeout(self.read_timeout, connect=self.connect_timeout),
            trust=files.trust,
        ) as client:
            audio = "audio" in self.kinds
            accepted = AcceptedIds(context.state / "accepted.json")
            yield Poster(client, files.address, files.signer, accepted, batch=self.batch, audio=audio)

    def _read(self, context: Context) -> "_Files":
        """Read the named files: anew at each opening, so that a secret can be replaced."""
        if self.url is not None:
            address = _address("url", self.url)
        else:
            path = context.path(self.url_file or "")
            address = _address(f"url_file: {path}", read_line("url_file", path), is_secret=True)
        names = (self.secret_file,) if isinstance(self.secret_file, str) else self.secret_file
        signer = Signer([read_signing_secret("secret_file", context.path(name)) for name in names])
        headers = {
            name: read_line(f"header_files: {name}", context.path(path)) for name, path in self.header_files.items()
        }
        return _Files(address, signer, headers, self._trust(context))

    def _trust(self, context: Context) -> ssl.SSLContext | None:
        if self.ca_file is None:
            return None
        path = context.path(self.ca_file)
        try:
            return read_certificates(path)
        except ssl.SSLError:
            raise ValueError(f"ca_file: {path} contains no PEM certificate") from None
        except OSError as error:
            raise OSError(
                error.errno, f"ca_file: {error.strerror}; it must be a file that the daemon's user can read", str(path)
            ) from None


class _Files(NamedTuple):
    """The contents of the sink's files."""

    address: Address
    signer: Signer
    headers: dict[str, str]
    trust: ssl.SSLContext | None


def _address(key: str, text: str, *, is_secret: bool = False) -> Address:
    try:
        return Address(text, is_secret=is_secret)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


@hookimpl
def register_sinks() -> list[type[Sink]]:
    return [Webhook]
