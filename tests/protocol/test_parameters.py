"""The streaming table: typed, ranged, explained."""

from typing import Any
from urllib.parse import parse_qs, parse_qsl

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.protocol.parameters import (
    ENDPOINTS,
    LOCAL,
    MODELS,
    LLMGatewayConfig,
    ParameterProblem,
    Prompt,
    Streaming,
    check,
    explain,
    query,
    resolve,
)


def read(**table: Any) -> Streaming:
    return msgspec.convert(table, Streaming)


def errors(**table: Any) -> dict[str, str]:
    return {problem.key: problem.text for problem in check(read(**table)) if problem.severity == "error"}


def warnings(**table: Any) -> dict[str, str]:
    return {problem.key: problem.text for problem in check(read(**table)) if problem.severity == "warning"}


def test_an_empty_table_sends_model_and_leak_guard() -> None:
    """Nothing that was not set is sent, except the model and the time after which an unused session ends."""
    assert dict(parse_qsl(query(read(), 16_000))) == {
        "sample_rate": "16000",
        "encoding": "pcm_s16le",
        "speech_model": "universal-3-5-pro",
        "inactivity_timeout": "60",
    }
    assert check(read()) == []


def test_lists_and_objects_are_one_json_string_each() -> None:
    """The service refuses repeated parameters: each name stands once, lists as JSON, booleans in lower case."""
    streaming = read(
        keyterms_prompt=["Birchwood Lane", "Müller & Söhne"],
        language_codes=["en", "de"],
        speaker_labels=True,
        continuous_partials=False,
        vad_threshold=0.25,
        llm_gateway={"model": "m", "messages": [{"role": "user", "content": "{{turn}}"}], "max_tokens": 10},
    )
    sent = parse_qs(query(streaming, 44_100), strict_parsing=True)
    assert sent["keyterms_prompt"] == ['["Birchwood Lane","Müller & Söhne"]']
    assert sent["language_codes"] == ['["en","de"]']
    assert sent["speaker_labels"] == ["true"]
    assert sent["continuous_partials"] == ["false"]
    assert sent["vad_threshold"] == ["0.25"]
    assert sent["sample_rate"] == ["44100"]
    assert sent["llm_gateway"] == ['{"model":"m","messages":[{"role":"user","content":"{{turn}}"}],"max_tokens":10}']
    assert "endpoint" not in sent


@given(st.text(max_size=50), st.text(min_size=1, max_size=50))
def test_any_text_survives_the_query(prompt: str, term: str) -> None:
    """What a person writes arrives as it was written."""
    streaming = read(prompt=prompt, keyterms_prompt=[term])
    sent = dict(parse_qsl(query(streaming, 16_000), keep_blank_values=True))
    assert sent["prompt"] == prompt
    assert msgspec.json.decode(sent["keyterms_prompt"]) == [term]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "fast"),
        ("domain", "legal"),
        ("end_of_turn_confidence_threshold", 1.1),
        ("min_turn_silence", 49),
        ("min_turn_silence", 10_001),
        ("vad_threshold", -0.1),
        ("interruption_delay", 1001),
        ("turn_left_pad_ms", -1),
        ("continuous_partials", "yes"),
        ("keyterms_prompt", ["x"] * 101),
        ("keyterms_prompt", ["x" * 51]),
        ("keyterms_prompt", [""]),
        ("prompt", "x" * 1751),
        ("agent_context", "x" * 1751),
        ("previous_context_n_turns", 101),
        ("language_codes", []),
        ("language_codes", ["en"] * 11),
        ("max_speakers", 0),
        ("max_speakers", 11),
        ("speaker_labels_revision_interval_ms", 86_400_001),
        ("voice_focus", "close"),
        ("voice_focus_threshold", 2),
        ("redact_pii_sub", "stars"),
        ("inactivity_timeout", 4),
        ("inactivity_timeout", 3601),
        ("llm_gateway", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
        ("llm_gateway", {"model": "m", "messages": [], "max_tokens": 1}),
        ("llm_gateway", {"model": "m", "messages": [{"role": "bot", "content": "x"}], "max_tokens": 1}),
        ("speech_model", ""),
        ("sample_rate", 16_000),
    ],
)
def test_values_out_of_range_are_refused_here(key: str, value: object) -> None:
    """What the service would end the session for, 3006, is no valid configuration."""
    with pytest.raises(msgspec.ValidationError):
        read(**{key: value})


def test_names_that_do_not_belong_are_explained() -> None:
    """A key that is refused, or has another name in v3, says so and what to do; unknown ones are msgspec's matter."""
    told = {problem.key: problem.text for problem in explain({"sample_rate": 1, "encoding": "x", "token": "t", "x": 1})}
    assert told.keys() == {"sample_rate", "encoding", "token"}
    assert "`rate`" in told["sample_rate"]
    renamed = explain({"min_end_of_turn_silence_when_confident": 1, "language_code": "en", "keyterms": []})
    assert [
        (one.key, new in one.text) for one, new in zip(renamed, ("min_turn", "_codes", "_prompt"), strict=True)
    ] == [
        ("min_end_of_turn_silence_when_confident", True),
        ("language_code", True),
        ("keyterms", True),
    ]
    assert explain(dict.fromkeys(Streaming.__struct_fields__)) == []


