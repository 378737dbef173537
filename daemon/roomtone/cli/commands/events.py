"""`roomtone events`: the kinds of events, and their JSON schema for programs that receive them."""

import json
from typing import Any, get_args

import click
import msgspec

from roomtone.cli.output import say_text
from roomtone.cli.schema import SCHEMA, dedented
from roomtone.events import Durable, Live


@click.command(short_help="Print the kinds of events, or the JSON schema of their lines.")
@click.option("--schema", "as_schema", is_flag=True, help="Print the JSON schema of an event's line instead.")
def command(*, as_schema: bool) -> None:
    """List the kinds of events with their fields: first the durable events, then the live ones."""
    say_text(schema_text() if as_schema else table())


def table() -> str:
    """A line for each kind: its name and the fields of its JSON."""
    kinds = [(_tag(struct), [field.encode_name for field in msgspec.structs.fields(struct)]) for struct in _structs()]
    width = max(len(kind) for kind, _ in kinds)
    return "".join(f"{kind:{width}}  {' '.join(fields)}\n" for kind, fields in kinds)


def schema_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of an event in the jsonl, webhook and command sinks.

    Every field is always present. Later versions may add kinds and fields, but do not remove any.
    """
    structs = _structs()
    references, components = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    for definition in components.values():
        definition["required"] = sorted(definition["properties"])
    mapping = {_tag(struct): reference["$ref"] for struct, reference in zip(structs, references, strict=True)}
    return {
        "$schema": SCHEMA,
        "title": "Roomtone event",
        "type": "object",
        "required": ["kind"],
        "oneOf": list(references),
        "discriminator": {"propertyName": "kind", "mapping": mapping},
        "$defs": dedented(components),
    }


def _structs() -> tuple[type[msgspec.Struct], ...]:
    return (*get_args(Durable), *get_args(Live))


def _tag(struct: type[msgspec.Struct]) -> str:
    return str(struct.__struct_config__.tag)
