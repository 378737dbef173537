"""roomtone.recognizer.query: what a client may ask for."""

import json
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomtone.recognizer.query import Parameters, SessionRefused, parse_query, update


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "1"])
def test_booleans_are_read_as_every_client_writes_them(text: str) -> None:
    """The Python SDK writes True, others true."""
    assert parse_query(f"format_turns={text}").format_turns is True
    assert parse_query("include_partial_turns=False").include_partial_turns is False


def test_unknown_names_are_ignored() -> None:
    """A misspelt or newer parameter is no error."""
    assert parse_query("sample_rat=8000&formatted_finals=yes&token=abc") == Parameters()


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("sample_rate=7000", "sample_rate"),
        ("sample_rate=many", "sample_rate"),
        ("format_turns=perhaps", "format_turns"),
        ("vad_threshold=1.5", "vad_threshold"),
        ("vad_threshold=nan", "vad_threshold"),
        ("mode=fast", "mode"),
        ("inactivity_timeout=4", "inactivity_timeout"),
        ("encoding=mp3", "encoding"),
        ("encoding=opus", "encoding"),
        ("redact_pii=true", "redact_pii"),
        ("prompt=" + "x" * 1751, "prompt"),
        ("llm_gateway=%7B", "llm_gateway"),
        ("llm_gateway=%5B%5D", "llm_gateway"),
        ("llm_gateway=%7B%7D", "llm_gateway"),
        ("keyterms_prompt=a&keyterms_prompt=b", "keyterms_prompt"),
        (urlencode({"keyterms_prompt": json.dumps(["x"] * 101)}), "keyterms_prompt"),
    ],
)
def test_bad_values_are_refused_by_name(query: str, name: str) -> None:
    """A known name with a bad value ends the session with 3006, and the text names the parameter."""
    with pytest.raises(SessionRefused, match=f"Invalid '{name}': ") as refused:
        parse_query(query)
    assert refused.value.code == 3006


def test_what_the_sdk_sends_is_accepted() -> None:
    """Lists and objects come as one JSON string each."""
    parameters = parse_query(
        urlencode(
            {
                "sample_rate": 16000,
                "speech_model": "universal-streaming-english",
                "format_turns": True,
                "keyterms_prompt": json.dumps(["Roomtone", "x" * 60]),
                "llm_gateway": json.dumps(
                    {"model": "m", "messages": [{"role": "user", "content": "{{turn}}"}], "max_tokens": 9}
                ),
            }
        )
    )
    assert parameters.formatted
    assert parameters.keyterms_prompt[0] == "Roomtone"


def test_the_old_name_of_a_silence_yields_to_the_new_one() -> None:
    """Both names are taken, and the order in which they come does not matter."""
    old, new = "min_end_of_turn_silence_when_confident=700", "min_turn_silence=300"
    assert parse_query(old).min_turn_silence == 700
    assert parse_query(f"{old}&{new}").min_turn_silence == parse_query(f"{new}&{old}").min_turn_silence == 300


def test_the_threshold_chooses_between_the_silences() -> None:
    """0 ends a turn at the shorter silence, 1 only at the longer one."""
    ends = "speech_model=universal-streaming-english&min_turn_silence=200&max_turn_silence=1200"
    assert parse_query(f"{ends}&end_of_turn_confidence_threshold=0").settings.silence == 200
    assert parse_query(f"{ends}&end_of_turn_confidence_threshold=1").settings.silence == 1200
    assert parse_query("min_turn_silence=3").settings.silence >= 50
    assert parse_query("min_turn_silence=2000&max_turn_silence=100").settings.silence == 2000


def test_only_models_of_the_first_generation_are_unformatted() -> None:
    """format_turns is theirs; the later models always format."""
    assert not parse_query("speech_model=universal-streaming-english").formatted
    assert parse_query("speech_model=u3-rt-pro").formatted
    assert parse_query("").formatted


def test_an_update_changes_what_it_names_and_nothing_else() -> None:
    """What was set stays; what only a new session can change, or is unknown, is ignored."""
    before = parse_query(
        urlencode(
            {"vad_threshold": 0.7, "llm_gateway": '{"model":"m","messages":[],"max_tokens":1}', "mode": "balanced"}
        )
    )
    after = update(before, {"max_turn_silence": 900, "sample_rate": 8000, "nonsense": 1, "keyterms_prompt": []})
    assert (after.max_turn_silence, after.sample_rate, after.vad_threshold) == (900, 16_000, 0.7)
    assert after.llm_gateway == before.llm_gateway


def test_a_bad_update_is_refused() -> None:
    """A bad value ends a running session as it does a new one."""
    with pytest.raises(SessionRefused, match="Invalid 'agent_context'"):
        update(Parameters(), {"agent_context": "x" * 1751})
    with pytest.raises(SessionRefused, match="Invalid 'min_turn_silence'"):
        update(Parameters(), {"min_turn_silence": "soon"})


VALUES = st.one_of(
    st.binary().map(lambda raw: raw.decode("latin-1")),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["9" * 5000, "[" * 5000, '{"a":' * 5000, "true", "1e999", "-0", "[1,2]", '["\\ud800"]']),
)


@given(st.dictionaries(st.sampled_from([*Parameters.__struct_fields__, "token", "x"]), VALUES))
def test_no_query_does_more_than_be_refused(values: dict[str, str]) -> None:
    """Whatever stands in the address, it is taken or refused, and what is taken gives settings within bounds."""
    try:
        settings = parse_query(urlencode(values, errors="replace")).settings
    except SessionRefused:
        return
    assert 50 <= settings.silence <= 10_000
    assert 0 <= settings.threshold <= 1
