"""Finds all problems of a table of the configuration: one line each, which says what to do. Pure.

msgspec stops at the first problem and names Python's types. A table that it refuses is checked here again, key by key.
msgspec alone judges each value, so that both always agree.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import inspect

from roomtone import secret
from roomtone.suggestions import listing, unknown

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Valid names of rooms and sinks: they become files, keys and labels."""

Advice: TypeAlias = Callable[[tuple[str, ...], str], str | None]
"""Gives advice about a key that a table does not have, if there is any beyond a similar name."""

_SHOWN = 60


def no_advice(table: tuple[str, ...], key: str) -> None:
    """There is none beyond a similar name."""


class Problem(msgspec.Struct, frozen=True):
    """One problem: the table (as a path), the key and its value if there are any, and a text that says what to do."""

    table: tuple[str, ...]
    text: str
    key: str | None = None
    value: Any = msgspec.UNSET

    def __str__(self) -> str:
        place = f"[{'.'.join(map(_quoted, self.table))}]" if self.table else ""
        entry = "" if self.key is None else self.key
        if self.key is not None and self.value is not msgspec.UNSET:
            entry += f" = {show(self.value, self.key)}"
        return ": ".join(part for part in (" ".join(filter(None, (place, entry))), self.text) if part)


def to_type(wanted: type, value: Any) -> Any:
    """The dec_hook of msgspec: the types beyond its own that a Struct of the configuration may have."""
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"cannot be made a {wanted.__name__}")


def diagnose(value: Any, wanted: Any, table: tuple[str, ...], advice: Advice = no_advice) -> Iterator[Problem]:
    """Every problem of this table, read as the Struct type (or union of them) `wanted`; none when it is valid."""
    if isinstance(value, dict):
        yield from _problems(value, wanted, table, None, advice)
    else:
        yield Problem(table[:-1], "must be a table", table[-1], value)


def show(value: Any, key: str = "") -> str:
    """The value as TOML, short, without secrets."""
    text = _toml(secret.mask(value, key))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def expectation(shape: inspect.Type) -> str:
    """A description of the values of this type, in terms of TOML."""
    match shape:
        case inspect.IntType():
            text = "a whole number" + _range(shape)
        case inspect.FloatType():
            text = "a number" + _range(shape)
        case inspect.StrType():
            text = "text" + _length(shape, "character") + (f" like {shape.pattern}" if shape.pattern else "")
        case inspect.LiteralType():
            text = ("one of " if len(shape.values) > 1 else "") + ", ".join(map(_toml, shape.values))
        case inspect.ListType() | inspect.VarTupleType():
            text = f"a list{_length(shape, 'item')} of {expectation(shape.item_type)}"
        case inspect.UnionType() if tags := [tag for tag in _structs(shape) if tag is not None]:
            text = f"a table with kind {' or '.join(map(_toml, tags))}"
        case inspect.UnionType():
            text = " or ".join(expectation(kind) for kind in shape.types if not isinstance(kind, inspect.NoneType))
        case inspect.CustomType(cls=cls) if cls is Path:
            text = "a path"
        case inspect.DictType():
            text = f"a table in which each value is {expectation(shape.value_type)}"
        case _:
            text = _PLAIN.get(type(shape)) or type(shape).__name__.removesuffix("Type").lower()
    return text


_PLAIN: Mapping[type[inspect.Type], str] = {
    inspect.BoolType: "true or false",
    inspect.StructType: "a table",
}


def _problems(value: Any, wanted: Any, table: tuple[str, ...], key: str | None, advice: Advice) -> Iterator[Problem]:
    try:
        msgspec.convert(value, wanted, dec_hook=to_type)
    except msgspec.ValidationError as error:
        refusal = str(error)
    else:
        return
    shape = inspect.type_info(wanted)
    structs = _structs(shape)
    inner = table if key is None else (*table, key)
    match value:
        case dict() if structs:
            yield from _in_table(value, structs, inner, advice, refusal)
        case list() if (item := _item(shape)) and key is not None:
            for index, element in enumerate(value):
                yield from _problems(element, item, table, f"{key}[{index}]", advice)
        case _:
            yield Problem(table, f"must be {expectation(shape)}", key, value)