US = "universal-streaming-english"


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"speech_model": "u3-pro"}, "speech_model"),
        ({"speech_model": US, "mode": "balanced"}, "mode"),
        ({"speech_model": US, "prompt": "A meeting."}, "prompt"),
        ({"speech_model": US, "language_codes": ["en"]}, "language_codes"),
        ({"speech_model": "whisper-rt", "keyterms_prompt": ["x"]}, "keyterms_prompt"),
        ({"language_codes": ["multi", "en"]}, "language_codes"),
        ({"max_speakers": 2}, "max_speakers"),
        ({"max_speakers": 2, "speaker_labels": False}, "max_speakers"),
        ({"voice_focus_threshold": 0.5}, "voice_focus_threshold"),
        ({"redact_pii_policies": ["email"]}, "redact_pii_policies"),
        ({"webhook_auth_header_value": "s"}, "webhook_auth_header_value"),
        ({"webhook_url": "ftp://x"}, "webhook_url"),
        ({"min_turn_silence": 500, "max_turn_silence": 400}, "min_turn_silence"),
        ({"endpoint": "http://localhost:8080"}, "endpoint"),
    ],
)
def test_what_does_not_fit_together_is_an_error(table: dict[str, Any], key: str) -> None:
    """Valid values that contradict each other are refused, with the key that is to be changed."""
    assert errors(**table).keys() == {key}


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"speech_model": "universal-9"}, "speech_model"),
        ({"format_turns": True}, "format_turns"),
        ({"end_of_turn_confidence_threshold": 0.4}, "end_of_turn_confidence_threshold"),
        ({"speech_model": US, "voice_focus": "far-field"}, "voice_focus"),
        ({"speech_model": US, "language_detection": True}, "language_detection"),
        ({"redact_pii": True, "include_partial_turns": True}, "include_partial_turns"),
        ({"speaker_labels": True, "speaker_labels_revision_interval_ms": 1000}, "speaker_labels_revision_interval_ms"),
        ({"prompt": "ü" * 1750, "agent_context": "ü" * 1750}, "prompt"),
    ],
)
def test_what_has_no_effect_is_a_warning(table: dict[str, Any], key: str) -> None:
    """What the service ignores, or may not know, is said, and the configuration stays valid."""
    assert errors(**table) == {}
    assert warnings(**table).keys() == {key}


def test_a_prompt_without_the_turn_is_a_warning() -> None:
    """A language model that is never shown what was said is most likely a mistake."""
    prompt = LLMGatewayConfig("m", (Prompt("user", "Summarize {turn}"),), 10)
    assert [problem.key for problem in check(Streaming(llm_gateway=prompt))] == ["llm_gateway.messages"]


@pytest.mark.parametrize("model", sorted(MODELS))
def test_each_known_model_passes(model: str) -> None:
    """The models that the service takes give no problem."""
    assert check(read(speech_model=model)) == []


def test_the_model_for_speakers() -> None:
    """The model that the service recommends for the labels of speakers is known, with what the U3 models take."""
    asked = read(speech_model="assemblyai-stt-3-7-realtime", speaker_labels=True, max_speakers=2, mode="max_accuracy")
    assert check(asked) == []


def test_the_secret_of_the_webhook_is_not_shown() -> None:
    """A table in a log or a traceback has no secret in it; what is sent has."""
    streaming = read(webhook_url="https://x", webhook_auth_header_name="X-Key", webhook_auth_header_value="s3cret")
    assert "s3cret" not in repr(streaming)
    assert "s3cret" in query(streaming, 16_000)


def test_endpoints() -> None:
    """Without one it is AssemblyAI with a key and this machine without; an address stands for itself."""
    assert resolve(None, has_key=True) == ENDPOINTS["assemblyai"] == "wss://streaming.assemblyai.com/v3/ws"
    assert resolve(None, has_key=False) == LOCAL
    assert resolve("local", has_key=True) == LOCAL
    assert resolve("assemblyai-eu", has_key=False) == "wss://streaming.eu.assemblyai.com/v3/ws"
    assert resolve("ws://10.0.0.2:8080", has_key=False) == "ws://10.0.0.2:8080/v3/ws"
    assert resolve("wss://speech.example/own/path", has_key=False) == "wss://speech.example/own/path"


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [
        ("http://localhost:8080", "ws://"),
        ("https://x", "wss://"),
        ("streaming.assemblyai.com", "begins with"),
        ("ws://", "no endpoint"),
        ("ws://[::1", "not an address"),
        ("ws://x:port", "not an address"),
        ("ws://x y/z", "a space"),
        ("wss://user:secret@x", "api_key_file"),
        ("wss://x/v3/ws?speech_model=y", "a key of its own"),
    ],
)
def test_what_is_no_endpoint_says_what_to_write(endpoint: str, hint: str) -> None:
    """The error names what to do, and holds no password."""
    with pytest.raises(ValueError, match=hint) as refused:
        resolve(endpoint, has_key=True)
    assert "secret" not in str(refused.value)
    assert [problem.key for problem in check(Streaming(endpoint=endpoint))] == ["endpoint"]


def test_problems_are_errors_unless_said() -> None:
    """A problem that names no severity refuses the configuration."""
    assert ParameterProblem("x", "y").severity == "error"
