"""A gate for tests: its detector hears the words of the fake service, which are speech to no voice detector."""

from roomtone.spans import Span
from roomtone.speech.gate import GateSettings
from roomtone.testing.inline import run_inline
from support.virtual_room import RATE


class LoudnessDetector:
    """Takes what is loud for speech, in windows of 32 ms. It hears every word, and nothing else in digital silence."""

    window = RATE * 32 // 1000

    def __init__(self) -> None:
        self.heard = 0
        """Samples that it was given."""

    def hear(self, position: int, audio: bytes) -> list[Span]:
        self.heard += len(audio) // 2
        size = 2 * self.window
        return [
            Span(position + start // 2, position + min(start + size, len(audio)) // 2)
            for start in range(0, len(audio), size)
            if max(audio[start + 1 : start + size : 2].strip(b"\x00\xff"), default=0)
        ]


def gating(*, preroll: float = 2.0, close_after: float = 30.0) -> GateSettings:
    """A gate with that detector, on the virtual clock."""
    return GateSettings(LoudnessDetector, preroll, close_after, run_sync=run_inline)
