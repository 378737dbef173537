"""roomtone.cli.commands.events: the published schema is that of what is written, for every kind."""

import json
from datetime import UTC, datetime
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner

from roomtone.cli.commands.events import command, schema
from roomtone.events import Durable, Live, Turn, Word, encode

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
KINDS: tuple[Any, ...] = (*get_args(Durable), *get_args(Live))


def example(kind: Any) -> Any:
    """An event of the kind with something in every field."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        choices = [str(choice) for choice in get_args(field.type) if isinstance(choice, str)]
        made = {int: 7, float: -1.5, str: "text", datetime: NOW, bool: True, dict[str, Any]: {"a": [1]}}
        types = [field.type, *get_args(field.type)]
        if choices:
            values[field.name] = choices[0]
        elif field.name == "words":
            values[field.name] = (Word("text", 1, 2, 0.5, "A"), Word("more", 2, 3))
        else:
            values[field.name] = next(made[each] for each in types if each in made)
    return kind(**values)


@pytest.fixture(scope="module")
def validator() -> Any:
    published = schema()
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_valid(validator: Any, kind: Any) -> None:
    """What `encode` writes is valid by exactly one kind, with every field there; one field less is not."""
    line = json.loads(encode(example(kind)))
    validator.validate(line)
    for name in line:
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({key: value for key, value in line.items() if key != name})


def test_the_smallest_turn_is_valid(validator: Any) -> None:
    """Fields with nothing in them are null or empty, and are there."""
    turn = Turn(room="desk", position=0, at=NOW, session_id="s", turn_order=0, text="")
    validator.validate(json.loads(encode(turn)))


def test_the_command_prints_it() -> None:
    """`--schema` is the schema and nothing else; without it there is a line for each kind."""
    assert json.loads(CliRunner().invoke(command, ["--schema"]).output) == json.loads(json.dumps(schema()))
    lines = CliRunner().invoke(command, []).output.splitlines()
    assert len(lines) == len(KINDS)
    assert lines[0].startswith("recording_started  seq id room position at")
