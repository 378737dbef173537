"""The v3 protocol: what comes in is typed or Malformed, what goes out is what the service sends."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roomtone.protocol import messages
from roomtone.protocol.messages import (
    MAX_MESSAGE_BYTES,
    Begin,
    ClientCommand,
    Error,
    Heartbeat,
    LLMGatewayResponse,
    Malformed,
    Message,
    Revision,
    Silence,
    SpeakerRevision,
    SpeechStarted,
    Termination,
    TimedWord,
    TurnMessage,
    Unknown,
    Warning,  # noqa: A004 - the name of the message
    encode,
    parse,
    parse_command,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
KINDS: tuple[Any, ...] = get_args(messages.Message)
FIELDS = sorted({name for kind in KINDS for name in kind.__struct_fields__} - {"type"})
ALMOST = st.fixed_dictionaries(
    {"type": st.sampled_from([kind.kind for kind in KINDS])},
    optional=dict.fromkeys(FIELDS, JSON),
)


def only_malformed(text: str | bytes) -> Message | None:
    """The result of `parse`, with every promise about the message checked."""
    try:
        message = parse(text)
    except Malformed:
        return None
    msgspec.json.encode(message)
    encode(message)
    return message


@given(st.binary() | st.text())
@example(b"\xff\xfe")
@example('"\ud800"')
@example('{"type":"Turn","transcript":"\\ud800"}')
def test_no_bytes_raise_anything_else(text: str | bytes) -> None:
    """Arbitrary bytes and text are a message or Malformed."""
    only_malformed(text)


@given(JSON | ALMOST)
def test_no_json_raises_anything_else(value: Any) -> None:
    """Arbitrary JSON, and messages with arbitrary fields, are a message or Malformed, and what passes is encodable."""
    only_malformed(msgspec.json.encode(value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"Turn"',
        "{}",
        '{"type":null}',
        '{"type":7}',
        '{"type":"Turn","turn_order":0,',
        '{"type":"Turn","turn_order":0,"end_of_turn":true}',
        '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":null}',
        '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"x","words":[{"text":"x"}]}',
        '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"x","end_of_turn_confidence":NaN}',
        '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"x","words":"x"}',
        '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"x","words":[{"start":0,"end":1,"text":0}]}',
        '{"type":"Turn","turn_order":0,"end_of_turn":"perhaps","transcript":"x"}',
        '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"x","end_of_turn_confidence":1e999}',
        '{"type":"Turn","turn_order":1e30,"end_of_turn":true,"transcript":"x"}',
        '{"type":"Turn","turn_order":' + "9" * 5000 + ',"end_of_turn":true,"transcript":"x"}',
        '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"x","words":[{"start":0,"end":1e12,"text":"x"}]}',
        '{"type":"Begin"}',
        '{"type":"Begin","id":7,"expires_at":1}',
        '{"type":"LLMGatewayResponse","turn_order":0,"data":' + "[" * 40 + "]" * 40 + "}",
        "[" * 100_000,
        '{"type":' + "[" * 100_000,
        '{"type":"Unknown","text":"' + "x" * (8 << 20) + '"}',
        " " * (MAX_MESSAGE_BYTES + 1),
    ],
    ids=lambda text: text[:60],
)
def test_what_cannot_be_used_is_malformed(text: str) -> None:
    """No JSON, no object, half a message, numbers beyond all bounds, nesting, length: one exception."""
    with pytest.raises(Malformed):
        parse(text)
    with pytest.raises(Malformed):
        parse(text.encode())


def test_a_malformed_message_names_its_kind_and_quotes_nothing() -> None:
    """Its text is safe to log: it names the kind, and quotes no speech."""
    with pytest.raises(Malformed) as malformed:
        parse('{"type":"Turn","transcript":"my secret","turn_order":"my secret"}')
    assert malformed.value.kind == "Turn"
    assert "secret" not in str(malformed.value)
    with pytest.raises(Malformed) as malformed:
        parse('{"type":"Turn","transcript":"my secret')
    assert malformed.value.kind is None
    assert "secret" not in str(malformed.value)


SEEN: list[tuple[str, Message]] = [
    (
        '{"type":"Begin","id":"12c77068","expires_at":1790221526,"configuration":{"model":"x","mode":null}}',
        Begin("12c77068", 1790221526, {"model": "x", "mode": None}),
    ),
    ('{"type":"Begin","id":"12c77068"}', Begin("12c77068")),
    ('{"type":"SpeechStarted","timestamp":1216,"confidence":0.98}', SpeechStarted(1216, 0.98)),
    (
        (
            '{"turn_order":0,"turn_is_formatted":true,"end_of_turn":false,"transcript":"Harbor Point",'
            '"end_of_turn_confidence":0,"words":[{"start":0,"end":428,"text":"Harbor","confidence":0.92,'
            '"word_is_final":false}],"utterance":"","mood":"new","type":"Turn"}'
        ),
        TurnMessage(0, False, "Harbor Point", True, 0, (TimedWord(0, 428, "Harbor", 0.92, False),), ""),
    ),
    (
        (
            '{"turn_order":1.0,"end_of_turn":true,"transcript":"Hi","words":[{"start":0.5,"end":428.0,"text":"Hi"}],'
            '"end_of_turn_confidence":7.1e-5,"type":"Turn"}'
        ),
        TurnMessage(1, True, "Hi", False, 7.1e-5, (TimedWord(0.5, 428, "Hi"),)),
    ),
    (
        (
            '{"type":"SpeakerRevision","revisions":[{"turn_order":1,"speaker_label":"B","words":'
            '[{"start":1,"end":2,"text":"x","speaker":"A"}]}]}'
        ),
        SpeakerRevision((Revision(1, "B", (TimedWord(1, 2, "x", speaker="A"),)),)),
    ),
    ('{"type":"LLMGatewayResponse","turn_order":0,"transcript":"x","data":{}}', LLMGatewayResponse(0, "x", {})),
    ('{"type":"LlmGatewayResponse","turn_order":0,"transcript":"x"}', LLMGatewayResponse(0, "x")),
    ('{"type":"Heartbeat","total_audio_received_ms":9888,"realtime_factor":0.99}', Heartbeat(9888, None, 0.99)),
    ('{"type":"Silence","start_ms":12000,"end_ms":13010}', Silence(12000, 13010)),
    ('{"type":"Warning","warning_code":1234,"warning":"soon"}', Warning("soon", 1234)),
    ('{"type":"Error","error_code":3007,"error":"Input Duration"}', Error("Input Duration", 3007)),
    ('{"type":"Error","error_code":"3007","error":{"message":"x"}}', Error('{"message":"x"}', 3007)),
    ('{"error":"old"}', Error("old")),
    ('{"audio_duration_seconds":69,"session_duration_seconds":73,"type":"Termination"}', Termination(69, 73)),
    ('{"type":"Termination"}', Termination()),
    ('{"type":"Weather","text":"rain"}', Unknown("Weather")),
]


@pytest.mark.parametrize(("text", "message"), SEEN, ids=[text[:50] for text, _ in SEEN])
def test_what_the_service_sends_is_read(text: str, message: Message) -> None:
    """Messages as they were seen on the wire, and their known variations, are typed as they are meant."""
    assert parse(text) == message
    assert parse(text.encode()) == message
    if not isinstance(message, Unknown):
        assert parse(encode(message)) == message


ESSENTIAL = {"turn_order": 3, "end_of_turn": True, "transcript": "Hi there"}
WORDS = [{"start": 0, "end": 428, "text": "Hi"}, {"start": 440.5, "end": 799, "text": "there"}]


def optional(kind: type[msgspec.Struct], *but: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields that may be absent, with anything in them."""
    names = [field.name for field in msgspec.structs.fields(kind) if not field.required and field.name not in but]
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))


