"""The `[budget]` table: what may be spent, and what an hour of a session costs. Pure."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from roomtone.protocol.parameters import Streaming

PRICES: Final[Mapping[str, float]] = {
    **dict.fromkeys(
        ("universal-3-5-pro", "universal-3-6", "universal-3-6-pro", "u3-rt-pro", "u3-rt-pro-beta-1"),
        0.45,
    ),
    "universal-streaming-english": 0.15,
    "universal-streaming-multilingual": 0.15,
    "whisper-rt": 0.30,
}
"""AssemblyAI's list prices in USD for an hour of a session (October 2026), by `speech_model`."""
ADDONS: Final[Mapping[str, float]] = {
    "speaker_labels": 0.12,
    "voice_focus": 0.10,
    "domain": 0.15,
    "prompt": 0.05,
    "keyterms_prompt": 0.05,
    "filter_profanity": 0.01,
    "redact_pii": 0.08,
}
"""The surcharge of an hour, by the parameter that is set. Terms are free except for `universal-streaming-english`."""
FEE_FOR_TERMS: Final = frozenset({"universal-streaming-english"})

Price = Annotated[float, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(gt=0)]
Period: TypeAlias = Literal["daily", "monthly"]
CapAction: TypeAlias = Literal["local", "record"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[budget]` table: what sessions and language models may cost. Without a sum it is only counted."""

    daily: Amount | None = None
    """The limit of a day's costs (UTC)."""
    monthly: Amount | None = None
    """The limit of a month's costs (UTC)."""
    currency: Annotated[str, msgspec.Meta(min_length=1, max_length=8)] = "USD"
    """The currency of the sums; the prices below, and those of [gateway.prices], have to be in it too."""
    at_cap: CapAction = "local"
    """When the budget is spent: go on with the recognizer on this machine, or only record. Language models wait."""
    prices: dict[str, Price] = {}
    """An hour of a session by `speech_model`, where it is not the list price."""
    addons: dict[str, Price] = {}
    """The surcharge of an hour where this parameter is set, where it differs from the list price."""

    def price(self, streaming: Streaming) -> float:
        """The price of an hour of such a session. An unknown model costs as much as the dearest known one."""
        prices, addons = {**PRICES, **self.prices}, {**ADDONS, **self.addons}
        hour = prices.get(streaming.speech_model, max(prices.values()))
        for parameter, more in addons.items():
            is_free = parameter == "keyterms_prompt" and streaming.speech_model not in FEE_FOR_TERMS
            if getattr(streaming, parameter, None) and not (is_free and parameter not in self.addons):
                hour += more
        return hour

    def limits(self) -> dict[Period, float]:
        """The sums that are not to be exceeded."""
        given: dict[Period, float | None] = {"daily": self.daily, "monthly": self.monthly}
        return {period: limit for period, limit in given.items() if limit is not None}
