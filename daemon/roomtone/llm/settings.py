"""The configuration of language models: endpoints and prompts by room, and prices.

Pure, but for the file of the endpoint's key: it is read when the key is needed, so that a file that is missing, or
mended, is a matter of this request alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from roomtone import secret
from roomtone.budget.ledger import Spent
from roomtone.llm import completion
from roomtone.llm.client import RequestFailed, Retryability, Route, route
from roomtone.llm.completion import Completion, GatewayConfig, Usage
from roomtone.llm.conversations import AnalysisPrompt
from roomtone.protocol.parameters import Streaming
from roomtone.secret import Secret


class RoomFacts(NamedTuple):
    """Facts of a room: its rate in Hz, its streaming table, and whether its sessions follow speech."""

    rate: int
    streaming: Streaming
    gated: bool = False


class LLMSettings(msgspec.Struct, frozen=True):
    """The configuration. `account` is the key of the speech service; `key_file` has that of an endpoint that
    is not AssemblyAI's.
    """

    access: GatewayConfig
    prompts: dict[str, AnalysisPrompt]
    rooms: dict[str, RoomFacts]
    account: Secret | None = None
    key_file: Path | None = None

    async def route(self, room: str) -> Route:
        """Where what is said in this room may go. Raises Failed where the key for that is lacking."""
        url = self.url(room)
        if completion.is_assemblyai(url) and self.account is None:
            text = (
                f"needs a key; set ${secret.VARIABLE} or [service] api_key_file, or name another endpoint in [gateway]"
            )
            raise RequestFailed(f"AssemblyAI's LLM Gateway {text}", Retryability.FATAL)
        try:
            own = None if self.key_file is None else await trio.to_thread.run_sync(secret.find_file, self.key_file)
        except secret.SecretError as error:
            raise RequestFailed(f"[gateway] key_file: {error}", Retryability.FATAL) from None
        return route(url, account=self.account, own=own)

    def url(self, room: str) -> str:
        """The address that is asked about this room."""
        return completion.resolve(self.access.endpoint, self.rooms[room].streaming.endpoint)

    def cost(self, answer: Completion, asked: str) -> float | None:
        """The cost of this answer; None where neither the model that gave it nor the one that was asked has a price."""
        return answer.usage.cost(self.access.price(asked, answer.model))

    def spent(self, room: str, asked: str, usage: Usage, answered: str | None = None) -> Spent:
        """The costs for this room of the model that has answered, or else on the one that was asked."""
        cost = usage.cost(self.access.price(asked, answered))
        return Spent(
            requests=usage.requests,
            unpriced=0 if cost is not None or self.is_free(room, asked) else usage.requests,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            models=cost or 0.0,
        )

    def is_free(self, room: str, model: str) -> bool:
        """True if asking this model costs nothing: its price says so, or it has none and runs on this machine."""
        price = self.access.price(model)
        return completion.is_loopback(self.url(room)) if price is None else not (price.input or price.output)

    def held(self) -> Iterator[str]:
        """The work that stops without a budget, for users."""
        for name, prompt in self.prompts.items():
            if any(one == name and not self.is_free(room, prompt.model) for one, room in self.pairs()):
                yield f"[analysis.{name}] waits"
        asked = [(room, facts.streaming.llm_gateway) for room, facts in self.rooms.items()]
        if any(one is not None and not self.is_free(room, one.model) for room, one in asked):
            yield "no language model is asked about turns"

    def pairs(self) -> list[tuple[str, str]]:
        """Each prompt's name with each room that it is for."""
        return [
            (name, room)
            for name, prompt in self.prompts.items()
            for room in self.rooms
            if not prompt.rooms or room in prompt.rooms
        ]