@given(optional(TurnMessage, "words"), st.tuples(optional(TimedWord), optional(TimedWord)))
def test_what_is_optional_costs_no_words(fields: dict[str, Any], parts: tuple[dict[str, Any], ...]) -> None:
    """Whatever stands in the fields that may be absent, the words come with their times, and each field is typed."""
    words = [{**part, **word} for part, word in zip(parts, WORDS, strict=True)]
    unusable: set[str] = set()
    turn = parse(msgspec.json.encode({**fields, **ESSENTIAL, "words": words, "type": "Turn"}), unusable.add)

    assert isinstance(turn, TurnMessage)
    assert (turn.turn_order, turn.end_of_turn, turn.transcript) == (3, True, "Hi there")
    assert [(word.start, word.end, word.text) for word in turn.words or ()] == [(0, 428, "Hi"), (440.5, 799, "there")]
    assert unusable <= fields.keys() | parts[0].keys() | parts[1].keys()
    assert parse(encode(turn)) == turn


@pytest.mark.parametrize(
    ("text", "message", "names"),
    [
        (
            (
                '{"type":"Turn","turn_order":0,"end_of_turn":true,"transcript":"a b","end_of_turn_confidence":"nan",'
                '"turn_is_formatted":true,"language_code":7,"language_confidence":"0.9","words":[{"start":0,"end":1,'
                '"text":"a","speaker":0,"confidence":0.5},{"start":1,"end":2,"text":"b","confidence":null}]}'
            ),
            TurnMessage(
                0,
                True,
                "a b",
                turn_is_formatted=True,
                words=(TimedWord(0, 1, "a", 0.5), TimedWord(1, 2, "b")),
                language_confidence=0.9,
            ),
            ["end_of_turn_confidence", "language_code", "speaker"],
        ),
        (
            (
                '{"type":"SpeakerRevision","revisions":[{"turn_order":1,"speaker_label":2,"words":'
                '[{"start":1,"end":2,"text":"x","speaker":"A","word_is_final":"no idea"}]}]}'
            ),
            SpeakerRevision((Revision(1, None, (TimedWord(1, 2, "x", speaker="A"),)),)),
            ["speaker_label", "word_is_final"],
        ),
        ('{"type":"Begin","id":"x","expires_at":"soon"}', Begin("x"), ["expires_at"]),
        ('{"type":"Begin","id":"x","expires_at":1e12}', Begin("x"), ["expires_at"]),
        ('{"type":"Error","error_code":"bad","error":"no"}', Error("no"), ["error_code"]),
        ('{"type":"Termination","session_duration_seconds":{}}', Termination(), ["session_duration_seconds"]),
    ],
)
def test_what_is_of_no_use_is_left_out_by_name(text: str, message: Message, names: list[str]) -> None:
    """The rest of the message counts, and the caller is notified of the fields that did not."""
    unusable: set[str] = set()
    assert parse(text, unusable.add) == message
    assert sorted(unusable) == names


