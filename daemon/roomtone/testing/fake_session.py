"""A session of the fake service: audio and commands in, messages out, without I/O.

Everything in here is a function of the audio, the settings, the Manner's seed and the session's number.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from roomtone.protocol import messages, parameters
from roomtone.protocol.messages import TimedWord, TurnMessage
from roomtone.testing.encoded_speech import Ear, HeardWord, spell

_SLICE: Final = 0.050


class SessionRejected(Exception):  # noqa: N818 - it is the service's answer
    """The session ends with this code and, if there is one, this text in an Error message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """The behavior of the service.

    `latency` is the seconds between audio and its text. `jitter` moves the times of words by up to this many seconds,
    `early` lets the first word of a turn begin up to this much too early, `misheard` is the share of words, 0 to 1,
    that become others; all three depend on seed, word and session. `pause` ends a turn, in seconds. `two_finals`: US
    models with `format_turns` send an unformatted final before the formatted one. `gateway`: the account has one; its
    language model takes `thinking` seconds, and `failure` is the body that comes instead of every answer.
    """

    seed: int = 0
    latency: float = 0.0
    jitter: float = 0.0
    early: float = 0.0
    misheard: float = 0.0
    pause: float = 0.7
    two_finals: bool = False
    gateway: bool = True
    thinking: float = 0.0
    failure: dict[str, Any] | None = None


class FakeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a session that matter here. Seconds and Hz."""

    model: str
    rate: int
    formatted: bool
    partials: bool
    speakers: bool
    language: bool
    heartbeat: bool
    silence: bool
    inactivity_timeout: float
    pause: float | None
    gateway: dict[str, Any] | None

    @property
    def us(self) -> bool:
        return self.model in parameters.US_MODELS


def settings_of(query: Mapping[str, str]) -> FakeSettings:
    """Read a session's query as the service does: unknown names are ignored. Raises SessionRejected for a bad value."""
    model = query.get("speech_model", parameters.DEFAULT_MODEL)
    if model not in parameters.MODELS:
        raise _invalid("speech_model", f"Input should be one of {', '.join(sorted(parameters.MODELS))}")
    if query.get("encoding", "pcm_s16le") != "pcm_s16le":
        raise _invalid("encoding", "only pcm_s16le is spoken here")
    rate = _integer(query, "sample_rate", 16_000, 8_000, 96_000)
    for name in ("keyterms_prompt", "language_codes", "redact_pii_policies"):
        if len(_json(query, name, list) or []) > 100:
            raise _invalid(name, "Max 100 items")
    for name in ("prompt", "agent_context"):
        if len(query.get(name, "")) > 1750:
            raise _invalid(name, "String should have at most 1750 characters")
    return FakeSettings(
        model=model,
        rate=rate,
        formatted=_flag(query, "format_turns") or model not in parameters.US_MODELS,
        partials=_flag(query, "include_partial_turns", default=True),
        speakers=_flag(query, "speaker_labels"),
        language=_flag(query, "language_detection"),
        heartbeat=_flag(query, "session_heartbeat"),
        silence=_flag(query, "acknowledge_silence"),
        inactivity_timeout=_integer(query, "inactivity_timeout", 0, 5, 3600) or float("inf"),
        pause=_integer(query, "max_turn_silence", 0, 0, 600_000) / 1000 or None,
        gateway=_json(query, "llm_gateway", dict),
    )