def _in_table(
    value: dict[str, Any],
    structs: Mapping[str | None, type],
    table: tuple[str, ...],
    advice: Advice,
    refusal: str,
) -> Iterator[Problem]:
    """The problems of a table that is one of these Structs, by its tag."""
    tag_field = next(iter(structs.values())).__struct_config__.tag_field  # type: ignore[attr-defined]
    tag = value.get(tag_field) if tag_field else None
    if tag_field and tag is None:
        yield Problem(table, f"{tag_field} is missing; it must be one of {listing(map(str, structs))}")
        return
    if tag_field and not (isinstance(tag, str) and tag in structs):
        yield Problem(table, unknown(tag_field, str(tag), map(str, structs)), tag_field, tag)
        return
    found = list(_in_fields(value, structs[tag], table, tag_field, advice))
    # Each field is valid by itself: then the Struct itself has refused it, with a text that may begin with the field.
    yield from found or [_ruled(value, table, refusal.partition(" - at `")[0])]


def _ruled(value: dict[str, Any], table: tuple[str, ...], text: str) -> Problem:
    key, _, rest = text.partition(": ")
    return Problem(table, rest, key, value[key]) if key in value else Problem(table, text)


def _in_fields(
    value: dict[str, Any], struct: type, table: tuple[str, ...], tag_field: str | None, advice: Advice
) -> Iterator[Problem]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for key, entry in value.items():
        if key == tag_field:
            continue
        if key in fields:
            yield from _problems(entry, fields[key].type, table, key, advice)
        else:
            yield Problem(table, advice(table, key) or unknown("key", key, fields), key, entry)
    for key, field in fields.items():
        if field.required and key not in value:
            yield Problem(table, f"{key} is missing; it must be {expectation(inspect.type_info(field.type))}")


def _structs(shape: inspect.Type) -> dict[str | None, type]:
    """The Structs that this type can be, by their tags (None for one without)."""
    match shape:
        case inspect.StructType():
            return {None if shape.tag is None else str(shape.tag): shape.cls}
        case inspect.UnionType():
            return {tag: struct for kind in shape.types for tag, struct in _structs(kind).items()}
        case _:
            return {}


def _item(shape: inspect.Type) -> type | None:
    """The Struct that a list of this type holds."""
    match shape:
        case inspect.ListType() | inspect.VarTupleType():
            return next(iter(_structs(shape.item_type).values()), None)
        case inspect.UnionType():
            return next(filter(None, map(_item, shape.types)), None)
        case _:
            return None


def _range(shape: inspect.IntType | inspect.FloatType) -> str:
    if shape.ge is not None and shape.le is not None:
        return f" from {shape.ge:g} to {shape.le:g}"
    bounds = (("at least", shape.ge), ("above", shape.gt), ("at most", shape.le), ("below", shape.lt))
    said = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    return f", {' and '.join(said)}" if said else ""


def _length(shape: inspect.StrType | inspect.ListType | inspect.VarTupleType, unit: str) -> str:
    low, high = shape.min_length, shape.max_length
    if low and high:
        return f" ({low} to {high} {unit}s)"
    if low:
        return f" (at least {low} {unit}{'s' if low > 1 else ''})"
    return f" (at most {high} {unit}s)" if high is not None else ""


def _toml(value: Any) -> str:
    match value:
        case dict():
            inner = ", ".join(f"{_quoted(str(key))} = {_toml(entry)}" for key, entry in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case bool() | str():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value)


def _quoted(key: str) -> str:
    """A key as TOML writes it: quoted only where it must be."""
    return key if re.fullmatch(r"[A-Za-z0-9_\[\]-]+", key) else msgspec.json.encode(key).decode()
