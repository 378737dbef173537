"""The JSON schema of the configuration, for editors: `python -m roomtone.cli.schema > config/roomtone.schema.json`.

Generated from the Structs, with the bundled sinks. A sink of any other kind passes: only its plugin knows its keys.
"""

import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from roomtone.budget.limits import Budget
from roomtone.config import validation
from roomtone.config.model import Room, ServiceConfig, Storage
from roomtone.delivery.plugins import load_plugins
from roomtone.llm.completion import GatewayConfig
from roomtone.llm.conversations import AnalysisPrompt
from roomtone.sinks import Sink
from roomtone.speech.recognizer_process import RecognizerConfig

SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def schema_text() -> str:
    """The schema of the daemon's tables and of the installed sinks."""
    return json.dumps(schema(load_plugins(()).kinds), indent=2, ensure_ascii=False) + "\n"


def schema(kinds: Mapping[str, type[Sink]]) -> dict[str, Any]:
    """The schema of a configuration with sinks of these kinds, or of kinds that are unknown here."""
    known = [kinds[kind] for kind in sorted(kinds)]
    (service, storage, budget, recognizer, gateway, inquiry, room, *sinks), components = msgspec.json.schema_components(
        (ServiceConfig, Storage, Budget, RecognizerConfig, GatewayConfig, AnalysisPrompt, Room, *known),
        schema_hook=_schema_of,
        ref_template="#/$defs/{name}",
    )
    other = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"type": "string", "not": {"enum": sorted(kinds)}}},
    }
    return {
        "$schema": SCHEMA,
        "title": "Roomtone",
        "type": "object",
        "required": ["rooms"],
        "additionalProperties": False,
        "properties": {
            "service": service,
            "storage": storage,
            "budget": budget,
            "rooms": _named(room) | {"minProperties": 1},
            "recognizer": recognizer,
            "gateway": gateway,
            "analysis": _named(inquiry),
            "sinks": _named({"anyOf": [*sinks, other]}),
        },
        "$defs": dedented(components),
    }


def dedented(part: Any, key: str = "") -> Any:
    """A schema whose descriptions read as in Python 3.13: earlier docstrings contain their indentation."""
    match part:
        case dict():
            return {name: dedented(value, name) for name, value in part.items()}
        case list():
            return [dedented(value) for value in part]
        case str() if key == "description":
            return inspect.cleandoc(part)
    return part


def _named(table: dict[str, Any]) -> dict[str, Any]:
    """Tables under names that the user chooses."""
    return {
        "type": "object",
        "propertyNames": {"pattern": f"^{validation.NAME.pattern}$"},
        "additionalProperties": table,
    }


def _schema_of(kind: type) -> dict[str, Any]:
    """The schema of types that msgspec does not know: a path is text."""
    return {"type": "string"}


if __name__ == "__main__":
    sys.stdout.write(schema_text())