class FakeSession:
    """One session. `numbers` are the words heard so far, as they were spoken."""

    def __init__(self, manner: Manner, settings: FakeSettings, session: int) -> None:
        self.settings = settings
        self.numbers: list[int] = []
        self._manner = manner
        self._session = session
        self._ear = Ear(settings.rate)
        self._pause = settings.pause or manner.pause
        self._turn: list[TimedWord] = []
        self._turns: list[tuple[TimedWord, ...]] = []
        self._silent_until = 0

    def begin(self, identity: str, expires_at: int) -> messages.Begin:
        configuration = {
            "model": self.settings.model,
            "mode": None if self.settings.us else "balanced",
            "api_version": "2025-05-12",
            "speaker_labels": self.settings.speakers,
            "redact_pii": False,
            "filter_profanity": False,
            "domain": None,
            "voice_focus": None,
        }
        return messages.Begin(identity, expires_at, configuration)

    def hear(self, audio: bytes) -> Iterator[messages.Message]:
        """The messages after one frame, s16le mono."""
        size = 2 * round(_SLICE * self.settings.rate)
        for start in range(0, len(audio), size):
            for heard in self._ear.hear(audio[start : start + size]):
                yield from self._word(heard)
            quiet = (self._ear.samples - self._ear.loud_until) / self.settings.rate
            if self._turn and quiet >= self._pause:
                yield from self.end_turn()
            if self.settings.silence and not self._turn and quiet > 0:
                yield from self._silence()

    def end_turn(self) -> Iterator[messages.Message]:
        """The final of the open turn, if any, and the language model's answer to it."""
        if not self._turn:
            return
        words, self._turn = tuple(self._turn), []
        self._turns.append(words)
        if self._manner.two_finals and self.settings.us and self.settings.formatted:
            yield self._message(words, final=True, formatted=False)
        final = self._message(words, final=True, formatted=self.settings.formatted)
        yield final
        if self.settings.gateway is not None and self._manner.gateway:
            yield _answer(self.settings.gateway, final, self._manner.failure)

    def finish(self) -> Iterator[messages.Message]:
        """The messages between Terminate and Termination."""
        yield from self.end_turn()
        if self.settings.us:
            yield TurnMessage(len(self._turns), True, "", end_of_turn_confidence=1, words=(), utterance="")
        if self.settings.speakers and self._turns:
            yield messages.SpeakerRevision(
                tuple(
                    messages.Revision(order, speaker, tuple(msgspec.structs.replace(w, speaker=speaker) for w in words))
                    for order, words in enumerate(self._turns)
                    if (speaker := "AB"[order % 2]) != "A"
                )
            )

    def change(self, changes: Mapping[str, Any]) -> None:
        """UpdateConfiguration. Raises SessionRejected for a bad value."""
        silence = changes.get("max_turn_silence")
        if silence is not None:
            if not isinstance(silence, int):
                raise _invalid("max_turn_silence", "Input should be a valid integer")
            self._pause = silence / 1000

    def _word(self, heard: HeardWord) -> Iterator[messages.Message]:
        first = not self._turn
        self.numbers.append(heard.number)
        self._turn.append(self._timed(heard, first=first))
        if first and not self.settings.us:
            yield messages.SpeechStarted(self._turn[0].start, 0.98)
        if self.settings.partials:
            yield self._message(tuple(self._turn), final=False, formatted=not self.settings.us)

    def _timed(self, heard: HeardWord, *, first: bool) -> TimedWord:
        chance = random.Random(f"{self._manner.seed}/{self._session}/{heard.number}")
        misheard = chance.random() < self._manner.misheard
        start, end = (round(1000 * sample / self.settings.rate) for sample in (heard.start, heard.end))
        moved = round(1000 * chance.uniform(-self._manner.jitter, self._manner.jitter))
        early = round(1000 * chance.uniform(0, self._manner.early)) if first else 0
        before = round(self._turn[-1].end) if self._turn else 0
        start = max(start + moved - early, before, 0)
        text = f"m{heard.number}" if misheard else spell(heard.number)
        return TimedWord(start, max(end + moved, start + 1), text, round(chance.uniform(0.8, 1), 6), True)

    def _message(self, words: Sequence[TimedWord], *, final: bool, formatted: bool) -> TurnMessage:
        texts = [word.text for word in words]
        if formatted:
            texts[0] = texts[0].capitalize()
            texts[-1] += "." if final else ""
        shown = tuple(
            msgspec.structs.replace(
                word,
                text=text,
                word_is_final=final or self.settings.us,
                speaker="A" if final and self.settings.speakers else None,
            )
            for word, text in zip(words, texts, strict=True)
        )
        transcript = " ".join(texts)
        order = len(self._turns) - (1 if final else 0)
        return TurnMessage(
            order,
            final,
            transcript,
            formatted,
            int(final),
            shown,
            transcript if final else "",
            language_code="en" if final and self.settings.language else None,
            language_confidence=0.97 if final and self.settings.language else None,
            speaker_label="A" if final and self.settings.speakers else None,
        )

    def _silence(self) -> Iterator[messages.Message]:
        now = round(1000 * self._ear.samples / self.settings.rate)
        if self._turns:
            self._silent_until = max(self._silent_until, round(self._turns[-1][-1].end))
        if now - self._silent_until >= 1000:
            yield messages.Silence(self._silent_until, now)
            self._silent_until = now


def _answer(
    gateway: Mapping[str, Any], final: TurnMessage, failure: Mapping[str, Any] | None
) -> messages.LLMGatewayResponse:
    """The language model repeats the last message that it gets, so that a test can see it."""
    if failure is not None:
        return messages.LLMGatewayResponse(final.turn_order, final.transcript, failure)
    asked = str(gateway["messages"][-1]["content"]).replace("{{turn}}", final.transcript)
    message = {"role": "assistant", "content": asked}
    body = {
        "request_id": f"00000000-0000-4000-8000-{final.turn_order:012d}",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"input_tokens": 12, "output_tokens": 8, "total_tokens": 20},
        "request": {"model": gateway["model"]},
        "response_time": 123_456_789,
    }
    return messages.LLMGatewayResponse(final.turn_order, final.transcript, body)


def _invalid(name: str, text: str) -> SessionRejected:
    return SessionRejected(3006, f"User Input Validation Error: Invalid '{name}': {text}")


def _flag(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    value = query.get(name, str(default)).casefold()
    if value not in {"true", "false"}:
        raise _invalid(name, "Input should be a valid boolean")
    return value == "true"


def _integer(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    if name not in query:
        return default
    try:
        value = int(query[name])
    except ValueError:
        raise _invalid(name, "Input should be a valid integer") from None
    if not low <= value <= high:
        raise _invalid(name, f"Input should be {low} to {high}")
    return value


def _json(query: Mapping[str, str], name: str, kind: type) -> Any:
    if name not in query:
        return None
    try:
        value = msgspec.json.decode(query[name])
    except msgspec.DecodeError:
        value = None
    if not isinstance(value, kind):
        raise _invalid(name, f"Value error, Invalid JSON {'array' if kind is list else 'object'}")
    return value
