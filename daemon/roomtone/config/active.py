"""The active configuration: one object that all parts share, and that a reload changes in place."""

import msgspec

from roomtone.budget.limits import Budget
from roomtone.config.model import Config
from roomtone.llm.settings import LLMSettings, RoomFacts
from roomtone.secret import Secret


class ActiveConfig(msgspec.Struct):
    """The configuration in force, and the key of the speech service. Read it when it is needed; keep no copy."""

    config: Config
    key: Secret | None

    def budget(self) -> Budget:
        """The limits of what may be spent."""
        return self.config.budget

    def llm_settings(self) -> LLMSettings:
        """The prompts for language models, and the endpoint that answers them."""
        rooms = {
            name: RoomFacts(room.rate, room.streaming, room.gate.mode == "speech")
            for name, room in self.config.rooms.items()
        }
        return LLMSettings(self.config.gateway, self.config.analysis, rooms, self.key, self.config.gateway_key_file)

    def held_tasks(self) -> list[str]:
        """The tasks that wait or are left out while the budget is spent, each in words."""
        return list(self.llm_settings().held())
