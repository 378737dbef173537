"""What language models have cost: requests, tokens and, by the configured prices, USD of each day (UTC)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from roomtone.journal import Journal, Mark
from roomtone.speech.completion import Completion, Price, Usage

PREFIX = "gateway/"
"""What the keys of the marks begin with; the day follows, as in 2026-11-22."""


class Spending:
    """The counts of all rooms. Made by `load_spending`, kept in marks that are committed with each answer."""

    def __init__(self, days: dict[str, Any]) -> None:
        self.prices: Mapping[str, Price] = {}
        self._days = days

    def cost(self, completion: Completion, asked: str) -> float | None:
        """USD; by the model that answered, else by the one that was asked. None where neither has a price."""
        return completion.usage.cost(self.prices.get(completion.model or asked) or self.prices.get(asked))

    def count(self, usage: Usage, cost: float | None, at: datetime) -> Mark:
        """The mark that says what this day has cost with this."""
        key = f"{PREFIX}{at.astimezone(UTC):%Y-%m-%d}"
        day = self._days.setdefault(key, {"requests": 0, "input_tokens": 0, "output_tokens": 0, "usd": 0.0})
        day["requests"] += usage.requests
        day["input_tokens"] += usage.input_tokens
        day["output_tokens"] += usage.output_tokens
        day["usd"] = round(day["usd"] + (cost or 0.0), 6)
        return Mark(key, dict(day))


async def load_spending(journal: Journal) -> Spending:
    """The counts as the journal has them."""
    return Spending(await journal.marks(PREFIX))
