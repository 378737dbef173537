"""The hooks of the webhook sink: events become signed POSTs, and a 2xx is the acknowledgement."""

import contextlib
from datetime import UTC, datetime

import httpx2

from roomtone import Audio, Durable, Unprocessable, encode, hookimpl
from roomtone.network import read_content
from roomtone_webhook.accepted import AcceptedIds
from roomtone_webhook.address import Address
from roomtone_webhook.response import ABOUT_THE_EVENT, describe, excerpt, is_accepted, retry_after
from roomtone_webhook.signature import Signer

_MAX_RESPONSE_BYTES = 64 * 1024
"""Bytes of an answer that are read, so that the connection can be reused; a longer answer closes it."""
_CLOSE_TIMEOUT_S = 2.0
"""Seconds for an answer's body after its status, which is enough by itself."""


class Undelivered(Exception):  # noqa: N818 - it states a fact about the event
    """The receiver has not accepted the event, which will be sent again. The text has the address, its answer and the
    remedy; a note has the body of the answer, which may quote the event.

    `retry_after` is the delay that the receiver asks for, in seconds; delivery grants it.
    """

    def __init__(self, text: str, *, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Poster:
    """Sends one POST for each event, or, with `batch` above 1, for each batch of events and at the flush for the rest.

    A hook sends at most one request, so that the sink's timeout is enough even for a slow receiver.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        address: Address,
        signer: Signer,
        accepted: AcceptedIds,
        *,
        batch: int,
        audio: bool,
    ) -> None:
        self._client = client
        self._address = address
        self._signer = signer
        self._accepted = accepted
        self._batch = batch
        self._audio = audio
        self._pending: list[Durable] = []

    @hookimpl
    async def event(self, event: Durable) -> None:
        """Send the event, or keep it until there are enough. Raises Unprocessable only for an event sent alone."""
        if (isinstance(event, Audio) and not self._audio) or self._accepted.has(event.id):
            return
        if self._batch == 1:
            await self._post(event.id, encode(event), is_alone=True)
            self._accepted.add([event.id])
            return
        self._pending.append(event)
        if len(self._pending) < self._batch:
            return
        try:
            await self._post_array()
        except BaseException:
            self._pending.pop()  # this hook has not returned, so this event comes again, and no flush may have sent it
            raise

    @hookimpl
    async def flush(self) -> None:
        """Send the kept events as one array. On failure they stay: a flush that succeeds has sent everything."""
        try:
            if self._pending:
                await self._post_array()
        except (Undelivered, Unprocessable):
            await self._accepted.keep()
            raise
        await self._accepted.settle()

    async def _post_array(self) -> None:
        # The same events always have the same id, and other events another one: otherwise a receiver that has seen the
        # first event of an array would take a longer array for the same message.
        first, last = self._pending[0].id, self._pending[-1].id
        body = b"[" + b",".join(map(encode, self._pending)) + b"]"
        is_alone = len(self._pending) == 1
        await self._post(first if is_alone else f"{first}_{last}", body, is_alone=is_alone)
        self._accepted.add(event.id for event in self._pending)
        self._pending = []

    async def _post(self, identity: str, body: bytes, *, is_alone: bool) -> None:
        """Send one request. Raises Undelivered, or Unprocessable if the receiver refuses the only event in it.

        Of an array the refused event is not known: delivery then sends the events one by one.
        """
        now = datetime.now(UTC)
        request = self._client.build_request(
            "POST",
            self._address.url,
            content=body,
            headers={"content-type": "application/json"} | self._signer.headers(identity, now, body),
            extensions={"target": self._address.target},
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise Undelivered(f"{self._address.shown}: {_explain(error)}") from error
        try:
            answer = await _beginning(response)
        finally:
            await response.aclose()
        if is_accepted(response.status_code):
            return
        text, said = f"{self._address.shown} {describe(response.status_code)}", excerpt(answer)
        if response.status_code in ABOUT_THE_EVENT and is_alone:
            raise Unprocessable(f"{text}: {said}" if said else text)
        wait = retry_after(response.status_code, response.headers.get("retry-after"), now)
        raise _undelivered(text, said, wait)


def _undelivered(text: str, said: str, wait: float) -> Undelivered:
    error = Undelivered(text, retry_after=wait)
    if said:
        error.add_note(said)
    return error


async def _beginning(response: httpx2.Response) -> bytes:
    """The beginning of an answer's body. It cannot fail: the status has come already."""
    with contextlib.suppress(httpx2.HTTPError):
        return await read_content(response, _MAX_RESPONSE_BYTES, _CLOSE_TIMEOUT_S)
    return b""


def _explain(error: httpx2.HTTPError) -> str:
    match error:
        case httpx2.ConnectTimeout():
            return "no connection within connect_timeout"
        case httpx2.ReadTimeout():
            return "no answer within read_timeout"
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    # Only the text of the system or of OpenSSL: that of the HTTP library may quote the receiver.
    said = next((str(each) for each in causes if isinstance(each, OSError) and str(each)), None)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