def test_the_server_sends_what_clients_expect() -> None:
    """Whole numbers stay whole, absent fields are absent, `type` is there."""
    assert encode(Termination(69, 73)) == (
        '{"audio_duration_seconds":69,"session_duration_seconds":73,"type":"Termination"}'
    )
    turn = msgspec.json.decode(encode(TurnMessage(0, True, "x", words=(TimedWord(0, 5, "x"),), utterance="")))
    assert turn == {
        "turn_order": 0,
        "end_of_turn": True,
        "transcript": "x",
        "turn_is_formatted": False,
        "end_of_turn_confidence": 0,
        "words": [{"start": 0, "end": 5, "text": "x"}],
        "utterance": "",
        "type": "Turn",
    }


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}, "Hello"),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, None),
        ({"choices": []}, None),
        ({"choices": None}, None),
        ({"error": "no", "status": 429}, None),
        ("busy", None),
        (None, None),
    ],
)
def test_answers_are_read_defensively(data: Any, text: str | None) -> None:
    """A body without words is not an error: it has no text."""
    assert LLMGatewayResponse(0, "x", data).text == text


def test_a_turn_has_the_text_of_its_words() -> None:
    """Partials of the US models come with an empty transcript."""
    words = (TimedWord(0, 1, "hi"), TimedWord(1, 2, "there"))
    assert TurnMessage(0, False, "", words=words).text == "hi there"
    assert TurnMessage(0, False, " Hi. ", words=words).text == "Hi."
    assert TurnMessage(0, True, "", words=None).text == ""


def test_commands_come_back_as_they_went() -> None:
    """The server reads what the client writes, lists as lists."""
    assert parse_command(messages.terminate()) == ClientCommand("Terminate")
    assert parse_command(messages.force_endpoint()) == ClientCommand("ForceEndpoint")
    assert parse_command(messages.keep_alive()) == ClientCommand("KeepAlive")
    changes = {"keyterms_prompt": ["x", "y"], "min_turn_silence": 200}
    assert parse_command(messages.update_configuration(changes)) == ClientCommand("UpdateConfiguration", changes)
    with pytest.raises(ValueError, match="llm_gateway, sample_rate"):
        messages.update_configuration({"sample_rate": 1, "llm_gateway": {}})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("{", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("[]", "Invalid Message"),
        ("{}", "Invalid Message Type: None"),
        ('{"type":"terminate_session"}', "Invalid Message Type: terminate_session"),
        ('{"type":["Terminate"]}', r"Invalid Message Type: \['Terminate'\]"),
    ],
)
def test_bad_commands_get_the_answers_of_the_service(text: str, answer: str) -> None:
    """The texts are those that the service sends with 3006."""
    with pytest.raises(Malformed, match=f"^{answer}$"):
        parse_command(text)
